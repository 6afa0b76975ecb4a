"""Images to pixel tensors, true masks to the size of training.

Letterboxes and normalises images (PAPER: Ren et al., CVPR 2024; the
layout is that of the released code) and brings true masks to the size at which they are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.processing_utils import ImagesKwargs

from pixellm.image_files import ImageSource, load_image
from pixellm.masks import Letterbox, Size, decode_mask
from pixellm.model.config import PixelLMConfig
from pixellm.types import RLE, BoolMask


class PixelLMImageKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """What ``from_pretrained`` may override, beside transformers' own image options."""

    image_size: int


class PixelLMImageProcessor(BaseImageProcessor):
    """Letterboxes and normalises images; needs no torchvision.

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
        """Check and keep the settings."""
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
        """Bring images into the model's frame.

        Args:
            images: one image or several, each as :func:`load_image` takes it.
            return_tensors: "pt" for torch, "np" for NumPy.

        Returns:
            ``pixel_values`` (B, 3, S, S) float32; ``pixel_mask`` (B, S, S) bool, False in the
            padding; ``original_sizes`` and ``resized_sizes`` (B, 2) int64, (height, width).
        """
        several = images if isinstance(images, list | tuple) else [images]
        batch = cast("list[ImageSource]", list(several))
        if not batch:
            raise ValueError("There are no images to process.")
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


def resize_targets(rles: Sequence[RLE], original_size: Size, size: Size) -> list[BoolMask]:
    """Bring the true masks of an image to the (height, width) at which they are compared.

    A pixel of the new size belongs to a mask that covers at least half of its area. A mask that
    covers half of no pixel keeps those with at least half of its highest coverage, so that thin and
    tiny objects never vanish. The image's own size leaves masks as they are.
    """
    rows, columns = (
        np.linspace(0, old, new + 1) for old, new in zip(original_size, size, strict=True)
    )
    resized = []
    for rle in rles:
        mask = decode_mask(rle)
        if mask.shape != tuple(original_size):
            raise ValueError(f"A target mask is {mask.shape}, its image {tuple(original_size)}.")
        resized.append(mask if mask.shape == tuple(size) else _resize_mask(mask, rows, columns))
    return resized


def _resize_mask(
    mask: BoolMask, rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> BoolMask:
    """A mask at the size that ascending edges of the new rows and columns give it."""
    resized = np.zeros((len(rows) - 1, len(columns) - 1), dtype=np.bool_)
    if not mask.any():
        return resized
    # Most objects are far smaller than their image: what lies outside of their box stays empty.
    new_rows, old_rows = _reached(mask.any(1), rows)
    new_columns, old_columns = _reached(mask.any(0), columns)
    down = rows[new_rows.start : new_rows.stop + 1] - old_rows.start
    across = columns[new_columns.start : new_columns.stop + 1] - old_columns.start
    covered = _mean_between(_mean_between(mask[old_rows, old_columns], down).T, across).T
    peak = covered.max()
    share = 0.5 if peak >= 0.5 else 0.5 * peak
    # The slack keeps a pixel of exactly that share on this side of rounding.
    resized[new_rows, new_columns] = (covered > 0) & (covered >= share * (1 - 1e-9))
    return resized


def _reached(shown: ArrayLike, edges: NDArray[np.float64]) -> tuple[slice, slice]:
    """The new cells that touch what is shown along one side, and the old ones below those."""
    places = np.flatnonzero(shown)
    first = int(np.searchsorted(edges, places[0], "right")) - 1
    last = int(np.searchsorted(edges, places[-1] + 1, "left"))
    return slice(first, last), slice(int(edges[first]), int(np.ceil(edges[last])))


def _mean_between(values: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """(k, W) means of the rows of (H, W) values between k + 1 ascending edges in 0..H."""
    exact = np.int32 if values.dtype == np.bool_ else np.float64
    sums = np.zeros((len(values) + 1, values.shape[1]), dtype=exact)
    np.cumsum(values, axis=0, out=sums[1:])
    whole = np.minimum(edges.astype(np.intp), len(values) - 1)
    part = (edges - whole)[:, None]
    reached = sums[whole] + part * values[whole]
    return np.diff(reached, axis=0) / np.diff(edges)[:, None]


AutoImageProcessor.register(
    PixelLMConfig, slow_image_processor_class=PixelLMImageProcessor, exist_ok=True
)
