"""What answers add to each score of a report, as ratios of sums.

Records in, (numerator, denominator) pairs by name out; whoever sums them over images gets every
score with its interval. It knows nothing of files, models, tables or intervals.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any, Literal

import numpy as np

from pixellm.evaluation.matching import HIT_IOU, assign
from pixellm.evaluation.metrics import (
    MaskMatch,
    Protocol,
    Ratio,
    add_ratios,
    released_ratios,
    strict_ratios,
    sum_matches,
)
from pixellm.evaluation.records import AnswerRecord
from pixellm.masks import decode_mask, mask_to_box
from pixellm.scenes.knowledge import load_knowledge
from pixellm.scenes.phrasing import NUMBERS, concept_of_phrase

Unit = Literal["slots", "union"]
"""What counts as one IoU: each mask, matched, or all masks of a question joined."""

Mode = Literal["free", "forced"]
"""Answers written by the model, or given to it, so that it draws the masks alone."""

Names = Literal["words", "concepts"]
"""How a phrase names a target: by the target's own words, or by any word for the same concept of
the scenes, which know synonyms."""

IOU_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)

SCORES = {
    "giou": "mean IoU over all matches; a missing or spurious mask is 0, none where nothing was "
    "asked for is 1",
    "ciou": "summed intersection over summed union of the same matches",
    "giou_targets": "gIoU over questions that have targets",
    "ciou_targets": "cIoU over questions that have targets",
    "strict_giou": "gIoU under the strict protocol, beside the released one",
    "strict_ciou": "cIoU under the strict protocol, beside the released one",
    "union_giou": "mean IoU of all masks of an answer joined, against all targets joined",
    "union_ciou": "summed intersection over summed union of the joined masks",
    **{
        f"p@{level}": f"matches with IoU >= {level}, of all matches; where an answer's masks are "
        "joined, of questions with targets"
        for level in IOU_LEVELS
    },
    "boundary_iou": "mean IoU of the masks' boundary bands (2 % of the diagonal wide), over "
    "all matches",
    "precision": "masks shown that match a target at IoU >= 0.5",
    "recall": "targets matched at IoU >= 0.5",
    "set_accuracy": "questions with every target matched at IoU >= 0.5 and no spurious mask",
    "set_accuracy_targets": "set accuracy over questions that have targets",
    "n_acc": "questions without targets that are answered without masks",
    "t_acc": "questions with targets that are answered with at least one mask",
    "name_recall": "targets whose name is in a phrase of its own that carries a mask",
    "name_precision": "phrases with a mask that name a target of their own",
    "named_set_accuracy": "right names: questions with targets whose phrases with masks name "
    "exactly the right concepts, each as often as asked for, wherever the masks lie",
    "text_accuracy": "counting questions answered with the right number, and plain ones word for "
    "word, case and punctuation aside",
    "seconds": "per answer, its share of the time of its batch",
    "tokens": "per answer, those of the masks included",
}
"""Name -> meaning of every score. "Matches" are the pairs of predicted and true masks and all masks
left over; where a question is scored by its joined masks it has a single match."""

SIZE_SCORES = {
    "target_iou": "mean IoU over targets of that size; a missed one is 0",
    "target_recall": "targets of that size matched at IoU >= 0.5",
}
"""Likewise for groups of targets by size, in which a spurious mask has no place."""

SIZE_BINS = ((0.01, "< 1 %"), (0.04, "1-4 %"), (0.16, "4-16 %"), (math.inf, ">= 16 %"))
"""Upper end of a target's share of its image -> name of the group."""

NOT_SMALL = "all >= 1 %"
"""One more group of targets: all that are not of the smallest."""

TOPICS = {
    "left, right or largest": frozenset({"left", "right", "largest"}),
    "use and activity": frozenset({"use", "activity"}),
    "space and size": frozenset({"half", "relative", "nearest", "size"}),
}
"""Name of a topic -> the kinds of questions that it joins."""

LARGE_TOPIC, LARGE_SHARE = "over 2 % asked for", 0.02
"""One more topic: questions whose targets cover more than this share of the image together."""

OVERLAPS = ((0.0, "apart"), (0.1, "close"), (math.inf, "overlapping"))
"""Highest overlap of a question's closest two targets -> name of the group, for several targets."""

COUNTING_KIND = "counting"
TEXT_KINDS = frozenset({COUNTING_KIND, "plain"})
"""Kinds of question that are answered in words alone."""

