"""Every image file is opened here: as people see it, with its faults told in one sentence.

Decides once which formats are read, how EXIF turns an image, and what becomes of transparency, 16
bits and animations. This module knows no model, no annotation and no torch.

Frames: sizes are ``(height, width)`` in pixels.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pixellm.masks import Size

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any]
"""What is taken for an image; a tensor counts as the array that it holds."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
"""Pillow's names of what is read; some of its others start programs (EPS) or know no mark (TGA)."""

DRAWINGS = (".pdf", ".svg", ".svgz", ".eps", ".ps", ".ai")
"""Suffixes of pages and drawings, which are no images."""

HEAVY = {"WEBP": 2.0, "JPEG2000": 2.5, "AVIF": 1.25, "progressive JPEG": 1.25}
"""Format -> how many times as much memory its decoder takes as three times an image's pixels, which
is enough for others. WebP's keeps two frames (benchmarks/memory.py)."""

_SIXTEEN_BIT_MAX = 65535
_BAND_PIXELS = 1 << 18
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image upright, by its EXIF orientation."""

_FIRST_ON_ITS_SIDE = 5
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_OF_ONE_FRAME = ("GIF", "TIFF")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_HEIF_SUFFIXES = (".heic", ".heif", ".hif")
_WARNINGS = threading.Lock()
"""Filters of warnings belong to the whole process, and images are read in threads."""
_said_first_frame = threading.Event()
_LOG = logging.getLogger(__name__)


EXAMPLES = Path(__file__).parent / "examples"
"""Folder of the bundled photos."""


def example_image(name: str) -> Path:
    """Path of a bundled photo, "astronaut", "chelsea" or "coffee"; FileNotFoundError for others."""
    path = EXAMPLES / f"{name}.jpg"
    known = sorted(photo.stem for photo in EXAMPLES.glob("*.jpg"))
    if name not in known:
        raise FileNotFoundError(f"No bundled photo is called {name!r}; there are {known}.")
    return path


def load_image(source: ImageSource) -> Image.Image:
    """Read an image as people see it.

    EXIF rotation is applied (the rest of EXIF is ignored, damaged or not), transparency lies on
    white, 16-bit grey is scaled to 8 bits, of an animation the first frame is taken; palette, CMYK
    and grey become RGB.

    Args:
        source: a file, the bytes of one, one that is opened for reading bytes, a Pillow image, or
            an array or tensor: (H, W) or (H, W, 1 | 3 | 4) uint8, or (H, W) uint16.

    Returns:
        A new RGB image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, an empty, damaged or truncated file, no image of a format in
            :data:`FORMATS`, one of more pixels than Pillow's limit (fewer for those in
            :data:`HEAVY`), a URL, or another kind of source.
        OSError: the file can't be opened.
    """
    if isinstance(source, Image.Image):
        with _told_of("The image"):
            source.load()
            upright = _turn(source)
        return _to_rgb(upright, "The image")
    if hasattr(source, "read"):
        source = _read_all(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return load_embedded(bytes(source), "The image")
    if hasattr(source, "__array__"):
        detached = source.detach().cpu() if hasattr(source, "detach") else source
        return _to_rgb(_from_array(np.asarray(detached)), "The array")
    if not isinstance(source, str | os.PathLike):
        raise ValueError(
            "An image is a path, the bytes of a file, an open file, a Pillow image or an array, "
            f"not {type(source).__name__}."
        )
    if is_url(source):
        raise ValueError(
            f"{source} is a URL, and images are fetched only where one is typed as the image of a "
            "command; download it and name the file."
        )
    with _opened(source, str(source)) as image:
        upright = _turn(_decode(image, str(source)))
    del image  # of a turned one the pixels as stored
    return _to_rgb(upright, str(source))


def is_url(source: str | os.PathLike[str]) -> bool:
    """Whether a name is the address of something on the web; also as a Path has it, "https:/x"."""
    return os.fspath(source).lower().startswith(("http:/", "https:/"))


def has_image_name(path: Path) -> bool:
    """Whether a file is called like an image that is read, here or where pillow-heif is."""
    suffix = path.suffix.lower()
    return suffix in _HEIF_SUFFIXES or Image.registered_extensions().get(suffix) in _known_formats()


def load_annotated(source: ImageSource, size: Size, name: str) -> Image.Image:
    """Read an image whose annotation says its (height, width).

    Raises as :func:`load_image`, and a ValueError that begins with ``name`` for another size.
    """
    image = load_image(source)
    if fault := size_mismatch((image.height, image.width), size):
        raise ValueError(f"{name}: {fault}")
    return image


def load_embedded(data: bytes, name: str, max_pixels: int | None = None) -> Image.Image:
    """An image that lies inside another file, read as :func:`load_image` reads one.

    Errors call it ``name``. More than ``max_pixels`` are a ValueError, before it is decoded.
    """
    with _opened(io.BytesIO(data), name) as image:
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise _RefusedError(
                f"{name} has {image.width} x {image.height} pixels, more than the {max_pixels:,} "
                "that are read; make it smaller."
            )
        upright = _turn(_decode(image, name))
    del image
    return _to_rgb(upright, name)


def load_stored(source: str | os.PathLike[str] | bytes, name: str = "") -> Image.Image:
    """An image as it is stored: neither turned nor brought to RGB, for files whose pixels count.

    Errors are those of :func:`load_image`, and call it ``name``, or by its path.
    """
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    with _opened(opened, name or str(source)) as image:
        return _decode(image, name or str(source))


def image_size(path: str | os.PathLike[str]) -> Size:
    """(height, width) of an image as people see it, from its header.

    Errors are those of :func:`load_image`, as far as the header shows them.
    """
    with _opened(path, str(path)) as image:
        return _upright_size(image)


def is_upright(path: str | os.PathLike[str]) -> bool:
    """Whether an image's pixels are stored as people see them, from its header."""
    with _opened(path, str(path)) as image:
        return _orientation(image) == 1


