"""What a preview of a data set shows: images with masks, questions and answers.

Shows what training would see, in the wording of the first epoch; :mod:`pixellm.report.gallery`
makes the page.
"""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from pixellm.data.dataset import Dataset
from pixellm.image_files import load_annotated
from pixellm.processing.phrases import phrase_before
from pixellm.report.gallery import Part, PreviewEntry, PreviewTurn, draw_masks
from pixellm.types import Sample, Turn, split_marks

_LONG_SIDE = 1024


def gather_preview(reader: Dataset, num: int) -> tuple[list[PreviewEntry], list[str]]:
    """The first dialogues of a reader's first epoch, one an item; and why others can't be shown."""
    if num < 1:
        raise ValueError(f"A preview of {num} dialogues shows nothing; ask for at least 1.")
    entries, problems = [], []
    for index in range(min(num, len(reader))):
        try:
            dialogues = reader.dialogues(index, 0)
            sample = dialogues[index % len(dialogues)]
            entries.append(PreviewEntry(sample.id, draw_sample(sample), tuple(_turns(sample))))
        except (OSError, ValueError) as error:
            problems.append(str(error))
    if not entries:
        raise ValueError(f"Nothing of {reader.name} {reader.split} can be shown: {problems[0]}")
    return entries, problems


def draw_sample(sample: Sample) -> Image.Image:
    """The image with the masks of all turns, numbered in order of mention.

    Images larger than 1024 pixels are made smaller.
    """
    image = load_annotated(sample.image, sample.size, sample.id)
    targets = [target for turn in sample.turns for target in turn.targets]
    masks, labels = [target.mask for target in targets], [target.name for target in targets]
    return draw_masks(image, masks, labels, _LONG_SIDE)


def _turns(sample: Sample) -> Iterator[PreviewTurn]:
    first = 0
    for turn in sample.turns:
        yield PreviewTurn(turn.question, turn.answer, tuple(_parts(turn, first)))
        first += len(turn.targets)


def _parts(turn: Turn, first: int) -> Iterator[Part]:
    """The answer, the number of each mask behind its phrase."""
    text, spans = split_marks(turn.answer)
    for number, (begin, stop) in enumerate(spans, start=first):
        start, end = phrase_before(text, stop, begin)
        yield text[begin:start], None
        yield text[start:end], number
        yield text[end:stop] + " ", None
        yield f"[{number + 1}]", number
    yield text[spans[-1][1] if spans else 0 :], None
