from __future__ import annotations

import json
import re

import numpy as np
import pytest

from pixellm.evaluation.ablation import (
    GROUPS,
    METRICS,
    AnswerTable,
    Comparison,
    comparison_table,
    comparison_to_dict,
    score_variant,
    target_overlap,
)
from pixellm.evaluation.baselines import guess_scenes
from pixellm.masks import encode_mask
from pixellm.types import Target


def constant_table(
    value: float, images: int = 40, noise: float = 0.0, seed: int = 0
) -> AnswerTable:
    """Ten questions an image, each worth about the value, all of two targets far apart."""
    rng = np.random.default_rng(seed)
    sums = np.zeros((images, len(GROUPS), len(METRICS), 2))
    for group in ("all", "2 targets", "apart"):
        sums[:, list(GROUPS).index(group), :, 1] = 10
        values = 10 * (value + noise * rng.standard_normal(images))
        sums[:, list(GROUPS).index(group), :, 0] = values[:, None]
    return AnswerTable(sums)


def box_target(x: int, y: int, width: int, height: int) -> Target:
    mask = np.zeros((20, 30), np.bool_)
    mask[y : y + height, x : x + width] = True
    return Target("thing", encode_mask(mask))


@pytest.mark.parametrize(
    ("boxes", "overlap"),
    [
        ([], 0.0),
        ([(0, 0, 4, 4)], 0.0),
        ([(0, 0, 4, 4), (4, 0, 4, 4)], 0.0),
        ([(0, 0, 4, 4), (2, 0, 8, 8)], 0.5),
        ([(0, 0, 10, 10), (2, 2, 3, 3), (20, 0, 2, 2)], 1.0),
    ],
)
def test_overlap_is_that_of_the_closest_two_boxes(boxes: list, overlap: float) -> None:
    targets = [box_target(*box) for box in boxes]
    assert target_overlap(targets) == pytest.approx(overlap)
    assert target_overlap(targets[::-1]) == pytest.approx(overlap)


def test_groups_by_number_and_by_overlap_have_no_gaps_and_share_nothing() -> None:
    by_number = ["1 target", "2 targets", "3 targets", "4+ targets"]
    by_overlap = ["apart", "close", "overlapping"]
    for count in range(8):
        for overlap in (0.0, 0.05, 0.1, 0.11, 1.0):
            found = {name for name, belongs in GROUPS.items() if belongs(count, overlap)}
            assert ("all" in found) == (count > 0)
            assert len(found & set(by_number)) == (count > 0)
            assert len(found & set(by_overlap)) == (count > 1)


def test_scores_are_pooled_over_seeds_and_images() -> None:
    comparison = Comparison({"base": [constant_table(0.2), constant_table(0.4)]})
    estimate = comparison.estimate("base")
    assert estimate.value == pytest.approx(0.3)
    assert estimate.count == 800
    assert (estimate.low, estimate.high) == (pytest.approx(0.2), pytest.approx(0.4))
    assert comparison.by_seed("base") == pytest.approx([0.2, 0.4])
    assert comparison.estimate("base", "1 target").value is None


def test_differences_are_paired_by_image() -> None:
    """Images differ wildly, but the second variant is 0.02 better on each."""
    runs = {
        "base": [constant_table(0.5, noise=0.3, seed=1)],
        "tokens_1": [constant_table(0.48, noise=0.3, seed=1)],
    }
    comparison = Comparison(runs)
    gain = comparison.difference("base", "tokens_1")
    assert gain.value == pytest.approx(0.02)
    assert gain.low == pytest.approx(0.02)
    wide = comparison.estimate("base")
    assert (wide.high or 0) - (wide.low or 0) > 0.1


@pytest.mark.parametrize(
    ("base", "one", "says"),
    [
        ([0.5, 0.52, 0.51], [0.3, 0.31, 0.32], "holds"),
        ([0.3, 0.31, 0.32], [0.5, 0.52, 0.51], "does not hold: the opposite"),
        ([0.3, 0.5, 0.4], [0.5, 0.3, 0.41], "not shown at this size"),
    ],
)
def test_a_claim_holds_only_where_the_whole_interval_is_above_zero(
    base: list[float], one: list[float], says: str
) -> None:
    runs = {
        "base": [constant_table(value) for value in base],
        "tokens_1": [constant_table(value) for value in one],
    }
    verdicts = Comparison(runs).verdicts()
    assert [(claim.worse, verdict) for claim, _, verdict in verdicts] == [("tokens_1", says)]


def test_a_claim_about_questions_that_were_not_asked_is_not_measured() -> None:
    runs = {name: [constant_table(0.5)] for name in ("base", "alpha_1")}
    verdicts = {claim.group: verdict for claim, _, verdict in Comparison(runs).verdicts()}
    assert verdicts == {"all": "not shown at this size", "overlapping": "not measured"}


def test_tables_are_markdown_with_a_row_for_each_variant_and_no_gaps() -> None:
    runs = {
        "base": [constant_table(0.5), constant_table(0.6)],
        "tokens_1": [constant_table(0.4)],
        "diverged": [],
    }
    comparison = Comparison(runs)
    text = comparison_table(comparison, "base", ["Two variants."])
    assert text.startswith("Two variants.\n\n| variant | gIoU |")
    assert "| cIoU | set accuracy | right names | gIoU by seed |" in text
    assert "| base | 0.550 [0.500, 0.600] | - |" in text
    assert re.search(r"\| tokens_1 \| 0\.400 .*? \| -0\.150 \[-0\.200, -0\.100\]", text)
    assert "| Three tokens per scale beat one | all | base - tokens_1 | +0.150" in text
    assert "diverged" not in text
    for line in text.splitlines():
        assert not line.startswith("|") or len(line.split("|")) in (7, 9, 10)
    values = json.loads(json.dumps(comparison_to_dict(comparison, "base"), allow_nan=False))
    assert values["scores"]["tokens_1"]["giou_minus_base"]["all"]["value"] == pytest.approx(-0.15)
    assert values["claims"][0]["verdict"] == "holds"


def test_runs_over_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"same images; these have \[30, 40\]"):
        Comparison({"base": [constant_table(0.5)], "other": [constant_table(0.5, images=30)]})
    with pytest.raises(ValueError, match="these have"):
        Comparison({"base": []})


def test_guesses_on_scenes_are_scored_by_number_of_targets() -> None:
    """Showing one perfect mask scores at most 1 / n on questions with n targets."""
    guesser = guess_scenes("all_objects", "test", 3, dialogues_per_image=3)
    comparison = Comparison(
        {"all_objects": [score_variant(guesser, "test", 3, dialogues_per_image=3)]}
    )
    estimate = comparison.estimate("all_objects")
    assert estimate.value is not None
    assert 0 < estimate.value < 1
    parts = [comparison.estimate("all_objects", group) for group in list(GROUPS)[1:5]]
    assert sum(part.count for part in parts) == estimate.count
