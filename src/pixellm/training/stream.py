"""From a count of samples to batches: which sample comes when, on which process and worker.

The order is a pure function of the recipe: sample number n of the run is always the same one,
so a run resumes exactly from one integer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, get_worker_info

from pixellm.data.dataset import Dataset
from pixellm.data.registry import READERS, construct
from pixellm.training.config import DataSource, Stage
from pixellm.types import Sample

DATASETS: dict[str, str] = {
    "scenes": "pixellm.scenes.dataset:ScenesDataset",
    "photo_scenes": "pixellm.data.photo_scenes:PhotoScenes",
    "seen_photos": "pixellm.labelling.seen_photos:SeenPhotos",
    **READERS,
}
"""Name in a recipe -> `module:class`."""

PERIOD = 1000
"""Samples after which the interleaving of sources repeats; shares are exact to 1 / PERIOD."""


class SampleDataset(Protocol):
    """Map-style data: an index gives the dialogues about one image, always the same."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Sample, ...]: ...


Batch = dict[str, Any]
"""Tensors of one micro-batch by name, and `sample_ids`, a list of strings."""

CollateFn = Callable[[list[tuple[Sample, ...]]], Batch]


def build_sources(sources: Sequence[DataSource], stage: Stage) -> list[SampleDataset]:
    """Construct the data sets of a stage, in the recipe's order."""
    return [build_source(source, stage.data_args) for source in sources]


def check_sources(sources: Sequence[DataSource], stages: Sequence[Stage]) -> None:
    """Construct the data sets of every stage but the first once and let go of them.

    A mistake in a late stage is thus found before the first step of the run, not days into it.
    What opens the first stage is left to it, and stages with the same arguments share a look.
    """
    for changes in distinct_changes(stages)[1:]:
        for source in sources:
            build_source(source, changes)


def distinct_changes(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """What the stages change in the arguments of data sets, in their order, each once."""
    found: list[dict[str, Any]] = []
    for stage in stages:
        if stage.data_args not in found:
            found.append(stage.data_args)
    return found


def build_source(source: DataSource, changes: Mapping[str, Any] | None = None) -> SampleDataset:
    """Construct one data set, some of its arguments changed."""
    if source.name not in DATASETS:
        raise ValueError(
            f"Unknown data set {source.name!r} in the recipe; known: {', '.join(DATASETS)}."
        )
    module, _, name = DATASETS[source.name].partition(":")
    constructor = getattr(import_module(module), name)
    args = {**source.args, **(changes or {})}
    built: SampleDataset = construct(constructor, source.name, (), args)
    return built


class Mixture:
    """Several data sets as one endless sequence in fixed shares.

    Sources take turns by largest deficit, so that every stretch holds them in their shares. A
    finite source starts over at its end, a reader in another order and wording.
    """

    def __init__(self, sources: Sequence[SampleDataset], weights: Sequence[float]) -> None:
        self.sources = sources
        self.pattern = _interleave(weights) if len(sources) > 1 else [0]
        self.in_period = [self.pattern.count(index) for index in range(len(sources))]
        seen = [0] * len(sources)
        self.rank = []
        for source in self.pattern:
            self.rank.append(seen[source])
            seen[source] += 1

    def __getitem__(self, index: int) -> tuple[Sample, ...]:
        cycle, position = divmod(index, len(self.pattern))
        which = self.pattern[position]
        inner = cycle * self.in_period[which] + self.rank[position]
        source = self.sources[which]
        epoch, item = divmod(inner, len(source))
        if isinstance(source, Dataset):
            return source.dialogues(item, epoch)
        return source[item]


def _interleave(weights: Sequence[float]) -> list[int]:
    """Source of each of PERIOD positions."""
    shares = [weight / sum(weights) for weight in weights]
    counts = [0] * len(shares)
    pattern = []
    for position in range(1, PERIOD + 1):
        due = [share * position - count for share, count in zip(shares, counts, strict=True)]
        chosen = due.index(max(due))
        counts[chosen] += 1
        pattern.append(chosen)
    return pattern


@dataclass
class _Preparation:
    """Data and collator as one, for a loader that asks for a whole batch at once.

    Torch wraps what a worker raises into its own words and the worker's traceback. What is wrong
    with data is therefore handed over as a result, to be raised where the run is.
    """

    mixture: Mixture
    collate: CollateFn

    def __getitem__(self, indices: Sequence[int]) -> Batch | Exception:
        try:
            return self.collate([self.mixture[index] for index in indices])
        except (ImportError, OSError, ValueError) as error:
            if get_worker_info() is None:
                raise
            return _with_sentence_alone(error)


def _with_sentence_alone(error: Exception) -> Exception:
    """An error of the same type that any process can be sent."""
    try:
        return type(error)(str(error))
    except TypeError:  # such as UnicodeDecodeError, which is built from five values
        return OSError(str(error)) if isinstance(error, OSError) else ValueError(str(error))


def _batch_or_raise(prepared: Batch | Exception) -> Batch:
    if isinstance(prepared, Exception):
        raise prepared
    return prepared


def batch_stream(
    mixture: Mixture,
    collate: CollateFn,
    *,
    start: int,
    batch_size: int,
    num_batches: int,
    rank: int = 0,
    num_processes: int = 1,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Micro-batches of one process, in order; processes never see the same sample.

    They begin at sample number ``start``, over all processes, and hold ``batch_size`` images each.
    Samples become tensors in the workers.
    """
    options: dict[str, Any] = {"prefetch_factor": 4} if num_workers else {}
    first, stride = start + rank * batch_size, batch_size * num_processes
    firsts = range(first, first + num_batches * stride, stride)
    loader: DataLoader[Any] = DataLoader(
        _Preparation(mixture, collate),  # type: ignore[arg-type]
        batch_size=None,  # one range of indices is one batch
        sampler=[range(index, index + batch_size) for index in firsts],
        num_workers=num_workers,
        generator=torch.Generator(),  # its own: the global one must not move when a run resumes
        **options,
    )
    return map(_batch_or_raise, iter(loader))


def question_texts(sources: Sequence[SampleDataset], limit: int) -> Iterator[str]:
    """Questions and answers of the first samples, for a new model's tokenizer."""
    for source in sources:
        for index in range(min(limit, len(source))):
            turns = itertools.chain.from_iterable(sample.turns for sample in source[index])
            for turn in turns:
                yield turn.question
                yield turn.answer
