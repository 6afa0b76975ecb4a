"""The same run on many machines: Ray Data hands out the tasks, one ledger stores all.

The ledger lives in an actor on the machine that started the run. Workers elsewhere go through the
same :func:`~pixellm.curation.pipeline.work` and ask that actor before and after every request, so
the rules on repeating, on cost and on being killed are those of a run on one machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pixellm.curation.client import Client, Price, Reply, Request
from pixellm.curation.ledger import CostCapError, Ledger
from pixellm.curation.pipeline import Progress, RequestRunner, RunLimits, StoppedError, work
from pixellm.curation.proposal import Task, Verdict, Writing

_TASKS_AT_ONCE = 8
_CAP = "cost cap"


def work_on_ray(
    folder: Path,
    writing: Writing,
    clients: Callable[[], Mapping[str, Client]],
    prices: Mapping[str, Price],
    limits: RunLimits,
    progress: Progress,
) -> str:
    """Bring all open tasks to their verdicts on a Ray cluster.

    Ray is initialised here where it isn't: locally, or at ``RAY_ADDRESS``. The photos lie at the
    same path on all machines.

    Args:
        folder: the run's folder, whose ledger is closed and has its tasks already.
        writing: how tasks become requests.
        clients: makes the clients inside each worker; API keys come from its environment.
        prices: per million tokens, by the name of the client.
        limits: ``workers`` is the number of requests in flight over the whole cluster.
        progress: called as tasks come to an end.

    Returns:
        "" when nothing is left open, else one sentence on why the run stopped.

    Raises:
        ClientError: no request can be answered.
        OSError: the ledger can't be written.
    """
    import ray
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(ignore_reinit_error=True, log_to_driver=False)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    ledger_actor: Any = ray.remote(_LedgerActor)
    actor = ledger_actor.options(num_cpus=0, scheduling_strategy=here).remote(folder)
    ledger = _RemoteLedger(actor)
    try:
        numbers = ledger.call("open_tasks")
        total = sum(ledger.call("counts")["tasks"].values())
        if not numbers:
            return ""
        workers = min(limits.workers, len(numbers))
        items = [{"task": number} for number in numbers]
        blocks = max(workers, len(numbers) // _TASKS_AT_ONCE)
        done: Any = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
            _Worker,
            fn_constructor_args=(actor, writing, clients, prices, limits),
            batch_size=_TASKS_AT_ONCE,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=0.01,
        )
        reason, finished = "", total - len(numbers)
        for row in done.iter_rows():
            reason = reason or str(row["stopped"])
            finished += not row["stopped"]
            progress(finished, total, ledger.call("spent"))
        return reason
    finally:
        ledger.call("close")
        ray.kill(actor)


class _LedgerActor:
    """The actor that owns the ledger and calls it for everybody."""

    def __init__(self, folder: Path) -> None:
        self._ledger = Ledger(folder)

    def call(self, name: str, *values: Any) -> Any:
        """Any method of the ledger; a reached cap is a value, since Ray wraps exceptions."""
        try:
            return getattr(self._ledger, name)(*values)
        except CostCapError:
            return _CAP


class _RemoteLedger:
    """The ledger as a worker sees it, wherever it runs."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def call(self, name: str, *values: Any) -> Any:
        """Call a method of the ledger, and wait for its answer."""
        import ray

        return ray.get(self._actor.call.remote(name, *values))

    def task(self, number: int) -> Task:
        return self.call("task", number)

    def replies(self, task: int) -> dict[str, Reply]:
        return self.call("replies", task)

    def begin(self, request: Request, model: str, max_cost: float | None = None) -> int:
        exchange = self.call("begin", request, model, max_cost)
        if exchange == _CAP:
            raise CostCapError
        return int(exchange)

    def answer(self, exchange: int, reply: Reply, cost: float) -> None:
        self.call("answer", exchange, reply, cost)

    def fail(self, exchange: int, error: str) -> None:
        self.call("fail", exchange, error)

    def settle(self, task: int, verdict: Verdict) -> None:
        self.call("settle", task, verdict)


class _Worker:
    """Works on one batch of task numbers at a time, one request in flight."""

    def __init__(
        self,
        actor: Any,
        writing: Writing,
        clients: Callable[[], Mapping[str, Client]],
        prices: Mapping[str, Price],
        limits: RunLimits,
    ) -> None:
        self._writing = writing
        self._runner = RequestRunner(_RemoteLedger(actor), clients(), prices, limits)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        stopped = []
        for number in batch["task"]:
            try:
                work(int(number), self._writing, self._runner)
                stopped.append("")
            except StoppedError as reason:
                stopped.append(str(reason))
        return {"task": batch["task"], "stopped": stopped}
