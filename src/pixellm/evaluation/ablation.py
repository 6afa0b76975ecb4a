"""What a comparison of variants says: scores over seeds, split by targets and by their overlap.

Takes the scored answers of each trained model and makes intervals, differences, verdicts and a
Markdown table of them. It knows nothing of recipes, training or models: a variant is a name with
one table of answers per seed.

Intervals are percentile bootstraps on two levels: seeds and images are both drawn with
replacement, and all variants share the draws of images, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixellm.engine.dialogues import Predictor
from pixellm.evaluation.intervals import Estimate
from pixellm.evaluation.scenes import score_dialogues
from pixellm.masks import decode_mask, mask_to_box
from pixellm.types import Target

METRICS = ("giou", "ciou", "set_accuracy", "named_set_accuracy")
"""Of every answer, by the names of the scenes report."""

GROUPS: dict[str, Callable[[int, float], bool]] = {
    "all": lambda count, overlap: count > 0,
    "1 target": lambda count, overlap: count == 1,
    "2 targets": lambda count, overlap: count == 2,
    "3 targets": lambda count, overlap: count == 3,
    "4+ targets": lambda count, overlap: count >= 4,
    "apart": lambda count, overlap: count > 1 and overlap == 0,
    "close": lambda count, overlap: count > 1 and 0 < overlap <= 0.1,
    "overlapping": lambda count, overlap: count > 1 and overlap > 0.1,
}
"""Questions by their number of targets and the largest overlap of two of them."""

NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the paper as a comparison of two variants on one group of questions."""

    text: str
    better: str
    worse: str
    group: str = "all"


CLAIMS = (
    Claim("Three tokens per scale beat one", "base", "tokens_1"),
    Claim("Three tokens per scale beat two", "base", "tokens_2"),
    Claim("Four tokens per scale beat three", "tokens_4", "base"),
    Claim("Two scales beat one", "base", "scales_1"),
    Claim("Three scales beat two", "scales_3", "base"),
    Claim("Linear token fusion beats the mean", "base", "fusion_mean"),
    Claim("Linear token fusion beats taking the first token", "base", "fusion_first"),
    Claim("Target refinement (alpha 2) beats none", "base", "alpha_1"),
    Claim(
        "Target refinement (alpha 2) beats none where targets overlap",
        "base",
        "alpha_1",
        "overlapping",
    ),
    Claim("Alpha 4 beats alpha 2", "alpha_4", "base"),
    Claim("Masks compared at the canvas's size beat half of it", "base", "mask_96"),
    Claim("Masks compared at the canvas's size beat a quarter of it", "base", "mask_48"),
    Claim("The codebook beats a single token without refinement", "base", "single_token"),
    Claim("Multi-target data beat single-target data", "base", "single_target_data"),
)
"""What is looked at wherever both variants were run."""


@dataclass(frozen=True, slots=True)
class AnswerTable:
    """The scored answers of one model, as sums over the questions of each image.

    Attributes:
        sums: (images, groups, metrics, 2) float64, numerators and denominators.
    """

    sums: NDArray[np.float64]


def score_variant(
    predictor: Predictor,
    split: str,
    num_scenes: int,
    *,
    seed: int = 0,
    dialogues_per_image: int = 4,
    batch_size: int = 16,
    progress: Callable[[int, float | None], None] | None = None,
) -> AnswerTable:
    """Ask a predictor the questions of scenes and sum its scores by group.

    Args:
        predictor: answers by free generation.
        split: of the scenes data set.
        num_scenes: images.
        seed: of the scenes data set.
        dialogues_per_image: dialogues about each image.
        batch_size: questions per call of the predictor.
        progress: told after every dialogue how many scenes are begun, and the gIoU so far.

    Raises:
        ValueError: an unknown split, or answers that don't fit their questions.
        ImportError: the extra ``scenes`` is not installed.
    """
    from pixellm.scenes.dataset import ScenesDataset
    from pixellm.scenes.knowledge import load_knowledge
    from pixellm.scenes.phrasing import concept_of_phrase

    knowledge = load_knowledge()
    dataset = ScenesDataset(split, seed, num_scenes, dialogues_per_image)
    scenes = [dataset[index] for index in range(num_scenes)]
    answers = score_dialogues(
        predictor, scenes, lambda phrase: concept_of_phrase(phrase, knowledge), batch_size, progress
    )
    turns = [turn for dialogues in scenes for sample in dialogues for turn in sample.turns]
    sums = np.zeros((num_scenes, len(GROUPS), len(METRICS), 2))
    for answer, turn in zip(answers, turns, strict=True):
        count, overlap = len(turn.targets), target_overlap(turn.targets)
        ratios = answer.ratios()
        added = np.array([ratios[name] for name in METRICS])
        for row, belongs in enumerate(GROUPS.values()):
            if belongs(count, overlap):
                sums[answer.image, row] += added
    return AnswerTable(sums)


