"""Photos asked only for what an encoder finds in them.

A small encoder misses much of what people annotate. A model that is taught to name what its encoder
does not show learns to guess, and that it may not deny what it can't see. Here an annotated kind of
object is asked for where the encoder finds one of it, denied where there is no sign of it, and left
out of all questions where the encoder is unsure.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixellm.checkpoint.io import load_config, load_model_and_processor
from pixellm.checkpoint.sources import resolve_source
from pixellm.data.annotated import AnnotatedClass, AnnotatedImage
from pixellm.data.photos import Photos
from pixellm.masks import decode_mask, mask_to_box
from pixellm.model.evidence import SAME_INSTANCE, Evidence, box_overlap

FOUND = 0.1
"""Least probability, of the right class, of a finding that shows an object."""

NO_SIGN = 0.05
"""A kind of which every finding is less likely than this can't be seen at all."""

CLAIMED = 0.5
"""A kind that was not annotated, and that a finding shows with this probability, is left open."""


class SeenPhotos(Photos):
    """An instances file asked for what an encoder finds of it.

    Evaluation asks for everything, as :class:`~pixellm.data.photos.Photos` does.

    Args:
        root, split, seed, options: see :class:`~pixellm.data.photos.Photos`.
        encoder: a model whose encoder gives evidence: a name, a folder or a hub id.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the model has no such encoder.
    """

    name = "seen_photos"
    title = "Photos with annotated instances, asked for what an encoder finds of them"

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        *,
        encoder: str = "nano",
        **options: Any,
    ) -> None:
        super().__init__(root, split, seed, **options)
        self.encoder = resolve_source(encoder)
        if not load_config(self.encoder).evidence_tokens:
            raise ValueError(
                f"The encoder of {encoder} tells no evidence; {self.name} needs one that does, as "
                "nano's."
            )

    @cached_property
    def _model(self) -> tuple[Any, Any]:
        """The model and its processor, loaded once in each process."""
        return load_model_and_processor(self.encoder)

    def teachable(self, image: AnnotatedImage) -> AnnotatedImage:
        """An image with the kinds that the encoder shows, in the size that it is shown in."""
        evidence, scale = self._find(image)
        index = {name: number for number, name in enumerate(self._classes)}
        likeliest = evidence.scores[0].amax(0)
        kept = []
        for one in image.classes:
            is_open = one.name not in index or bool(one.crowds) or not one.askable
            if is_open or _is_found(one, evidence, index[one.name], scale):
                kept.append(one)
            elif likeliest[index[one.name]] >= NO_SIGN:
                kept.append(replace(one, askable=False))
        annotated = {one.name for one in image.classes}
        claimed = [
            AnnotatedClass(name, (), askable=False)
            for name, number in index.items()
            if name in self.categories and name not in annotated and likeliest[number] >= CLAIMED
        ]
        return replace(image, classes=(*kept, *claimed))

    @property
    def _classes(self) -> tuple[str, ...]:
        return tuple(self._model[0].config.vision_config.class_names)

    @torch.inference_mode()
    def _find(self, image: AnnotatedImage) -> tuple[Evidence, Tensor]:
        """What the encoder finds, and the (2,) share of the canvas that a pixel takes, x then y."""
        model, processor = self._model
        inputs = processor.image_processor([image.image])
        maps = model.model.vision_tower(inputs["pixel_values"], inputs["pixel_mask"])
        shown = inputs["resized_sizes"][0].flip(0) / model.config.image_size
        height, width = image.size
        return model.model.find_evidence(maps), shown / torch.tensor([width, height])


def _is_found(one: AnnotatedClass, evidence: Evidence, number: int, scale: Tensor) -> bool:
    """Whether a finding shows any object of a class."""
    sides = [mask_to_box(decode_mask(mask)) for mask in one.masks]
    if not sides:
        return False
    boxes = torch.tensor(sides, dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    overlap = box_overlap(evidence.boxes[0], boxes * scale.repeat(2))
    likely = evidence.scores[0, :, number] >= FOUND
    return bool(((overlap > SAME_INSTANCE) & likely[:, None]).any())
