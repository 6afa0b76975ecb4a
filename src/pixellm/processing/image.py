"""Pictures to pixel tensors and mask tensors back to pictures.

Reads any picture Pillow can, letterboxes and normalises it (PAPER: Ren et al., CVPR 2024; the
layout is that of the released code), brings target masks into the same frame and predicted
logits out of it. This module knows no text, no model and no device.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.nn import functional as F
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.processing_utils import ImagesKwargs

from pixellm.masks import Letterbox, Size, decode_mask, mask_to_box
from pixellm.model.config import PixelLMConfig
from pixellm.types import RLE

ImageSource = str | os.PathLike[str] | Image.Image | NDArray[Any]

_LOGITS_AT_ONCE = 1 << 25
_ROUNDING = 1e-6
_SIXTEEN_BIT_MAX = 65535


def load_image(source: ImageSource) -> Image.Image:
    """Read a picture as people see it.

    EXIF rotation is applied, transparency lies on white, 16-bit grey is scaled to 8 bits, of an
    animation the first frame is taken; palette, CMYK and grey become RGB.

    Args:
        source: a file, a Pillow image, or an array: (H, W) or (H, W, 1 | 3 | 4) uint8, or
            (H, W) uint16.

    Returns:
        A new RGB image.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder, an empty, damaged or truncated file, no picture at all, or one of
            more pixels than Pillow's limit.
        OSError: the file can't be opened.
    """
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source), "The array")
    if isinstance(source, Image.Image):
        return _to_rgb(source, "The picture")
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"There is no picture at {path}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name one picture in it.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; save the picture again.")
    with path.open("rb") as stream, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return _decode(stream, path)


def _decode(stream: Any, path: Path) -> Image.Image:
    try:
        with Image.open(stream) as image:
            image.load()
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"{path} is not a picture that Pillow can read; convert it to PNG or JPEG."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, the limit of a safe picture; "
            "make it smaller."
        ) from None
    except Exception as error:  # decoders raise whatever they trip over in damaged bytes
        raise ValueError(f"{path} is damaged or truncated ({error}); save it again.") from error
    return _to_rgb(image, str(path))


def _from_array(array: NDArray[Any]) -> Image.Image:
    grey = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if grey.size and grey.dtype == np.uint16 and grey.ndim == 2:
        return Image.fromarray(grey)
    colours = grey.ndim == 2 or (grey.ndim == 3 and grey.shape[2] in (3, 4))
    if not (grey.size and grey.dtype == np.uint8 and colours):
        raise ValueError(
            "A picture as an array is (H, W, 3) uint8 RGB (or grey, RGBA, or (H, W) uint16), but "
            f"this one is {array.shape} {array.dtype}."
        )
    return Image.fromarray(grey)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F" or upright.mode.startswith("I"):
        return _scale_deep_grey(upright, name)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    white = Image.new("RGBA", upright.size, "white")
    return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")


def _scale_deep_grey(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey to RGB; Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > _SIXTEEN_BIT_MAX:
        raise ValueError(
            f"{name} has 32-bit pixels, whose black and white are not defined; "
            "save it with 8 or 16 bits."
        )
    scaled = np.rint(values.astype(np.float32) * (255 / _SIXTEEN_BIT_MAX)).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")


class PixelLMImageKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """What ``from_pretrained`` may override, beside transformers' own image options."""

    image_size: int


