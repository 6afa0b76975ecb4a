"""Overlays and contact sheets: sizes, colours, tags that stay apart and inside."""

import numpy as np
import pytest
from PIL import Image

from pixellm import visualize
from pixellm.visualize import PALETTE, draw_contact_sheet, draw_overlay, segment_color

# Linear RGB as seen without red- or green-sensitive cones (Machado et al., 2009).
PROTANOPIA = [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
]
DEUTERANOPIA = [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.011820, 0.042940, 0.968881],
]
RGB_TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]


def to_linear(colors):
    values = np.asarray(colors) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_lab(linear):
    xyz = linear.clip(0, 1) @ np.transpose(RGB_TO_XYZ) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack(
        [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1
    )


def smallest_difference(lab):
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    return distances[~np.eye(len(lab), dtype=bool)].min()


def disc(size, center, radius):
    y, x = np.mgrid[: size[0], : size[1]]
    return (x - center[0]) ** 2 + (y - center[1]) ** 2 <= radius**2


@pytest.mark.parametrize(
    ("matrix", "least"), [(np.eye(3), 40), (PROTANOPIA, 20), (DEUTERANOPIA, 20)]
)
def test_palette_colors_differ_for_every_eye(matrix, least):
    assert smallest_difference(to_lab(to_linear(PALETTE) @ np.transpose(matrix))) >= least


def test_shades_continue_the_palette():
    colors = [segment_color(index) for index in range(34)]
    assert tuple(colors[: len(PALETTE)]) == PALETTE
    assert len(set(colors)) >= 3 * len(PALETTE)
    assert all(0 <= channel <= 255 for color in colors for channel in color)


def test_overlay_tints_the_mask_and_leaves_the_rest():
    pixels = np.full((60, 80, 3), 100, dtype=np.uint8)
    mask = disc((60, 80), (40, 30), 20)
    drawn = np.asarray(draw_overlay(pixels, [mask], numbered=False, opacity=0.5))
    color = np.array(segment_color(0))
    np.testing.assert_allclose(drawn[30, 40], (100 + color) / 2, atol=1)
    np.testing.assert_array_equal(drawn[30, 20], color)  # the edge
    np.testing.assert_array_equal(drawn[0, 0], [100, 100, 100])
    assert (pixels == 100).all()
    np.testing.assert_array_equal(np.asarray(draw_overlay(pixels, [])), pixels)


def test_a_small_mask_stays_visible_inside_a_large_one():
    pixels = np.zeros((80, 80, 3), dtype=np.uint8)
    small, large = disc((80, 80), (40, 40), 8), np.ones((80, 80), dtype=bool)
    for masks in ([small, large], [large, small]):
        drawn = np.asarray(draw_overlay(pixels, masks, numbered=False, opacity=1.0))
        index = 0 if masks[0] is small else 1
        np.testing.assert_array_equal(drawn[40, 40], segment_color(index))


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (16, 16), (30, 30), (20, 400)])
def test_odd_images_keep_their_size(size):
    mask = np.zeros(size, dtype=np.bool_)
    mask[: size[0] // 2 + 1, : size[1] // 3 + 1] = True
    masks = [mask, ~mask, np.zeros(size, bool)] * 5
    drawn = draw_overlay(np.zeros((*size, 3), np.uint8), masks, ["the red thing"] * 15)
    assert drawn.size == (size[1], size[0])
    assert drawn.mode == "RGB"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_images_of_any_mode(mode):
    drawn = draw_overlay(Image.new("RGB", (50, 40)).convert(mode), [np.ones((40, 50), bool)])
    assert (drawn.mode, drawn.size) == ("RGB", (50, 40))


def tags_of(monkeypatch, size, masks, labels):
    """The rectangles of all tags that are drawn."""
    tags = []
    monkeypatch.setattr(visualize, "_draw_tag", lambda canvas, tag, *rest: tags.append(tag))
    draw_overlay(np.zeros((*size, 3), np.uint8), masks, labels)
    return tags


@pytest.mark.parametrize("labels", [None, ["the wine glass on the table"] * 12])
def test_tags_stay_inside_and_apart(monkeypatch, labels):
    size = (360, 640)
    rng = np.random.default_rng(3)
    centers = rng.uniform((0, 0), (640, 360), (9, 2)).tolist()
    masks = [disc(size, center, 25) for center in centers]
    masks += [disc(size, (0, 0), 6), disc(size, (639, 359), 6), disc(size, (2, 2), 6)]
    tags = tags_of(monkeypatch, size, masks, labels)
    assert len(tags) == 12
    for index, tag in enumerate(tags):
        assert 0 <= tag.left < tag.right <= 640 and 0 <= tag.top < tag.bottom <= 360
        for other in tags[:index]:
            apart_x = tag.right <= other.left or other.right <= tag.left
            apart_y = tag.bottom <= other.top or other.bottom <= tag.top
            assert apart_x or apart_y


def test_a_tag_lies_on_a_large_mask_and_beside_a_small_one(monkeypatch):
    size = (300, 300)
    large, small = disc(size, (90, 90), 80), disc(size, (240, 240), 5)
    small_tag, large_tag = tags_of(monkeypatch, size, [large, small], None)
    assert large[large_tag.top : large_tag.bottom, large_tag.left : large_tag.right].all()
    hidden = small[small_tag.top : small_tag.bottom, small_tag.left : small_tag.right].sum()
    assert hidden < 0.5 * small.sum()
    assert len(tags_of(monkeypatch, size, [np.zeros(size, bool), large], None)) == 1


def test_overlay_refuses_what_does_not_fit():
    image = Image.new("RGB", (30, 20))
    with pytest.raises(ValueError, match=r"\(30, 20\).*\(20, 30\)"):
        draw_overlay(image, [np.zeros((30, 20), bool)])
    with pytest.raises(ValueError, match="1 masks but 2 labels"):
        draw_overlay(image, [np.zeros((20, 30), bool)], ["a", "b"])


def test_contact_sheet_lays_tiles_out_in_rows_with_room_for_captions():
    red, blue = Image.new("RGB", (40, 20), "red"), Image.new("RGB", (10, 30), "blue")
    sheet = draw_contact_sheet([red, blue, red], columns=2, tile_width=100)
    pixels = np.asarray(sheet)
    assert sheet.width < 2 * 100 + 20
    assert (pixels[30, 50] == (255, 0, 0)).all()
    assert (pixels[50, 154] == (0, 0, 255)).all()
    assert (pixels[-20, 50] == (255, 0, 0)).all()
    assert (pixels[-20, 154] == 255).all()
    texts = (None, ["one"], ["many words " * 10 + "\nand" + "x" * 200])
    bare, short, long = (draw_contact_sheet([red], one, tile_width=100) for one in texts)
    assert bare.height < short.height < long.height
    assert bare.width == long.width
    assert (np.asarray(short)[-20:] < 100).any()


def test_contact_sheet_takes_any_shape_and_refuses_nonsense():
    for size in ((1, 1), (4000, 1), (1, 4000)):
        sheet = draw_contact_sheet([Image.new("RGB", size, "red")], tile_width=64)
        assert max(sheet.size) < 90
    tile = Image.new("RGB", (5, 5))
    for tiles, captions, columns in (([], None, 4), ([tile], ["a", "b"], 4), ([tile], None, 0)):
        with pytest.raises(ValueError, match="contact sheet"):
            draw_contact_sheet(tiles, captions, columns)
