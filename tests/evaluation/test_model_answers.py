"""Given answers, answers with logits, and the commands, with the tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from benchmark_layouts import write_benchmark
from typer.testing import CliRunner

from conftest import TINY_QUESTION, TINY_QUESTION_WITHOUT_MASKS, square_sample
from pixellm.evaluation.forced import answer_forced
from pixellm.evaluation.logit_predictor import LogitPredictor
from pixellm.evaluation.records import MASK_LOGITS
from pixellm.types import Request, Sample

if TYPE_CHECKING:
    from pixellm.engine import Engine


def dialogues() -> list[Sample]:
    """One of two turns, and its first turn alone over a picture of another shape."""
    whole, other = square_sample(), square_sample((10, 14))
    return [whole, Sample(other.image, other.size, other.turns[:1], "other")]


def test_given_answers_keep_their_text_and_the_order_of_targets(tiny_engine: Engine) -> None:
    samples = dialogues()
    answered = list(answer_forced(tiny_engine, samples, batch_size=2, keep_logits=True))
    assert [one.index for one in answered] == [0, 1]
    for one, sample in zip(answered, samples, strict=True):
        assert len(one.predictions) == len(sample.turns) == len(one.seconds)
        for turn, prediction in zip(sample.turns, one.predictions, strict=True):
            assert prediction.text == re.sub(r"\s*\{seg\}", "", turn.answer)
            assert [s.label for s in prediction.segments] == [t.name for t in turn.targets]
            assert prediction.info[MASK_LOGITS].shape == (len(turn.targets), *sample.size)


def test_given_answers_show_what_the_model_shows_by_itself(tiny_engine: Engine) -> None:
    sample = square_sample()
    (given,) = answer_forced(tiny_engine, [sample], batch_size=4)
    free = tiny_engine.predict(sample.image, TINY_QUESTION)
    assert free.text == given.predictions[0].text  # the tiny model knows it by heart
    for own, forced in zip(free.segments, given.predictions[0].segments, strict=True):
        assert (own.mask != forced.mask).mean() < 0.01  # sums of floats, in another order
        assert own.score == pytest.approx(forced.score, abs=1e-3)


def test_given_answers_do_not_depend_on_the_batch(tiny_engine: Engine) -> None:
    together, alone = (list(answer_forced(tiny_engine, dialogues(), size)) for size in (2, 1))
    for first, second in zip(together, alone, strict=True):
        for one, other in zip(first.predictions, second.predictions, strict=True):
            for left, right in zip(one.segments, other.segments, strict=True):
                assert (left.mask != right.mask).mean() < 0.01


@pytest.mark.parametrize("place", [None, 1, 2])  # nothing, the unsurer mask, both filtered
def test_answers_with_logits_equal_the_engines(tiny_engine: Engine, place: int | None) -> None:
    image = square_sample().image
    scores = sorted(s.score for s in tiny_engine.predict(image, TINY_QUESTION).segments)
    limit = 0.0 if place is None else [*scores, 1.0][place] - 1e-6
    tiny_engine = type(tiny_engine)(
        tiny_engine.model, tiny_engine.processor, 48, min_mask_score=limit
    )
    requests = [Request(image, TINY_QUESTION), Request(image, TINY_QUESTION_WITHOUT_MASKS)]
    mine = LogitPredictor(tiny_engine).predict_batch(requests)
    own = tiny_engine.predict_batch(requests)
    for first, second in zip(mine, own, strict=True):
        assert (first.text, first.question, first.size) == (
            second.text,
            second.question,
            second.size,
        )
        logits = first.info[MASK_LOGITS]
        assert first.info["marked_answer"] == second.info["marked_answer"]
        assert len(logits) == len(first.segments) == len(second.segments)
        for left, right, logit in zip(first.segments, second.segments, logits, strict=True):
            assert (left.label, left.span) == (right.label, right.span)
            assert (left.mask != right.mask).mean() < 0.01
            np.testing.assert_array_equal(left.mask, logit > 0)


def invoke(*words: object) -> str:
    from pixellm.cli.main import app

    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.output


def test_benchmarks_and_their_comparison_from_the_command_line(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    data = write_benchmark("coco", tmp_path / "data")
    common = ("eval", "coco", "--model", tiny_model_dir, "--data", data, "--device", "cpu")
    output = invoke(*common, "--mode", "forced", "--out", tmp_path / "forced")
    assert "teacher-forced" in output and "95 % interval" in output
    report = json.loads((tmp_path / "forced" / "report.json").read_text())
    assert (report["mode"], report["protocol"]) == ("forced", "strict")
    invoke(*common, "--mode", "forced", "--protocol", "released", "--out", tmp_path / "released")
    released = json.loads((tmp_path / "released" / "report.json").read_text())
    overall = released["groups"]["overall"]["scores"]
    assert overall["strict_giou"]["value"] == pytest.approx(
        report["groups"]["overall"]["scores"]["giou"]["value"]
    )
    out = tmp_path / "difference"
    output = invoke("compare", tmp_path / "forced", tmp_path / "released", "--out", out)
    assert "B - A" in output and "paired bootstrap" in output
    assert (out / "compare.html").is_file()


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("eval", "grefcoco", "--protocol", "released"), "does not score grefcoco"),
        (("eval", "coco", "--mode", "given"), "free or forced"),
        (("eval", "muse", "--data", "nowhere"), "muse"),
        (("eval", "scenes", "--mode", "forced"), "add --out"),
        (("compare", "nowhere", "nowhere"), "holds no evaluation"),
    ],
)
def test_bad_options_end_in_one_sentence(words: tuple[str, ...], sentence: str) -> None:
    from pixellm.cli.main import app

    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 2
    assert sentence in result.output
    assert len(result.output.strip().splitlines()) == 1
