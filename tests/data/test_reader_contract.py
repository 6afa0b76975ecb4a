"""What all readers share: lazy samples, and how training and recipes take them."""

from __future__ import annotations

from pathlib import Path

import pytest
from refer_layouts import all_turns, coco_set, refs_of, write_refer

from pixellm.data.dataset import Dataset
from pixellm.data.lazy import Lazy
from pixellm.data.registry import READERS, open_reader, reader_class
from pixellm.training.config import load_config
from pixellm.training.stream import Mixture, build_sources
from pixellm.types import Sample, Turn


@pytest.fixture
def root(tmp_path: Path) -> Path:
    instances = coco_set(tmp_path / "coco/train2014")
    write_refer(tmp_path, "refcoco", "refs(unc).p", instances, refs_of(instances))
    return tmp_path


def _sample(number: int) -> Sample:
    return Sample(Path(f"{number}.jpg"), (4, 5), (Turn(f"Question {number}?", "No."),))


def test_lazy_samples_build_only_what_is_asked_for() -> None:
    built = []

    def build(number: int) -> Sample:
        built.append(number)
        return _sample(number)

    samples = Lazy(range(5), build)
    some = samples[1:4]
    assert len(some) == 3 and built == []
    assert samples[-1] == _sample(4)
    assert list(some[::-1]) == [_sample(3), _sample(2), _sample(1)]
    assert built == [4, 3, 2, 1]
    with pytest.raises(IndexError):
        samples[5]


@pytest.mark.parametrize("name", list(READERS))
def test_every_registered_reader_keeps_its_word(name: str, tmp_path: Path) -> None:
    reader = reader_class(name)
    assert issubclass(reader, Dataset) and reader.name == name
    assert reader.title and reader.obtain and len(set(reader.splits)) == len(reader.splits) > 0
    with pytest.raises(ValueError, match="no split 'nowhere'"):
        open_reader(name, tmp_path, "nowhere")
    for split in reader.splits:
        assert reader.files(tmp_path, split) != ()
        with pytest.raises(FileNotFoundError, match="which is missing; ") as caught:
            open_reader(name, tmp_path, split)
        assert reader.obtain in str(caught.value)


@pytest.mark.parametrize("recipe", ["pixellm_7b.yaml", "pixellm_13b.yaml"])
def test_the_papers_recipes_ask_an_image_up_to_three_questions_of_three(
    recipe: str, tmp_path: Path
) -> None:
    """Eight expressions for four things of an image: all eight are asked, the release's min(9)."""
    config = load_config(Path(__file__).parents[2] / "src/pixellm/recipes" / recipe)
    instances = coco_set(tmp_path / "coco/train2014")
    refer = [s for s in config.data if s.name in ("refclef", "refcoco", "refcoco+", "refcocog")]
    assert len(refer) == 4
    for source in refer:
        refs_file = "refs(umd).p" if source.name == "refcocog" else "refs(unc).p"
        write_refer(tmp_path, source.name, refs_file, instances, refs_of(instances))
        images = {"root": str(tmp_path), "images": str(tmp_path / "coco/train2014")}
        (reader,) = build_sources(
            [source], config.stages[0].model_copy(update={"data_args": images})
        )
        assert isinstance(reader, Dataset)
        for turns in all_turns(reader):
            assert len(turns) <= 3 and sum(len(turn.targets) for turn in turns) == 8
    classes = [s for s in config.data if s.args.get("fill_questions")]
    assert {s.name for s in classes} == {"ade20k", "cocostuff", "mapillary", "paco", "pascal-part"}
    assert all(s.args["questions_per_image"] == 3 for s in classes)
    assert config.rows_that_train == "all"


def test_a_mixture_takes_a_readers_epochs_one_after_the_other(root: Path) -> None:
    reader = open_reader("refcoco", root, "train")
    mixture = Mixture([reader], [1.0])
    count = len(reader)
    for epoch in (0, 1, 2):
        found = [mixture[epoch * count + i] for i in range(count)]
        assert found == [reader.dialogues(i, epoch) for i in range(count)]
    assert all_turns(reader, 1) != all_turns(reader, 2)
