"""What a data set gets from Dataset: rows read once, order, epochs, evaluation, checks, counts."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from pixellm.data.dataset import BadRow, Dataset, Entry, Row, Text, UnusableDataError
from pixellm.masks import encode_mask
from pixellm.types import Sample, Turn


class BirdRow(Row):
    noun = "row"
    image: str
    question: Text
    legs: int


class Birds(Dataset[BirdRow]):
    name, title, obtain = "birds", "Birds", "ask somebody"
    splits: ClassVar = ("train",)
    row_type = BirdRow

    def __init__(self, root: Path | str, split: str = "train", seed: int = 0) -> None:
        super().__init__(root, split, seed)
        (self.file,) = self.files(self.root, split)
        self.require(self.file)
        self.open_rows(self.file, nothing=f"{self.file} has no bird.")

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        return (root / f"{split}.csv",)

    def rows(self) -> Iterator[Entry | BadRow]:
        with self.file.open(newline="") as file:
            for number, values in enumerate(csv.DictReader(file), start=2):
                given = {key: value or None for key, value in values.items()}
                yield Entry(self.file, f"line {number}", given)

    def compose(self, row: BirdRow, rng: random.Random) -> tuple[Sample, ...]:
        if row.legs > 2:
            raise ValueError("A bird has two legs.")
        words = rng.choice(["It has", "There are"])
        turns = (Turn(row.question, f"{words} {row.legs} legs."), Turn("Sure?", "Yes."))
        return (Sample(self.root / row.image, (4, 5), turns, row.image),)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    lines = [f"a.png,How many legs {n}?,2" for n in range(8)]
    bad = ["a.png,,2", "a.png,What?,two", ",What?,2", "a.png,Is it a bird?,3", "b.png,Where?,1"]
    text = "\n".join(["image,question,legs", *lines, *bad])
    (tmp_path / "train.csv").write_text(text)
    return tmp_path


def test_rows_that_do_not_fit_are_left_out_and_name_their_field(root: Path) -> None:
    found = {bad.row: bad.reason for bad in Birds(root).bad_rows}
    assert found == {
        "line 10": "A row lacks 'question'; its keys are image, legs, question.",
        "line 11": "Its legs should be a valid integer, unable to parse string as an integer, not "
        "'two'.",
        "line 12": "A row lacks 'image'; its keys are image, legs, question.",
    }


def test_an_epoch_has_every_row_once_and_the_next_another_order(root: Path) -> None:
    birds, places = Birds(root), []
    sound = [n for n in range(len(birds)) if birds.where(n)[1] != "line 13"]
    for epoch in (0, 1):
        samples = [birds.item(n, birds.random_of(n, epoch)) for n in sound]
        assert samples == [Birds(root).item(n, birds.random_of(n, epoch)) for n in sound]
        order = []
        for index in range(len(birds)):
            try:
                order.append(birds.dialogues(index, epoch)[0].turns[0].question)
            except ValueError:
                order.append("bad")
        places.append(order)
    assert sorted(places[0]) == sorted(places[1]) and places[0] != places[1]


def test_evaluation_counts_and_check_come_from_the_rows(root: Path) -> None:
    birds = Birds(root)
    assert birds.counts() == {"images": 10, "questions": 10, "targets": 10}
    samples = birds.evaluation_samples()
    assert len(samples[0].turns) == 1 and samples[0] == Birds(root, seed=3).evaluation_samples()[0]
    found = {(bad.file.name, bad.row): bad.reason for bad in birds.check()}
    assert len(found) == 5
    assert found["train.csv", "line 13"] == "A bird has two legs."
    assert found["b.png", ""] == "The image is missing."
    with pytest.raises(ValueError, match=r"train\.csv, line 13: A bird has two legs"):
        list(birds)


def test_a_set_without_a_row_says_so_with_the_first_reason(root: Path) -> None:
    (root / "train.csv").write_text("image,question,legs\na.png,,2")
    with pytest.raises(UnusableDataError, match=r"has no bird\. First, .*line 2: A row lacks"):
        Birds(root)


def test_the_guides_example_is_a_data_set(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    module = ModuleType("birds")
    source = guide.split("```python\n")[1].split("```")[0]
    exec(compile(source, "birds.py", "exec", dont_inherit=True), vars(module))
    (tmp_path / "birds").mkdir()
    Image.new("RGB", (5, 4)).save(tmp_path / "birds/a.png")
    Image.new("L", (5, 4), 255).save(tmp_path / "birds/mask.png")
    lines = ["image,mask,description", "a.png,mask.png,a blue tit", "a.png,gone.png,the wren"]
    (tmp_path / "birds/train.csv").write_text("\n".join(lines))
    birds = module.Birds(tmp_path)
    (sample,) = birds.item(0)
    assert sample.turns[0].targets[0].mask == encode_mask(np.ones((4, 5), dtype=bool))
    assert [bad.row for bad in birds.check()] == ["line 3"]
