"""The batches of a prediction job on many machines: Ray Data hands them out and keeps the order.

Every worker is a :class:`~pixellm.prediction.job.BatchWorker` with its own engine; the answers
come back to the machine that started the job, which alone writes the file. Pictures lie at the
same paths on all machines.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pixellm.prediction.job import BatchWorker, Spread
from pixellm.prediction.rows import Row

if TYPE_CHECKING:
    from pixellm.evaluation.runner import Predictor


def answer_on_ray(
    load: Callable[[], Predictor], model: str, workers: int, gpus_per_worker: float = 0.0
) -> Spread:
    """Answer batches on a Ray cluster, started here where none runs (or at ``RAY_ADDRESS``).

    Args:
        load: makes a worker's engine; pickled.
        model: what the model is called in the answers.
        workers: engines over the whole cluster.
        gpus_per_worker: what each of them reserves.
    """

    def spread(batches: Sequence[Sequence[Row]]) -> Iterator[bytes]:
        import ray
        import ray.data

        ray.init(ignore_reinit_error=True, log_to_driver=False)
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        # One batch a block: a finished batch is written at once, and no kill costs more.
        items = ray.data.from_items(
            [{"rows": pickle.dumps(list(batch))} for batch in batches],
            override_num_blocks=len(batches),
        )
        worker: Any = _RayWorker
        answered: Any = items.map(
            worker,
            fn_constructor_args=(load, model),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(batches))),
            num_cpus=1,
            num_gpus=gpus_per_worker or None,
        )
        for row in answered.iter_rows():
            yield row["lines"]

    return spread


class _RayWorker:
    """A worker inside one of Ray's processes."""

    def __init__(self, load: Callable[[], Predictor], model: str) -> None:
        self._answer = BatchWorker(load, model)

    def __call__(self, item: dict[str, Any]) -> dict[str, bytes]:
        return {"lines": self._answer(pickle.loads(item["rows"]))}
