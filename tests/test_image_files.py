"""Image files as people have them: odd EXIF, hostile bytes, other formats, other sizes."""

import base64
import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, PngImagePlugin
from typer.testing import CliRunner

from memory import image_memory
from pixellm import image_files
from pixellm.cli.main import app
from pixellm.curation.photos import jpeg_data_url
from pixellm.data.registry import open_reader
from pixellm.data.rows import read_rows
from pixellm.image_files import image_size, load_image, load_stored, probe_image, size_mismatch
from pixellm.processing.image import PixelLMImageProcessor

CASES = Path(os.environ.get("PIXELLM_CASES_DIR", ""))
needs_cases = pytest.mark.skipif(
    not (CASES / "01-exif").is_dir(), reason="Collected files (PIXELLM_CASES_DIR) are not here."
)

PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of one directory with (tag, type, count, four bytes) each."""
    rows = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + b"\0\0\0\0"


ORIENTATION_6 = (0x0112, 3, 1, b"\x06\0\0\0")
UNTURNED = {
    "no TIFF": b"this is no TIFF header",
    "cut off": exif_block(ORIENTATION_6)[:15],
    "text": exif_block((0x0112, 2, 2, b"6\0\0\0")),
    "a fraction": exif_block((0x0112, 5, 1, b"\x08\0\0\0")),
    "nine": exif_block((0x0112, 3, 1, b"\x09\0\0\0")),
    "zero": exif_block((0x0112, 3, 1, b"\0\0\0\0")),
}


def save(path: Path, exif: bytes) -> Path:
    options = {"lossless": True} if path.suffix == ".webp" else {}
    prefix = b"" if path.suffix == ".png" else b"Exif\0\0"
    Image.fromarray(PIXELS).save(path, exif=prefix + exif, **options)
    return path


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
@pytest.mark.parametrize("kind", list(UNTURNED))
def test_odd_exif_leaves_the_pixels_alone(tmp_path, kind, suffix):
    path = save(tmp_path / f"photo{suffix}", UNTURNED[kind])
    assert image_size(path) == probe_image(path) == (48, 64)
    found = np.asarray(load_image(path))
    assert found.shape == PIXELS.shape
    if suffix != ".jpg":
        np.testing.assert_array_equal(found, PIXELS)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_orientation_counts_beside_a_broken_tag(tmp_path, suffix):
    broken = exif_block(ORIENTATION_6, (0x0213, 2, 4, b"abc\0"))
    path = save(tmp_path / f"photo{suffix}", broken)
    assert image_size(path) == probe_image(path) == (64, 48)
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_the_header_gives_the_size_that_loading_gives(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(PIXELS).save(path, exif=exif)
    image = load_image(path)
    assert image_size(path) == probe_image(path) == (image.height, image.width)


@pytest.mark.parametrize(
    "fault", [SyntaxError, struct.error, TypeError, OverflowError, KeyError, MemoryError, OSError]
)
def test_whatever_a_decoder_raises_is_told_with_the_path(tmp_path, monkeypatch, fault):
    path = tmp_path / "hostile.png"
    Image.fromarray(PIXELS).save(path)

    def fail(*_):
        raise fault("first line\nsecond line")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    for read in (load_image, load_stored, probe_image):
        with pytest.raises(ValueError, match="damaged") as error:
            read(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_probing_finds_a_truncated_file(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(PIXELS).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.7)])
    with pytest.raises(ValueError, match="damaged or truncated"):
        probe_image(path)


def test_postscript_is_no_image_whatever_its_name(tmp_path, monkeypatch):
    path = tmp_path / "photo.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("was run"))
    for read in (load_image, image_size, probe_image):
        with pytest.raises(ValueError, match="page or drawing"):
            read(path)


def test_heic_is_read_or_its_reader_is_named(tmp_path, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "phone.heic"
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 10, 10))).save(path)
    image_files._known_formats.cache_clear()
    assert image_size(path) == probe_image(path) == (48, 64)
    assert np.abs(np.asarray(load_image(path)).astype(int) - (200, 10, 10)).max() < 12
    known = tuple(name for name in image_files._known_formats() if name != "HEIF")
    monkeypatch.setattr(image_files, "_known_formats", lambda: known)
    with pytest.raises(ValueError, match=r"HEIC image; install pillow-heif"):
        load_image(path)


def test_frames_left_out_are_said_once(tmp_path, caplog):
    image_files._said_first_frame.clear()
    for name in ("one.gif", "two.gif", "pages.tiff"):
        frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime")]
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert (np.asarray(load_image(tmp_path / name)) == (255, 0, 0)).all()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'one.gif'} has several frames; of such images the first one is used."
    ]


def test_an_annotation_of_the_stored_image_is_told_so():
    assert size_mismatch((64, 48), (64, 48)) == ""
    assert "before EXIF" not in size_mismatch((64, 48), (64, 47))
    assert "before EXIF" in size_mismatch((64, 48), (48, 64))


def test_curation_sends_the_image_upright(tmp_path):
    path = save(tmp_path / "photo.png", exif_block(ORIENTATION_6))
    data = base64.b64decode(jpeg_data_url(path, 100).split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (48, 64)


def test_labelme_refuses_an_annotation_of_the_stored_image(tmp_path):
    photo = save(tmp_path / "photo.png", exif_block(ORIENTATION_6))
    shape = {"label": "dog", "points": [[2, 2], [30, 30]], "shape_type": "rectangle"}
    content = {
        "imagePath": photo.name,
        "imageData": None,
        "imageHeight": 48,
        "imageWidth": 64,
        "shapes": [shape],
    }
    (tmp_path / "photo.json").write_text(json.dumps(content))
    (tmp_path / "other.json").write_text(
        json.dumps({**content, "imageHeight": 64, "imageWidth": 48})
    )
    reader = open_reader("labelme", tmp_path, "train", folder=".")
    assert ["before EXIF turned it" in bad.reason for bad in reader.check()] == [True]


@needs_cases
@pytest.mark.parametrize(
    ("name", "size"),
    [("2_head.png", (48, 64)), ("3_turned.jpg", (64, 48)), ("4_text.jpg", (48, 64))],
)
def test_photos_with_odd_exif_that_people_had(name, size):
    path = CASES / "01-exif" / "photos" / name
    image = load_image(path)
    assert image_size(path) == probe_image(path) == (image.height, image.width) == size


@needs_cases
def test_mutated_exif_is_ignored():
    paths = sorted((CASES / "reliability").glob("exif_size_*"))
    assert paths
    for path in paths:
        image = load_image(path)
        assert image_size(path) == probe_image(path) == (image.height, image.width)


def test_data_check_finds_a_truncated_photo_and_quick_does_not(tmp_path):
    photo = tmp_path / "photo.jpg"
    Image.fromarray(PIXELS).save(photo)
    photo.write_bytes(photo.read_bytes()[:-900])
    box = {"label": "dog", "points": [[2, 2], [30, 30]], "shape_type": "rectangle"}
    shown = {"imagePath": photo.name, "imageHeight": 48, "imageWidth": 64, "shapes": [box]}
    (tmp_path / "photo.json").write_text(json.dumps(shown))
    command = ["data", "check", str(tmp_path), "--set", "labelme", "--with", "folder=."]
    whole = CliRunner().invoke(app, command)
    assert whole.exit_code == 1
    assert "truncated" in whole.output
    assert CliRunner().invoke(app, [*command, "--quick"]).exit_code == 0


def test_images_come_in_every_form(tmp_path):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    with path.open("rb") as file:
        forms = [path, str(path), data, bytearray(data), file, io.BytesIO(data)]
        forms += [Image.fromarray(pixels), pixels, torch.from_numpy(pixels)]
        for form in forms:
            assert np.array_equal(np.asarray(load_image(form)), pixels), type(form)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("https://example.org/a.png", "is a URL"),
        (Path("https://example.org/a.png"), "is a URL"),
        (b"", "is empty"),
        (b"no image", "is not an image"),
        (io.StringIO("text"), "opened for text"),
        (None, "not NoneType"),
        ([[0, 1]], "not list"),
        (torch.zeros(3, 4, 6), r"\(3, 4, 6\) float32"),
        (np.zeros((4, 6, 3)), r"\(4, 6, 3\) float64"),
    ],
)
def test_what_is_no_image_is_told_in_a_sentence(source, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_image(source)


@pytest.mark.parametrize(("name", "data"), [("a.pdf", b"%PDF-1.7"), ("a.svg", b"<svg/>")])
def test_pages_and_drawings_are_no_images(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    assert [row.image for row in read_rows(tmp_path, "What?")] == ["b.png"]
    for read in (load_image, read_rows):
        with pytest.raises(ValueError, match="save it as PNG"):
            read(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_an_image_that_was_read_is_not_turned_again(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", exif_block(ORIENTATION_6))
    image = load_image(path)
    assert image.size == (48, 64)
    assert np.array_equal(np.asarray(load_image(image)), np.asarray(image))
    assert PixelLMImageProcessor(image_size=64)(path)["original_sizes"].tolist() == [[64, 48]]


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"]


@pytest.mark.parametrize("mode", MODES)
def test_bands_are_the_whole_image(mode, monkeypatch):
    pixels = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20
    image = Image.fromarray(PIXELS).convert(mode) if mode != "I;16" else Image.fromarray(pixels)
    whole = np.asarray(load_image(image))
    monkeypatch.setattr(image_files, "_BAND_PIXELS", 64 * 5)
    assert np.array_equal(np.asarray(load_image(image)), whole)


@pytest.mark.parametrize("name", ["cut.png", "sum.png", "deep.tif", "whole.png", "whole.tif"])
def test_a_check_finds_what_reading_would(name, tmp_path):
    path = tmp_path / name
    Image.fromarray(PIXELS).convert("F" if name == "deep.tif" else "RGB").save(path)
    content = path.read_bytes()
    if name == "cut.png":
        path.write_bytes(content[: len(content) // 2])
    elif name == "sum.png":
        path.write_bytes(content[:-17] + bytes([content[-17] ^ 255]) + content[-16:])
    if name.startswith("whole"):
        assert probe_image(path) == PIXELS.shape[:2] == load_image(path).size[::-1]
        return
    for read in (load_image, probe_image):
        with pytest.raises(ValueError, match=name):
            read(path)


def test_a_large_image_takes_at_most_three_times_its_pixels():
    """Each form that needs work of its own, in a process of its own; see benchmarks/memory.py."""
    forms = ("JPEG turned", "PNG RGBA", "WebP", "JPEG 2000", "AVIF", "JPEG progressive")
    measured = image_memory(3000, forms)
    heavy = {"WebP": "WEBP", "JPEG 2000": "JPEG2000", "JPEG progressive": "progressive JPEG"}
    for form, found in measured.items():
        assert found <= 3 * image_files.HEAVY.get(heavy.get(form, form), 1.0), form


@pytest.mark.parametrize(
    ("suffix", "options", "allowed"),
    [
        ("png", {}, 10_000),
        ("jpg", {}, 10_000),
        ("jpg", {"progressive": True}, 8_000),
        ("webp", {}, 5_000),
        ("jp2", {}, 4_000),
        ("avif", {}, 8_000),
    ],
)
def test_formats_whose_decoders_take_more_memory_are_read_up_to_fewer_pixels(
    tmp_path, monkeypatch, suffix, options, allowed
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    path = tmp_path / f"large.{suffix}"
    Image.new("RGB", (100, allowed // 100)).save(path, **options)
    assert load_image(path).size == (100, allowed // 100)
    Image.new("RGB", (100, allowed // 100 + 1)).save(path, **options)
    for read in (load_image, image_size, probe_image, load_stored):
        with pytest.raises(ValueError, match=r"large\.\w+ has .*pixels"):
            read(path)
