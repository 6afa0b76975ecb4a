"""Samples to batches: flat tensors, several dialogues about one image packed into a row.

A row is the shared prefix (system text and image) once, then each dialogue behind it; the
``dialogue_ids`` keep them from seeing each other, so that training equals single-turn use.
Targets of all rows stand one after the other, with the row each belongs to; their masks are packed
bits, small enough to be kept at full size. What does not fit is left out at a turn boundary, and
counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pixellm.image_files import size_mismatch
from pixellm.masks import Letterbox, decode_mask, mask_to_box
from pixellm.model.pixel_masks import pack_masks
from pixellm.processing.image import resize_targets
from pixellm.processing.processor import PixelLMProcessor, pad_sequences
from pixellm.processing.prompts import EncodedDialogue, dialogue_messages
from pixellm.scenes.photo_knowledge import knowledge_of_categories
from pixellm.types import RLE, BoolMask, Sample, Turn

IGNORED = -100


class Collator:
    """Turns rows of samples into a training batch.

    Args:
        processor: the model's own.
        mask_size: pixels along the long side of an image at which its target masks are given;
            "original" keeps each image's own size.
        class_names: names of the classes of the auxiliary class map; () builds none.
        max_length: longest row in tokens; turns that do not fit are left out, and rows of which
            none fits.
        class_map_size: side of the square grid, over the canvas, of that map.
        max_text_length: longest dialogue in tokens, the text before the image included, the
            image not; turns that do not fit are left out. None for no limit but the row's.
        with_objects: add the masks of everything annotated, asked for or not, and the targets' on
            the same grid as the class map.
        encoder_classes: names of what the encoder finds, for the names that an image's dialogue
            gives them and for the class of each target.
    """

    def __init__(
        self,
        processor: PixelLMProcessor,
        mask_size: int | Literal["original"],
        class_names: Sequence[str] = (),
        max_length: int = 2048,
        class_map_size: int = 96,
        max_text_length: int | None = None,
        *,
        with_objects: bool = False,
        encoder_classes: Sequence[str] = (),
    ) -> None:
        self.processor = processor
        self.mask_size = mask_size
        self.class_map_size = class_map_size
        self.class_index = {name: i + 1 for i, name in enumerate(class_names)}
        self.max_length = max_length
        self.with_objects = with_objects
        self.encoder_classes = tuple(encoder_classes)
        self.encoder_index = _index_of_phrases(self.encoder_classes)
        encoded = processor.codec.encode(dialogue_messages((), "?"))
        self.prefix = encoded.ids[: encoded.prefix]
        text_before = encoded.prefix - processor.codec.num_image_tokens
        self.longest_dialogue = max_length
        if max_text_length is not None:
            self.longest_dialogue = max_text_length - text_before
            if self.longest_dialogue < 1:
                raise ValueError(
                    f"The template alone takes {text_before} of {max_text_length} tokens of text; "
                    "raise collate.max_text_length."
                )
        if len(self.prefix) >= max_length:
            raise ValueError(
                f"An image alone takes {len(self.prefix)} tokens of a row of {max_length}; raise "
                "collate.max_length."
            )

    def __call__(self, rows: Sequence[Sequence[Sample]]) -> dict[str, Any]:
        """Collate rows; the samples of a row share one image.

        Where nothing of any row fits, the first image stays with no word to learn from, so that
        every process has something to compute.

        Returns:
            input_ids, attention_mask, position_ids, dialogue_ids, labels (B, T), B being the rows
            that were kept; pixel_values (B, 3, S, S), pixel_mask (B, S, S); target_masks (N,)
            uint8, packed masks of target_sizes (M, 2), over the images without padding;
            target_rows, target_answers (M,); with class names given patch_classes (B, g, g),
            patch_boxes (B, g, g, 4) and target_classes (M,); where asked for, object_shapes
            (N, g, g) uint8 and object_rows (N,) of everything annotated and target_shapes
            (M, g, g), over the canvas; with encoder classes class_order (B, c) and target_kinds
            (M,), -100 where a target is of no class of the encoder; sample_ids, a list of strings,
            of all rows; where something was left out, the whole numbers num_dropped_turns and
            num_dropped_rows, turns of dropped rows counted too.

        Raises:
            ValueError: an image that can't be read or is of another size than its samples say.
            OSError: an image's file is missing or can't be opened.
        """
        images = self.processor.image_processor([row[0].image for row in rows])
        for row, size in zip(rows, images["original_sizes"].tolist(), strict=True):
            _check_size(row, tuple(size))
        packed = [
            self._pack(row, resized.tolist())
            for row, resized in zip(rows, images["resized_sizes"], strict=True)
        ]
        kept = [index for index, (_, samples) in enumerate(packed) if samples]
        used = kept or [0]
        turns = [[t for s, count in packed[i][1] for t in s.turns[:count]] for i in used]
        fill = {"input_ids": self.processor.tokenizer.pad_token_id, "labels": IGNORED}
        batch: dict[str, Any] = {
            name: pad_sequences([packed[i][0][name] for i in used], fill.get(name, 0), "right")
            for name in packed[0][0]
        }
        batch |= self._targets([rows[index][0] for index in used], turns)
        batch["pixel_values"] = images["pixel_values"][used]
        batch["pixel_mask"] = images["pixel_mask"][used]
        batch["sample_ids"] = [sample.id for row in rows for sample in row]
        num_dropped = sum(len(s.turns) for row in rows for s in row) - sum(map(len, turns))
        if num_dropped:
            batch["num_dropped_turns"] = num_dropped
            batch["num_dropped_rows"] = len(rows) - len(kept)
        if self.with_objects:
            batch |= self._objects([rows[index][0] for index in used])
        if self.encoder_classes:
            names = [t.name for asked in turns for turn in asked for t in turn.targets]
            batch["target_kinds"] = torch.tensor(
                [self.encoder_index.get(name, IGNORED) for name in names], dtype=torch.long
            )
            batch["class_order"] = torch.stack([self._class_order(rows[i][0]) for i in used])
        if self.class_index:
            maps = [self._object_maps(rows[index][0]) for index in kept]
            classes, boxes = zip(*(maps or [self._unknown_maps()]), strict=True)
            batch["patch_classes"], batch["patch_boxes"] = torch.stack(classes), torch.stack(boxes)
        return batch

    def _targets(
        self, samples: Sequence[Sample], turns: Sequence[Sequence[Turn]]
    ) -> dict[str, Tensor]:
        masks = list[BoolMask]()
        rows, answers, classes = list[int](), list[int](), list[int]()
        shapes = list[Tensor]()
        num_answers = 0
        for index, (sample, asked) in enumerate(zip(samples, turns, strict=True)):
            rles = [target.mask for turn in asked for target in turn.targets]
            size = sample.size
            if self.mask_size != "original":
                size = Letterbox.fit(size, self.mask_size).resized
            masks += resize_targets(rles, sample.size, size)
            if self.with_objects:
                shapes.append(self._shapes(rles, sample))
            for turn in asked:
                rows += [index] * len(turn.targets)
                answers += [num_answers] * len(turn.targets)
                classes += [self.class_index.get(t.name, IGNORED) for t in turn.targets]
                num_answers += 1
        packed, sizes = pack_masks(masks)
        found = {
            "target_masks": packed,
            "target_sizes": sizes,
            "target_rows": torch.tensor(rows, dtype=torch.long),
            "target_answers": torch.tensor(answers, dtype=torch.long),
        }
        if self.with_objects:
            found["target_shapes"] = torch.cat(shapes)
        if self.class_index:
            found["target_classes"] = torch.tensor(classes, dtype=torch.long)
        return found

    def _class_order(self, sample: Sample) -> Tensor:
        """(c,) for each class of the encoder, which of its classes goes by that name."""
        position = {name: index for index, name in enumerate(self.encoder_classes)}
        order = torch.arange(len(position))
        for name, other in (sample.renamed or {}).items():
            if name in position and other in position:
                order[position[other]] = position[name]
        return order

    def _objects(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Masks of everything annotated, and the row of each."""
        shapes = [self._shapes([o.mask for o in sample.objects], sample) for sample in samples]
        counts = torch.tensor([len(sample.objects) for sample in samples])
        rows = torch.arange(len(samples)).repeat_interleave(counts)
        return {"object_shapes": torch.cat(shapes), "object_rows": rows}

    def _shapes(self, rles: Sequence[RLE], sample: Sample) -> Tensor:
        """(N, g, g) uint8 masks over the canvas, on the class map's grid."""
        grid = self.class_map_size
        shapes = torch.zeros(len(rles), grid, grid, dtype=torch.uint8)
        height, width = Letterbox.fit(sample.size, grid).resized
        for index, mask in enumerate(resize_targets(rles, sample.size, (height, width))):
            shapes[index, :height, :width] = torch.from_numpy(mask)
        return shapes

    def _pack(
        self, row: Sequence[Sample], resized: Sequence[int]
    ) -> tuple[dict[str, list[int]], list[tuple[Sample, int]]]:
        """One row's fields, and how many turns of each sample it holds."""
        out = self._start(resized)
        kept: list[tuple[Sample, int]] = []
        for number, sample in enumerate(row, start=1):
            room = min(self.max_length - len(out["input_ids"]), self.longest_dialogue)
            encoded, count = self._encode_fitting(sample, room)
            if not count:
                continue
            tail = slice(encoded.prefix, None)
            ids, labelled = encoded.ids[tail], encoded.labelled[tail]
            out["input_ids"] += ids
            out["attention_mask"] += [1] * len(ids)
            out["position_ids"] += range(encoded.prefix, encoded.prefix + len(ids))
            out["dialogue_ids"] += [number] * len(ids)
            out["labels"] += [i if keep else IGNORED for i, keep in zip(ids, labelled, strict=True)]
            kept.append((sample, count))
        return out, kept

    def _encode_fitting(self, sample: Sample, room: int) -> tuple[EncodedDialogue, int]:
        """Encode as many leading turns as fit into ``room`` tokens behind the prefix."""
        for count in range(len(sample.turns), 0, -1):
            turns = sample.turns[:count]
            history = [(self.processor.word_question(turn), turn.answer) for turn in turns]
            encoded = self.processor.codec.encode(dialogue_messages(history))
            if len(encoded.ids) - encoded.prefix <= room:
                return encoded, count
        return EncodedDialogue((), (), 0), 0

    def _start(self, resized: Sequence[int]) -> dict[str, list[int]]:
        """The shared prefix: its image tokens in the canvas's padding are masked."""
        shown = self.processor.image_token_mask(resized)
        length = len(self.prefix)
        mask = [1] * length
        mask[length - len(shown) :] = shown.astype(int).tolist()
        return {
            "input_ids": list(self.prefix),
            "attention_mask": mask,
            "position_ids": list(range(length)),
            "dialogue_ids": [0] * length,
            "labels": [IGNORED] * length,
        }

    def _unknown_maps(self) -> tuple[Tensor, Tensor]:
        """(g, g) class ids and (g, g, 4) boxes that teach nothing."""
        size = self.class_map_size
        return torch.full((size, size), IGNORED), torch.full((size, size, 4), -1.0)

    def _object_maps(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """What each of (g, g) points of the canvas shows, later objects on top; unknown for none.

        (g, g) class ids, 0 background, padding ignored; (g, g, 4) left, top, right and bottom of
        the object's visible box as shares of the canvas, -1 where there is none.
        """
        if not sample.objects:
            return self._unknown_maps()
        known = [o for o in sample.objects if o.name in self.class_index]
        height, width = sample.size
        side = max(height, width)
        on_top = np.zeros((height, width), dtype=np.int64)
        classes = np.array([0, *(self.class_index[o.name] for o in known)])
        boxes = np.full((len(known) + 1, 4), -1.0, dtype=np.float32)
        for number, target in enumerate(known, start=1):
            mask = decode_mask(target.mask)
            on_top[mask] = number
            left, top, wide, high = mask_to_box(mask)
            boxes[number] = np.array([left, top, left + wide, top + high]) / side
        steps = (np.arange(self.class_map_size) + 0.5) * side / self.class_map_size
        rows, columns = np.ix_(steps.astype(int), steps.astype(int))
        inside = (rows < height) & (columns < width)
        picked = on_top[np.minimum(rows, height - 1), np.minimum(columns, width - 1)] * inside
        ids = np.where(inside, classes[picked], IGNORED)
        return torch.from_numpy(ids), torch.from_numpy(boxes[picked])


def _index_of_phrases(classes: Sequence[str]) -> dict[str, int]:
    """The index of each class of an encoder, by what targets of it are called."""
    if not classes:
        return {}
    knowledge, keys = knowledge_of_categories(tuple(classes))
    return {knowledge.concepts[keys[name]].name: index for index, name in enumerate(classes)}


def _check_size(row: Sequence[Sample], size: tuple[int, int]) -> None:
    """Refuse samples whose masks were made for another size than that of their image."""
    for sample in row:
        if fault := size_mismatch(size, sample.size):
            named = f", {sample.image}" if isinstance(sample.image, Path) else ""
            raise ValueError(f"Sample {sample.id!r}{named}: {fault}")
