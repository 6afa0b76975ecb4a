"""The contracts that data passes through: Sample in, Prediction out.

Plain frozen dataclasses over NumPy and the standard library. This module knows nothing of
models, tokenizers, files or tensors. Every dataset yields :class:`Sample`, the MUSE generator
writes it, the evaluator scores it; every engine answers with :class:`Prediction`.

Frames: masks, boxes and areas are in pixels of the original image, sizes are
``(height, width)``, boxes ``(x, y, width, height)`` with the origin in the top left corner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict  # typing's own is not read by pydantic before 3.12

SEG_MARK = "{seg}"
"""Stands in an answer's text right behind each phrase that carries a mask."""

UNFAMILIAR = 0.5
"""Below this ``info["familiarity"]`` an answer is followed by a word of caution."""

UNFAMILIAR_NOTE = "The model knows hardly anything in this image; its answer may be a guess."

BoolMask = NDArray[np.bool_]


def split_marks(answer: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Split an answer into its text and where its ``{seg}`` marks stood.

    Args:
        answer: text with any number of marks; the whitespace in front of a mark is the mark's.

    Returns:
        The text without marks, and for each mark [start, end) in characters of that text: what
        stands between the mark before, or the beginning, and this one.
    """
    text, spans = "", list[tuple[int, int]]()
    *pieces, rest = answer.split(SEG_MARK)
    for piece in pieces:
        start = len(text)
        text += piece.rstrip()
        spans.append((start, len(text)))
    return text + rest, tuple(spans)


def join_marks(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Put `` {seg}`` behind each span of a text, which are in order of mention.

    Marks that the text itself holds are dropped: they would stand for masks that nothing has.
    """
    pieces, begun = list[str](), 0
    for _, end in spans:
        pieces.append(text[begun:end])
        begun = end
    pieces.append(text[begun:])
    return f" {SEG_MARK}".join(piece.replace(SEG_MARK, "") for piece in pieces)


def text_damage(text: str) -> str:
    """What makes a text unfit for a tokenizer, as the end of a sentence; "" where nothing does.

    Half of a character beyond U+FFFF, a lone surrogate, is what JavaScript leaves of a cut emoji.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds half a character ({text[error.start]!a}) at place {error.start}"
    return ""


class RLE(TypedDict):
    """A mask as COCO compressed run lengths: ``size`` is [height, width], ``counts`` ASCII."""

    size: list[int]
    counts: str


@dataclass(frozen=True, slots=True)
class Target:
    """One object of an image.

    Attributes:
        name: what the object is called, for people and for the auxiliary class loss.
        mask: its mask over the original image.
        ignore: optional second mask of pixels that a score leaves out (ReasonSeg).
    """

    name: str
    mask: RLE
    ignore: RLE | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One question with its answer.

    Attributes:
        question: as a person types it.
        answer: the text, with exactly one ``{seg}`` behind the phrase of each target.
        targets: the objects, in the order of their ``{seg}``.
        kind: a free label for reports, such as "use" or "left_right".
        takes_suffix: a model that was trained to read a suffix behind reasoning questions is
            asked with it; the suffix is its processor's.

    Raises:
        ValueError: the question is empty, the marks and the targets differ in number, or a text
            is damaged.
    """

    question: str
    answer: str
    targets: tuple[Target, ...] = ()
    kind: str = ""
    takes_suffix: bool = False

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("A turn needs a question; this one is empty.")
        _check_texts(self.question, self.answer)
        marks = self.answer.count(SEG_MARK)
        if marks != len(self.targets):
            raise ValueError(
                f"The answer holds {marks} {SEG_MARK} marks but the turn has "
                f"{len(self.targets)} targets: {self.answer!r}."
            )


@dataclass(frozen=True, slots=True)
class Sample:
    """One dialogue about one image: what every dataset yields.

    Attributes:
        image: path of the image, or its pixels as (H, W, 3) uint8 RGB.
        size: (height, width) of the image in pixels.
        turns: at least one; later turns may refer to earlier ones.
        id: names the sample in logs and reports.
        objects: everything annotated in the image, asked for or not; () where unknown.
        source: which collection the image is from, for reports; "" where unknown.
        renamed: what categories are called in the dialogue, by their own name; None where each
            keeps its own.

    Raises:
        ValueError: no turns, a size that is not positive, or a mask of another size.
    """

    image: Path | NDArray[np.uint8]
    size: tuple[int, int]
    turns: tuple[Turn, ...]
    id: str = ""
    objects: tuple[Target, ...] = ()
    source: str = ""
    renamed: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError(f"Sample {self.id!r} has no turns.")
        if min(self.size) < 1:
            raise ValueError(f"Sample {self.id!r} has size {self.size}; both sides must be >= 1.")
        for target in self.all_targets():
            if tuple(target.mask["size"]) != tuple(self.size):
                raise ValueError(
                    f"Sample {self.id!r}: the mask of {target.name!r} is "
                    f"{tuple(target.mask['size'])}, the image {tuple(self.size)}."
                )

    def all_targets(self) -> Iterator[Target]:
        """Every target of every turn, in order, then the other annotated objects."""
        for turn in self.turns:
            yield from turn.targets
        yield from self.objects


@dataclass(frozen=True, slots=True)
class Segment:
    """One mask of an answer.

    Attributes:
        label: the phrase that the mask grounds, ``text[span[0]:span[1]]``.
        mask: (H, W) bool over the original image.
        score: mean probability over the mask's pixels, 0 for an empty mask; of models with
            ``masks_per_thing`` the intersection over union that it is expected to have.
        span: [start, end) of the phrase in the answer's text, in characters.
    """

    label: str
    mask: BoolMask
    score: float
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer: text without special tokens, and its segments in order of mention.

    Attributes:
        text: the answer.
        segments: of each complete codebook group the masks that are not filtered, one as a rule;
            of models with ``masks_per_thing`` one for each thing that the phrase stands for.
        question: the question, as typed.
        size: (height, width) of the original image.
        info: facts about how it came about, never part of the answer; those that are known of
            ``num_tokens`` of the answer, ``num_prompt_tokens`` of what it answers, ``is_cut`` where
            the limit of tokens ended it, ``num_filtered`` masks that are not shown, ``seconds``
            that it took, ``marked_text`` (the text with ``{seg}`` behind each phrase that was
            grounded, its mask filtered or not), and ``logits``, (P, H, W) float32 of the
            segments' masks, where they were asked for, and ``familiarity``, how likely the encoder
            knows anything in the image, 0 to 1.
    """

    text: str
    segments: tuple[Segment, ...]
    question: str
    size: tuple[int, int]
    info: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One question to an engine: what :class:`Prediction` answers.

    Attributes:
        image: path of the image, or its pixels as (H, W, 3) uint8 RGB; requests about the same
            image may share the object, so that an engine can encode it once.
        question: as a person types it.
        history: the earlier (question, answer) pairs of the dialogue, oldest first; an answer
            holds ``{seg}`` behind each phrase that had a mask.
        takes_suffix: see :class:`Turn`.

    Raises:
        ValueError: the question is empty, or a text is damaged.
    """

    image: Path | NDArray[np.uint8]
    question: str
    history: tuple[tuple[str, str], ...] = ()
    takes_suffix: bool = False

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("A request needs a question; this one is empty.")
        _check_texts(self.question, *(text for pair in self.history for text in pair))


def _check_texts(*texts: str) -> None:
    for text in texts:
        damage = text_damage(text)
        if damage:
            raise ValueError(f"The text {text[:40]!a} {damage}.")
