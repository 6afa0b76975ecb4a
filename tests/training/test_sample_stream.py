from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixellm.data.registry import open_reader
from pixellm.training.config import DataSource, Stage
from pixellm.training.stream import Mixture, batch_stream, build_source, build_sources
from pixellm.types import Sample, Turn


class Numbers:
    def __init__(self, name: str, length: int) -> None:
        self.name, self.length = name, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Sample, ...]:
        if index >= self.length:
            raise IndexError(index)
        pixels = np.zeros((2, 2, 3), np.uint8)
        return (Sample(pixels, (2, 2), (Turn("?", "."),), f"{self.name}{index}"),)


def names(rows: list[tuple[Sample, ...]]) -> dict[str, Any]:
    return {"sample_ids": [row[0].id for row in rows]}


def read(start: int, count: int, **options: Any) -> list[str]:
    mixture = Mixture([Numbers("a", 10**6)], [1.0])
    stream = batch_stream(mixture, names, start=start, batch_size=2, num_batches=count, **options)
    return [name for batch in stream for name in batch["sample_ids"]]


def test_position_is_one_integer_and_workers_change_nothing() -> None:
    whole = read(0, 6)
    assert whole == [f"a{index}" for index in range(12)]
    assert read(8, 2) == whole[8:]
    assert read(0, 6, num_workers=2) == whole


def test_processes_share_the_samples_without_repeats() -> None:
    parts = [read(0, 3, rank=rank, num_processes=2) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1], key=lambda name: int(name[1:])) == read(0, 6)


class BadRows(Numbers):
    """Every row from the third on is bad, in its own way."""

    def __getitem__(self, index: int) -> tuple[Sample, ...]:
        if index == 2:
            raise ValueError("rows.json, row 2: it has no question.")
        if index == 3:
            raise FileNotFoundError("There is no image at three.jpg.")
        if index == 4:
            b"\xff".decode("utf-8")
        return super().__getitem__(index)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (2, ValueError, r"^rows\.json, row 2: it has no question\.$"),
        (3, FileNotFoundError, r"^There is no image at three\.jpg\.$"),
        (4, ValueError, r"^'utf-8' codec can't decode byte 0xff in position 0: [\w ]+$"),
    ],
)
def test_a_bad_row_is_told_in_its_own_sentence_from_workers_too(
    bad: int, kind: type[Exception], words: str, num_workers: int
) -> None:
    mixture = Mixture([BadRows("a", 9)], [1.0])
    start = bad - 1 if bad == 2 else bad
    sizes = {"start": start, "batch_size": 1, "num_batches": 3, "num_workers": num_workers}
    stream = batch_stream(mixture, names, **sizes)
    if bad == 2:
        assert next(stream) == {"sample_ids": ["a1"]}
    with pytest.raises(kind, match=words):
        next(stream)


def test_mixture_keeps_shares_and_visits_each_source_in_order() -> None:
    sources = [Numbers("a", 10**6), Numbers("b", 10**6), Numbers("c", 5)]
    mixture = Mixture(sources, [2, 9, 1])
    drawn = [mixture[index][0].id for index in range(2400)]
    for letter, share in (("a", 2 / 12), ("b", 9 / 12)):
        ours = [name for name in drawn if name[0] == letter]
        assert ours == [f"{letter}{index}" for index in range(len(ours))]
        assert len(ours) == pytest.approx(2400 * share, abs=4)
    finite = [name for name in drawn if name[0] == "c"]
    assert finite[:6] == ["c0", "c1", "c2", "c3", "c4", "c0"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"seed": "first"}, "seed 'first' should be a valid integer"),
        ({"length": 10.5}, "length 10.5 should be a valid integer"),
        ({"single_target": "no"}, "single_target 'no' should be a valid boolean"),
        ({"num_objects": "2"}, "num_objects '2' should be a valid integer"),
        ({"dialogs": 2}, "'dialogs'"),
    ],
)
def test_arguments_of_another_type_are_refused(args: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"Options of data set 'scenes': .*{message}"):
        build_source(DataSource(name="scenes", args=args))


def test_options_of_classes_below_are_known_too(tmp_path: Path) -> None:
    for options, message in (
        ({"max_instances": "many"}, "max_instances 'many' should be a valid integer"),
        ({"targets": "masks"}, "targets 'masks' should be 'instances' or 'regions'"),
        ({"min_area": True}, "min_area True should be a valid number"),
    ):
        with pytest.raises(ValueError, match=message):
            open_reader("labelme", tmp_path, "train", **options)


def test_unknown_data_set_is_named() -> None:
    stage = Stage(name="s", steps=1, batch_size=1)
    with pytest.raises(ValueError, match="Unknown data set 'scnes'"):
        build_sources([DataSource(name="scnes")], stage)
