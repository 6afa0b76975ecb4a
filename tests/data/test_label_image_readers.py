"""ADE20K, COCO-Stuff and Mapillary as they lie on disk: every class against its own pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_photos import draw_photo, write_json
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pixellm.data.semantic import Ade20k, CocoStuff, Mapillary
from pixellm.masks import (
    areas_of,
    boxes_of,
    decode_mask,
    encode_mask,
    label_map_to_rles,
    mask_to_box,
    union_of,
)

SIZE = (24, 32)
PHOTOS = {
    Ade20k: "ade20k/images/training",
    CocoStuff: "coco/train2017",
    Mapillary: "mapillary/training/images",
}
LABELS = {
    Ade20k: "ade20k/annotations/training",
    CocoStuff: "cocostuff/train2017",
    Mapillary: "mapillary/training/v2.0/labels",
}
CLASSES = "mapillary/config_v2.0.json"


def write_pair(root: Path, reader: Any, stem: str, values: np.ndarray) -> Path:
    """A photo and its label image, with a palette in Mapillary; the label's path."""
    draw_photo(root / PHOTOS[reader] / f"{stem}.jpg", values.shape)
    image = Image.fromarray(values.astype(np.uint8))
    if reader is Mapillary:
        image = image.convert("P")
        image.putdata(values.ravel().tolist())
        image.putpalette([channel for n in range(256) for channel in (n, 255 - n, n // 2)])
    label = root / LABELS[reader] / f"{stem}.png"
    label.parent.mkdir(parents=True, exist_ok=True)
    image.save(label)
    return label


def blocks(*numbers: int) -> np.ndarray:
    """A label map of equal columns with one number each."""
    return np.repeat(np.array(numbers), SIZE[1] // len(numbers))[None].repeat(SIZE[0], 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_pair(tmp_path, Ade20k, "a", blocks(0, 1, 3, 3))
    write_pair(tmp_path, Ade20k, "b", blocks(150, 21, 3, 5))
    write_pair(tmp_path, CocoStuff, "000000000009", blocks(0, 181, 95, 255))
    write_pair(tmp_path, Mapillary, "x", blocks(2, 0, 1, 1))
    names = {"Bird": "animal--bird", "Road": "construction--flat--road"}
    names["Unlabeled"] = "void--unlabeled"
    labels = [{"name": name, "readable": readable} for readable, name in names.items()]
    write_json(tmp_path / CLASSES, {"labels": labels})
    return tmp_path


@pytest.mark.parametrize(
    ("reader", "item", "numbers"),
    [
        (Ade20k, 0, {"wall": 1, "sky": 3}),
        (Ade20k, 1, {"flag": 150, "car": 21, "sky": 3, "tree": 5}),
        (CocoStuff, 0, {"person": 0, "wood": 181}),
        (Mapillary, 0, {"bird": 0, "road": 1}),
    ],
)
def test_each_class_is_its_region(
    root: Path, reader: Any, item: int, numbers: dict[str, int]
) -> None:
    data = reader(root)
    pixels = np.asarray(Image.open(data.where(item)[0]))
    found = {t.name: decode_mask(t.mask) for s in data.item(item) for t in s.turns[0].targets}
    assert found.keys() == numbers.keys()
    for name, value in numbers.items():
        assert np.array_equal(found[name], pixels == value), name
    assert not list(data.check())


def test_class_lists_are_those_of_the_sets(root: Path) -> None:
    ade, stuff = Ade20k(root), CocoStuff(root)
    assert len(set(ade.class_names)) == 150
    assert (ade.class_names[0], ade.class_names[12]) == ("wall", "person")
    assert {"person", "grass"} < set(stuff.class_names)
    assert not any("-" in name for name in stuff.class_names)
    assert Mapillary(root).class_names == ("bird", "road")


def test_a_question_asks_for_at_most_three_classes_and_an_epoch_for_all(root: Path) -> None:
    sizes = set()
    for epoch in range(20):
        for index in range(2):
            item = Ade20k(root).dialogues(index, epoch)
            sizes |= {len(sample.turns[0].targets) for sample in item}
            asked = [t.name for sample in item for t in sample.turns[0].targets]
            assert sorted(asked) == sorted(t.name for t in item[0].objects)
    assert sizes == {1, 2, 3}


@pytest.mark.parametrize(("count", "sizes"), [(14, [3, 3, 3]), (9, [3, 3, 3]), (4, [1, 3])])
def test_three_full_questions_are_the_papers_setting(
    tmp_path: Path, count: int, sizes: list[int]
) -> None:
    write_pair(tmp_path, Ade20k, "a", blocks(*range(1, count + 1)))
    data = Ade20k(tmp_path, questions_per_image=3, fill_questions=True)
    seen = set()
    for epoch in range(15):
        item = data.dialogues(0, epoch)
        assert sorted(len(sample.turns[0].targets) for sample in item) == sizes
        seen |= {target.name for sample in item for target in sample.turns[0].targets}
    assert len(seen) == count, "what is left over comes in other epochs"


def test_an_image_without_classes_is_asked_for_something_it_does_not_show(root: Path) -> None:
    write_pair(root, CocoStuff, "7", blocks(172, 172))  # wall-other
    samples = [s for item in CocoStuff(root) for s in item if s.id.startswith("cocostuff-train-7")]
    assert [sample.turns[0].targets for sample in samples] == [()]
    assert "wall" not in samples[0].turns[0].question


def test_bad_files_are_listed(root: Path) -> None:
    Image.new("L", SIZE[::-1]).save(root / LABELS[Ade20k] / "alone.png")
    write_pair(root, Ade20k, "high", blocks(200, 1))
    Image.new("RGB", SIZE[::-1]).save(write_pair(root, Ade20k, "colour", blocks(1, 1)))
    cut = write_pair(root, Ade20k, "cut", blocks(1, 2, 3, 4))
    cut.write_bytes(cut.read_bytes()[:60])
    write_pair(root, Ade20k, "other", blocks(1, 1)[:9])
    draw_photo(root / PHOTOS[Ade20k] / "other.jpg", SIZE)
    found = {bad.file.name: bad.reason for bad in Ade20k(root).check()}
    assert set(found) == {"alone.png", "high.png", "colour.png", "cut.png", "other.jpg"}
    assert "number 200" in found["high.png"]
    assert "mode is RGB" in found["colour.png"]


def test_what_label_images_can_not_give_and_foreign_lists_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="does not tell instances apart"):
        Ade20k(root, targets="instances")
    write_json(root / CLASSES, {"labels": [{"name": "road"}]})
    with pytest.raises(ValueError, match=r"config_v2\.0\.json is not the list"):
        Mapillary(root)


small_maps = arrays.arrays(
    np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3)
)


@given(small_maps)
@settings(max_examples=60, deadline=None)
def test_run_lengths_equal_masks_pixel_by_pixel(labels: np.ndarray) -> None:
    rles = label_map_to_rles(labels)
    assert list(rles) == sorted(set(labels.ravel().tolist()))
    for number, rle in rles.items():
        assert rle == encode_mask(labels == number)
    masks = [labels == number for number in rles]
    assert areas_of(list(rles.values())) == [mask.sum() for mask in masks]
    assert boxes_of(list(rles.values())) == [mask_to_box(mask) for mask in masks]
    assert decode_mask(union_of(list(rles.values()))).all()
