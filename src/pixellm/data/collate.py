"""Samples to batches: flat tensors, several dialogues about one picture packed into a row.

A row is the shared prefix (system text and picture) once, then each dialogue behind it; the
``dialogue_ids`` keep them from seeing each other, so that training equals single-turn use.
Nothing here is ragged: targets of all rows are stacked, with the row each belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixellm.masks import decode_mask
from pixellm.processing.image import letterbox_masks, load_image
from pixellm.processing.processor import PixelLMProcessor, pad_sequences
from pixellm.processing.prompts import EncodedDialogue, dialogue_messages
from pixellm.types import Sample

IGNORED = -100


class Collator:
    """Turns rows of samples into a training batch.

    Args:
        processor: the model's own.
        mask_size: side of the square grid, over the canvas, that target masks are given at.
        class_names: names of the classes of the auxiliary class map; () builds none.
        max_length: longest row in tokens; a dialogue that does not fit is left out at a turn
            boundary, see :attr:`num_dropped_turns`.
    """

    def __init__(
        self,
        processor: PixelLMProcessor,
        mask_size: int,
        class_names: Sequence[str] = (),
        max_length: int = 2048,
    ) -> None:
        self.processor = processor
        self.mask_size = mask_size
        self.class_index = {name: i + 1 for i, name in enumerate(class_names)}
        self.max_length = max_length
        self.num_dropped_turns = 0

    def __call__(self, rows: Sequence[Sequence[Sample]]) -> dict[str, Any]:
        """Collate rows; the samples of a row share one picture.

        Returns:
            input_ids, attention_mask, position_ids, dialogue_ids, labels (B, T);
            pixel_values (B, 3, S, S), pixel_mask (B, S, S); target_masks (M, g, g) uint8,
            target_rows, target_answers (M,); patch_classes (B, g, g) and target_classes (M,)
            with class names given;
            sample_ids, a list of strings.

        Raises:
            ValueError: a picture that can't be read or is of another size than its samples say,
                or a row of which not even one turn fits.
            OSError: a picture's file is missing or can't be opened.
        """
        pictures = self.processor.image_processor([_load_picture(row) for row in rows])
        fields: dict[str, list[list[int]]] = {
            k: [] for k in ("input_ids", "attention_mask", "position_ids", "dialogue_ids", "labels")
        }
        masks, target_rows, target_answers = list[Tensor](), list[int](), list[int]()
        target_classes = list[int]()
        num_answers = 0
        for index, (row, resized) in enumerate(zip(rows, pictures["resized_sizes"], strict=True)):
            packed, kept = self._pack(row, resized.tolist())
            for name, values in packed.items():
                fields[name].append(values)
            turns = [turn for sample, count in kept for turn in sample.turns[:count]]
            rles = [target.mask for turn in turns for target in turn.targets]
            if rles:
                masks.append(self._masks(rles, row[0]))
            for turn in turns:
                target_rows += [index] * len(turn.targets)
                target_answers += [num_answers] * len(turn.targets)
                target_classes += [self.class_index.get(t.name, IGNORED) for t in turn.targets]
                num_answers += 1
        pad = self.processor.tokenizer.pad_token_id
        fill = {"input_ids": pad, "labels": IGNORED}
        batch: dict[str, Any] = {
            name: pad_sequences(values, fill.get(name, 0), "right")
            for name, values in fields.items()
        }
        empty = torch.zeros(0, self.mask_size, self.mask_size, dtype=torch.uint8)
        batch["target_masks"] = torch.cat(masks) if masks else empty
        batch["target_rows"] = torch.tensor(target_rows, dtype=torch.long)
        batch["target_answers"] = torch.tensor(target_answers, dtype=torch.long)
        batch["pixel_values"] = pictures["pixel_values"]
        batch["pixel_mask"] = pictures["pixel_mask"]
        batch["sample_ids"] = [sample.id for row in rows for sample in row]
        if self.class_index:
            batch["target_classes"] = torch.tensor(target_classes, dtype=torch.long)
            batch["patch_classes"] = torch.stack([self._class_map(row[0]) for row in rows])
        return batch

    def _pack(
        self, row: Sequence[Sample], resized: Sequence[int]
    ) -> tuple[dict[str, list[int]], list[tuple[Sample, int]]]:
        """One row's fields, and how many turns of each sample it holds."""
        shown = self.processor.image_token_mask(resized)
        out: dict[str, list[int]] = {}
        kept: list[tuple[Sample, int]] = []
        for number, sample in enumerate(row, start=1):
            room = self.max_length - len(out.get("input_ids", ()))
            encoded, count = self._encode_fitting(sample, room, first=not out)
            self.num_dropped_turns += len(sample.turns) - count
            if not count:
                continue
            if not out:
                out = self._start(encoded, shown)
            tail = slice(encoded.prefix, None)
            ids, labelled = encoded.ids[tail], encoded.labelled[tail]
            out["input_ids"] += ids
            out["attention_mask"] += [1] * len(ids)
            out["position_ids"] += range(encoded.prefix, encoded.prefix + len(ids))
            out["dialogue_ids"] += [number] * len(ids)
            out["labels"] += [i if keep else IGNORED for i, keep in zip(ids, labelled, strict=True)]
            kept.append((sample, count))
        if not kept:
            raise ValueError(
                f"Sample {row[0].id!r} does not fit into {self.max_length} tokens; raise "
                "max_length."
            )
        return out, kept

    def _encode_fitting(
        self, sample: Sample, room: int, *, first: bool
    ) -> tuple[EncodedDialogue, int]:
        """Encode as many leading turns as fit into ``room`` tokens."""
        for count in range(len(sample.turns), 0, -1):
            history = [(turn.question, turn.answer) for turn in sample.turns[:count]]
            encoded = self.processor.codec.encode(dialogue_messages(history))
            if len(encoded.ids) - (0 if first else encoded.prefix) <= room:
                return encoded, count
        return EncodedDialogue((), (), 0), 0

    @staticmethod
    def _start(encoded: EncodedDialogue, shown: np.ndarray) -> dict[str, list[int]]:
        """The shared prefix: its image tokens in the canvas's padding are masked."""
        mask = [1] * encoded.prefix
        mask[encoded.prefix - len(shown) :] = shown.astype(int).tolist()
        return {
            "input_ids": list(encoded.ids[: encoded.prefix]),
            "attention_mask": mask,
            "position_ids": list(range(encoded.prefix)),
            "dialogue_ids": [0] * encoded.prefix,
            "labels": [IGNORED] * encoded.prefix,
        }

    def _masks(self, rles: list[Any], sample: Sample) -> Tensor:
        canvas = self.processor.image_processor.image_size
        return letterbox_masks(rles, sample.size, canvas, self.mask_size).to(torch.uint8)

    def _class_map(self, sample: Sample) -> Tensor:
        """(g, g) class ids over the canvas: 0 background, padding ignored, later objects on top.

        All is ignored where a sample does not tell what its picture shows.
        """
        if not sample.objects:
            return torch.full((self.mask_size, self.mask_size), IGNORED)
        known = [o for o in sample.objects if o.name in self.class_index]
        height, width = sample.size
        flat = np.zeros((height, width), dtype=np.int64)
        for target in known:
            flat[decode_mask(target.mask)] = self.class_index[target.name]
        side = max(height, width)
        steps = (np.arange(self.mask_size) + 0.5) * side / self.mask_size
        rows, columns = steps.astype(int), steps.astype(int)
        inside = (rows[:, None] < height) & (columns[None, :] < width)
        picked = flat[np.minimum(rows, height - 1)[:, None], np.minimum(columns, width - 1)[None]]
        return torch.from_numpy(np.where(inside, picked, IGNORED))


def _load_picture(row: Sequence[Sample]) -> Image.Image:
    """The picture that the samples of a row share; masks made for another size would lie askew."""
    picture = load_image(row[0].image)
    size = (picture.height, picture.width)
    for sample in row:
        if tuple(sample.size) != size:
            named = f" {sample.image}" if isinstance(sample.image, Path) else ""
            raise ValueError(
                f"Sample {sample.id!r}: its picture{named} is {size} (height, width), but the "
                f"sample says {tuple(sample.size)}; correct the annotation or the picture."
            )
    return picture