def probe_image(path: str | os.PathLike[str]) -> Size:
    """(height, width) as :func:`image_size` gives it, of a file whose every byte was read.

    Cheaper than loading: of a JPEG an eighth of its sides is decoded. Errors are those of
    :func:`load_image`.
    """
    with _opened(path, str(path)) as image:
        _check_whole(image)
        if image.format == "PNG":  # its EXIF is looked for behind the pixels, whatever ails them
            image.load()
        size = _upright_size(image)
        image.draft("L", (1, 1))
        image.load()
        _check_depth(image, str(path))
    return size


def size_mismatch(found: Size, said: Size) -> str:
    """Why the size that an annotation says is not the one found; "" where it is."""
    found, said = (found[0], found[1]), (said[0], said[1])
    if found == said:
        return ""
    fault = f"The image is {found}, its annotation says {said} (height, width)"
    if found == said[::-1]:
        return (
            f"{fault}: height and width are exchanged, or it was made on the image as stored, "
            "before EXIF turned it upright; turn one of the two."
        )
    return f"{fault}."


@contextmanager
def _opened(source: str | os.PathLike[str] | io.BytesIO, name: str) -> Iterator[Image.Image]:
    """An image whose header is read; whatever a decoder raises inside becomes a ValueError."""
    if isinstance(source, io.BytesIO):
        if not source.getbuffer():
            raise ValueError(f"{name} is empty.")
        with _told_of(name), _read_header(source, name) as image:
            yield image
        return
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"There is no image at {path}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name one image in it.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; save the image again.")
    with path.open("rb") as stream, _told_of(name), _read_header(stream, name) as image:
        yield image


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    try:
        yield
    except _RefusedError as error:
        raise ValueError(str(error)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(
            f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, the limit of a safe image; "
            "make it smaller."
        ) from None
    except Exception as error:  # decoders raise whatever they trip over in damaged bytes
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} is damaged or truncated ({said}); save it again.") from error


class _RefusedError(Exception):
    """No image that is read, with the sentence that says so."""


def _read_header(stream: Any, name: str) -> Image.Image:
    known = _known_formats()
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _within_memory(Image.open(stream, formats=known), name)
        except Image.UnidentifiedImageError:
            stream.seek(0)
            start = stream.read(12)
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS and "HEIF" not in known:
        raise _RefusedError(
            f"{name} is a HEIC image; install pillow-heif to read it, or convert it to JPEG."
        )
    if start.startswith((b"%PDF", b"%!PS")) or name.lower().endswith(DRAWINGS):
        raise _RefusedError(
            f"{name} is a page or drawing, which has no pixels of its own; save it as PNG first."
        )
    raise _RefusedError(
        f"{name} is not an image that is read here (JPEG, PNG, WebP, TIFF, GIF, BMP, ...); "
        "convert it to PNG or JPEG."
    )


def _within_memory(image: Image.Image, name: str) -> Image.Image:
    """Refuse, by its header, an image whose decoding takes more memory than the largest others."""
    form = "progressive JPEG" if image.info.get("progressive") else image.format or ""
    weight = HEAVY.get(form, 1.0)
    limit = int((Image.MAX_IMAGE_PIXELS or 0) / weight)
    if limit and weight > 1 and image.width * image.height > limit:
        raise _RefusedError(
            f"{name} has {image.width} x {image.height} pixels; of {form}, whose decoder "
            f"takes much memory, at most {limit:,} are read. Save it as JPEG or PNG."
        )
    return image


