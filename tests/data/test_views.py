"""Other views of an image: masks follow the pixels, questions follow what is left to see."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_photos import coco_values, rectangle, write_json
from PIL import Image

from pixellm.data.annotated import AnnotatedClass, AnnotatedImage
from pixellm.data.augment import LEAST_KEPT, augment_image
from pixellm.data.coco_sets import OwnCoco
from pixellm.masks import decode_mask, encode_mask
from pixellm.types import RLE

SIZE = (48, 64)


def view_of(image: AnnotatedImage, seed: int) -> AnnotatedImage:
    return augment_image(image, random.Random(seed))


def middle(mask: RLE) -> float:
    return float(np.argwhere(decode_mask(mask))[:, 1].mean())


@pytest.fixture
def image(tmp_path: Path) -> AnnotatedImage:
    """Red left, green right: the masks of both can be read off the pixels of any view."""
    pixels = np.full((*SIZE, 3), 40, dtype=np.uint8)
    classes = []
    for name, (left, top, right, bottom), colour in (
        ("cup", (4, 6, 20, 40), (220, 60, 60)),
        ("bowl", (40, 10, 60, 30), (60, 220, 60)),
    ):
        mask = np.zeros(SIZE, dtype=bool)
        mask[top:bottom, left:right] = True
        pixels[mask] = colour
        classes.append(AnnotatedClass(name, (encode_mask(mask),)))
    Image.fromarray(pixels).save(tmp_path / "objects.png")
    return AnnotatedImage(tmp_path / "objects.png", SIZE, "objects", tuple(classes))


def test_masks_lie_on_the_pixels_of_their_objects_in_every_view(image: AnnotatedImage) -> None:
    for seed in range(40):
        view = view_of(image, seed)
        pixels = np.asarray(view.image).astype(int)
        redder = pixels[..., 0] - pixels[..., 1]
        shown = {"cup": redder > 25, "bowl": redder < -25}
        assert pixels.shape == (*view.size, 3)
        assert {one.name for one in view.classes} == {n for n, mask in shown.items() if mask.any()}
        for one in view.classes:
            assert np.array_equal(decode_mask(one.masks[0]), shown[one.name])


def test_views_are_mirrored_and_cut_and_the_same_for_the_same_chance(image: AnnotatedImage) -> None:
    views = [view_of(image, seed) for seed in range(20)]
    assert len({view.size for view in views}) > 10
    both = [view.classes for view in views if len(view.classes) == 2]
    assert {middle(c.masks[0]) < middle(b.masks[0]) for c, b in both} == {True, False}
    assert np.array_equal(view_of(image, 3).image, views[3].image)


def test_what_no_mask_can_be_had_of_stays_known_in_every_view(image: AnnotatedImage) -> None:
    """A class of broken annotations is in the image, so no question may deny it."""
    unsure = (AnnotatedClass("spoon", (), askable=False), replace(image.classes[0], askable=False))
    known = replace(image, classes=(*unsure, image.classes[1]))
    for seed in range(40):
        found = {one.name: one.askable for one in view_of(known, seed).classes}
        assert (found["spoon"], found["cup"]) == (False, False)


def test_what_is_cut_away_for_the_most_part_is_known_but_not_asked_for(
    image: AnnotatedImage,
) -> None:
    whole = {one.name: decode_mask(one.masks[0]).sum() for one in image.classes}
    askable = set()
    for seed in range(60):
        for one in view_of(image, seed).classes:
            share = decode_mask(one.masks[0]).sum() / whole[one.name]
            assert one.askable == (share >= LEAST_KEPT)
            askable.add(one.askable)
    assert askable == {True, False}


def test_an_image_of_another_size_is_refused_by_name(image: AnnotatedImage) -> None:
    Image.new("RGB", (10, 10)).save(image.image)
    with pytest.raises(ValueError, match=r"objects: The image is \(10, 10\)"):
        view_of(image, 0)


def test_a_reader_that_augments_asks_about_views_and_evaluates_whole_images(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "train/1.png")
    boxes = [rectangle(4, 6, 20, 40), rectangle(40, 10, 60, 30)]
    cups = [{"name": "cup", "segmentation": [box]} for box in boxes]
    values = coco_values(SIZE, ("cup",), *cups, suffix=".png")
    write_json(tmp_path / "annotations/instances_train.json", values)
    data = OwnCoco(tmp_path, augment=True)
    sizes = set()
    for epoch in range(12):
        for sample in data.dialogues(0, epoch):
            sizes.add(sample.size)
            middles = [middle(target.mask) for target in sample.turns[0].targets]
            assert middles == sorted(middles)
    assert len(sizes) > 6
    assert [sample.size for sample in data.evaluation_samples()] == [SIZE]
