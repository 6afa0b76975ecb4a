"""Pseudo-labels: what agrees is kept, what is doubted is no negative, a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pixellm.cli.main import app
from pixellm.data.photos import Photos
from pixellm.labelling.label_run import LabelRun, run_labels
from pixellm.labelling.pseudo_labels import LabelRules, box_iou, every_question, read_proposals
from pixellm.masks import decode_mask
from pixellm.types import Prediction, Request, Segment

SIZE = (120, 200)
COLOURS = {"dog": (200, 0, 0), "cat": (0, 200, 0)}
DOG, CAT, FAR_CAT = (10, 20, 40, 50), (100, 30, 60, 40), (180, 100, 8, 8)


class ColourModel:
    """Sees dogs in red and cats in green, with one score each; nothing below 100 pixels of a photo.

    In a cut of a photo, whose long side is below 100, it sees small things too.
    """

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores = scores
        self.asked: list[tuple[str, tuple[int, ...]]] = []

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Request) -> Prediction:
        image = np.asarray(request.image)
        self.asked.append((request.question, image.shape[:2]))
        (name,) = [name for name in COLOURS if name in request.question]
        seen = (image == COLOURS[name]).all(axis=-1)
        least = 100 if max(seen.shape) >= 100 else 1
        masks = [mask for mask in parts(seen) if mask.sum() >= least]
        segments = tuple(Segment(f"the {name}", m, self.scores[name], (0, 7)) for m in masks)
        return Prediction("Here.", segments, request.question, (seen.shape[0], seen.shape[1]))


def parts(seen: np.ndarray) -> list[np.ndarray]:
    """The runs of columns that hold something, apart."""
    columns = np.flatnonzero(np.diff(np.concatenate(([0], seen.any(axis=0), [0]))))
    masks = []
    for first, last in columns.reshape(-1, 2):
        mask = np.zeros_like(seen)
        mask[:, first:last] = seen[:, first:last]
        masks.append(mask)
    return masks


def paint(path: Path, *things: tuple[str, tuple[int, int, int, int]]) -> None:
    pixels = np.full((*SIZE, 3), 90, np.uint8)
    for name, (x, y, width, height) in things:
        pixels[y : y + height, x : x + width] = COLOURS[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    paint(tmp_path / "photos" / "a.png", ("dog", DOG), ("cat", CAT))
    paint(tmp_path / "photos" / "below" / "b.png", ("cat", CAT), ("cat", FAR_CAT))
    return tmp_path / "photos"


def write_boxes(path: Path, *boxes: tuple[str, str, tuple[float, ...], float]) -> Path:
    names, images = list(COLOURS), ["a.png", "below/b.png"]
    annotations = [
        {
            "id": number,
            "image_id": images.index(photo),
            "category_id": 10 + names.index(name),
            "bbox": list(box),
            "score": score,
        }
        for number, (photo, name, box, score) in enumerate(boxes)
    ]
    values: dict[str, Any] = {"annotations": annotations}
    values["images"] = [{"id": n, "file_name": name} for n, name in enumerate(images)]
    values["categories"] = [{"id": 10 + n, "name": name} for n, name in enumerate(names)]
    path.write_text(json.dumps(values))
    return path


def label(photos: Path, out: Path, model: ColourModel, **options: Any) -> dict[str, Any]:
    rules = options.pop("rules", LabelRules())
    run_labels(LabelRun(photos, out, "colours", rules, **options), lambda: model, batch_size=4)
    values: dict[str, Any] = json.loads((out / "instances.json").read_text())
    return values


def boxes_of(values: dict[str, Any], photo: str, *, crowd: bool = False) -> list[list[int]]:
    (number,) = [one["id"] for one in values["images"] if one["file_name"] == photo]
    found = [one for one in values["annotations"] if one["image_id"] == number]
    return sorted(one["bbox"] for one in found if one["iscrowd"] == crowd)


def test_without_boxes_every_class_is_asked_for_and_sure_masks_are_kept(photos, tmp_path):
    model = ColourModel({"dog": 0.9, "cat": 0.4})
    values = label(photos, tmp_path / "out", model, names=["dog", "cat"])
    assert [one[0] for one in model.asked] == ["Segment every dog.", "Segment every cat."] * 2
    assert boxes_of(values, "a.png") == [list(DOG)]
    assert boxes_of(values, "a.png", crowd=True) == [list(CAT)]  # seen, but not surely
    (dog,) = [one for one in values["annotations"] if not one["iscrowd"]]
    mask = decode_mask(dog["segmentation"])
    assert mask.sum() == dog["area"] == DOG[2] * DOG[3] and mask[DOG[1], DOG[0]]
    assert dog["score"] == 0.9


def test_a_mask_counts_that_agrees_with_a_box_and_cuts_show_what_is_small(photos, tmp_path):
    boxes = write_boxes(
        tmp_path / "boxes.json",
        ("a.png", "dog", DOG, 0.9),
        ("a.png", "cat", (0, 0, 30, 30), 0.8),  # beside the cat: no mask agrees
        ("a.png", "dog", CAT, 0.1),  # not even doubtful
        ("below/b.png", "cat", (*FAR_CAT[:2], 7, 8), 0.81),
    )
    model = ColourModel({"dog": 0.9, "cat": 1.0})
    values = label(photos, tmp_path / "out", model, boxes=boxes)
    assert boxes_of(values, "a.png") == [list(DOG)]
    assert boxes_of(values, "a.png", crowd=True) == [[0, 0, 30, 30]]
    assert boxes_of(values, "below/b.png") == [list(FAR_CAT)]
    (cat,) = [one for one in values["annotations"] if one["bbox"] == list(FAR_CAT)]
    assert cat["category_id"] == 11 and cat["score"] == pytest.approx(0.9)
    assert any(max(size) < 100 for _, size in model.asked)


def test_what_is_in_doubt_is_neither_asked_for_nor_denied(photos, tmp_path):
    label(photos, tmp_path / "out", ColourModel({"dog": 0.9, "cat": 0.4}), names=["dog", "cat"])
    data = Photos(tmp_path, annotations="out/instances.json", images="photos")
    asked = [s for epoch in range(20) for item in (0, 1) for s in data.dialogues(item, epoch)]
    answers = [turn.answer for sample in asked for turn in sample.turns]
    assert any("dog" in answer for answer in answers)
    assert not any("cat" in answer for answer in answers)


def test_of_two_names_for_one_object_the_surer_stays(tmp_path):
    class Agreeable(ColourModel):
        def answer(self, request: Request) -> Prediction:
            name = "dog" if "dog" in request.question else "cat"
            mask = np.zeros(SIZE, dtype=bool)
            mask[10:60, 10:90] = True
            return Prediction(
                "", (Segment("", mask, self.scores[name], (0, 0)),), request.question, SIZE
            )

    paint(tmp_path / "photos" / "a.png")
    model = Agreeable({"dog": 0.7, "cat": 0.9})
    values = label(tmp_path / "photos", tmp_path / "out", model, names=["dog", "cat"])
    assert [one["category_id"] for one in values["annotations"]] == [2]


def test_a_stopped_run_goes_on_and_a_bad_photo_is_left_out(photos, tmp_path):
    class Stopping(ColourModel):
        def answer(self, request: Request) -> Prediction:
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().answer(request)

    out, scores = tmp_path / "out", {"dog": 0.9, "cat": 0.9}
    (photos / "z.png").write_bytes(b"no photo")
    with pytest.raises(KeyboardInterrupt):
        label(photos, out, Stopping(scores), names=["dog", "cat"])
    assert not (out / "instances.json").exists()
    model = ColourModel(scores)
    values = label(photos, out, model, names=["dog", "cat"])
    assert len(model.asked) == 2  # the first photo's answers were kept
    assert [one["file_name"] for one in values["images"]] == ["a.png", "below/b.png"]

    def refuse() -> ColourModel:
        raise AssertionError("A finished run needs no model.")

    run = LabelRun(photos, out, "colours", LabelRules(), names=["dog", "cat"])
    state = run_labels(run, refuse, 4)
    assert (state.done, state.total, state.bad, state.masks) == (3, 3, 1, 3)
    with Image.open(out / "look.jpg") as sheet:
        assert sheet.width > 300
    with pytest.raises(ValueError, match=r"holds a run with min_score 0\.6, not 0\.5"):
        label(photos, out, model, names=["dog", "cat"], rules=LabelRules(min_score=0.5))


def test_a_photo_that_the_model_cannot_take_ends_no_run(photos, tmp_path, monkeypatch):
    class Choosy(ColourModel):
        def answer(self, request: Request) -> Prediction:
            if not (np.asarray(request.image) == COLOURS["cat"]).all(axis=-1).any():
                raise MemoryError
            return super().answer(request)

    paint(photos / "a.png", ("dog", DOG))
    paint(photos / "below/b.png", ("cat", CAT))
    monkeypatch.setattr(
        "pixellm.cli.options.LoadOptions.load", lambda self: Choosy({"dog": 0.9, "cat": 0.9})
    )
    out = tmp_path / "out"
    asked = ["data", "pseudo-label", str(photos), "--out", str(out), "--class", "cat"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "left out: 1. The first: There is not enough memory" in result.stderr
    (image,) = json.loads((out / "instances.json").read_text())["images"]
    assert image["file_name"] == "below/b.png"
    log = out / "labels.jsonl"
    log.write_text(log.read_text() + json.dumps({"image": "c.png", "size": [1, 1]}) + "\n")
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2 and "Line 3 of" in result.stderr
    (photos / "below/b.png").unlink()
    assert CliRunner().invoke(app, [*asked[:4], str(tmp_path / "new"), *asked[5:]]).exit_code == 1


def test_the_command_says_what_it_wrote_and_refuses_in_one_sentence(photos, tmp_path, monkeypatch):
    model = ColourModel({"dog": 0.9, "cat": 0.4})
    monkeypatch.setattr("pixellm.cli.options.LoadOptions.load", lambda self: model)
    out = str(tmp_path / "out")
    asked = ["data", "pseudo-label", str(photos), "--out", out, "--class", "dog", "--class", "cat"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert "1 masks in 2 photos, 2 regions in doubt." in " ".join(result.output.split())
    for wrong in (["--doubt", "0.9"], ["--boxes", str(tmp_path / "none.json")]):
        result = CliRunner().invoke(app, [*asked, *wrong])
        assert result.exit_code == 2 and "Traceback" not in result.output
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(
        app, ["data", "pseudo-label", str(tmp_path / "empty"), "--out", out]
    )
    assert result.exit_code == 2


def test_a_file_of_another_kind_proposes_nothing(tmp_path):
    path = tmp_path / "odd.json"
    named = {"images": [], "annotations": [], "categories": [{"id": "dog", "name": "dog"}]}
    for values in ({"images": [{"id": 1}]}, named):
        path.write_text(json.dumps(values))
        with pytest.raises(ValueError, match="no COCO file with boxes"):
            read_proposals(path)


def test_questions_and_overlaps():
    assert every_question("sports ball") == "Segment every ball."
    assert every_question("skis") == "Segment the skis."
    assert every_question("lawn gnome") == "Segment every lawn gnome."
    assert box_iou((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 1, 1), (5, 5, 1, 1)) == 0
