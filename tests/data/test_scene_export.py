"""Scenes as files: the MUSE format read back, nothing overwritten, nothing half-written."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from pixellm.data import scene_export as export
from pixellm.data.scene_export import export_scenes
from pixellm.masks import decode_mask, mask_to_box
from pixellm.scenes.dataset import ScenesDataset
from pixellm.types import SEG_MARK

NUM = 6


@pytest.fixture(scope="module")
def data():
    return ScenesDataset("test", seed=11, length=50, dialogues_per_image=5)


@pytest.fixture(scope="module")
def written(data, tmp_path_factory):
    return export_scenes(data, tmp_path_factory.mktemp("out") / "new" / "scenes", NUM)


@pytest.fixture
def entries(written):
    return json.loads(written.annotations.read_text(encoding="utf-8"))


def masks(instances):
    return [one["segmentation"] for one in instances]


def test_the_muse_file_says_what_the_samples_say(data, entries):
    assert len(entries) == NUM
    for index, entry in enumerate(entries):
        samples = data[index]
        turns = [sample.turns[0] for sample in samples]
        assert (entry["height"], entry["width"]) == samples[0].size
        assert entry["questions"] == [turn.question for turn in turns]
        assert entry["text_answers"] == [turn.answer for turn in turns]
        assert entry["kinds"] == [turn.kind for turn in turns]
        assert masks(entry["ann_list"]) == [target.mask for target in samples[0].objects]
        for turn, answer in zip(turns, entry["answers"], strict=True):
            assert masks(answer) == [target.mask for target in turn.targets]
        for sample, later in zip(samples, entry["follow_ups"], strict=True):
            assert (later is None) == (len(sample.turns) == 1)
            if later is not None:
                assert later["question"] == sample.turns[1].question
                assert len(later["answer"]) == later["text_answer"].count(SEG_MARK)


def test_instances_are_annotated_with_the_words_before_their_marks(data, entries):
    seen = 0
    for entry in entries:
        for one in entry["ann_list"]:
            mask = decode_mask(one["segmentation"])
            assert mask.shape == (entry["height"], entry["width"])
            assert tuple(one["bbox"]) == mask_to_box(mask)
            assert data.class_names[one["category_id"] - 1] == one["category_name"]
        for text, instances in zip(entry["text_answers"], entry["answers"], strict=True):
            assert text.count(SEG_MARK) == len(instances)
            for instance in instances:
                seen += 1
                assert instance["rephrased_name"] + f" {SEG_MARK}" in text
                known = [one for one in entry["ann_list"] if one["bbox"] == instance["bbox"]]
                assert instance["category_id"] in {one["category_id"] for one in known}
    assert seen > NUM


def test_the_folder_holds_the_images_the_sheet_and_nothing_else(data, written, entries):
    folder = written.annotations.parent
    names = sorted(path.name for path in folder.glob("[!.]*"))
    assert names == ["contact_sheet.png", "images", "muse_test.json"]
    assert min(Image.open(written.contact_sheet).size) > 300
    assert [folder / entry["file_name"] for entry in entries] == list(written.images)
    for index, path in enumerate(written.images):
        assert np.array_equal(np.asarray(Image.open(path)), data[index][0].image)


def test_a_folder_with_files_is_left_alone_unless_allowed(data, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match=f"{re.escape(str(tmp_path))} is not empty"):
        export_scenes(data, tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    export_scenes(data, tmp_path, 2, overwrite=True)
    again = export_scenes(data, tmp_path, 1, overwrite=True)
    assert len(json.loads(again.annotations.read_text(encoding="utf-8"))) == 1
    assert list((tmp_path / "images").iterdir()) == list(again.images), "those of before are gone"
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_failure_half_way_leaves_no_file(data, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of paint")

    monkeypatch.setattr(export, "draw_contact_sheet", fail)
    with pytest.raises(RuntimeError, match="out of paint"):
        export_scenes(data, tmp_path / "out", 2)
    # Some versions of filelock take the file of a lock away with it.
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".lock"}


def test_impossible_wishes_are_one_sentence(data, tmp_path):
    with pytest.raises(ValueError, match="51 scenes of 50"):
        export_scenes(data, tmp_path / "a", 51)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"below cannot be written: .* is a file"):
        export_scenes(data, tmp_path / "file" / "below", 1)
