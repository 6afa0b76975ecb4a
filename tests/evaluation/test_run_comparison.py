"""Two runs compared: paired differences, what moved, and what can't be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hand_made_scenes import Oracle, Silent, Sprayer, make_scene
from test_benchmark_report import SETTINGS, Wavering, answer, image

from pixellm.engine.run_folder import open_run
from pixellm.evaluation.compare import compare_runs, comparison_report
from pixellm.evaluation.evaluate import answer_freely, answer_questions
from pixellm.evaluation.scores import Rules
from pixellm.report.page import write_report


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    for name, kind in (("good", Oracle), ("wavering", Wavering)):
        answer(tmp_path / name, kind)
    return tmp_path / "good", tmp_path / "wavering"


def test_a_worse_run_shows_a_negative_difference(runs):
    comparison = compare_runs(*runs)
    first, second, change = comparison.scores["giou"]
    assert first.value == 1 and second.value < 1
    assert change.value == pytest.approx(second.value - first.value)
    assert change.low <= change.value <= change.high <= 0
    back = compare_runs(runs[1], runs[0]).scores["giou"][2]
    assert back.value == pytest.approx(-change.value)
    assert (back.low, back.high) == pytest.approx((-change.high, -change.low))


def test_what_moved_most_comes_first_and_a_run_equals_itself(runs):
    rows = compare_runs(*runs).moved().rows[1:]
    moves = [abs(float(row[3])) for row in rows]
    assert moves == sorted(moves, reverse=True) and moves[0] > 0
    assert all(int(row[4].partition(":")[0]) % 2 == 0 for row in rows)
    same = compare_runs(runs[0], runs[0])
    assert all(
        change.value == change.low == change.high == 0 for *_, change in same.scores.values()
    )
    assert same.moved().rows[1:] == []


def test_the_files_of_a_comparison(runs, tmp_path):
    comparison = compare_runs(*runs)
    written = write_report(tmp_path / "out", "compare", comparison_report(comparison, image))
    assert [path.name for path in written] == ["compare.json", "compare.md", "compare.html"]
    values = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [run["name"] for run in values["runs"]] == ["good", "wavering"]
    assert values["scores"]["giou"]["difference"]["value"] < 0
    page = (tmp_path / "out" / "compare.html").read_text()
    for caption in ("A", "B", "true"):
        assert f'alt="{caption} masks"' in page
    assert "worse in B" in page


def test_questions_of_one_run_alone_are_left_out(tmp_path):
    answer(tmp_path / "long", Oracle, num_scenes=4)
    answer(tmp_path / "short", Silent, num_scenes=2)
    comparison = compare_runs(tmp_path / "long", tmp_path / "short")
    assert len(comparison.pairs) == 10
    assert comparison.num_left_out == 10
    assert "10 answered by one run only" in comparison.describe()


def test_runs_of_other_questions_are_refused(runs, tmp_path):
    open_run(tmp_path / "other", {**SETTINGS, "split": "val"})
    with pytest.raises(ValueError, match="compare runs of one benchmark and split"):
        compare_runs(runs[0], tmp_path / "other")
    open_run(tmp_path / "empty", SETTINGS)
    with pytest.raises(ValueError, match="no answered question in common"):
        compare_runs(runs[0], tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="holds no evaluation"):
        compare_runs(runs[0], tmp_path)


def test_the_same_key_with_another_question_is_refused(runs, tmp_path):
    scene = make_scene(0)
    (moved,) = [s for s in make_scene(1) if len(s.turns) == 1]
    changed = type(moved)(moved.image, moved.size, moved.turns, scene[0].id)
    open_run(tmp_path / "changed", SETTINGS)
    answer_questions(
        answer_freely(Sprayer([make_scene(1)])),
        [changed],
        Rules("slots", "free", "strict"),
        tmp_path / "changed",
    )
    with pytest.raises(ValueError, match="ask different things"):
        compare_runs(runs[0], tmp_path / "changed")
