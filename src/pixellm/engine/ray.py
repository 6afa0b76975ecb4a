"""The batches of a job over rows on many machines: Ray Data hands them out and keeps the order.

Every worker is a :class:`~pixellm.engine.questions.RowWorker` with its own engine; the answers
come back to the machine that started the job, which alone writes the file. Images, and the files
of a data set, lie at the same paths on all machines.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pixellm.data.lazy import Lazy
from pixellm.data.rows import JobRow
from pixellm.engine.jobs import BatchAnswers, Spread
from pixellm.engine.questions import RowWorker

if TYPE_CHECKING:
    from pixellm.engine.dialogues import Predictor


def answer_on_ray(
    load: Callable[[], Predictor],
    model: str,
    workers: int,
    gpus_per_worker: float = 0.0,
    temperature: float = 0.0,
) -> Spread[JobRow]:
    """Answer batches on a Ray cluster, started here where none runs (or at ``RAY_ADDRESS``).

    ``load`` is pickled; ``workers`` counts the engines over the whole cluster, each of which
    reserves ``gpus_per_worker``. See :class:`~pixellm.engine.questions.RowWorker`.
    """

    def spread(batches: Sequence[Sequence[JobRow]]) -> Iterator[BatchAnswers]:
        import ray
        import ray.data

        ray.init(ignore_reinit_error=True, log_to_driver=False)
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        # One batch a block: a finished batch is written at once, and no kill costs more.
        items = ray.data.from_items(
            [{"rows": pickle.dumps(_light(batch))} for batch in batches],
            override_num_blocks=len(batches),
        )
        lazy = batches[0] if isinstance(batches[0], Lazy) else None
        build = ray.put(lazy.build) if lazy is not None else None
        worker: Any = _RayWorker
        answered: Any = items.map(
            worker,
            fn_constructor_args=(load, model, temperature, build),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(batches))),
            num_cpus=1,
            num_gpus=gpus_per_worker or None,
        )
        for row in answered.iter_rows():
            yield BatchAnswers(row["lines"], row["images"], row["seconds"])

    return spread


def _light(batch: Sequence[JobRow]) -> list[JobRow] | range:
    """What is sent of a batch: its rows, or the numbers of those that a worker builds itself."""
    return batch.numbers if isinstance(batch, Lazy) else list(batch)


class _RayWorker:
    """A worker inside one of Ray's processes.

    ``build`` refers to what makes a row of its number; None where the rows are sent.
    """

    def __init__(
        self, load: Callable[[], Predictor], model: str, temperature: float, build: Any
    ) -> None:
        import ray

        self._build = None if build is None else ray.get(build)
        self._answer = RowWorker(load, model, temperature)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        sent = pickle.loads(item["rows"])
        rows = sent if self._build is None else Lazy(sent, self._build)
        answers = self._answer(rows)
        return asdict(answers)
