"""Scenes as files: pictures, questions and answers in the format of MUSE, and a sheet to look at.

It writes what a scenes data set yields and refuses to know how a scene is drawn or a question
made. The format is that of PAPER.md, section 4: a list with one entry per picture. Two keys are
added, both parallel to ``questions``: ``kinds``, and ``follow_ups`` with the second turn of a
dialogue or null, because a question of MUSE stands alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixellm.masks import decode_mask, mask_to_box
from pixellm.processing.phrases import phrase_before
from pixellm.scenes.dataset import ScenesDataset
from pixellm.types import SEG_MARK, Sample, Target, Turn
from pixellm.visualize import draw_contact_sheet, draw_overlay

SHEET_TILES = 48
"""The contact sheet shows the first so many questions."""


@dataclass(frozen=True, slots=True)
class ExportedScenes:
    """Paths of what :func:`export_scenes` wrote; ``annotations`` names pictures relative to it."""

    annotations: Path
    contact_sheet: Path
    pictures: tuple[Path, ...]


def export_scenes(
    dataset: ScenesDataset, out_dir: Path, num: int, *, overwrite: bool = False
) -> ExportedScenes:
    """Write the first ``num`` scenes of a data set.

    Everything is made in a temporary folder and moved at the end, the annotations last.

    Args:
        dataset: what to draw.
        out_dir: gets ``images/*.png``, ``muse_{split}.json`` and ``contact_sheet.png``; made
            where missing.
        num: how many pictures.
        overwrite: whether ``out_dir`` may hold files already; those of the same name are
            replaced, others stay.

    Raises:
        ValueError: ``num`` is below 1 or beyond the data set's length.
        FileExistsError: the folder is not empty, and ``overwrite`` is off.
        OSError: the folder cannot be made or written.
    """
    if not 1 <= num <= len(dataset):
        raise ValueError(f"Asked for {num} scenes of {len(dataset)}; give 1 to {len(dataset)}.")
    out_dir = Path(out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        if not overwrite and any(out_dir.iterdir()):
            raise FileExistsError(
                f"{out_dir} is not empty; choose another folder or allow overwriting."
            )
        with tempfile.TemporaryDirectory(dir=out_dir, prefix=".writing-") as temporary:
            written = _write(dataset, Path(temporary), num)
            return _move(written, Path(temporary), out_dir)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            f"Cannot write scenes to {out_dir} ({error.strerror}); choose another folder."
        ) from error


def muse_entry(
    dialogues: Sequence[Sample], file_name: str, category_ids: Mapping[str, int]
) -> dict[str, Any]:
    """The dialogues about one picture as an entry of a MUSE file.

    Args:
        dialogues: samples that share a picture.
        file_name: what the entry calls the picture.
        category_ids: number of every object's name.

    Returns:
        The entry, ready for JSON. Each text answer has one ``{seg}`` per instance.
    """
    first = dialogues[0]
    turns = [sample.turns[0] for sample in dialogues]
    later = [sample.turns[1] if len(sample.turns) > 1 else None for sample in dialogues]
    return {
        "file_name": file_name,
        "height": first.size[0],
        "width": first.size[1],
        "ann_list": [_instance(one, one.name, category_ids) for one in first.objects],
        "questions": [turn.question for turn in turns],
        "answers": [_instances(turn, category_ids) for turn in turns],
        "text_answers": [turn.answer for turn in turns],
        "kinds": [turn.kind for turn in turns],
        "follow_ups": [None if turn is None else _follow_up(turn, category_ids) for turn in later],
    }


def _instances(turn: Turn, category_ids: Mapping[str, int]) -> list[dict[str, Any]]:
    """The targets of an answer, each with the words that its mark follows."""
    instances = []
    for before, target in zip(turn.answer.split(SEG_MARK), turn.targets, strict=False):
        start, end = phrase_before(before, len(before))
        instances.append(_instance(target, before[start:end] or target.name, category_ids))
    return instances


def _instance(target: Target, phrase: str, category_ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "category_id": category_ids[target.name],
        "category_name": target.name,
        "rephrased_name": phrase,
        "bbox": list(mask_to_box(decode_mask(target.mask))),
        "segmentation": target.mask,
    }


def _follow_up(turn: Turn, category_ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "question": turn.question,
        "answer": _instances(turn, category_ids),
        "text_answer": turn.answer,
        "kind": turn.kind,
    }


def _write(dataset: ScenesDataset, folder: Path, num: int) -> ExportedScenes:
    """Draw and write everything into ``folder``."""
    category_ids = {name: number for number, name in enumerate(dataset.class_names, start=1)}
    entries, pictures = [], []
    tiles: list[Image.Image] = []
    captions: list[str] = []
    (folder / "images").mkdir()
    for index in range(num):
        dialogues = dataset[index]
        picture = folder / "images" / f"{dataset.split}-{dataset.seed}-{index:06d}.png"
        Image.fromarray(_pixels(dialogues[0])).save(picture)
        pictures.append(picture)
        name = picture.relative_to(folder).as_posix()
        entries.append(muse_entry(dialogues, name, category_ids))
        for sample in dialogues:
            for turn in sample.turns[: SHEET_TILES - len(tiles)]:
                tiles.append(_tile(sample, turn))
                captions.append(f"{index} · {turn.kind}\nQ: {turn.question}\nA: {turn.answer}")
    annotations = folder / f"muse_{dataset.split}.json"
    annotations.write_text(json.dumps(entries, indent=1), encoding="utf-8")
    sheet = folder / "contact_sheet.png"
    draw_contact_sheet(tiles, captions, columns=min(6, len(tiles))).save(sheet)
    return ExportedScenes(annotations, sheet, tuple(pictures))


def _pixels(sample: Sample) -> NDArray[np.uint8]:
    assert isinstance(sample.image, np.ndarray)  # scenes are drawn, never read from a file
    return sample.image


def _tile(sample: Sample, turn: Turn) -> Image.Image:
    """The picture with the masks of one answer, numbered in order of mention."""
    return draw_overlay(_pixels(sample), [decode_mask(target.mask) for target in turn.targets])


def _move(written: ExportedScenes, source: Path, target: Path) -> ExportedScenes:
    """Rename every file into ``target``, the annotations last."""

    def move(path: Path) -> Path:
        return path.replace(target / path.relative_to(source))

    (target / "images").mkdir(exist_ok=True)
    pictures = tuple(move(picture) for picture in written.pictures)
    sheet = move(written.contact_sheet)
    return ExportedScenes(move(written.annotations), sheet, pictures)
