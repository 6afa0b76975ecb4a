"""Values as people's tools write them: used rightly, or refused, never misread."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pixellm.data.json_values import flag, identity, inner_path, size_fault, whole_number
from pixellm.masks import segmentation_to_rle
from pixellm.types import Request, Turn

SIZE = (48, 64)
BOX = [4, 4, 20, 4, 20, 12, 4, 12]
HALF = "half \ud83d emoji"


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3),
        (3.0, 3),
        ("3", 3),
        (" 3.0", 3),
        ("-3", -3),
        (True, None),
        (3.5, None),
        ("3a", None),
        (None, None),
        (float("nan"), None),
        (float("inf"), None),
        (1e30, None),
        ([], None),
    ],
)
def test_whole_numbers_come_in_three_forms(value: Any, number: int | None) -> None:
    assert whole_number(value) == number


def test_ids_flags_sizes_and_paths() -> None:
    assert [identity(v) for v in ("a7", "7", 7.0, None, True, " ")] == [
        "a7",
        7,
        7,
        None,
        None,
        None,
    ]
    assert [flag(v) for v in (0, "0", "False", None, 1, 1.0, "true", "maybe", [])] == [
        *(False, False, False, False),
        *(True, True, True),
        *(None, None),
    ]
    assert size_fault("48", 64.0) == ""
    for size in ((0, 5), (-1, 5), (None, 5), (1e30, 5), (10**6, 10**6), ("tall", 5)):
        assert "height and width" in size_fault(*size)
    assert str(inner_path("images\\a.jpg")) == "images/a.jpg"
    for name in ("..\\a.jpg", "/a.jpg", "C:\\a.jpg", "", "a\0.jpg"):
        with pytest.raises(ValueError, match="leads out"):
            inner_path(name)


@pytest.mark.parametrize(
    "shape",
    [
        BOX,
        [BOX],
        [[BOX]],
        [[4, 4], [20, 4], [20, 12], [4, 12]],
        [[[4, 4], [20, 4], [20, 12], [4, 12]]],
        [[[[4, 4], [20, 4], [20, 12], [4, 12]]]],
        [BOX, [1, 1]],
    ],
)
def test_polygons_are_read_at_any_depth(shape: Any) -> None:
    assert segmentation_to_rle(shape, SIZE) == segmentation_to_rle([BOX], SIZE)


@pytest.mark.parametrize(
    "shape", [[BOX, 5], [[4, None, 6, 6, 1, 2]], [[1e30] * 6], [[10**400] * 6], [[["a"] * 6]]]
)
def test_what_is_no_polygon_is_refused(shape: Any) -> None:
    with pytest.raises(ValueError, match="polygon"):
        segmentation_to_rle(shape, SIZE)
    with pytest.raises(ValueError, match="positive whole numbers"):
        segmentation_to_rle([BOX], (-1, 5))


def test_half_a_character_reaches_no_tokenizer() -> None:
    for question, answer in ((HALF, "x"), ("x", HALF)):
        with pytest.raises(ValueError, match="half a character"):
            Turn(question, answer)
    image = np.zeros((4, 4, 3), np.uint8)
    for request in ((HALF, ()), ("x", (("y", HALF),))):
        with pytest.raises(ValueError, match="half a character"):
            Request(image, *request)
    Turn("whole \U0001f600", "é")