_SENSE = re.compile(r"_?\([^)]*\)")
_WORD = re.compile(r"[^\W_]+")
_HISSING = ("sses", "shes", "ches", "xes", "zes")
_IRREGULAR = {
    "buses": "bus",
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "knives": "knife",
    "leaves": "leaf",
    "loaves": "loaf",
    "men": "man",
    "mice": "mouse",
    "people": "person",
    "potatoes": "potato",
    "shelves": "shelf",
    "teeth": "tooth",
    "tomatoes": "tomato",
    "wolves": "wolf",
    "women": "woman",
}


@dataclass(frozen=True, slots=True)
class Rules:
    """How answers are turned into scores.

    Attributes:
        unit: what counts as one IoU.
        mode: how the answers came about; given texts are not judged, nor whether they hold masks.
        protocol: "released" takes gIoU and cIoU from the records' released scores.
        names: how phrases name targets; "concepts" adds named_set_accuracy.
    """

    unit: Unit
    mode: Mode
    protocol: Protocol
    names: Names = "words"

    def to_dict(self) -> dict[str, Any]:
        """As values that JSON knows; how phrases name targets is the benchmark's to say."""
        return {name: value for name, value in asdict(self).items() if name != "names"}


def image_ratios(records: Sequence[AnswerRecord], rules: Rules) -> dict[str, Ratio]:
    """What the questions about one image add to each of :data:`SCORES`."""
    ratios = add_ratios(*(_question_ratios(record, rules) for record in records))
    if rules.protocol == "released" and rules.unit == "slots":
        for name in ("giou", "ciou"):
            ratios[f"strict_{name}"] = ratios[name]
            ratios[f"{name}_targets"] = (0.0, 0.0)  # the release makes no such distinction
        scores = [record.released for record in records if record.released is not None]
        ratios |= released_ratios(scores)
    return ratios


def size_ratios(records: Iterable[AnswerRecord]) -> dict[str, dict[str, Ratio]]:
    """Name of a size -> what the targets of that size add to :data:`SIZE_SCORES`."""
    sums: dict[str, list[float]] = {}
    for record in records:
        num_pixels = record.size[0] * record.size[1]
        for match in record.matches:
            for name in () if match.truth is None else size_bins(match.truth_area / num_pixels):
                row = sums.setdefault(name, [0.0, 0.0, 0.0])
                row[0] += match.iou
                row[1] += match.iou >= HIT_IOU
                row[2] += 1
    return {
        name: {"target_iou": (iou, count), "target_recall": (hits, count)}
        for name, (iou, hits, count) in sums.items()
    }


def size_bins(share: float) -> tuple[str, ...]:
    """All groups of a target that covers this share of its image."""
    own = size_bin(share)
    return (own,) if own == SIZE_BINS[0][1] else (own, NOT_SMALL)


def size_bin(share: float) -> str:
    """The group of a target by its size alone."""
    return next(name for limit, name in SIZE_BINS if share < limit)


def topics_of(record: AnswerRecord) -> list[str]:
    """The topics that a question belongs to."""
    topics = [name for name, kinds in TOPICS.items() if record.kind in kinds]
    asked = sum(match.truth_area for match in record.union)
    is_large = asked > LARGE_SHARE * record.size[0] * record.size[1]
    return [*topics, LARGE_TOPIC] if is_large else topics


def count_bin(num_targets: int) -> str:
    """The group of a question with that many targets."""
    if num_targets <= 3:
        return str(num_targets)
    return "4-5" if num_targets <= 5 else "6+"


def overlap_bin(record: AnswerRecord) -> str:
    """The group of a question by how close its closest two targets are; "" below two targets.

    Measured is the intersection of their boxes over the smaller box: masks of a drawn scene never
    share a pixel, as what is hidden belongs to nobody; boxes do.
    """
    if len(record.targets) < 2:
        return ""
    boxes = [mask_to_box(decode_mask(target.mask)) for target in record.targets]
    overlap = max(_box_overlap(a, b) for a, b in combinations(boxes, 2))
    return next(name for limit, name in OVERLAPS if overlap <= limit)


def question_giou(record: AnswerRecord, unit: Unit) -> float:
    """The question's own mean IoU, for rankings; 1 for no mask where nothing was asked for."""
    matches = _counted(record, unit)
    return math.fsum(match.iou for match in matches) / len(matches) if matches else 1.0


def _counted(record: AnswerRecord, unit: Unit) -> tuple[MaskMatch, ...]:
    """The matches that a unit counts."""
    return record.matches if unit == "slots" else record.union


