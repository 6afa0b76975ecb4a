"""Questions whose data can't be used: left out, told, and asked again when their data are back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark_layouts import write_benchmark
from hand_made_scenes import make_scene
from known_answers import Knowing
from PIL import Image
from typer.testing import CliRunner

from pixellm.engine.dialogues import TooLongError
from pixellm.evaluation.compare import compare_runs
from pixellm.evaluation.evaluate import BenchmarkRun, answer_freely, answer_questions, evaluate
from pixellm.evaluation.external import ExternalPredictions, score_predictions, write_questions
from pixellm.evaluation.left_out import NothingAnsweredError
from pixellm.evaluation.records import read_run
from pixellm.evaluation.report import report_of
from pixellm.image_files import load_image

pytestmark = pytest.mark.usefixtures("without_plots")


class Reading(Knowing):
    """Opens the images that it is asked about, as an engine does."""

    def predict_batch(self, requests):
        for request in requests:
            load_image(request.image)
        return super().predict_batch(requests)


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "of another size":
        Image.new("RGB", (20, 30)).save(path)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])


CASES = [(name, "cut") for name in ("coco", "coco-expressions", "labelme", "reasonseg")]
CASES += [(name, "cut") for name in ("refcoco", "grefcoco", "multi-refcoco", "muse", "photos")]
CASES += [(name, how) for name in ("photos", "muse") for how in ("missing", "of another size")]
CASES += [("jsonl", "empty"), ("refcoco", "missing")]


@pytest.mark.parametrize(("name", "how"), CASES)
def test_questions_about_a_bad_image_are_left_out_told_and_asked_again(name, how, tmp_path):
    run = BenchmarkRun(name, "oracle", "val", write_benchmark(name, tmp_path / "data"), mode="free")
    predictor = Reading(run.open())
    whole = evaluate(run, tmp_path / "whole", lambda: predictor, batch_size=3)
    image = whole.questions[0].image
    content, of_image = image.read_bytes(), sum(one.path == str(image) for one in whole.records)
    damage(image, how)
    folder = tmp_path / "run"
    found = evaluate(run, folder, lambda: predictor, batch_size=3)
    assert found.summary.num_questions == len(found.records) == len(whole.records) - of_image
    assert len(found.left_out) == of_image
    report = report_of(found)
    assert f"can't be used: {of_image} questions (" in report.lead
    assert image.name in report.lead
    assert report.values["num_questions"] == len(found.records)
    keys = {one.key for one in whole.records if one.path == str(image)}
    assert {one["id"] for one in report.values["left_out"]} in (keys, {""})
    assert all(image.name in one["error"] for one in report.values["left_out"])
    nothing_to_do = evaluate(run, folder, lambda: predictor, batch_size=3)
    assert report_of(nothing_to_do).values == report.values
    assert compare_runs(tmp_path / "whole", folder).num_left_out == len(found.left_out)
    image.write_bytes(content)
    again = evaluate(run, folder, lambda: predictor, batch_size=3)
    assert not again.left_out
    assert [one.key for one in again.records] == [one.key for one in whole.records]


def test_a_mask_that_cannot_be_read_costs_its_own_question_alone(tmp_path):
    data = write_benchmark("coco", tmp_path / "data")
    path = data / "annotations" / "instances_val.json"
    values = json.loads(path.read_text())
    values["annotations"][0]["segmentation"] = [[1, 2, 3]]
    path.write_text(json.dumps(values))
    run = BenchmarkRun("coco", "oracle", "val", data)
    questions = run.open()
    predictor = Reading([questions[i] for i in range(1, len(questions))])
    found = evaluate(run, tmp_path / "run", lambda: predictor)
    assert len(found.records) == len(questions) - 1
    assert [one.index for one in found.left_out] == [0]
    assert "instances_val.json: image 1, category 1" in found.left_out[0].reason


def test_rows_that_the_reader_leaves_out_are_named_too(tmp_path):
    data = write_benchmark("labelme", tmp_path / "data")
    (data / "val" / "0.png").unlink()
    run = BenchmarkRun("labelme", "oracle", "val", data)
    found = evaluate(run, tmp_path / "run", lambda: Reading(run.open()))
    report = report_of(found)
    assert "Unusable rows in the data set: 1 (see pixellm data check; " in report.lead
    assert "There is no image at" in report.lead and "0.png" in report.values["bad_rows"][0]
    (data / "val" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"There is no image at"):
        evaluate(run, tmp_path / "other", lambda: Reading(run.open()))


def test_where_nothing_can_be_asked_no_model_is_loaded(tmp_path, tiny_model_dir):
    from pixellm.cli.main import app

    def load():
        raise AssertionError("nothing is to be answered")

    data = write_benchmark("photos", tmp_path / "data")
    run = BenchmarkRun("photos", "oracle", "val", data)
    for image in data.rglob("*.jpg"):
        image.unlink()
    with pytest.raises(NothingAnsweredError, match=r"No question of photos.*image is missing"):
        evaluate(run, tmp_path / "run", load)
    words = ["eval", "photos", "--data", data, "--model", tiny_model_dir, "--out", tmp_path / "r"]
    ended = CliRunner().invoke(app, list(map(str, words)))
    assert ended.exit_code == 1, ended.output
    assert "could be answered. Left out" in ended.output
    assert not (tmp_path / "r" / "report.json").exists()


def test_answers_to_other_questions_are_refused(tmp_path):
    data = write_benchmark("coco", tmp_path / "data")
    run = BenchmarkRun("coco", "oracle", "val", data)
    predictor = Knowing(run.open())
    evaluate(run, tmp_path / "run", lambda: predictor)
    path = data / "annotations" / "instances_val.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "images": values["images"][::-1]}))
    with pytest.raises(ValueError, match="answers something else than this job asks"):
        evaluate(run, tmp_path / "run", lambda: predictor)


def test_other_systems_are_asked_and_scored_without_what_cannot_be_used(tmp_path):
    run = BenchmarkRun("photos", "x", "val", write_benchmark("photos", tmp_path / "data"))
    everything, _ = write_questions(run.open(), tmp_path / "all")
    lines = (tmp_path / "all" / "questions.jsonl").read_text().splitlines()
    answers = tmp_path / "answers.jsonl"
    answers.write_text(
        "".join(json.dumps({"id": json.loads(line)["id"], "masks": []}) + "\n" for line in lines)
    )
    run.open()[0].image.unlink()
    asked, left_out = write_questions(run.open(), tmp_path / "asked")
    assert asked + len(left_out) == everything and left_out
    scored = score_predictions(ExternalPredictions(answers), run.open(), run.rules)
    assert (len(scored.records), scored.left_out) == (asked, left_out)
    for image in (tmp_path / "data").rglob("*.jpg"):
        image.unlink()
    with pytest.raises(NothingAnsweredError, match="There is no question to ask"):
        write_questions(run.open(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


ENDLESS = "segment the cup " * 700


@pytest.mark.parametrize("mode", ["free", "forced"])
def test_a_dialogue_longer_than_the_context_is_left_out_and_named(mode, tmp_path, tiny_engine):
    data = write_benchmark("jsonl", tmp_path / "data")
    path = data / "val.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    endless = [{**lines[0], "id": f"endless {n}"} for n in range(2)]
    for line in endless:
        line["turns"] = [{**line["turns"][0], "question": ENDLESS}]
    path.write_text("".join(json.dumps(one) + "\n" for one in [*lines, *endless]))
    run = BenchmarkRun("jsonl", "tiny", "val", data, mode=mode)
    for load in (lambda: tiny_engine, None):  # nothing is asked again
        found = evaluate(run, tmp_path / "run", load)
        assert len(found.records) == len(lines)
        assert [(one.key, one.too_long) for one in found.left_out] == [
            ("endless 0/0", True),
            ("endless 1/0", True),
        ]
    lead = report_of(found).lead
    assert "Left out, as their length exceeds the context: 2 questions (endless 0/0: " in lead
    assert "data can't be used" not in lead
    path.write_text("".join(json.dumps(one) + "\n" for one in endless))
    with pytest.raises(NothingAnsweredError, match="length exceeds the context: 2 questions"):
        evaluate(run, tmp_path / "other", lambda: tiny_engine)


def test_of_a_dialogue_that_grows_too_long_the_turns_before_count(tmp_path):
    class Forgetful(Knowing):
        def predict_batch(self, requests):
            if any(request.history and "1" in request.question for request in requests):
                raise TooLongError("The question takes 9 tokens; the context holds 8.")
            return super().predict_batch(requests)

    run = BenchmarkRun("scenes", "forgetful", "test", num_scenes=3, mode="free")
    samples = [scene[1] for scene in map(make_scene, range(3))]
    predictor = Forgetful(samples)
    answers = answer_questions(answer_freely(predictor), samples, run.rules, tmp_path)
    asked = [(one.index, one.turn) for one in answers.records]
    assert asked == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    (left,) = answers.left_out
    assert (left.index, left.turn, left.num_turns) == (1, 1, 2)
    assert read_run(tmp_path) == answers
