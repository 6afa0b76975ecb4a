"""Images, each encoded once: a bounded cache keyed by content.

Knows the vision half of the model and the geometry of images; nothing of questions.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from pixellm.engine.memory import run_in_portions
from pixellm.image_files import load_image
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.model.outputs import EncodedImages
from pixellm.processing.processor import PixelLMProcessor

MAX_CACHED_BYTES = 1 << 28
"""Bytes that kept images may take; one of nano's takes 13 MB."""


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


class ImageCache:
    """Encodes images and keeps the last ones.

    Args:
        model: on its device.
        processor: the model's own.
        capacity: encoded images to keep, fewer where they would take more than
            :data:`MAX_CACHED_BYTES`; one is always kept.
        max_batch: most images encoded together.
    """

    def __init__(
        self,
        model: PixelLMForConditionalGeneration,
        processor: PixelLMProcessor,
        capacity: int,
        max_batch: int,
    ) -> None:
        self.model = model
        self.processor = processor
        self.capacity = capacity
        self.max_batch = max_batch
        self._kept: OrderedDict[bytes, PreparedImage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Keep no image."""
        self._kept.clear()

    def prepare(self, images: Sequence[Any]) -> list[PreparedImage | ValueError | OSError]:
        """Encode what is not cached, in as few batches as possible; each content once.

        Args:
            images: paths, Pillow images, (H, W, 3) uint8 arrays, or images prepared before.

        Returns:
            The images, or the error of one that can't be read.
        """
        # Requests about one image may share the object: it is read and hashed once.
        opened = {key: _open(image) for key, image in {id(i): i for i in images}.items()}
        found: dict[bytes, PreparedImage] = {}
        fresh: dict[bytes, Image.Image] = {}
        keys: dict[int, bytes] = {}
        for number, one in opened.items():
            if isinstance(one, PreparedImage):
                keys[number] = one.key
                found[one.key] = one
            elif isinstance(one, Image.Image):
                key = keys[number] = _content_key(one)
                if key in self._kept:
                    found[key] = self._kept[key]
                else:
                    fresh[key] = one
        missing = [(key, one) for key, one in fresh.items() if key not in found]
        encoded = run_in_portions(self._encode, missing, self.max_batch)
        found |= {one.key: one for one in encoded}
        self._keep(found)
        results = {number: found[key] for number, key in keys.items()}
        errors = {n: p for n, p in opened.items() if isinstance(p, (ValueError, OSError))}
        return [errors[id(i)] if id(i) in errors else results[id(i)] for i in images]

    def _keep(self, used: dict[bytes, PreparedImage]) -> None:
        for key, image in used.items():
            self._kept[key] = image
            self._kept.move_to_end(key)
        total = sum(image.encoded.num_bytes for image in self._kept.values())
        while len(self._kept) > self.capacity or (len(self._kept) > 1 and total > MAX_CACHED_BYTES):
            _, dropped = self._kept.popitem(last=False)
            total -= dropped.encoded.num_bytes

    def _encode(self, images: Sequence[tuple[bytes, Image.Image]]) -> list[PreparedImage]:
        inputs = self.processor.image_processor([image for _, image in images])
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


def _open(source: Any) -> PreparedImage | Image.Image | ValueError | OSError:
    if isinstance(source, PreparedImage):
        return source
    try:
        return load_image(source)
    except (ValueError, OSError) as error:
        return error


def _content_key(image: Image.Image) -> bytes:
    digest = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()
