"""The commands that compare, from the outside: files, sentences and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pixellm.cli.main import app
from pixellm.evaluation.baselines import ObjectGuesser, guess_all
from pixellm.evaluation.benchmarks import open_questions
from pixellm.masks import encode_mask
from pixellm.types import SEG_MARK, Request

SCENES = ["--split", "test", "--num", "2", "--dialogues", "2"]


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def write_guesses(path: Path) -> int:
    """What a system that shows all objects would hand in; returns the number of questions."""
    asked = open_questions("scenes", "test", Path(), {"num": 2, "dialogues": 2})
    guesser, lines = ObjectGuesser(asked, guess_all), []
    for sample in asked:
        for number, turn in enumerate(sample.turns):
            answer = guesser.predict_batch([Request(sample.image, turn.question)])[0]
            text = ", ".join(f"{segment.label} {SEG_MARK}" for segment in answer.segments)
            masks = [encode_mask(segment.mask) for segment in answer.segments]
            lines.append({"id": f"{sample.id}/{number}", "text": text, "masks": masks})
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return len(lines)


def test_questions_go_out_and_predictions_come_back_scored(tmp_path: Path) -> None:
    count = write_guesses(tmp_path / "p.jsonl")
    code, output = run("data", "questions", *SCENES, "--out", tmp_path / "asked")
    assert code == 0, output
    asked = [json.loads(x) for x in (tmp_path / "asked/questions.jsonl").read_text().splitlines()]
    assert len(asked) == count
    assert f"{count} questions" in output
    assert all((tmp_path / "asked" / one["image"]).is_file() for one in asked)
    answered = [json.loads(line)["id"] for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [one["id"] for one in asked] == answered

    scores, report = tmp_path / "scores.json", tmp_path / "report"
    options = ["--judge", "similarity", "--json", scores, "--out", report]
    code, output = run("score", tmp_path / "p.jsonl", *SCENES, *options)
    assert code == 0, output
    assert "with judge similarity" in output
    values = json.loads(scores.read_text())
    plain, judged = (values[key]["groups"]["overall"] for key in ("without_judge", "with_judge"))
    assert plain["scores"]["recall"]["value"] == 1.0
    assert plain["scores"]["precision"]["value"] < 1.0
    assert plain["count"] == count
    assert judged["scores"]["giou"]["value"] <= plain["scores"]["giou"]["value"]
    assert (report / "report.html").is_file()

    code, output = run("score", tmp_path / "p.jsonl", "--out", report)
    assert code == 2
    assert "is not empty" in output
    code, output = run("compare", report, report)
    assert code == 0, output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["score", "none.jsonl"], "no predictions at none.jsonl"),
        (["score", "{p}", "--benchmark", "imagenet"], "no benchmark 'imagenet'"),
        (["score", "{p}", "--num", "1", "--dialogues", "1"], "no question 'a/0' among"),
        (["score", "{p}", "--benchmark", "refcoco", "--protocol", "released"], "no scorer of its"),
        (["ablate", "none.yaml"], "No recipe at none.yaml"),
        (["ablate", "none.yaml", "--split", "dev"], "no split 'dev'"),
        (["export-lm", "no-such-model", "--out", "{out}"], "no model 'no-such-model'"),
        (["export-lm", "nano", "--out", "{out}", "--dtype", "int8"], "no floating type 'int8'"),
        (["data", "questions", "--out", "{full}"], "is not empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": "a/0", "masks": []}')
    places = {"p": tmp_path / "p.jsonl", "full": tmp_path, "out": tmp_path / "out"}
    code, output = run(*(word.format(**places) for word in words))
    assert code == 2
    assert says in output
    assert len(output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
