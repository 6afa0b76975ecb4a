"""Reports: what they say, that they need nothing but themselves, and that a browser takes them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hand_made_scenes import Oracle, Silent, make_scene, with_segments
from PIL import Image

from pixellm.data.lazy import Lazy
from pixellm.engine.run_folder import open_run
from pixellm.evaluation.benchmarks import find_benchmark
from pixellm.evaluation.cards import EACH, choose_records
from pixellm.evaluation.evaluate import BenchmarkRun, Evaluation, answer_freely, answer_questions
from pixellm.evaluation.records import AnswerRecord
from pixellm.evaluation.report import report_of
from pixellm.evaluation.scores import question_giou
from pixellm.evaluation.summary import summarize
from pixellm.report.page import write_report
from pixellm.types import Prediction, Sample, Segment

BENCHMARK = find_benchmark("scenes")
RULES = BENCHMARK.rules()
SETTINGS = {
    "benchmark": "scenes",
    "title": "scenes",
    "split": "test",
    "model": "<i>mine & yours</i>",
    "mode": "free",
    "protocol": "strict",
    "rules": RULES.to_dict(),
}


class Wavering(Oracle):
    """Answers every second scene well, the others with the first mask shifted."""

    def change(self, prediction: Prediction) -> Prediction:
        number = int(prediction.question.partition(":")[0])
        if number % 2 or not prediction.segments:
            return prediction
        first, *rest = prediction.segments
        shifted = Segment(
            first.label, np.roll(first.mask, number, axis=1), 1 / (number + 2), first.span
        )
        return with_segments(prediction, (shifted, *rest))


def answer(folder: Path, kind: type[Oracle], num_scenes: int = 6) -> list[AnswerRecord]:
    questions = ask(num_scenes)
    open_run(folder, SETTINGS)
    scenes = [make_scene(i) for i in range(num_scenes)]
    return answer_questions(answer_freely(kind(scenes)), questions, RULES, folder, 8).records


def ask(num_scenes: int = 6) -> list[Sample]:
    return [sample for number in range(num_scenes) for sample in make_scene(number)]


def image(record: AnswerRecord) -> Image.Image:
    return Image.new("RGB", (record.size[1], record.size[0]), (40, 90, 160))


def write(folder: Path, records: list[AnswerRecord]) -> list[Path]:
    run = BenchmarkRun("scenes", "mine")
    asked = ask()
    questions = Lazy(range(len(asked)), asked.__getitem__)
    evaluation = Evaluation(run, SETTINGS, questions, records, summarize(records, RULES))
    return write_report(folder, "report", report_of(evaluation))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "wavering"
    written = write(folder, answer(folder, Wavering))
    assert [path.name for path in written] == ["report.json", "report.md", "report.html"]
    return folder


def test_the_json_report_says_what_was_run_and_every_score(report):
    values = json.loads((report / "report.json").read_text())
    assert (values["mode"], values["protocol"], values["unit"]) == ("free", "strict", "slots")
    assert values["settings"] == SETTINGS
    assert values["headline"] == list(BENCHMARK.headline)
    overall = values["groups"]["overall"]["scores"]
    for name in BENCHMARK.headline:
        assert overall[name]["low"] <= overall[name]["value"] <= overall[name]["high"]
        assert values["definitions"][name]
    assert {"targets 0", "targets 1", "targets 2"} <= values["groups"].keys()
    assert values["versions"]["numpy"] == np.__version__


def test_the_markdown_report_holds_the_same_numbers(report):
    text = (report / "report.md").read_text()
    values = json.loads((report / "report.json").read_text())
    assert "free" in text and "strict protocol" in text
    giou = values["groups"]["overall"]["scores"]["giou"]["value"]
    assert f"| giou | {giou:.3f} |" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 30
    assert "<i>" not in text


def test_the_page_is_whole_escaped_and_needs_no_network(report):
    text = (report / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "http:" not in text and "https:" not in text
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert "<i>mine" not in text and "&lt;i&gt;mine &amp; yours" in text
    assert text.count("<svg") == 4
    cards = text.count('<article class="card"')
    assert cards > 10
    assert text.count('alt="predicted masks"') == text.count('alt="true masks"') == cards
    for name in ("sort", "count", "kind"):
        assert f'<select name="{name}">' in text


@pytest.mark.parametrize("kind, giou", [(Silent, 2 / 7), (None, None)])
def test_silent_and_no_answers_can_be_reported(tmp_path, kind, giou):
    folder = tmp_path / "run"
    folder.mkdir()
    records = answer(folder, kind, num_scenes=1) if kind else []
    write(folder, records)
    assert f"{len(records)} questions" in (folder / "report.md").read_text()
    found = json.loads((folder / "report.json").read_text())["groups"]
    assert (
        found == {}
        if giou is None
        else found["overall"]["scores"]["giou"]["value"] == pytest.approx(giou)
    )


def test_the_gallery_shows_the_worst_the_median_and_the_best(tmp_path):
    records = answer(tmp_path / "run", Wavering, num_scenes=20)
    chosen = choose_records(records, "slots")
    assert [len(part) for part in chosen.values()] == [EACH] * 3
    keys = [record.key for part in chosen.values() for record in part]
    assert len(set(keys)) == len(keys)
    ious = {name: [question_giou(r, "slots") for r in part] for name, part in chosen.items()}
    ranked = sorted(question_giou(r, "slots") for r in records if r.targets or r.shown)
    assert ious["worst"] == ranked[:EACH]
    assert sorted(ious["best"]) == ranked[-EACH:]
