"""Photo scenes: masks are exact, questions true, and every image follows from its number."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_photos import coco_values, rectangle, write_json
from PIL import Image

from pixellm.data.photo_scenes import PhotoScenes
from pixellm.masks import decode_mask
from pixellm.scenes.cutouts import Background, cut_out, paste_scene

RED, GREEN, GREY = (220, 20, 20), (20, 200, 20), (120, 120, 120)
SIZE = (160, 240)


def paint(path: Path, *squares: tuple[tuple[int, int, int], int, int, int]) -> None:
    pixels = np.full((*SIZE, 3), GREY, dtype=np.uint8)
    for colour, left, top, side in squares:
        pixels[top : top + side, left : left + side] = colour
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two photos: a red dog and a green car, the second also with a crowd of people."""
    paint(tmp_path / "train" / "0.png", (RED, 20, 30, 60), (GREEN, 150, 40, 70))
    paint(tmp_path / "train" / "1.png", (GREEN, 100, 50, 80))
    boxes = [(0, "dog", (20, 30, 60)), (0, "car", (150, 40, 70))]
    boxes += [(1, "car", (100, 50, 80)), (1, "person", (10, 100, 40))]
    shapes = [
        {
            "image_id": image,
            "name": name,
            "segmentation": [rectangle(left, top, left + side, top + side)],
            "iscrowd": int(name == "person"),
        }
        for image, name, (left, top, side) in boxes
    ]
    names = ("dog", "car", "person")
    values = coco_values(SIZE, names, *shapes, images=(0, 1), suffix=".png")
    write_json(tmp_path / "annotations/instances_train.json", values)
    return tmp_path


def test_crowds_are_among_the_objects_and_never_asked_for(root: Path) -> None:
    data = PhotoScenes(root, long_side=96)
    samples = [sample for index in range(40) for sample in data[index]]
    crowds = [s for s in samples if "person" in {one.name for one in s.objects}]
    assert crowds, "some whole photo shows the crowd"
    for sample in samples:
        assert all(target.name != "person" for turn in sample.turns for target in turn.targets)
        masks = {True: np.zeros(sample.size, bool), False: np.zeros(sample.size, bool)}
        for one in sample.objects:
            masks[one.name == "person"] |= decode_mask(one.mask)
        assert not (masks[True] & masks[False]).any(), "what is pasted hides it"


def mask_of(left: int, top: int, side: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


def is_colour(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where one channel leads as it does in a colour, whatever the light."""
    channel = int(np.argmax(colour))
    others = np.delete(pixels.astype(int), channel, axis=-1).max(axis=-1)
    return np.asarray(pixels[..., channel].astype(int) - others > 25)


def test_masks_cover_what_is_seen_of_each_object(root: Path) -> None:
    data = PhotoScenes(root, long_side=256)
    checked = 0
    for index in range(25):
        scene = data.scene(index)
        for one in scene.objects:
            mask = decode_mask(one.mask)
            inside = scene.image[mask]
            colour = RED if one.concept == "dog" else GREEN
            if one.area > 400:
                assert is_colour(inside[None], colour).mean() > 0.85
                checked += 1
            assert one.area == mask.sum()
            rows, columns = np.nonzero(mask)
            assert one.center == pytest.approx((columns.mean(), rows.mean()))
            assert one.box[:2] == (columns.min(), rows.min())
        assert not any(one.concept == "person" for one in scene.objects)
    assert checked > 30


def test_a_pasted_object_hides_what_lies_below_and_no_pixel_is_claimed_twice() -> None:
    dog = cut_out("dog", np.full((*SIZE, 3), RED, np.uint8), mask_of(20, 30, 60))
    below = np.full((*SIZE, 3), GREY, np.uint8)
    car = mask_of(60, 20, 120)
    below[car] = GREEN
    hidden = 0
    for seed in range(30):
        ground = Background(below, (("car", car),), frozenset({"person"}))
        scene = paste_scene(np.random.default_rng(seed), ground, [dog, dog])
        masks = [decode_mask(one.mask) for one in scene.objects]
        assert np.sum(masks, axis=0).max() == 1
        assert "person" in scene.uncertain
        cars = [
            mask for one, mask in zip(scene.objects, masks, strict=True) if one.concept == "car"
        ]
        hidden += bool(cars) and bool(cars[0].sum() < car.sum())
        if not cars:
            assert "car" in scene.uncertain
    assert hidden > 5


def test_a_number_gives_the_same_image_in_any_order_and_process(root: Path) -> None:
    first, second = PhotoScenes(root, seed=5), PhotoScenes(root, seed=5)
    for index in (7, 2000, 3):
        first[index]
    other = pickle.loads(pickle.dumps(first))
    for index in (3, 2000, 7):
        for data in (second, other):
            again, before = data[index], first[index]
            assert np.array_equal(again[0].image, before[0].image)
            assert [one.turns for one in again] == [one.turns for one in before]
    assert not np.array_equal(PhotoScenes(root, seed=6)[3][0].image, first[3][0].image)
    assert len({repr(sample.turns) for index in range(20) for sample in first[index]}) > 20


def test_a_crowd_below_is_never_denied(root: Path) -> None:
    data = PhotoScenes(root, kinds={"negative": 1.0, "counting": 1.0}, dialogues_per_image=6)
    seen = 0
    for index in range(50):
        if "person" in data.scene(index).uncertain:
            seen += 1
            answers = [turn.answer for one in data[index] for turn in one.turns]
            assert not any("person" in answer for answer in answers)
            assert not any("people" in turn.question for one in data[index] for turn in one.turns)
    assert seen > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length of photo scenes is at least 1"),
        ({"long_side": 20}, "take 64 or more"),
        ({"kinds": {"odd": 1}}, "Unknown kind of question 'odd'"),
    ],
)
def test_wrong_options_are_refused(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhotoScenes(root, **options)
