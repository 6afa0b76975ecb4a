"""Questions whose data can't be used: found, told, and asked again once their data are mended.

One rule for every benchmark: such a question is not asked and counts for no score, is noted among
the answers, and is counted and named in what is shown. So is one that is too long for the model's
context; whatever else a model can't answer stays an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pixellm.data.dataset import check_header
from pixellm.data.rows import describe_error
from pixellm.data.table import BadRow
from pixellm.engine.run_folder import answer_paths
from pixellm.evaluation.records import LeftOut
from pixellm.files import read_lines, write_files
from pixellm.image_files import load_image
from pixellm.types import Sample

NUM_NAMED = 3
"""Reasons that a sentence tells."""

# A question that is too long for the model stays so, whatever becomes of its data.
_LINE = re.compile(rb'\{"row": (\d+), "num_turns": \d+, "turn": \d+, "error": ')


class NothingAnsweredError(ValueError):
    """None of a benchmark's questions could be asked."""


def open_question(questions: Sequence[Sample], index: int) -> Sample | LeftOut:
    """A dialogue, or why it can't be asked, as far as its annotation and image's header show it."""
    try:
        sample = questions[index]
    except (OSError, ValueError) as error:
        return LeftOut(index, 0, 1, describe_error(error))
    if not isinstance(sample.image, Path):
        return sample
    if fault := check_header(sample.image, sample.size):
        named = fault.reason if str(fault.file) in fault.reason else str(fault)
        return LeftOut(index, 0, len(sample.turns), named, sample.id)
    return sample


def decoding_fault(sample: Sample) -> str:
    """Why a sample's image can't be read to its end; "" where it can."""
    if isinstance(sample.image, Path):
        try:
            load_image(sample.image)
        except (OSError, ValueError) as error:
            return describe_error(error)
    return ""


def describe_left_out(left_out: Sequence[LeftOut]) -> str:
    """The numbers, each with the first reasons, in a sentence; "" where nothing was left out."""
    told = []
    for too_long, why in ((False, "data can't be used"), (True, "length exceeds the context")):
        if reasons := [one.reason for one in left_out if one.too_long == too_long]:
            named = _first_of(reasons)
            told.append(f"Left out, as their {why}: {len(reasons)} questions ({named}).")
    return " ".join(told)


def describe_bad_rows(bad_rows: Sequence[BadRow]) -> str:
    """Likewise of rows that a data set's reader has left out."""
    if not bad_rows:
        return ""
    named = _first_of([str(one) for one in bad_rows])
    return f"Unusable rows in the data set: {len(bad_rows)} (see pixellm data check; {named})."


def _first_of(sentences: Sequence[str]) -> str:
    different = list(dict.fromkeys(one.rstrip(".") for one in sentences))
    more = len(different) - NUM_NAMED
    return "; ".join(different[:NUM_NAMED]) + (f"; and {more} more reasons" if more > 0 else "")


def forget_mended(folder: Path, questions: Sequence[Sample]) -> None:
    """Take questions out of a run's answers that were left out and can be asked by now."""
    for path in answer_paths(folder):
        lines = [line for _, line in read_lines(path)]
        found = [_LINE.match(line) for line in lines]
        rows = {int(match[1]) for match in found if match}
        mended = {row for row in rows if row < len(questions) and _is_sound(questions, row)}
        if mended:
            kept = [
                line
                for line, match in zip(lines, found, strict=True)
                if not (match and int(match[1]) in mended)
            ]
            write_files({path: b"".join(kept)})


def _is_sound(questions: Sequence[Sample], index: int) -> bool:
    sample = open_question(questions, index)
    return isinstance(sample, Sample) and not decoding_fault(sample)