class PixelLMImageProcessor(BaseImageProcessor):
    """Letterboxes and normalises pictures; needs no torchvision.

    A pixel becomes ``(value * rescale_factor - image_mean) / image_std``; padding is zero
    afterwards. The defaults are those of the released PixelLM, in units of 0..255. For a tower
    with CLIP's own numbers take ``rescale_factor=1/255`` and its mean and standard deviation.

    Attributes:
        image_size: side of the square canvas in pixels.
        resample: Pillow's name of the filter ("bilinear", "bicubic", ...), with antialias.
        rescale_factor: unit of the pixel values, 1 or 1/255.
        image_mean: per channel, in that unit.
        image_std: per channel, in that unit.
    """

    model_input_names = ["pixel_values", "pixel_mask"]  # noqa: RUF012
    valid_kwargs = PixelLMImageKwargs

    def __init__(
        self,
        image_size: int = 448,
        resample: str = "bilinear",
        rescale_factor: float = 1.0,
        image_mean: Sequence[float] = (123.675, 116.28, 103.53),
        image_std: Sequence[float] = (58.395, 57.12, 57.375),
        **kwargs: Any,
    ) -> None:
        """Check and keep the settings.

        Raises:
            ValueError: an unknown setting, or a value out of range.
        """
        for key in ("image_processor_type", "processor_class", "auto_map"):  # file bookkeeping
            kwargs.pop(key, None)
        if kwargs:
            raise ValueError(
                f"Unknown image settings {sorted(kwargs)}; known are image_size, resample, "
                "rescale_factor, image_mean and image_std."
            )
        super().__init__()
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, not {image_size}.")
        if resample.upper() not in Image.Resampling.__members__:
            known = ", ".join(name.lower() for name in Image.Resampling.__members__)
            raise ValueError(f"resample is one of {known}, not {resample!r}.")
        if len(image_mean) != 3 or len(image_std) != 3 or min(image_std) <= 0:
            raise ValueError("image_mean and image_std are three numbers each, image_std above 0.")
        self.image_size = image_size
        self.resample = resample
        self.rescale_factor = rescale_factor
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def preprocess(
        self,
        images: ImageSource | Sequence[ImageSource],
        return_tensors: Literal["pt", "np"] = "pt",
    ) -> BatchFeature:
        """Bring pictures into the model's frame.

        Args:
            images: one picture or several, each as :func:`load_image` takes it.
            return_tensors: "pt" for torch, "np" for NumPy.

        Returns:
            ``pixel_values`` (B, 3, S, S) float32; ``pixel_mask`` (B, S, S) bool, False in the
            padding; ``original_sizes`` and ``resized_sizes`` (B, 2) int64, (height, width).

        Raises:
            ValueError: no pictures, or one that can't be read (also FileNotFoundError, OSError).
        """
        several = images if isinstance(images, list | tuple) else [images]
        batch = cast("list[ImageSource]", list(several))
        if not batch:
            raise ValueError("There are no pictures to process.")
        side = self.image_size
        pixels = np.zeros((len(batch), 3, side, side), dtype=np.float32)
        mask = np.zeros((len(batch), side, side), dtype=np.bool_)
        boxes = []
        for row, source in enumerate(batch):
            image = load_image(source)
            box = Letterbox.fit((image.height, image.width), side)
            height, width = box.resized
            pixels[row, :, :height, :width] = self._normalise(image, box.resized)
            mask[row, :height, :width] = True
            boxes.append(box)
        data = {
            "pixel_values": pixels,
            "pixel_mask": mask,
            "original_sizes": np.array([box.original for box in boxes], dtype=np.int64),
            "resized_sizes": np.array([box.resized for box in boxes], dtype=np.int64),
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def _normalise(self, image: Image.Image, size: Size) -> NDArray[np.float32]:
        height, width = size
        resized = image.resize((width, height), Image.Resampling[self.resample.upper()])
        values = np.asarray(resized, dtype=np.float32) * np.float32(self.rescale_factor)
        mean = np.array(self.image_mean, dtype=np.float32)
        std = np.array(self.image_std, dtype=np.float32)
        normalised: NDArray[np.float32] = (values - mean) / std
        return normalised.transpose(2, 0, 1)


def restore_masks(
    mask_logits: torch.Tensor, resized_size: Size, original_size: Size, canvas: int
) -> torch.Tensor:
    """Bring predicted logits from the model's grid to the picture, as the release does.

    Bilinear (align_corners False) to the canvas, the padding cut off, bilinear to the original.
    Masks are taken in portions, so that memory stays near that of the result.

    Args:
        mask_logits: (m, h, w) over the whole canvas, any resolution and float type.
        resized_size: (height, width) that the picture takes up in the canvas.
        original_size: (height, width) of the picture.
        canvas: side of the canvas in pixels.

    Returns:
        (m, H, W) float32 logits over the original picture; a mask is where they are above 0.
    """
    restored = mask_logits.new_empty((len(mask_logits), *original_size), dtype=torch.float32)
    largest = max(canvas * canvas, original_size[0] * original_size[1])
    portion = max(1, _LOGITS_AT_ONCE // largest)
    for start in range(0, len(mask_logits), portion):
        logits = mask_logits[start : start + portion, None].float()
        logits = F.interpolate(logits, (canvas, canvas), mode="bilinear", align_corners=False)
        logits = logits[..., : resized_size[0], : resized_size[1]]
        logits = F.interpolate(logits, original_size, mode="bilinear", align_corners=False)
        restored[start : start + portion] = logits[:, 0]
    return restored


def letterbox_masks(
    rles: Sequence[RLE], original_size: Size, canvas: int, grid: int
) -> torch.Tensor:
    """Bring target masks into the letterboxed frame at the resolution of training.

    A cell belongs to a mask when the mask covers at least half of what the cell shows of the
    picture; cells at its border may show less than a cell's area. A mask that covers half of no
    cell keeps the cells with at least half of its highest coverage, so that thin and tiny objects
    never vanish.

    Args:
        rles: M masks over the original picture.
        original_size: (height, width) of the picture.
        canvas: side of the canvas in pixels.
        grid: cells along a side of the canvas.

    Returns:
        (M, grid, grid) uint8 of 0 and 1; padding is 0.

    Raises:
        ValueError: a mask of another size than the picture.
    """
    box = Letterbox.fit(original_size, canvas)
    edges = np.linspace(0, canvas, grid + 1)
    corners = box.points_to_original(np.stack([edges, edges], axis=-1))
    columns = _coverage(corners[:, 0], original_size[1])
    rows = _coverage(corners[:, 1], original_size[0])
    targets = np.zeros((len(rles), grid, grid), dtype=np.uint8)
    for index, rle in enumerate(rles):
        mask = decode_mask(rle)
        if mask.shape != tuple(original_size):
            raise ValueError(f"A target mask is {mask.shape}, its picture {tuple(original_size)}.")
        x, y, width, height = mask_to_box(mask)
        part = mask[y : y + height, x : x + width].astype(np.float32)
        covered = rows[:, y : y + height] @ part @ columns[:, x : x + width].T
        peak = covered.max()
        share = 0.5 if peak >= 0.5 else 0.5 * peak
        # The slack keeps a cell of exactly that share on this side of float32 rounding.
        targets[index] = (covered > 0) & (covered >= share * (1 - 1e-5))
    return torch.from_numpy(targets)


def _coverage(edges: NDArray[np.float64], num_pixels: int) -> NDArray[np.float32]:
    """(cells, pixels): the share that each pixel has in the part of a cell inside the picture.

    Args:
        edges: (cells + 1,) ascending, in pixels.
        num_pixels: of the picture.
    """
    pixels = np.arange(num_pixels)
    low = np.maximum(edges[:-1, None], pixels)
    high = np.minimum(edges[1:, None], pixels + 1)
    overlap = np.maximum(high - low, 0)
    shown = overlap.sum(1, keepdims=True)
    inside = shown > _ROUNDING * np.diff(edges)[:, None]
    return np.where(inside, overlap / np.where(inside, shown, 1), 0).astype(np.float32)


AutoImageProcessor.register(
    PixelLMConfig, slow_image_processor_class=PixelLMImageProcessor, exist_ok=True
)