def _question_ratios(record: AnswerRecord, rules: Rules) -> dict[str, Ratio]:
    matches = _counted(record, rules.unit)
    ratios = dict.fromkeys(SCORES, (0.0, 0.0)) | strict_ratios(sum_matches(matches))
    if rules.unit == "slots":
        union = strict_ratios(sum_matches(record.union))
        ratios |= {"union_giou": union["giou"], "union_ciou": union["ciou"]}
    # The code of generalized referring segmentation (ReLA) leaves out questions without targets.
    counted = matches if rules.unit == "slots" or record.targets else ()
    for level in IOU_LEVELS:
        ratios[f"p@{level}"] = (sum(match.iou >= level for match in counted), len(counted))
    ratios["boundary_iou"] = (math.fsum(match.boundary_iou for match in matches), len(matches))
    if rules.mode == "free":
        ratios |= _name_ratios(record, rules.names) | _text_ratios(record)
    else:  # a given text shows masks exactly where some are asked for
        ratios |= {"n_acc": (0.0, 0.0), "t_acc": (0.0, 0.0)}
    ratios["seconds"] = (record.seconds, 1.0)
    ratios["tokens"] = (float(record.num_tokens), 1.0 if record.num_tokens else 0.0)
    return ratios


def _name_ratios(record: AnswerRecord, names: Names) -> dict[str, Ratio]:
    phrases = [mask.label for mask in record.shown]
    targets = [target.name for target in record.targets]
    named = count_named(targets, phrases)
    ratios: dict[str, Ratio] = {
        "name_recall": (named, len(targets)),
        "name_precision": (named, len(phrases)),
    }
    if names == "concepts" and targets:
        right = count_named(targets, phrases, _is_called) == len(targets) == len(phrases)
        ratios["named_set_accuracy"] = (float(right), 1.0)
    return ratios


def _text_ratios(record: AnswerRecord) -> dict[str, Ratio]:
    if record.kind not in TEXT_KINDS or record.targets:
        return {}
    return {
        "text_accuracy": (float(is_text_right(record.kind, record.expected, record.answer)), 1.0)
    }


def is_named_by(name: str, phrase: str) -> bool:
    """Whether a phrase holds the words of a name, side by side and in order.

    English plurals and senses in parentheses are set aside; synonyms are not known.

    Example:
        >>> is_named_by("traffic light", "the two Traffic Lights on the left")
        True
    """
    wanted, given = _words(_SENSE.sub("", name)), _words(phrase)
    if not wanted:
        return False
    starts = range(len(given) - len(wanted) + 1)
    return any(given[i : i + len(wanted)] == wanted for i in starts)


def count_named(
    names: Sequence[str], phrases: Sequence[str], fits: Callable[[str, str], bool] = is_named_by
) -> int:
    """How many names have a phrase of their own that names them, at best."""
    if not (names and phrases):
        return 0
    table = np.array([[fits(name, phrase) for phrase in phrases] for name in names])
    return sum(bool(table[pair]) for pair in assign(-table.astype(float)))


def _is_called(name: str, phrase: str) -> bool:
    """Whether a phrase speaks of the same concept of the scenes as a name, in whichever words."""
    concept = _concept(name)
    return is_named_by(name, phrase) if concept is None else concept == _concept(phrase)


def is_text_right(kind: str, expected: str, answer: str) -> bool:
    """Whether an answer in words alone holds the expected number, or is the expected text.

    The kind is one of :data:`TEXT_KINDS`; the texts have no marks, and their case and punctuation
    don't matter.
    """
    if kind != COUNTING_KIND:
        return re.findall(r"\w+", expected.casefold()) == re.findall(r"\w+", answer.casefold())
    return _numbers_in(expected) == _numbers_in(answer)


def _numbers_in(text: str) -> list[str]:
    """Number words, digits among them; "There are 3." and "I count three." say the same."""
    spelled = {str(value): word for value, word in enumerate(NUMBERS)}
    words = (spelled.get(word, word) for word in re.findall(r"\w+", text.casefold()))
    return [word for word in words if word in NUMBERS]


@lru_cache(maxsize=4096)
def _concept(phrase: str) -> str | None:
    return concept_of_phrase(phrase, load_knowledge())


def _words(text: str) -> list[str]:
    return [_singular(word) for word in _WORD.findall(text.casefold())]


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) < 4 or word.endswith(("ss", "us")) or not word.endswith("s"):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(_HISSING) else word[:-1]


def _box_overlap(first: Sequence[int], second: Sequence[int]) -> float:
    """Intersection of two (x, y, width, height) boxes over the smaller one."""
    sides = [
        min(first[i] + first[i + 2], second[i] + second[i + 2]) - max(first[i], second[i])
        for i in (0, 1)
    ]
    smaller = min(first[2] * first[3], second[2] * second[3])
    return max(0, sides[0]) * max(0, sides[1]) / smaller if smaller else 0.0
