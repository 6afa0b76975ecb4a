"""Reading images, the model's frame, and the way back."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pixellm.image_files import load_image
from pixellm.masks import Letterbox, encode_mask
from pixellm.processing.image import PixelLMImageProcessor, resize_targets

PARITY = Path(os.environ.get("PIXELLM_PARITY_DIR", "")) / "official_a"
needs_parity = pytest.mark.skipif(
    not PARITY.is_dir(), reason="The released code's tensors (PIXELLM_PARITY_DIR) are not here."
)

RAMP = np.add.outer(np.arange(24) * 4, np.arange(32) * 5).astype(np.uint8)
COLORS = np.stack([RAMP, 255 - RAMP, RAMP // 2], axis=-1)


def read(path):
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


# --- reading ---------------------------------------------------------------------------------

DEEP = np.linspace(0, 65535, 24 * 32).reshape(24, 32).astype(np.uint16)
GREY = np.repeat(np.rint(DEEP / 257)[..., None], 3, axis=2)
BLOCKS = np.array([[0, 1], [2, 1]], dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
PALETTE = np.array([[200, 10, 20], [0, 90, 30], [5, 6, 250]])
RED = np.broadcast_to((255, 0, 0), (8, 8, 3))


def palette_image():
    image = Image.fromarray(BLOCKS).convert("P")
    image.putpalette(PALETTE.ravel().tolist())
    return image


def with_alpha(mode):
    image = Image.new("RGBA", (3, 1), (100, 100, 100, 255))
    image.putpixel((1, 0), (100, 100, 100, 0))
    image.putpixel((2, 0), (100, 100, 100, 51))
    return image.convert(mode)


def moving():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    return frames[0], {"save_all": True, "append_images": frames[1:]}


def stored_turned(orientation):
    """How the upright image is stored for a value of the EXIF tag, with that tag."""
    turned = COLORS.swapaxes(0, 1) if orientation > 4 else COLORS
    if orientation in (3, 4, 6, 7):
        turned = turned[::-1]
    if orientation in (2, 3, 7, 8):
        turned = turned[:, ::-1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return Image.fromarray(np.ascontiguousarray(turned)), {"exif": exif}


LOSSLESS = {"lossless": True}
HOLE = np.where((BLOCKS == 1)[..., None], 255, PALETTE[BLOCKS])
FADED = np.repeat(np.array([[100, 255, 224]])[..., None], 3, axis=2)
FILES = [
    *(
        ("colors." + kind, Image.fromarray(COLORS), {}, COLORS)
        for kind in ("png", "bmp", "tiff", "ppm")
    ),
    ("colors.webp", Image.fromarray(COLORS), LOSSLESS, COLORS),
    *(("deep." + kind, Image.fromarray(DEEP), {}, GREY) for kind in ("png", "tiff")),
    *(("palette." + kind, palette_image(), {}, PALETTE[BLOCKS]) for kind in ("png", "gif", "tiff")),
    *(("hole." + kind, palette_image(), {"transparency": 1}, HOLE) for kind in ("png", "gif")),
    *(("alpha.png", with_alpha(mode), {}, FADED) for mode in ("RGBA", "LA")),
    *(
        ("grey.png", one := Image.fromarray(RAMP).convert(mode), {}, np.asarray(one.convert("RGB")))
        for mode in ("1", "L")
    ),
    *(("moving." + kind, *moving(), RED) for kind in ("gif", "png")),
    ("moving.webp", moving()[0], moving()[1] | LOSSLESS, RED),
    *(
        (f"turned{tag}.{kind}", stored_turned(tag)[0], stored_turned(tag)[1] | options, COLORS)
        for tag in range(1, 9)
        for kind, options in (("png", {}), ("webp", LOSSLESS), ("tiff", {}))
    ),
]


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"), FILES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_files_read_exactly(tmp_path, name, image, options, expected):
    image.save(tmp_path / name, **options)
    np.testing.assert_array_equal(read(tmp_path / name), expected)
    np.testing.assert_array_equal(read(str(tmp_path / name)), expected)


def test_16_bit_portable_greymaps_and_print_colors_are_read(tmp_path):
    path = tmp_path / "deep.pgm"
    path.write_bytes(b"P5 32 24 65535\n" + DEEP.astype(">u2").tobytes())
    np.testing.assert_array_equal(read(path), GREY)
    path = tmp_path / "print.jpg"
    Image.fromarray(COLORS).convert("CMYK").save(path, quality=100, subsampling=0)
    assert Image.open(path).mode == "CMYK"
    assert np.abs(read(path).astype(int) - COLORS).max() <= 6


@pytest.mark.parametrize(
    ("array", "first"),
    [
        (COLORS, COLORS[0, 0]),
        (RAMP, RAMP[0, 0]),
        (RAMP[..., None], RAMP[0, 0]),
        (np.dstack([COLORS, np.zeros_like(RAMP)]), 255),
        (np.full((3, 4), 65535, np.uint16), 255),
        (np.full((3, 4), 257, np.uint16), 1),
    ],
)
def test_arrays_are_images_too(array, first):
    pixels = read(array)
    assert pixels.shape == (*array.shape[:2], 3)
    assert (pixels[0, 0] == first).all()


def test_a_pillow_image_is_read_but_not_changed():
    image = Image.new("RGBA", (5, 4), (0, 0, 0, 0))
    assert (read(image) == 255).all()
    assert image.mode == "RGBA"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), "array"),
        (np.zeros((4, 4, 3), np.uint16), "array"),
        *(
            (Image.fromarray(np.full((3, 3), 1e6, np.float32)).convert(mode), "32-bit")
            for mode in "FI"
        ),
    ],
)
def test_what_is_no_image_in_memory_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        load_image(source)


@pytest.mark.parametrize("limit", [40, 99])  # Pillow itself refuses above twice its limit only
def test_images_past_the_bomb_limit(tmp_path, monkeypatch, limit):
    path = tmp_path / "bomb.png"
    Image.new("RGB", (10, 10)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=f"more than {limit} pixels") as error:
        load_image(path)
    assert str(path) in str(error.value)


# --- the processor ---------------------------------------------------------------------------


@needs_parity
@pytest.mark.parametrize(
    ("case", "tolerance"), [(0, 1e-5), (1, 1e-5), (2, 1e-5), (3, 1e-5), (4, 0.02)]
)
def test_equals_the_released_code(case, tolerance):
    golden = load_file(PARITY / "golden.safetensors")
    facts = json.loads((PARITY / "golden.json").read_text())["cases"][case]
    batch = PixelLMImageProcessor()(PARITY / facts["image"])
    assert batch["original_sizes"].tolist() == [facts["original_hw"]]
    assert batch["resized_sizes"].tolist() == [facts["resized_hw"]]
    torch.testing.assert_close(
        batch["pixel_values"][0, :, ::7, ::7],
        golden[f"case{case}.pixel_values_sub7"],
        atol=tolerance,
        rtol=0,
    )


def test_shapes_types_and_padding_of_a_batch():
    processor = PixelLMImageProcessor(image_size=64)
    sources = [COLORS, np.full((4000, 1, 3), 255, np.uint8), Image.new("L", (1, 1))]
    batch = processor(sources)
    assert batch["pixel_values"].shape == (3, 3, 64, 64)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_mask"].dtype == torch.bool
    assert batch["original_sizes"].tolist() == [[24, 32], [4000, 1], [1, 1]]
    assert batch["resized_sizes"].tolist() == [[48, 64], [64, 1], [64, 64]]
    for pixels, mask, (height, width) in zip(
        batch["pixel_values"], batch["pixel_mask"], batch["resized_sizes"].tolist(), strict=True
    ):
        assert mask[:height, :width].all() and mask.sum() == height * width
        assert (pixels[:, ~mask] == 0).all()
        assert (pixels[:, mask] != 0).any()


def test_a_batch_equals_its_images_one_by_one():
    processor = PixelLMImageProcessor(image_size=32)
    sources = [COLORS, COLORS[:, :7], RAMP]
    batch = processor(sources)
    for row, source in enumerate(sources):
        for key, value in processor(source).items():
            assert torch.equal(value[0], batch[key][row])


def test_normalisation_in_both_units():
    white = np.full((8, 8, 3), 255, np.uint8)
    released = PixelLMImageProcessor(image_size=8)(white)["pixel_values"]
    clip = PixelLMImageProcessor(
        image_size=8,
        rescale_factor=1 / 255,
        image_mean=[0.48145466, 0.4578275, 0.40821073],
        image_std=[0.26862954, 0.26130258, 0.27577711],
    )(white)["pixel_values"]
    red = [(255 - 123.675) / 58.395, (1 - 0.48145466) / 0.26862954]
    assert released[0, 0, 0, 0].item() == pytest.approx(red[0], abs=1e-5)
    assert clip[0, 0, 0, 0].item() == pytest.approx(red[1], abs=1e-5)


def test_numpy_output_is_the_same():
    processor = PixelLMImageProcessor(image_size=16)
    tensors, arrays = processor(COLORS), processor(COLORS, return_tensors="np")
    for key, array in arrays.items():
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, tensors[key].numpy())


def test_saved_and_loaded_settings_are_the_same(tmp_path):
    processor = PixelLMImageProcessor(96, "bicubic", 1 / 255, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    loaded = PixelLMImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert torch.equal(loaded(COLORS)["pixel_values"], processor(COLORS)["pixel_values"])
    assert PixelLMImageProcessor.from_pretrained(tmp_path, image_size=32).image_size == 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"resample": "magic"}, "magic"),
        ({"image_std": [1, 0, 1]}, "image_std"),
        ({"image_mean": [1]}, "image_mean"),
        ({"imgae_size": 3}, "imgae_size"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PixelLMImageProcessor(**settings)


# --- true masks at the size of training -----------------------------------------------------


def test_target_masks_by_hand():
    mask = np.zeros((4, 8), dtype=np.bool_)
    mask[:2, :4] = True  # two whole cells of 2 x 4
    mask[2, 4:6] = True  # half of a cell
    mask[3, 7] = True  # a quarter of a cell
    (target,) = resize_targets([encode_mask(mask)], (4, 8), (2, 4))
    assert target.dtype == np.bool_
    assert target.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]


def test_target_masks_at_the_size_of_their_image_are_those_of_the_image():
    mask = np.random.default_rng(0).random((13, 31)) < 0.5
    assert np.array_equal(resize_targets([encode_mask(mask)], (13, 31), (13, 31))[0], mask)
    (larger,) = resize_targets([encode_mask(mask)], (13, 31), (26, 93))
    assert np.array_equal(larger, np.kron(mask, np.ones((2, 3), dtype=np.bool_)))


@pytest.mark.parametrize("size", [(300, 400), (400, 300), (37, 91), (427, 640), (5, 640)])
def test_target_masks_agree_with_pillow_averages(size):
    rng = np.random.default_rng(5)
    coarse = rng.random((6, 6)) < 0.5
    mask = np.kron(coarse, np.ones((120, 120), dtype=bool))[: size[0], : size[1]]
    new = Letterbox.fit(size, 24).resized
    (target,) = resize_targets([encode_mask(mask)], size, new)
    image = Image.fromarray((mask * 255).astype(np.uint8))
    average = np.asarray(image.resize(new[::-1], Image.Resampling.BOX)) / 255
    clear = np.abs(average - 0.5) > 0.12  # its box filter takes whole pixels
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(target[clear], average[clear] > 0.5)


@pytest.mark.parametrize("side", [96, 128, 448])
@pytest.mark.parametrize("size", [(427, 640), (640, 427), (333, 500), (100, 448), (5, 640)])
def test_what_touches_the_border_is_target_up_to_the_border(size, side):
    full, half = np.ones(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_)
    half[:, : size[1] // 2] = True
    new = Letterbox.fit(size, side).resized
    whole, left = resize_targets([encode_mask(full), encode_mask(half)], size, new)
    assert whole.shape == left.shape == new
    assert whole.all()
    assert (left == left[0]).all() and left[0].any() and not left[0].all()


def test_thin_and_tiny_targets_never_vanish():
    size = (480, 640)
    line, dot, corner, diagonal = (np.zeros(size, dtype=np.bool_) for _ in range(4))
    line[100, 50:600] = True
    dot[200, 300] = True
    corner[479, 639] = True
    diagonal[np.arange(480), np.arange(480)] = True
    rles = [encode_mask(mask) for mask in (line, dot, corner, diagonal)]
    targets = np.stack(resize_targets(rles, size, (24, 32)))
    areas = targets.sum(axis=(1, 2)).tolist()
    assert areas[1:3] == [1, 1]
    assert areas[0] >= 26 and targets[0].any(axis=1).sum() == 1  # 550 of 640 pixels: 27.5 cells
    assert areas[3] >= 24
    assert targets[2, 23, 31]


def test_targets_of_another_image_are_refused():
    with pytest.raises(ValueError, match="target mask"):
        resize_targets([encode_mask(np.ones((4, 5), dtype=np.bool_))], (5, 4), (16, 13))
