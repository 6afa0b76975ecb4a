"""The scenes data set: the same everywhere, splits apart, held-out pairs never in training."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixellm.scenes import artwork, dataset
from pixellm.scenes.dataset import SPLITS, ScenesDataset, is_held_out
from pixellm.scenes.knowledge import load_knowledge
from pixellm.scenes.questions import KINDS

KEY_OF_NAME = {concept.name: concept.key for concept in load_knowledge().concepts.values()}
DRAWN_SPLITS = [split for split in SPLITS if split != "test_style"]


def digest(items) -> str:
    """A fingerprint of images, questions, answers and masks."""
    whole = hashlib.sha256()
    for samples in items:
        for sample in samples:
            whole.update(sample.image.tobytes())
            whole.update(repr((sample.id, sample.size, sample.turns, sample.objects)).encode())
    return whole.hexdigest()


def asked_pairs(split: str, num_scenes: int, **args) -> set[tuple[str, str]]:
    data = ScenesDataset(split, length=num_scenes, **args)
    return {
        (KEY_OF_NAME[target.name], turn.kind)
        for samples in data
        for sample in samples
        for turn in sample.turns
        for target in turn.targets
    }


@pytest.fixture
def few_stickers(tmp_path, monkeypatch):
    """The unseen style as a folder with stickers of thirty concepts only."""
    caches = (artwork.load_style, dataset.drawable_concepts)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setenv(artwork.STICKERS_DIR_VARIABLE, str(tmp_path))
    folder = artwork.style_folder(dataset.UNSEEN_STYLE)
    folder.mkdir()
    concepts = [c for c in load_knowledge().concepts.values() if c.color][:30]
    for number, concept in enumerate(concepts):
        image = Image.new("RGBA", (32, 24 + number), (255, 8 * number, 0, 255))
        image.save(folder / f"{concept.openmoji.lower()}.png")
    yield {concept.key for concept in concepts}
    for cache in caches:
        cache.cache_clear()


def test_another_process_draws_and_asks_the_same():
    here = [digest(ScenesDataset(split, seed=3, length=3)) for split in DRAWN_SPLITS]
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_scene_dataset import DRAWN_SPLITS, ScenesDataset, digest\n"
        "for split in DRAWN_SPLITS:\n"
        "    data = ScenesDataset(split, seed=3, length=9)\n"
        "    items = {i: data[i] for i in (2, 0, 1)}\n"
        "    print(digest(items[i] for i in range(3)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )
    assert done.stdout.split() == here


def test_a_pickled_data_set_is_small_and_yields_the_same():
    data = ScenesDataset("train", length=3)
    data[0]
    packed = pickle.dumps(data)
    assert len(packed) < 2000
    assert digest(pickle.loads(packed)) == digest(data)


def test_seeds_and_splits_share_no_image_and_no_dialogue():
    images: set[bytes] = set()
    count = 0
    for split in DRAWN_SPLITS:
        for seed in (0, 1):
            for samples in ScenesDataset(split, seed, 2, long_side=128):
                images.add(samples[0].image.tobytes())
                count += 1
    assert len(images) == count


@pytest.mark.parametrize("split", ["train", "test"])
def test_held_out_pairs_are_never_asked_outside_their_split(split):
    pairs = asked_pairs(split, 25, dialogues_per_image=8)
    assert len(pairs) > 120
    assert not {pair for pair in pairs if is_held_out(*pair)}


def test_the_combination_split_asks_held_out_pairs_only():
    pairs = asked_pairs("test_combination", 25)
    assert len(pairs) > 18
    assert {pair for pair in pairs if not is_held_out(*pair)} == set()
    assert len({kind for _, kind in pairs}) >= 6


def test_about_one_in_twenty_pairs_is_held_out_but_no_concept_by_name():
    concepts = load_knowledge().concepts
    kinds = {kind for kind in KINDS if any(is_held_out(key, kind) for key in concepts)}
    assert "naming" not in kinds and {"use", "category", "size"} <= kinds
    share = np.mean([is_held_out(key, kind) for key in concepts for kind in kinds])
    assert share == pytest.approx(0.05, abs=0.012)


def test_an_item_is_the_dialogues_about_one_image():
    for samples in ScenesDataset("val", length=8, dialogues_per_image=3):
        assert 1 <= len(samples) <= 3
        assert len({sample.id for sample in samples}) == len(samples)
        for sample in samples:
            assert sample.image is samples[0].image
            assert sample.objects == samples[0].objects
            masks = [target.mask for target in sample.objects]
            assert all(target.mask in masks for turn in sample.turns for target in turn.targets)


def test_numbers_kinds_and_sizes_are_as_asked():
    data = ScenesDataset(
        "train", length=10, kinds={"naming": 1.0, "counting": 1.0}, num_objects=3, long_side=128
    )
    assert len(data) == 10
    for samples in data:
        assert len(samples[0].objects) == 3
        assert max(samples[0].size) == 128
        kinds = {turn.kind for sample in samples for turn in sample.turns}
        assert kinds <= {"naming", "counting"}


def test_a_style_draws_only_what_it_has_and_asks_no_colours_of_it(few_stickers):
    data = ScenesDataset("test_style", length=20, dialogues_per_image=6, kinds={"plain": 1.0})
    questions = []
    for samples in data:
        assert {KEY_OF_NAME[target.name] for target in samples[0].objects} <= few_stickers
        questions += [turn.question for sample in samples for turn in sample.turns]
    assert len(questions) > 30
    assert not [question for question in questions if "color" in question.lower()]
    drawn = ScenesDataset("train", length=20, dialogues_per_image=6, kinds={"plain": 1.0})
    turns = [turn for samples in drawn for one in samples for turn in one.turns]
    assert any("color" in turn.question.lower() for turn in turns)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"split": "tset"}, "no split 'tset' of the scenes; use train"),
        ({"length": 0}, "length 0"),
        ({"dialogues_per_image": 0}, "dialogues_per_image 0"),
        ({"num_objects": -1}, "num_objects -1"),
        ({"kinds": {"namming": 1.0}}, "Unknown kind of question 'namming'; choose from naming"),
        ({"kinds": {"naming": -1.0}}, "weight of 'naming' is -1.0; give a number"),
        ({"kinds": {"naming": "often"}}, "weight of 'naming' is 'often'; give a number"),
        ({"kinds": {"naming": 0}}, "No kind of question has a weight above 0"),
        ({"kinds": ["naming"]}, "a table of numbers, not"),
        ({"split": "test_combination", "kinds": {"naming": 1.0}}, "of the kinds naming; allow"),
    ],
)
def test_impossible_arguments_are_refused_in_one_sentence(args, message):
    with pytest.raises(ValueError, match=message):
        ScenesDataset(**args)


def test_a_question_that_fits_no_scene_is_an_error_not_an_endless_search():
    data = ScenesDataset("train", num_objects=1, kinds={"instances": 1.0}, long_side=64)
    with pytest.raises(ValueError, match="kinds instances fits the scenes of train"):
        data[0]


def test_scenes_for_single_targets_are_the_usual_ones_without_the_other_dialogues() -> None:
    single = ScenesDataset(seed=3, length=6, dialogues_per_image=3, single_target=True)
    usual = ScenesDataset(seed=3, length=6, dialogues_per_image=9)
    dropped = 0
    for some, every in zip(single, usual, strict=True):
        assert np.array_equal(some[0].image, every[0].image)
        turns = [sample.turns for sample in every]
        fitting = [t for t in turns if all(len(turn.targets) <= 1 for turn in t)]
        assert [sample.turns for sample in some] == fitting[:3]
        dropped += len(turns) - len(fitting)
    assert dropped


def test_indices_outside_the_length_are_refused():
    data = ScenesDataset("train", length=2)
    for index in (-1, 2):
        with pytest.raises(IndexError):
            data[index]
