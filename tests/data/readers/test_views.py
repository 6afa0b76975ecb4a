"""Other views of an image: masks follow the pixels, questions follow what is left to see."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pixellm.data.annotated import AnnotatedClass, AnnotatedImage
from pixellm.data.augment import LEAST_KEPT, augment_image
from pixellm.data.coco_sets import OwnCoco
from pixellm.masks import decode_mask, encode_mask

SIZE = (48, 64)


def mask_of(box):
    left, top, right, bottom = box
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture
def image(tmp_path):
    """Red left, green right: the two things' masks can be read off the pixels of any view."""
    cup, bowl = mask_of((4, 6, 20, 40)), mask_of((40, 10, 60, 30))
    pixels = np.full((*SIZE, 3), 40, dtype=np.uint8)
    pixels[cup], pixels[bowl] = (220, 60, 60), (60, 220, 60)
    Image.fromarray(pixels).save(tmp_path / "things.png")
    classes = (
        AnnotatedClass("cup", (encode_mask(cup),)),
        AnnotatedClass("bowl", (encode_mask(bowl),)),
    )
    return AnnotatedImage(tmp_path / "things.png", SIZE, "things", classes)


def seen(pixels):
    """Where a view's pixels are reddish, and where greenish."""
    red, green = pixels[..., 0].astype(int), pixels[..., 1].astype(int)
    return {"cup": red - green > 25, "bowl": green - red > 25}


def test_masks_lie_on_the_pixels_of_their_things_in_every_view(image):
    for seed in range(40):
        view = augment_image(image, random.Random(seed))
        shown = seen(view.image)
        assert view.image.shape == (*view.size, 3)
        assert {one.name for one in view.classes} == {n for n, mask in shown.items() if mask.any()}
        for one in view.classes:
            assert np.array_equal(decode_mask(one.masks[0]), shown[one.name])


def test_views_are_mirrored_and_cut_and_the_same_for_the_same_chance(image):
    views = [augment_image(image, random.Random(seed)) for seed in range(20)]
    assert len({view.size for view in views}) > 10
    both = [v for v in views if len(v.classes) == 2]
    cup_is_left = {
        bool(
            np.argwhere(decode_mask(v.classes[0].masks[0]))[:, 1].mean()
            < np.argwhere(decode_mask(v.classes[1].masks[0]))[:, 1].mean()
        )
        for v in both
    }
    assert cup_is_left == {True, False}
    again = augment_image(image, random.Random(3))
    assert np.array_equal(again.image, views[3].image)


def test_what_no_mask_can_be_had_of_stays_known_in_every_view(image):
    """A class of broken annotations is in the image, so no question may deny it."""
    unsure = (AnnotatedClass("spoon", (), askable=False), replace(image.classes[0], askable=False))
    known = replace(image, classes=(*unsure, image.classes[1]))
    for seed in range(40):
        found = {one.name: one.askable for one in augment_image(known, random.Random(seed)).classes}
        assert (found["spoon"], found["cup"]) == (False, False)


def test_what_is_cut_away_for_the_most_part_is_known_but_not_asked_for(image):
    whole = {one.name: decode_mask(one.masks[0]).sum() for one in image.classes}
    askable = set()
    for seed in range(60):
        for one in augment_image(image, random.Random(seed)).classes:
            share = decode_mask(one.masks[0]).sum() / whole[one.name]
            assert one.askable == (share >= LEAST_KEPT)
            askable.add(one.askable)
    assert askable == {True, False}


def test_an_image_of_another_size_is_refused_by_name(image, tmp_path):
    Image.new("RGB", (10, 10)).save(tmp_path / "things.png")
    with pytest.raises(ValueError, match=r"things: The image is \(10, 10\)"):
        augment_image(image, random.Random(0))


def test_a_reader_that_augments_asks_about_views_and_evaluates_whole_images(tmp_path):
    import json

    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "train" / "1.png")
    boxes = [[4, 6, 20, 6, 20, 40, 4, 40], [40, 10, 60, 10, 60, 30, 40, 30]]
    document = {
        "images": [{"id": 1, "file_name": "1.png", "height": 48, "width": 64}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [box]}
            for n, box in enumerate(boxes)
        ],
    }
    path = tmp_path / "annotations" / "instances_train.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    data = OwnCoco(tmp_path, augment=True)
    sizes = set()
    for epoch in range(12):
        for sample in data.dialogues(0, epoch):
            sizes.add(sample.size)
            middles = [
                np.argwhere(decode_mask(target.mask))[:, 1].mean()
                for target in sample.turns[0].targets
            ]
            assert middles == sorted(middles)
    assert len(sizes) > 6
    assert [sample.size for sample in data.evaluation_samples()] == [SIZE]
