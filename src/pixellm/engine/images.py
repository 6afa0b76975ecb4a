"""Images, each encoded once: a bounded cache keyed by content."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature

from pixellm.engine.memory import run_in_portions
from pixellm.image_files import load_image
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.model.outputs import EncodedImages
from pixellm.processing.processor import PixelLMProcessor

MAX_CACHED_BYTES = 1 << 28
"""Bytes that kept images may take; one of nano's takes 13 MB."""

_BAND = 256
"""Rows of an image that are read as bytes together."""


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image after encoding: one row of features, and its geometry.

    Attributes:
        key: digest of the pixels.
        encoded: the features, a batch of one.
        original: (height, width) of the image in pixels.
        resized: (height, width) of the image on the canvas.
        visible: for each image token, whether it lies on the image and not on padding.
    """

    key: bytes
    encoded: EncodedImages
    original: tuple[int, int]
    resized: tuple[int, int]
    visible: tuple[bool, ...]


@dataclass(eq=False)
class ImageCache:
    """Encodes images and keeps the last ones.

    Attributes:
        capacity: encoded images to keep, fewer where they would take more than
            :data:`MAX_CACHED_BYTES`; one is always kept.
        max_batch: most images encoded together.
    """

    model: PixelLMForConditionalGeneration
    processor: PixelLMProcessor
    capacity: int
    max_batch: int
    _kept: OrderedDict[bytes, PreparedImage] = field(default_factory=OrderedDict, init=False)

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Keep no image."""
        self._kept.clear()

    def prepare(self, images: Sequence[Any]) -> list[PreparedImage | ValueError | OSError]:
        """Encode what is not cached, in as few batches as possible; each content once.

        Images are paths, Pillow images, (H, W, 3) uint8 arrays, or ones prepared before. In the
        place of one that can't be read comes the error.
        """
        # Requests about one image may share the object: it is read and hashed once. A large image
        # is dropped as soon as it lies on its canvas, before the next one is read.
        found: dict[bytes, PreparedImage] = {}
        fresh: dict[bytes, BatchFeature] = {}
        keys: dict[int, bytes] = {}
        errors: dict[int, ValueError | OSError] = {}
        for number, source in {id(image): image for image in images}.items():
            if isinstance(source, PreparedImage):
                keys[number] = source.key
                found[source.key] = source
                continue
            try:
                opened = load_image(source)
            except (ValueError, OSError) as error:
                errors[number] = error
                continue
            key = keys[number] = _content_key(opened)
            if key in self._kept:
                found[key] = self._kept[key]
            elif key not in fresh:
                fresh[key] = self.processor.image_processor(opened)
        missing = [(key, canvas) for key, canvas in fresh.items() if key not in found]
        encoded = run_in_portions(self._encode, missing, self.max_batch)
        found |= {one.key: one for one in encoded}
        self._keep(found)
        return [errors[id(i)] if id(i) in errors else found[keys[id(i)]] for i in images]

    def _keep(self, used: dict[bytes, PreparedImage]) -> None:
        for key, image in used.items():
            self._kept[key] = image
            self._kept.move_to_end(key)
        total = sum(image.encoded.num_bytes for image in self._kept.values())
        while len(self._kept) > self.capacity or (len(self._kept) > 1 and total > MAX_CACHED_BYTES):
            _, dropped = self._kept.popitem(last=False)
            total -= dropped.encoded.num_bytes

    def _encode(self, images: Sequence[tuple[bytes, BatchFeature]]) -> list[PreparedImage]:
        inputs = {
            name: torch.cat([canvas[name] for _, canvas in images])
            for name in ("pixel_values", "pixel_mask", "resized_sizes", "original_sizes")
        }
        device = self.model.device
        with torch.inference_mode():
            encoded, _ = self.model.model.encode_images(
                inputs["pixel_values"].to(device), inputs["pixel_mask"].to(device)
            )
        prepared = []
        for row, (key, _) in enumerate(images):
            resized = tuple(inputs["resized_sizes"][row].tolist())
            own = encoded.select(torch.tensor([row], device=device))
            visible = tuple(self.processor.image_token_mask(resized).tolist())
            original = tuple(inputs["original_sizes"][row].tolist())
            prepared.append(PreparedImage(key, own, original, resized, visible))
        return prepared


def _content_key(image: Image.Image) -> bytes:
    digest = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
    for top in range(0, image.height, _BAND):  # the bytes of all at once would be one more image
        band = image.crop((0, top, image.width, min(image.height, top + _BAND)))
        digest.update(band.tobytes())
    return digest.digest()