@cache
def _known_formats() -> tuple[str, ...]:
    """The formats of :data:`FORMATS` that can be read here; HEIF where pillow-heif is installed."""
    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_whole(image: Image.Image) -> None:
    """Refuse what Pillow would fill up or misread in silence, before anything is decoded."""
    stream: Any = getattr(image, "fp", None)
    if image.format == "PNG" and stream is not None:
        _check_sums(stream)
    if image.format == "TIFF":
        boxes = [tile[1] for tile in getattr(image, "tile", ()) if tile[1] is not None]
        ends = {(max(box[2] for box in boxes), max(box[3] for box in boxes))} if boxes else set()
        if ends - {image.size, image.size[::-1]}:  # its size is that of the upright image
            raise ValueError(f"its strips end before its {image.size} pixels do")


def _check_sums(stream: Any) -> None:
    """Refuse a PNG whose pixels are not those that were saved; Pillow ignores their check sums.

    A single exchanged byte can leave a label image of other classes that decodes without an error.
    A chunk that is cut off is left to the decoder.
    """
    start = stream.tell()
    stream.seek(len(_PNG_MAGIC))
    while len(head := stream.read(8)) == 8:
        length, kind = int.from_bytes(head[:4]), head[4:]
        if kind != b"IDAT":
            stream.seek(length + 4, os.SEEK_CUR)
            continue
        data, said = stream.read(length), stream.read(4)
        if len(said) == 4 and zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(said):
            raise ValueError("its pixels are not those that were saved")
    stream.seek(start)


def _decode(image: Image.Image, name: str) -> Image.Image:
    _check_whole(image)
    if image.format in _OF_ONE_FRAME:
        with suppress(Exception):  # damaged later frames are nobody's loss
            if getattr(image, "is_animated", False) and not _said_first_frame.is_set():
                _said_first_frame.set()  # once in a process is enough
                _LOG.warning("%s has several frames; of such images the first one is used.", name)
            image.seek(0)
    image.load()
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none that can be made sense of."""
    if image.format == "PNG":  # its EXIF may follow the pixels
        with suppress(Exception):
            image.load()
    try:
        with _WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF is whatever a program left there; the pixels don't depend on it
        return 1
    return found if type(found) is int and found in _TURNS else 1


def _turn(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _upright_size(image: Image.Image) -> Size:
    """(height, width) upright of an image that is not decoded yet."""
    width, height = image.size
    # Pillow turns a TIFF by itself.
    turned = image.format != "TIFF" and _orientation(image) >= _FIRST_ON_ITS_SIDE
    return (width, height) if turned else (height, width)


def _read_all(file: Any) -> bytes:
    """What is left in an open file."""
    content = file.read()
    if not isinstance(content, bytes):
        raise ValueError("The image's file is opened for text; open it for bytes ('rb').")
    return content


def _from_array(array: NDArray[Any]) -> Image.Image:
    grey = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if grey.size and grey.dtype == np.uint16 and grey.ndim == 2:
        return Image.fromarray(grey)
    colours = grey.ndim == 2 or (grey.ndim == 3 and grey.shape[2] in (3, 4))
    if not (grey.size and grey.dtype == np.uint8 and colours):
        raise ValueError(
            "An image as an array is (H, W, 3) uint8 RGB (or grey, RGBA, or (H, W) uint16), but "
            f"this one is {array.shape} {array.dtype}."
        )
    return Image.fromarray(grey)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A new RGB image of decoded, upright pixels, without EXIF, which would turn it again.

    Made in bands, so that a large image takes little more memory than its pixels twice.
    """
    is_deep = image.mode.startswith("I")
    width, height = image.size
    rows = max(1, _BAND_PIXELS // max(1, width))
    with _told_of(name):
        _check_depth(image, name)
        upright = Image.new("RGB", image.size)
        for top in range(0, height, rows):
            band = image.crop((0, top, width, min(height, top + rows)))
            upright.paste(_scale_deep_grey(band) if is_deep else _on_white(band), (0, top))
        return upright


def _check_depth(image: Image.Image, name: str) -> None:
    extrema: Any = image.getextrema() if image.mode == "I" else (0, 0)
    if image.mode == "F" or min(extrema) < 0 or max(extrema) > _SIXTEEN_BIT_MAX:
        raise _RefusedError(
            f"{name} has 32-bit pixels, whose black and white are not defined; "
            "save it with 8 or 16 bits."
        )


def _on_white(image: Image.Image) -> Image.Image:
    """An image in RGB, what shows through being white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _scale_deep_grey(image: Image.Image) -> Image.Image:
    """16-bit grey to RGB; Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image, dtype=np.float32)
    scaled = np.rint(values * (255 / _SIXTEEN_BIT_MAX)).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")
