"""Scenes as files: images, questions and answers in the format of MUSE, and a sheet to look at.

A question of MUSE stands alone: the second turn of a dialogue goes under ``follow_ups``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixellm.data.muse import make_entry, make_instance
from pixellm.files import OccupiedError, check_listed, explained, locked, merged_folder
from pixellm.masks import decode_mask, mask_to_box
from pixellm.processing.phrases import phrase_before
from pixellm.scenes.dataset import ScenesDataset
from pixellm.types import Sample, Target, Turn, split_marks
from pixellm.visualize import draw_contact_sheet, draw_overlay, encode_image

SHEET_TILES = 48
"""The contact sheet shows the first so many questions."""


@dataclass(frozen=True, slots=True)
class ExportedScenes:
    """Paths of what :func:`export_scenes` wrote; ``annotations`` names images relative to it."""

    annotations: Path
    contact_sheet: Path
    images: tuple[Path, ...]


def export_scenes(
    dataset: ScenesDataset, out_dir: Path, num: int, *, overwrite: bool = False
) -> ExportedScenes:
    """Write the first ``num`` scenes of a data set; all of them, or nothing.

    The folder gets ``images/*.png``, ``muse_{split}.json`` and ``contact_sheet.png``. Where
    ``overwrite`` allows it to hold files already, those of an earlier export are replaced, others
    stay. ValueError for a number below 1 or beyond the set's length, FileExistsError where the
    folder is not empty or a foreign file would be replaced, OSError where it can't be written.
    """
    if not 1 <= num <= len(dataset):
        raise ValueError(f"Asked for {num} scenes of {len(dataset)}; give 1 to {len(dataset)}.")
    out_dir = Path(out_dir)
    names = [f"images/{dataset.split}-{dataset.seed}-{index:06d}.png" for index in range(num)]
    annotations, sheet = f"muse_{dataset.split}.json", "contact_sheet.png"
    check_listed(out_dir, [annotations, sheet, *names])
    found = out_dir.iterdir() if out_dir.exists() else ()
    if not overwrite and any(not path.name.startswith(".") for path in found):
        raise OccupiedError(f"{out_dir} is not empty; choose another folder or allow overwriting.")
    category_ids = {name: number for number, name in enumerate(dataset.class_names, start=1)}
    entries = []
    out_dir.mkdir(parents=True, exist_ok=True)
    with locked(out_dir), explained(out_dir), merged_folder(out_dir) as aside:
        (aside / "images").mkdir()
        for index, name in enumerate(names):
            dialogues = dataset[index]
            image = Image.fromarray(_pixels(dialogues[0]))
            (aside / name).write_bytes(encode_image(image, ".png"))
            entries.append(muse_entry(dialogues, name, category_ids))
        (aside / annotations).write_text(json.dumps(entries, indent=1), encoding="utf-8")
        (aside / sheet).write_bytes(_contact_sheet(dataset, num))
    images = tuple(out_dir / name for name in names)
    return ExportedScenes(out_dir / annotations, out_dir / sheet, images)


def muse_entry(
    dialogues: Sequence[Sample], file_name: str, category_ids: Mapping[str, int]
) -> dict[str, Any]:
    """The dialogues about one image as an entry of a MUSE file, a ``{seg}`` for each instance."""
    first = dialogues[0]
    turns = [sample.turns[0] for sample in dialogues]
    later = [sample.turns[1] if len(sample.turns) > 1 else None for sample in dialogues]
    objects = [_instance(one, one.name, category_ids) for one in first.objects]
    return {
        **make_entry(file_name, first.size, objects),
        "questions": [turn.question for turn in turns],
        "answers": [_instances(turn, category_ids) for turn in turns],
        "text_answers": [turn.answer for turn in turns],
        "kinds": [turn.kind for turn in turns],
        "follow_ups": [None if turn is None else _follow_up(turn, category_ids) for turn in later],
    }


def _instances(turn: Turn, category_ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """The targets of an answer, each with the words that its mark follows."""
    instances = []
    text, clauses = split_marks(turn.answer)
    for (begin, stop), target in zip(clauses, turn.targets, strict=True):
        start, end = phrase_before(text, stop, begin)
        instances.append(_instance(target, text[start:end] or target.name, category_ids))
    return instances


def _instance(target: Target, phrase: str, category_ids: Mapping[str, int]) -> dict[str, Any]:
    box = mask_to_box(decode_mask(target.mask))
    return make_instance(category_ids[target.name], target.name, phrase, box, target.mask)


def _follow_up(turn: Turn, category_ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "question": turn.question,
        "answer": _instances(turn, category_ids),
        "text_answer": turn.answer,
        "kind": turn.kind,
    }


def _contact_sheet(dataset: ScenesDataset, num: int) -> bytes:
    """The first questions, with the masks of their answers."""
    tiles: list[Image.Image] = []
    captions: list[str] = []
    for index in range(num):
        if len(tiles) == SHEET_TILES:
            break
        for sample in dataset[index]:
            for turn in sample.turns[: SHEET_TILES - len(tiles)]:
                masks = [decode_mask(target.mask) for target in turn.targets]
                tiles.append(draw_overlay(_pixels(sample), masks))
                captions.append(f"{index} · {turn.kind}\nQ: {turn.question}\nA: {turn.answer}")
    sheet = draw_contact_sheet(tiles, captions, columns=min(6, len(tiles)))
    return encode_image(sheet, ".png")


def _pixels(sample: Sample) -> NDArray[np.uint8]:
    assert isinstance(sample.image, np.ndarray)  # scenes are drawn, never read from a file
    return sample.image
