"""Every benchmark from its files to its report; resumed, limited and refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmark_layouts import NUM_IMAGES, NUM_THINGS, write_benchmark
from known_answers import Knowing
from reported import run_benchmark
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from pixellm.engine.run_folder import open_run
from pixellm.evaluation.benchmarks import BENCHMARKS
from pixellm.evaluation.evaluate import BenchmarkRun, run_of_folder
from pixellm.evaluation.records import read_run
from pixellm.files import locked
from pixellm.masks import decode_mask

WITH_FILES = [name for name in BENCHMARKS if name != "scenes"]


def refuse_to_load() -> None:
    raise AssertionError("A finished run needs no model.")


@pytest.mark.parametrize("name", WITH_FILES)
def test_true_answers_score_one_on_every_benchmark(name, tmp_path):
    run = BenchmarkRun(name, "oracle", "val", write_benchmark(name, tmp_path / "data"), mode="free")
    questions = run.open()
    assert len(questions) > 0
    predictor = Knowing(questions)
    folder = tmp_path / run.folder_name()
    with_report = name == "coco"
    summary, records = run_benchmark(
        run, folder, lambda: predictor, report=with_report, batch_size=3
    )
    assert len(records) == summary.num_questions == predictor.num_asked
    assert summary.num_images == NUM_IMAGES
    for score in run.benchmark.headline:
        assert summary.score(score).value == 1, score
    if name == "grefcoco":
        assert {"targets 0", "targets 1", "targets 2"} <= summary.groups.keys()
    if with_report:
        report = json.loads((folder / "report.json").read_text())
        assert report["settings"]["mode"] == report["mode"] == "free"
        assert (folder / "report.html").is_file() and (folder / "report.md").is_file()
    again, _ = run_benchmark(run, folder, refuse_to_load)
    assert again.to_dict() == summary.to_dict()
    assert run_of_folder(folder).settings() == run.settings()


def test_given_texts_decide_no_score_of_what_they_say(tmp_path, tiny_engine):
    """Forced answers are silent where nothing is asked for: that is no merit of the model."""
    data = write_benchmark("grefcoco", tmp_path / "data")
    run = BenchmarkRun("grefcoco", "tiny", "val", data, mode="forced")
    summary, records = run_benchmark(run, tmp_path / "run", lambda: tiny_engine, report=True)
    assert run.headline == ("giou", "ciou")
    assert any(not record.targets for record in records)
    for name in ("n_acc", "t_acc", "name_recall"):
        assert summary.score(name).value is None
    report = (tmp_path / "run" / "report.md").read_text()
    assert "acc |" not in report and "giou" in report


@pytest.mark.parametrize("name", ["multi-refcoco", "multi-refcoco+", "multi-refcocog", "reasonseg"])
def test_several_expressions_are_asked_at_once_and_reasonseg_ignores_what_it_marks_so(
    name, tmp_path
):
    targets = [
        s.turns[0].targets
        for s in BenchmarkRun(name, "m", "val", write_benchmark(name, tmp_path)).open()
    ]
    if name == "reasonseg":
        assert all(one.ignore is not None for several in targets for one in several)
    else:
        assert [len(several) for several in targets] == [NUM_THINGS] * NUM_IMAGES


def test_rows_that_can_not_be_used_are_counted_in_the_report(tmp_path):
    data = write_benchmark("labelme", tmp_path / "data")
    whole = len(BenchmarkRun("labelme", "m", "val", data).open())
    damaged, *_ = sorted(data.rglob("*.json"))
    shapes = json.loads(damaged.read_text())
    shapes["shapes"][0]["points"] = [[1, 1]]
    damaged.write_text(json.dumps(shapes))
    run = BenchmarkRun("labelme", "m", "val", data, limit=2)
    assert len(run.open()) < whole
    run_benchmark(run, tmp_path / "run", lambda: Knowing(run.open()), report=True)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "Unusable rows in the data set: 1 (see pixellm data check; " in report
    assert json.loads((tmp_path / "run" / "run.json").read_text())["left_out"] == 1


def test_a_limit_takes_the_first_questions_and_names_the_folder(tmp_path):
    data = write_benchmark("coco", tmp_path / "data")
    run = BenchmarkRun("coco", "some/model", "val", data, limit=3)
    whole = BenchmarkRun("coco", "some/model", "val", data).open()
    assert [s.id for s in run.open()] == [whole[i].id for i in range(3)]
    assert run.folder_name() == "coco_val_model_free_strict_first3"
    summary, _ = run_benchmark(run, tmp_path / "run", lambda: Knowing(run.open()))
    assert summary.num_questions == 3


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_one_process_at_a_time_evaluates_in_a_folder(tmp_path):
    data, folder = write_benchmark("coco", tmp_path / "data"), tmp_path / "run"
    run = BenchmarkRun("coco", "m", "val", data)
    folder.mkdir()
    with locked(folder), pytest.raises(OSError, match="Another process is writing"):
        run_benchmark(run, folder, refuse_to_load)
    assert not (folder / "answers.jsonl").exists() and not (folder / "report.json").exists()
    run_benchmark(run, folder, lambda: Knowing(run.open()))
    with locked(folder), pytest.raises(OSError, match="Another process is writing"):
        run_benchmark(run, folder, refuse_to_load)


@pytest.fixture
def model(tmp_path, tiny_model_dir):
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


def change_weights(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] + np.float32(0.5)}, path, {"format": "pt"})


def test_answers_of_other_weights_under_the_same_path_are_not_taken_over(tmp_path, model):
    data = write_benchmark("coco", tmp_path / "data")
    run = BenchmarkRun("coco", str(model), "val", data, dtype="float32")
    folder = tmp_path / "run"
    run_benchmark(run, folder, lambda: Knowing(run.open()))
    run_benchmark(run, folder, refuse_to_load, report=True)
    report = json.loads((folder / "report.json").read_text())
    assert len(report["settings"]["weights"]) == 16
    assert f"with {model} in float32" in (folder / "report.md").read_text().replace("\\", "")
    change_weights(model)
    with pytest.raises(ValueError, match="answers of other weights than") as error:
        run_benchmark(run, folder, refuse_to_load)
    assert str(error.value).endswith("choose another folder for --out, or remove this one.")
    for other, says in (
        ({"dtype": "bfloat16"}, "dtype 'float32', not 'bfloat16'"),
        ({"max_new_tokens": 99}, "max_new_tokens None, not 99"),
        ({"model": "two"}, "run with model .*, not 'two'"),
    ):
        with pytest.raises(ValueError, match=says):
            run_benchmark(replace(run, **other), folder, refuse_to_load)


def test_a_model_that_is_not_as_the_run_says_is_refused(tmp_path, tiny_engine):
    data = write_benchmark("coco", tmp_path / "data")
    for said in ({"dtype": "bfloat16"}, {"max_new_tokens": 512}):
        run = BenchmarkRun("coco", "tiny", "val", data, **said)
        with pytest.raises(ValueError, match="The run says"):
            run_benchmark(run, tmp_path / next(iter(said)), lambda: tiny_engine)


def evaluate(*words):
    from pixellm.cli.main import app

    return CliRunner().invoke(app, ["eval", *map(str, words)], env={"COLUMNS": "200"})


def test_the_command_says_weights_and_type_and_refuses_others(tmp_path, model):
    data = write_benchmark("jsonl", tmp_path / "data")
    words = ["jsonl", "--model", model, "--data", data, "--device", "cpu", "--out", tmp_path / "r"]
    first = evaluate(*words, "--limit", 1)
    assert first.exit_code == 0, first.output
    settings = json.loads((tmp_path / "r" / "report.json").read_text())["settings"]
    assert (settings["dtype"], settings["max_new_tokens"]) == ("float32", 512)
    assert " in float32: " in " ".join(first.output.split())
    change_weights(model)
    again = evaluate(*words, "--limit", 1)
    assert again.exit_code == 2
    assert "answers of other weights" in again.output


def test_a_guess_on_scenes_needs_no_model(tmp_path):
    words = ["scenes", "--num", 2, "--dialogues", 2, "--model"]
    for guess in ("largest_object", "all_objects"):
        shown = evaluate(*words, guess, "--out", tmp_path / guess)
        assert shown.exit_code == 0, shown.output
    assert "right names" in shown.output and "text_accuracy" in shown.output
    one, every = (read_run(tmp_path / name).records for name in ("largest_object", "all_objects"))
    for record, largest in zip(every, one, strict=True):
        areas = [int(decode_mask(mask.mask).sum()) for mask in record.shown]
        assert [mask.label for mask in largest.shown] == [record.shown[np.argmax(areas)].label]
        shown_masks = [mask.mask for mask in record.shown]
        assert all(target.mask in shown_masks for target in record.targets)
        for mask in record.shown:
            assert record.answer[slice(*mask.span)] == mask.label
    for wrong in (["--protocol", "released"], ["--mode", "forced"]):
        refused = evaluate(*words, "all_objects", *wrong, "--out", tmp_path / "other")
        assert refused.exit_code == 2 and "answers scenes alone" in refused.output
    with pytest.raises(ValueError, match="all_objects answers scenes alone"):
        BenchmarkRun("coco", "all_objects")


@pytest.mark.parametrize("name", ["muse", "jsonl"])
def test_a_single_file_is_evaluated_with_its_images_beside_it(name, tmp_path):
    written = write_benchmark(name, tmp_path / "data")
    path = written / {"muse": "muse/muse_val.json", "jsonl": "val.jsonl"}[name]
    own = tmp_path / "own"
    own.mkdir()
    for image in (*written.rglob("*.png"), *written.rglob("*.jpg")):
        shutil.copy(image, own)
    shutil.copy(path, own / "mine {1}.json")
    run = BenchmarkRun(name, "oracle", "val", own / "mine {1}.json")
    questions = run.open()
    assert len(questions) == NUM_IMAGES
    assert all(sample.image.parent == own for sample in questions)
    summary, _ = run_benchmark(run, tmp_path / "run", lambda: Knowing(questions))
    assert summary.score("set_accuracy").value == 1
    assert run_of_folder(tmp_path / "run").settings() == run.settings()


def test_files_and_photos_that_lie_elsewhere_are_found_by_options(tmp_path):
    written = write_benchmark("muse", tmp_path / "curated")
    (written / "coco" / "train2014").rename(tmp_path / "curated photos")
    file = written / "muse/muse_val.json"
    curated = BenchmarkRun("muse", "m", "val", file, images=tmp_path / "curated photos")
    assert all(sample.image.is_file() for sample in curated.open())

    data = write_benchmark("coco", tmp_path / "data")
    usual = BenchmarkRun("coco", "m", "val", data).open()
    (data / "annotations/instances_val.json").rename(data / "mine.json")
    (images := next(iter(usual)).image.parent).rename(tmp_path / "photos")
    assert not images.exists()
    with pytest.raises(FileNotFoundError, match=r"--with annotations=mine\.json"):
        BenchmarkRun("coco", "m", "val", data).open()
    options = {"annotations": "mine.json"}
    named = BenchmarkRun("coco", "m", "val", data, tmp_path / "photos", options)
    assert [one.id for one in named.open()] == [one.id for one in usual]
    for number, run in enumerate((curated, named)):
        open_run(tmp_path / f"run{number}", run.settings())
        assert run_of_folder(tmp_path / f"run{number}").settings() == run.settings()


@pytest.mark.parametrize("name", WITH_FILES)
def test_missing_files_and_files_in_place_of_folders_are_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        BenchmarkRun(name, "m", "val", tmp_path).open()
    (tmp_path / "a.json").write_text("[]")
    if name not in ("muse", "jsonl", "coco"):
        with pytest.raises(
            ValueError, match=rf"--data of {re.escape(name)} is a folder; .*a\.json"
        ):
            BenchmarkRun(name, "m", "val", tmp_path / "a.json").open()


def test_bad_settings_are_refused_before_files_are_read():
    with pytest.raises(ValueError, match="does not score grefcoco"):
        BenchmarkRun("grefcoco", "m", "val", Path("nowhere"), protocol="released")
    for name in ("coco", "photos"):
        with pytest.raises(ValueError, match=f"Options of data set '{name}'.*'annotaions'"):
            BenchmarkRun(name, "m", options={"annotaions": "a.json"}).open()
    with pytest.raises(ValueError, match="no benchmark"):
        BenchmarkRun("refkoko", "m")
