"""A benchmark's questions as files, for systems that are not called from here.

Writes what may be known before answering: ids, images, questions, earlier turns. The truth stays
behind. The way back is :mod:`pixellm.evaluation.external`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pixellm.evaluation.external import question_to_json
from pixellm.files import new_folder
from pixellm.types import Sample

QUESTIONS_NAME = "questions.jsonl"


def write_questions(samples: Sequence[Sample], out: Path) -> int:
    """Write ``questions.jsonl``, and ``images/*.png`` of images that were drawn.

    Args:
        samples: the benchmark's dialogues; images with files stay where they are.
        out: folder; made where missing, must be empty.

    Returns:
        How many questions were written.

    Raises:
        FileExistsError: the folder is not empty.
        OSError: it cannot be written.
    """
    count = 0
    with new_folder(out) as folder, (folder / QUESTIONS_NAME).open("w", encoding="utf-8") as file:
        for sample in samples:
            image = _place_image(sample, folder)
            for number in range(len(sample.turns)):
                line = question_to_json(sample, number, image)
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
    return count


def _place_image(sample: Sample, folder: Path) -> str:
    """The image's path, relative to the folder where it was drawn and written there."""
    if not isinstance(sample.image, np.ndarray):
        return str(Path(sample.image).absolute())
    name = f"images/{sample.id.rpartition('-')[0] or sample.id}.png"
    path = folder / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(sample.image).save(path)
    return name
