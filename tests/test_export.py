"""Exported answers, read by the programs that they are for: equal masks, classes and images."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from measuring.export_readers import READERS, Objects, read_coco_with_supervision, yolo_names
from pixellm.answer_files import prediction_to_json
from pixellm.cli.main import app
from pixellm.export import Categories, Labels, brush_rle, category_of, write_export
from pixellm.masks import mask_iou
from pixellm.types import BoolMask, Prediction, Segment

SIZE = (120, 160)
EXACT = ("coco", "label-studio", "png")
POLYGONS = ("coco-polygons", "yolo", "labelme")
Answers = dict[str, dict[str, BoolMask]]


def shapes() -> dict[str, BoolMask]:
    """Masks that formats find hard."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = np.hypot(rows - 60, columns - 70)
    two = np.zeros(SIZE, dtype=np.bool_)
    two[10:40, 10:40] = two[50:90, 20:60] = True
    point = np.zeros(SIZE, dtype=np.bool_)
    point[5, 150] = True
    line = np.zeros(SIZE, dtype=np.bool_)
    line[119, 20:140] = True
    return {
        "the plate": distance < 55,
        "a ring": (distance < 50) & (distance > 30),
        "two cups": two,
        "The speck": point,
        "the edge": line,
        "everything": np.ones(SIZE, dtype=np.bool_),
        "the stripes": (rows // 7 + columns // 11) % 2 == 0,
    }


def answer_of(image: str, masks: dict[str, BoolMask], question: str = "What?") -> dict[str, Any]:
    text = ", ".join(masks)
    segments = tuple(
        Segment(label, mask, 0.75, (text.index(label), text.index(label) + len(label)))
        for label, mask in masks.items()
    )
    prediction = Prediction(text, segments, question, next(iter(masks.values())).shape)
    return prediction_to_json(prediction, image, "hand")


def write_lines(path: Path, answers: list[dict[str, Any]]) -> None:
    lines = [json.dumps({"row": n} | one) for n, one in enumerate(answers)]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Answers about two photos, the second asked twice, and one row that failed."""
    monkeypatch.chdir(tmp_path)
    masks = shapes()
    for name, size in (("one.png", SIZE), ("two [b].jpg", (40, 30))):
        pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
        Path("photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(Path("photos") / name)
    left = np.zeros((40, 30), dtype=np.bool_)
    left[:, :12] = True
    second = {"the cup": left, "the plate": ~left}
    failed = {"image": "gone.png", "question": "What?", "error": "There is no file gone.png."}
    first_half, second_half = [{label: mask} for label, mask in second.items()]
    write_lines(
        Path("answers.jsonl"),
        [
            answer_of("one.png", masks),
            answer_of("two [b].jpg", first_half),
            failed,
            answer_of("two [b].jpg", second_half),
        ],
    )
    return {"one.png": masks, "two [b].jpg": second}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def export(to: str, out: str = "out", *more: object) -> Result:
    return run("export", "answers.jsonl", "--to", to, "--out", out, "--images", "photos", *more)


def named(found: dict[str, Objects]) -> dict[str, Objects]:
    """Objects by the stem of their image, under which every format keeps it."""
    return {Path(name).stem: objects for name, objects in found.items()}


@pytest.mark.parametrize("to", [*EXACT, *POLYGONS])
def test_the_readers_of_a_format_find_the_masks(to, answers):
    result = export(to)
    assert result.exit_code == 0, result.output
    assert "9 objects of 8 classes in 2 images" in result.stdout
    assert "Without an answer, and not in it: 1." in result.stderr
    found = named(READERS[to](Path("out")))
    assert found.keys() == {"one", "two [b]"}
    for image, masks in answers.items():
        objects = found[Path(image).stem]
        assert len(objects) == len(masks)
        for (name, mask), (label, expected) in zip(objects, masks.items(), strict=True):
            assert name.replace("-", " ") == category_of(label)
            least = 1.0 if to in EXACT else 0.97
            assert mask_iou(mask, expected) >= least, (to, label)


def test_supervision_reads_the_coco_file_too(answers):
    assert export("coco").exit_code == 0
    found = read_coco_with_supervision(Path("out"), Path("photos"))
    for image, masks in answers.items():
        for (name, mask), (label, expected) in zip(found[image], masks.items(), strict=True):
            assert name == category_of(label)
            assert np.array_equal(mask, expected)


def test_labelme_s_own_loader_takes_the_files(answers):
    labelme = pytest.importorskip("labelme", reason="labelme needs Qt and is not installed")
    assert export("labelme").exit_code == 0
    for path in Path("out").glob("[!.]*.json"):
        loaded = labelme.LabelFile(str(path))
        assert loaded.imageData
        for shape in loaded.shapes:
            filled = labelme.utils.shape_to_mask(SIZE, shape["points"], shape["shape_type"])
            assert filled.any()


@pytest.mark.parametrize("to", ["coco", "coco-polygons"])
def test_a_coco_export_is_a_data_set(to, answers):
    assert export(to).exit_code == 0
    folder = run("data", "check", "out")
    assert folder.exit_code == 2 and "--with annotations=instances.json" in folder.stderr
    checked = run("data", "check", "out/instances.json", "--images", "photos")
    assert checked.exit_code == 0, checked.output
    assert "9 targets" in checked.stdout and "no bad row" in checked.stdout


def test_a_labelme_export_is_a_data_set(answers):
    assert export("labelme").exit_code == 0
    checked = run("data", "check", ".", "--set", "labelme", "--with", "folder=out")
    # Two objects are a pixel thin: their outlines are lines, which the reader lists.
    assert "7 targets" in checked.stdout and "2 bad rows" in checked.stdout, checked.output
    assert checked.stdout.count("covers no pixel") == 2


def test_parts_too_far_apart_are_lines_of_their_own_for_yolo(tmp_path):
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[2:6, 2:6] = mask[110:114, 150:154] = True
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "far.png")
    write_lines(tmp_path / "a.jsonl", [answer_of("far.png", {"the dots": mask})])
    result = run("export", tmp_path / "a.jsonl", "--to", "yolo", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    objects = READERS["yolo"](tmp_path / "out")["far.png"]
    assert [name for name, _ in objects] == ["dots", "dots"]
    assert np.array_equal(objects[0][1] | objects[1][1], mask)


def test_names_of_classes_survive_every_format(tmp_path):
    label = 'a "café" <&> \\ : #1'
    Image.new("RGB", (4, 3)).save(tmp_path / "x.png")
    write_lines(tmp_path / "a.jsonl", [answer_of("x.png", {label: np.ones((3, 4), dtype=bool)})])
    for to in ("coco", "yolo", "labelme", "label-studio", "png"):
        out = tmp_path / to
        assert run("export", tmp_path / "a.jsonl", "--to", to, "--out", out).exit_code == 0
        if to != "png":
            ((name, _),) = next(iter(READERS[to](out).values()))
            assert name == category_of(label)
    assert yolo_names(tmp_path / "yolo") == {0: category_of(label)}
    import xml.etree.ElementTree as ElementTree

    root = ElementTree.parse(tmp_path / "label-studio/config.xml").getroot()
    assert [one.get("value") for one in root.iter("Label")] == [category_of(label)]


def test_index_and_classes_show_the_smallest_on_top(answers):
    assert export("png").exit_code == 0
    masks = list(answers["one.png"].values())
    index = np.asarray(Image.open("out/index/one.png"))
    for number, mask in enumerate(masks, start=1):
        smaller = [other for other in masks if other.sum() < mask.sum()]
        alone = mask & ~np.any([*smaller, np.zeros_like(mask)], axis=0)
        assert (index[alone] == number).all()
    classes = Image.open("out/classes/two [b].png")
    assert classes.mode == "P"
    lines = Path("out/classes.txt").read_text(encoding="utf-8").splitlines()
    cup = next(int(line.split()[0]) for line in lines if line.endswith(" cup"))
    assert (np.asarray(classes)[:, :12] == cup).all()


def test_an_image_that_exif_turns_is_written_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (40, 20), "red")
    stored.paste("blue", (0, 0, 20, 20))
    stored.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    mask = np.zeros((40, 20), dtype=np.bool_)
    mask[:20] = True  # blue, as seen
    write_lines(tmp_path / "a.jsonl", [answer_of("turned.jpg", {"blue": mask})])
    out = tmp_path / "out"
    assert run("export", tmp_path / "a.jsonl", "--to", "yolo", "--out", out).exit_code == 0
    (copied,) = (out / "images/train").iterdir()
    with Image.open(copied) as image:
        assert image.size == (20, 40)
        assert image.getpixel((10, 5))[2] > 200


def test_names_never_lead_out_of_the_folder_nor_onto_each_other(tmp_path):
    full = {"it": np.ones((3, 4), dtype=np.bool_)}
    names = ["a.png", "A.PNG", "a.jpg", "sub/a.png", "../a.png", "b\\..\\a.png"]
    photos = tmp_path / "photos" / "deep"
    for name in names:
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path, format="PNG")
    write_lines(tmp_path / "a.jsonl", [answer_of(name, full) for name in names])
    for to in ("yolo", "labelme", "label-studio", "png", "overlay"):
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        out = tmp_path / "out" / to
        result = run("export", tmp_path / "a.jsonl", "--to", to, "--out", out, "--images", photos)
        assert result.exit_code == 0, result.output
        new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
        assert new and all(path.is_relative_to(out) for path in new)
    assert len(list((tmp_path / "out/yolo/labels/train").rglob("*.txt"))) == len(names)


def test_an_export_takes_the_place_of_the_one_before_and_of_nothing_else(answers):
    assert export("labelme").exit_code == 0
    mine = Path("out/notes.txt")
    mine.write_text("mine")
    assert export("labelme").exit_code == 0
    assert export("yolo").exit_code == 0
    assert mine.read_text() == "mine"
    assert not Path("out/one.json").exists()
    label = Path("out/labels/train/one.txt")
    label.write_text("0 0.1 0.1 0.2 0.2 0.3 0.1\n")  # someone has mended it
    result = export("yolo")
    assert result.exit_code == 2
    assert "one.txt was not written by pixellm, or changed since" in result.stderr
    assert label.read_text().startswith("0 0.1")
    assert not list(Path("out").glob(".writing-*"))


def test_a_failed_export_leaves_the_one_before(answers, monkeypatch):
    assert export("yolo").exit_code == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    Path("photos/two [b].jpg").unlink()
    result = export("yolo")
    assert result.exit_code == 2
    assert "--images" in result.stderr
    Image.new("RGB", (5, 5)).save("photos/one.png")
    assert "not what was answered about" in export("yolo").stderr
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


def test_given_classes_are_found_in_phrases(answers):
    result = export("coco", "out", "--classes", "saucer, plate,cup")
    assert result.exit_code == 0, result.output
    assert "Masks of none of the classes, not in it: 5." in result.stderr
    found = READERS["coco"](Path("out"))
    assert [name for name, _ in found["one.png"]] == ["plate", "cup"]
    values = json.loads(Path("out/instances.json").read_text())
    assert [one["name"] for one in values["categories"]] == ["saucer", "plate", "cup"]


def test_masks_below_a_score_are_left_out(answers):
    result = export("coco", "out", "--min-score", 0.8)
    assert "0 objects of 0 classes in 2 images" in result.stdout
    assert export("yolo", "empty", "--min-score", 0.8).exit_code == 0
    assert READERS["yolo"](Path("empty")) == {"one.png": [], "two [b].jpg": []}
    assert export("overlay", "drawn").exit_code == 0
    with Image.open("drawn/one.jpg") as image:
        assert image.size == SIZE[::-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no answers"),
        ("[1]\n", "no answers of pixellm"),
        ('{"image": "a.png"}\n', "question: field required"),
        ("GOOD\n{}\n", "Line 2 of bad.jsonl is no answer"),
        ("HEIGHT\n", "height: input should be a valid integer"),
        ("MASK\n", "A mask of one.png is damaged"),
    ],
)
def test_what_is_no_answer_is_one_sentence(content, message, answers):
    good = answer_of("one.png", {"it": np.ones(SIZE, dtype=np.bool_)})
    broken = json.loads(json.dumps(good))
    broken["segments"][0]["segmentation"]["counts"] = "~"
    for word, values in (("GOOD", good), ("HEIGHT", good | {"height": "9"}), ("MASK", broken)):
        content = content.replace(word, json.dumps(values))
    Path("bad.jsonl").write_text(content)
    result = run("export", "bad.jsonl", "--to", "coco", "--out", "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("out").exists()


def test_a_class_asked_for_is_that_of_its_masks():
    categories = Categories(["cup", "dining table"], True, {"Segment every cup.": "cup"})
    assert categories.find("Segment every cup.", "the one on the left") == 0
    assert categories.find("What is there?", "the round dining table") == 1
    assert categories.find("What is there?", "two cups") == 0
    assert categories.find("What is there?", "the teacup") is None


def test_brush_run_lengths_of_long_runs():
    from label_studio_converter import brush

    mask = np.zeros((300, 400), dtype=np.bool_)
    mask[10:200, :] = True
    decoded = brush.decode_rle(brush_rle(mask)).reshape(300, 400, 4)
    assert np.array_equal(decoded, np.repeat(mask[..., None], 4, axis=-1) * 255)


@pytest.mark.parametrize("to", ["coco", "coco-polygons"])
def test_the_coco_file_has_what_cvat_asks_for(to, answers):
    assert export(to).exit_code == 0
    values = json.loads(Path("out/instances.json").read_text())
    assert {"licenses", "info", "categories", "images", "annotations"} <= values.keys()
    sizes = {one["id"]: (one["height"], one["width"]) for one in values["images"]}
    names = {one["id"] for one in values["categories"]}
    assert min(sizes) == min(names) == 1
    assert len({one["id"] for one in values["annotations"]}) == len(values["annotations"]) == 9
    for one in values["annotations"]:
        height, width = sizes[one["image_id"]]
        x, y, box_width, box_height = one["bbox"]
        assert 0 <= x < x + box_width <= width and 0 <= y < y + box_height <= height
        assert one["category_id"] in names and one["iscrowd"] == 0 and one["area"] > 0
        if to == "coco":
            assert one["segmentation"]["size"] == [height, width]
            continue
        for polygon in one["segmentation"]:
            assert len(polygon) >= 6 and len(polygon) % 2 == 0
            assert min(polygon) >= 0 and max(polygon[::2]) <= width
            assert max(polygon[1::2]) <= height


def test_a_full_disk_names_the_folder_not_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "a.png")

    monkeypatch.setattr("pixellm.export.FORMATS", {"coco": full})
    with pytest.raises(OSError, match=r"labels cannot be written \(No space left"):
        write_export(Labels((), ()), tmp_path / "labels", "coco", Path)
    assert {path.name for path in (tmp_path / "labels").iterdir()} <= {".lock", ".pixellm.json"}