def target_overlap(targets: Sequence[Target]) -> float:
    """How close the closest two targets are: their boxes' intersection over the smaller box.

    Masks of a scene never share a pixel, as what is hidden belongs to nobody; boxes do.

    Returns:
        0 for boxes that are apart and for fewer than two targets, up to 1 for one inside another.
    """
    boxes = [mask_to_box(decode_mask(target.mask)) for target in targets]
    return max((_box_overlap(a, b) for a, b in combinations(boxes, 2)), default=0.0)


def _box_overlap(first: Sequence[int], second: Sequence[int]) -> float:
    sides = [
        min(first[i] + first[i + 2], second[i] + second[i + 2]) - max(first[i], second[i])
        for i in (0, 1)
    ]
    smaller = min(first[2] * first[3], second[2] * second[3])
    return max(0, sides[0]) * max(0, sides[1]) / smaller if smaller else 0.0


class Comparison:
    """Variants over the same images, with all their resamples.

    Args:
        runs: variant -> its seeds' tables; every table over the same images.
        num_resamples: of the bootstrap.
        rng_seed: the same seed and input give the same intervals.

    Raises:
        ValueError: no runs, or tables over different numbers of images.
    """

    def __init__(
        self,
        runs: Mapping[str, Sequence[AnswerTable]],
        num_resamples: int = NUM_RESAMPLES,
        rng_seed: int = 0,
    ) -> None:
        self.runs = {name: list(tables) for name, tables in runs.items() if tables}
        sizes = {len(table.sums) for tables in self.runs.values() for table in tables}
        if len(sizes) != 1:
            raise ValueError(
                f"A comparison needs runs over the same images; these have {sorted(sizes)}."
            )
        size = sizes.pop()
        rng = np.random.default_rng(rng_seed)
        images = rng.multinomial(size, np.full(size, 1 / size), size=num_resamples)
        self._values, self._resampled = {}, {}
        for name, tables in self.runs.items():
            sums = np.stack([table.sums for table in tables])
            seeds = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), num_resamples)
            flat = sums.reshape(*sums.shape[:2], -1)
            drawn = np.einsum("rs,srk->rk", seeds, np.einsum("ru,suk->srk", images, flat))
            self._resampled[name] = _divide(drawn.reshape(num_resamples, *sums.shape[2:]))
            self._values[name] = _divide(sums.sum((0, 1)))

    def estimate(self, name: str, group: str = "all", metric: str = "giou") -> Estimate:
        """A variant's score over all its seeds with its 95 % interval."""
        place = _place(group, metric)
        count = sum(float(table.sums[(slice(None), *place, 1)].sum()) for table in self.runs[name])
        return _estimate(self._values[name][place], self._resampled[name][:, *place], count)

    def difference(
        self, name: str, base: str, group: str = "all", metric: str = "giou"
    ) -> Estimate:
        """How much higher a variant scores than another, with the paired 95 % interval."""
        place = _place(group, metric)
        values = self._values[name][place] - self._values[base][place]
        resampled = self._resampled[name][:, *place] - self._resampled[base][:, *place]
        return _estimate(values, resampled, float(len(resampled)))

    def by_seed(self, name: str, group: str = "all", metric: str = "giou") -> list[float]:
        """A variant's score with each of its seeds; NaN where nothing counts."""
        place = _place(group, metric)
        return [float(_divide(table.sums.sum(0))[place]) for table in self.runs[name]]

    def verdicts(self) -> list[tuple[Claim, Estimate, str]]:
        """Every claim whose variants were run, the difference, and what it says."""
        found = []
        for claim in CLAIMS:
            if claim.better in self.runs and claim.worse in self.runs:
                gain = self.difference(claim.better, claim.worse, claim.group)
                found.append((claim, gain, _verdict(gain)))
        return found


