"""Scores of whole benchmarks: hand-computed tables, both units, both protocols, curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from bit_masks import mask_bits, masks_of, untimed
from hypothesis import given, settings
from hypothesis import strategies as st

from pixellm.evaluation.benchmarks import BENCHMARKS, find_benchmark
from pixellm.evaluation.curves import calibration_error, compute_calibration, compute_precision
from pixellm.evaluation.metrics import MaskMatch, MuseScorer
from pixellm.evaluation.records import AnswerRecord, build_record
from pixellm.evaluation.scores import SCORES, Rules, image_ratios, size_bin
from pixellm.evaluation.summary import summarize
from pixellm.evaluation.tables import all_tables
from pixellm.masks import encode_mask
from pixellm.types import Prediction, Sample, Segment, Target, Turn

SIZE = (3, 4)
STRICT, UNION = Rules("slots", "free", "strict"), Rules("union", "free", "strict")


def record(
    predicted: Sequence[int],
    true: Sequence[int],
    *,
    image: str = "a",
    scores: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
    ignore: int = 0,
    kind: str = "",
    protocol: str = "strict",
    pairs: list[tuple[int, int]] | None = None,
    source: str = "",
) -> AnswerRecord:
    """An answered question with masks given by bits; targets are called "cup"."""
    ignored = encode_mask(masks_of(ignore)[0]) if ignore else None
    targets = tuple(Target("cup", encode_mask(mask), ignored) for mask in masks_of(*true))
    turn = Turn("what?", "a cup {seg} " * len(targets) or "none", targets, kind)
    segments = tuple(
        Segment(label, mask, score, (0, len(label)))
        for mask, label, score in zip(
            masks_of(*predicted),
            labels or ["the cup"] * len(predicted),
            scores or [0.5] * len(predicted),
            strict=True,
        )
    )
    info = {"logits": masks_of(*predicted).astype(np.float32) * 6 - 3, "num_tokens": 7}
    prediction = Prediction("the cup", segments, turn.question, SIZE, info)
    return build_record(
        sample_of(turn, f"{image}-{len(segments)}", source),
        0,
        0,
        prediction,
        0.25,
        protocol=protocol,
        pairs=pairs,
    )


def sample_of(turn: Turn, name: str = "a-0", source: str = "", size=SIZE) -> Sample:
    return Sample(np.zeros((*size, 3), np.uint8), size, (turn,), name, source=source)


def divide(ratio: tuple[float, float]) -> float:
    return ratio[0] / ratio[1]


def values(records: Sequence[AnswerRecord], rules: Rules = STRICT) -> dict[str, float]:
    overall = summarize(records, rules).groups["overall"].scores
    return {name: estimate.value for name, estimate in overall.items()}


# Question 1: two truths of 4 and 2 pixels; the first found exactly, the second half, one spurious.
# Question 2: nothing to find, and silence.  Question 3: one truth of 4 pixels, silence.
HAND_MADE = [
    record((0b1111, 0b1_0000, 0b1100_0000_0000), (0b1111, 0b11_0000), image="a"),
    record((), (), image="b"),
    record((), (0b1111,), image="c"),
]


def test_scores_of_slots_by_hand():
    found = values(HAND_MADE)
    ious = [1, 1 / 2, 0, 0]
    expected = {
        "giou": (sum(ious) + 1) / 5,  # silence counts as one IoU of 1
        "giou_targets": sum(ious) / 4,
        "ciou": (4 + 1) / (4 + 2 + 2 + 4),
        "p@0.5": 2 / 4,
        "p@0.6": 1 / 4,
        "p@0.9": 1 / 4,
        "precision": 2 / 3,
        "recall": 2 / 3,
        "set_accuracy": 1 / 3,
        "set_accuracy_targets": 0.0,
        "n_acc": 1.0,
        "t_acc": 1 / 2,
        "union_giou": (5 / 8 + 1 + 0) / 3,
        "union_ciou": 5 / (8 + 4),
        "name_recall": 2 / 3,
        "name_precision": 2 / 3,
        "seconds": 0.25,
        "tokens": 7.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_scores_of_joined_masks_by_hand():
    found = values(HAND_MADE, UNION)
    expected = {
        "giou": (5 / 8 + 1 + 0) / 3,
        "ciou": 5 / 12,
        "p@0.6": 1 / 2,
        "p@0.7": 0.0,
        "n_acc": 1.0,
        "t_acc": 1 / 2,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert "union_giou" not in found  # it would only repeat gIoU


def test_precision_at_a_level_is_over_questions_with_targets_where_masks_are_joined():
    spurious = record((0b1111,), (), image="d")
    found, before = values([*HAND_MADE, spurious], UNION), values(HAND_MADE, UNION)
    assert found["p@0.6"] == before["p@0.6"] == 1 / 2
    assert found["n_acc"] == 1 / 2 and found["giou"] < before["giou"]


def test_empty_masks_say_nothing_where_masks_are_joined():
    silent_in_effect = [record((0,), (), image="a")]
    assert values(silent_in_effect, UNION)["n_acc"] == 1
    assert values(silent_in_effect, STRICT)["n_acc"] == 0


def test_groups_by_topic_and_collection():
    """Of 12 pixels: a left one found, a right one missed, what can be eaten found by half."""
    records = [
        record((0b1,), (0b1,), kind="left", source="val2017"),
        record((), (0b10,), kind="right", source="val2017", image="b"),
        record((0b1,), (0b11,), kind="use", source="train2017", image="c"),
        record((0b1,), (), kind="absent", source="train2017", image="c"),
    ]
    summary = summarize(records, STRICT)
    assert summary.score("recall", "topic left, right or largest").value == 1 / 2
    assert summary.groups["topic left, right or largest"].count == 2
    assert summary.score("union_giou", "topic use and activity").value == 1 / 2
    assert summary.groups["topic over 2 % asked for"].count == 3
    assert summary.groups["source val2017"].count == 2
    assert summary.score("n_acc", "source train2017").value == 0
    assert summary.score("union_giou", "source train2017: use and activity").value == 1 / 2
    assert summary.score("target_iou", "source val2017: targets 4-16 %").value == 1 / 2
    assert summary.score("target_iou", "size all >= 1 %").value == pytest.approx(1 / 2)
    assert summary.score("giou", "no such group").value is None
    titles = [table.title for table in all_tables(summary, ("giou",))]
    assert {"By topic", "By collection of the image"} <= {*titles}


@pytest.mark.parametrize(
    "share, name",
    [(0.0, "< 1 %"), (0.0099, "< 1 %"), (0.01, "1-4 %"), (0.04, "4-16 %"), (1.0, ">= 16 %")],
)
def test_groups_by_size_tell_apart_all_that_are_not_small(share, name):
    assert size_bin(share) == name
    found = summarize([replace(record((1,), (1,)), size=(1, 12 if share else 1200))], STRICT).groups
    assert ("size all >= 1 %" in found) == bool(share)


def test_ignored_pixels_count_for_nobody():
    # Predicted: the truth and two pixels beside it, one of which is ignored.
    with_ignored = record((0b0111,), (0b0001,), ignore=0b0110)
    assert with_ignored.matches[0].iou == 1
    assert record((0b0111,), (0b0001,), ignore=0b0100).matches[0].iou == pytest.approx(1 / 2)
    # A mask of such a region is not spurious, and the others keep their numbers; one beside it is.
    crowd = record((0b1110_0000, 0b0001), (0b0001,), ignore=0b1100_0000)
    assert [(match.prediction, match.truth) for match in crowd.matches] == [(1, 0)]
    beside = record((0b0111_0000, 0b0001), (0b0001,), ignore=0b0100_0000)
    assert [(match.prediction, match.truth) for match in beside.matches] == [(1, 0), (0, None)]
    assert len(record((0, 0b0001), (0b0001,), ignore=0b0100).matches) == 2  # an empty mask is
    # What a target claims counts, ignored or not.
    assert record((0b0010,), (0b0011,), ignore=0b0001).matches[0].iou == pytest.approx(1 / 2)


def test_the_release_knows_no_ignored_pixels():
    ignoring, plain = (
        record((0b0111,), (0b0001,), ignore=ignore, protocol="released") for ignore in (0b0110, 0)
    )
    assert ignoring.released == plain.released
    assert ignoring.matches[0].iou == 1 > plain.matches[0].iou


def test_answers_in_words_alone_are_compared_with_the_true_ones():
    said = record((), (), kind="plain")
    right, wrong = replace(said, answer="NONE!"), replace(said, answer="Two.")
    counted = replace(said, kind="counting", expected="There are two.", answer="I see 2.")
    masked = record((0b1,), (0b1,), kind="plain")
    found = summarize([right, wrong, counted, masked], STRICT)
    assert found.score("text_accuracy").value == pytest.approx(2 / 3)
    assert found.score("text_accuracy", "kind plain").value == pytest.approx(1 / 2)
    headline = all_tables(found, ("text_accuracy",))[0]
    assert headline.rows[1][:2] == ("text_accuracy", "0.667")
    forced = summarize([right, wrong], Rules("slots", "forced", "strict"))
    assert forced.score("text_accuracy").value is None


def test_given_answers_are_paired_by_place_and_their_names_not_judged():
    crossed = record((0b1100, 0b0011), (0b0011, 0b1100), pairs=[(0, 0), (1, 1)])
    found = values([crossed], Rules("slots", "forced", "strict"))
    assert found["giou"] == 0
    assert not {"name_recall", "n_acc", "t_acc", "text_accuracy"} & found.keys()


def test_the_released_scores_are_those_of_the_scorer():
    images = [
        [((0b1111, 0b1_0000, 0b11_0000_0000), (0b1111, 0b11_0000)), ((), (0b1,))],
        [((0b111,), (0b1,)), ((0b1,), ())],
    ]
    scorer = MuseScorer("released")
    records = []
    for name, questions in zip("ab", images, strict=True):
        logits = [(masks_of(*p).astype(np.float32) * 6 - 3, masks_of(*g)) for p, g in questions]
        scorer.update(logits)
        records += [record(p, g, image=name, protocol="released") for p, g in questions]
    found, expected = values(records, Rules("slots", "free", "released")), scorer.compute()
    for name in ("giou", "ciou"):
        assert found[name] == pytest.approx(expected[name], abs=1e-5)
    strict = values(records, STRICT)
    assert found["strict_giou"] == pytest.approx(strict["giou"])
    assert found["giou"] > strict["giou"]


def test_the_released_protocol_needs_logits():
    turn = Turn("what?", "a cup {seg}", (Target("cup", encode_mask(masks_of(1)[0])),))
    shown = Segment("cup", masks_of(1)[0], 0.5, (0, 3))
    prediction = Prediction("cup", (shown,), "what?", SIZE)
    with pytest.raises(ValueError, match="carries no mask logits"):
        build_record(sample_of(turn), 0, 0, prediction, 0.0, protocol="released")


bits = st.lists(mask_bits, max_size=3)
NEVER_RAISED = (
    *("giou", "ciou", "p@0.5", "p@0.9", "boundary_iou", "precision", "recall", "n_acc"),
    *("giou_targets", "ciou_targets", "set_accuracy", "set_accuracy_targets"),
)


@settings(untimed, max_examples=40)
@given(bits, bits, mask_bits)
def test_a_spurious_mask_never_raises_a_score(predicted, true, spurious):
    for number in true:
        spurious &= ~number
    if not spurious:
        return
    for rules, names in ((STRICT, NEVER_RAISED), (UNION, ("giou", "ciou", "n_acc"))):
        before, after = (
            image_ratios([record(masks, true)], rules)
            for masks in (predicted, [*predicted, spurious])
        )
        for name in names:
            if before[name][1]:
                assert divide(after[name]) <= divide(before[name]) + 1e-7


@settings(untimed, max_examples=40)
@given(st.lists(bits, min_size=1, max_size=3))
def test_perfect_answers_score_one(questions):
    visible = [[number for number in true if number] for true in questions]
    for rules in (STRICT, UNION):
        ratios = image_ratios([record(true, true) for true in visible], rules)
        for name in (*NEVER_RAISED, "set_accuracy", "t_acc"):
            assert ratios[name][0] == pytest.approx(ratios[name][1])


@settings(untimed, max_examples=40)
@given(bits, bits, st.randoms(use_true_random=False))
def test_the_order_of_masks_never_matters(predicted, true, random):
    shuffled = [random.sample(masks, len(masks)) for masks in (predicted, true)]
    for rules in (STRICT, UNION):
        first, second = (
            image_ratios([record(*masks)], rules) for masks in ((predicted, true), shuffled)
        )
        for name in (*NEVER_RAISED[:4], "precision", "recall", "set_accuracy"):
            assert first[name] == pytest.approx(second[name], abs=1e-7)


def test_every_score_has_a_meaning():
    ratios = image_ratios(HAND_MADE, STRICT)
    assert ratios.keys() == SCORES.keys()
    for benchmark in BENCHMARKS.values():
        assert set(benchmark.headline) <= SCORES.keys()


# --- the masks' own scores ---------------------------------------------------------------------


# A region to ignore of four pixels; a confident mask in it, or beside it; then the right one.
INSIDE = record((0b1100_0000, 0b1), (0b1,), scores=(0.9, 0.5), ignore=0b1111_0000)
OUTSIDE = record((0b1111_0000_0000, 0b1), (0b1,), scores=(0.9, 0.5), ignore=0b1111_0000)
# IoU 3 / 4 is reached at 0.50 .. 0.75, six of ten thresholds.
PARTLY = record((0b0111,), (0b1111,), kind="cup")


@pytest.mark.parametrize(
    "records, ap",
    [
        ([record((0b1, 0b1000), (0b1,), scores=(0.9, 0.1))], 1),  # the right mask is surer
        ([record((0b1, 0b1000), (0b1,), scores=(0.1, 0.9))], 0.5),
        ([PARTLY], 0.6),
        ([INSIDE], 1),
        ([OUTSIDE], 0.5),
        ([record((), (0b1,))], 0),
        ([record((0b1,), ())], None),
        ([], None),
    ],
)
def test_average_precision_by_hand(records, ap):
    assert compute_precision(records).ap == (ap if ap is None else pytest.approx(ap))


def test_average_precision_is_a_mean_over_thresholds_and_classes():
    curve = compute_precision([PARTLY])
    assert (curve.ap50, curve.ap75) == pytest.approx((1, 1))
    missed = record((), (0b1,), kind="dog")
    assert compute_precision([PARTLY, missed], lambda one: one.kind).ap == pytest.approx(0.3)
    # A region belongs to its own question: another question's mask of the same place is wrong.
    other = record((0b1100_0000, 0b1), (0b1,), scores=(0.9, 0.5), image="b")
    assert compute_precision([INSIDE, other]).ap < 1


def test_average_precision_of_a_hundred_targets_takes_all_of_them():
    masks = np.zeros((100, 20, 20), dtype=np.bool_)
    for i in range(100):
        masks[i, i // 10 * 2 : i // 10 * 2 + 2, i % 10 * 2 : i % 10 * 2 + 2] = True
    targets = tuple(Target("cell", encode_mask(mask)) for mask in masks)
    turn = Turn("all?", "{seg}" * 100, targets)
    shown = tuple(Segment("cell", mask, 0.9, (0, 0)) for mask in masks)
    prediction = Prediction("", shown, "all?", (20, 20))
    answered = build_record(sample_of(turn, size=(20, 20)), 0, 0, prediction, 0.0)
    assert compute_precision([answered]).ap == pytest.approx(1)
    assert values([answered])["giou"] == 1


def test_calibration_compares_scores_with_ious():
    pairs = [(0.85, 0.9), (0.89, 0.7), (0.15, 0.0), (1.0, 1.0), (None, 0.0)]
    bins = compute_calibration([MaskMatch(0, 0, iou, iou, 0, 1, 1, score) for score, iou in pairs])
    assert [(round(one.low, 1), one.count) for one in bins] == [(0.1, 1), (0.8, 2), (0.9, 1)]
    assert calibration_error(bins) == pytest.approx((0.15 + 2 * abs(0.87 - 0.8) + 0) / 4)
    assert compute_calibration([]) == [] and calibration_error([]) is None


# --- the table of benchmarks -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, mode, protocol, message",
    [
        ("refcoco", "free", "released", "add --mode forced"),
        ("grefcoco", None, "released", "does not score grefcoco"),
        ("muse", "given", "strict", "free or forced"),
        ("muse", None, "lenient", "strict or released"),
    ],
)
def test_rules_that_a_benchmark_lacks_are_refused(name, mode, protocol, message):
    with pytest.raises(ValueError, match=message):
        find_benchmark(name).rules(mode, protocol)


def test_the_usual_mode_of_a_benchmark():
    modes = {"refcoco": "forced", "muse": "free", "grefcoco": "free", "coco": "free"}
    assert {name: find_benchmark(name).rules().mode for name in modes} == modes
    # Given answers to expressions score alike under both protocols.
    strict, released = (
        find_benchmark("refcoco").rules("forced", p) for p in ("strict", "released")
    )
    assert strict == released