def _place(group: str, metric: str) -> tuple[int, int]:
    return list(GROUPS).index(group), METRICS.index(metric)


def _divide(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numerators over denominators, the last axis; NaN where nothing counts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def _estimate(value: Any, resampled: NDArray[np.float64], count: float) -> Estimate:
    seen = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or not seen.size:
        return Estimate(None, None, None, count)
    low, high = np.quantile(seen, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high), count)


def _verdict(gain: Estimate) -> str:
    if gain.low is None or gain.high is None:
        return "not measured"
    if gain.low > 0:
        return "holds"
    return "does not hold: the opposite" if gain.high < 0 else "not shown at this size"


def comparison_table(comparison: Comparison, base: str, notes: Iterable[str] = ()) -> str:
    """Everything as Markdown: scores, splits, claims.

    Args:
        comparison: of all variants.
        base: the variant that others are compared with, where it was run.
        notes: lines on top, on the budget for instance.
    """
    names = list(comparison.runs)
    scores = [_score_row(comparison, name, base) for name in names]
    columns = ["cIoU", "set accuracy", "right names"]
    head = ["variant", "gIoU", f"gIoU minus {base}", *columns, "gIoU by seed"]
    splits = [
        [name, *(_short(comparison.estimate(name, group)) for group in list(GROUPS)[1:])]
        for name in names
    ]
    claims = [
        [claim.text, claim.group, f"{claim.better} - {claim.worse}", _signed(gain), verdict]
        for claim, gain, verdict in comparison.verdicts()
    ]
    parts = [
        *notes,
        "",
        _markdown(head, scores),
        "",
        "gIoU by number of targets, and for several targets by the overlap of the closest two "
        "(intersection of their boxes over the smaller box: apart 0, close up to 0.1, overlapping "
        "above):",
        "",
        _markdown(["variant", *list(GROUPS)[1:]], splits),
    ]
    if claims:
        said = ["claim", "questions", "difference", "gIoU gained", "verdict"]
        parts += ["", _markdown(said, claims)]
    return "\n".join(parts).strip() + "\n"


def comparison_to_dict(comparison: Comparison, base: str) -> dict[str, Any]:
    """Everything as values that JSON knows; a score that nothing counts for is null."""
    scores: dict[str, Any] = {}
    for name in comparison.runs:
        scores[name] = {
            group: {metric: asdict(comparison.estimate(name, group, metric)) for metric in METRICS}
            for group in GROUPS
        }
        if base in comparison.runs and name != base:
            gains = {group: asdict(comparison.difference(name, base, group)) for group in GROUPS}
            scores[name][f"giou_minus_{base}"] = gains
        seeds = comparison.by_seed(name)
        scores[name]["giou_by_seed"] = [None if np.isnan(value) else value for value in seeds]
    claims = [
        {**asdict(claim), "gain": asdict(gain), "verdict": verdict}
        for claim, gain, verdict in comparison.verdicts()
    ]
    return {"scores": scores, "claims": claims}


def _score_row(comparison: Comparison, name: str, base: str) -> list[str]:
    gain = "-"
    if base in comparison.runs and name != base:
        gain = _signed(comparison.difference(name, base))
    return [
        name,
        str(comparison.estimate(name)),
        gain,
        *(str(comparison.estimate(name, metric=metric)) for metric in METRICS[1:]),
        " ".join(f"{value:.3f}" for value in comparison.by_seed(name)),
    ]


def _signed(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _short(estimate: Estimate) -> str:
    """Without a value nothing is claimed; with one, half the interval's width beside it."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.value:.3f} ± {(estimate.high - estimate.low) / 2:.3f}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
