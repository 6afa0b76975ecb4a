"""Runs that stop and go on, in one process or several, end with the same answers."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hand_made_scenes import Oracle, Shuffler, make_scene, with_segments

from pixellm.engine.jobs import ProcessGroup
from pixellm.engine.run_folder import open_run, read_settings
from pixellm.evaluation.evaluate import answer_freely, answer_questions
from pixellm.evaluation.records import AnswerRecord, read_run, record_from_json, record_to_json
from pixellm.evaluation.scores import Rules

RULES = Rules("slots", "free", "strict")
SCENES = [make_scene(i) for i in range(4)]
QUESTIONS = [sample for scene in SCENES for sample in scene]
SETTINGS = {"benchmark": "scenes", "split": "test", "seed": 0}


def run(folder: Path, predictor: Oracle | None = None, group: ProcessGroup | None = None):
    open_run(folder, SETTINGS)
    answer = answer_freely(predictor or Neighbourly(SCENES))
    group = group or ProcessGroup()
    return answer_questions(answer, QUESTIONS, RULES, folder, 4, group=group).records


def timeless(records: list[AnswerRecord]) -> list[AnswerRecord]:
    return [replace(record, seconds=0.0) for record in records]


def open_lines(folder: Path) -> list[bytes]:
    return (folder / "answers.jsonl").read_bytes().splitlines()


class Neighbourly(Shuffler):
    """Is surer of an answer that shares its batch with others."""

    def predict_batch(self, requests):
        answers = super().predict_batch(requests)
        score = 1 - 0.1 / len(requests)
        return [
            with_segments(answer, [replace(one, score=score) for one in answer.segments])
            for answer in answers
        ]


class Stopping(Neighbourly):
    """Is interrupted in its third batch."""

    def predict_batch(self, requests):
        if len(self.batches) == 2:
            raise KeyboardInterrupt
        return super().predict_batch(requests)


def test_records_survive_json(tmp_path):
    records = run(tmp_path / "run")
    assert len(records) == sum(len(sample.turns) for sample in QUESTIONS)
    again = [record_from_json(json.loads(json.dumps(record_to_json(r)))) for r in records]
    assert again == records


def test_a_stopped_run_goes_on_and_equals_an_uninterrupted_one(tmp_path):
    whole = timeless(run(tmp_path / "whole"))
    stopping = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run(stopping, Stopping(SCENES))
    kept = read_run(stopping).records
    assert 0 < len(kept) < len(whole)
    predictor = Neighbourly(SCENES)
    assert timeless(run(stopping, predictor)) == whole
    asked = {request.question for batch in predictor.batches for request in batch}
    assert not asked & {record.question for record in kept}


def test_a_torn_line_and_a_dialogue_cut_in_half_are_asked_again(tmp_path):
    whole = timeless(run(tmp_path / "run"))
    path = tmp_path / "run" / "answers.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 30])
    assert len(read_run(tmp_path / "run").records) < len(whole)
    assert timeless(run(tmp_path / "run")) == whole
    path.with_name(".answers.jsonl.part007").write_bytes(path.read_bytes())
    assert timeless(read_run(tmp_path / "run").records) == whole, "answered twice counts once"


@dataclass(frozen=True, slots=True)
class Meeting(ProcessGroup):
    """Processes as threads that wait for each other."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def wait(self) -> None:
        self.barrier.wait(timeout=60)


@pytest.mark.parametrize("before", [0, 1])
def test_several_processes_equal_a_single_one(tmp_path, before):
    whole = timeless(run(tmp_path / "whole"))
    shared = tmp_path / "shared"
    if before:  # what a run of one process left behind
        with pytest.raises(KeyboardInterrupt):
            run(shared, Stopping(SCENES))
    barrier = threading.Barrier(3)
    groups = [Meeting(number, 3, number, barrier) for number in range(3)]
    open_run(shared, SETTINGS)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda group: run(shared, None, group), groups))
    assert [timeless(records) for records in results] == [whole] * 3
    assert sorted(path.name for path in shared.iterdir()) == ["answers.jsonl", "run.json"]
    assert [json.loads(line)["row"] for line in open_lines(shared)] == [
        record.index for record in whole
    ]


def test_a_batch_that_is_deleted_from_the_middle_is_asked_again_in_its_place(tmp_path):
    whole = timeless(run(tmp_path / "run"))
    path = tmp_path / "run" / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[3]
    path.write_bytes(b"".join(lines))
    predictor = Neighbourly(SCENES)
    assert timeless(run(tmp_path / "run", predictor)) == whole
    assert {r.question for batch in predictor.batches for r in batch} == {
        record.question for record in whole if record.index < 4
    }
    rows = [json.loads(line)["row"] for line in path.read_bytes().splitlines()]
    assert rows == sorted(rows)


def test_a_folder_of_another_run_or_of_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no evaluation"):
        read_settings(tmp_path)
    open_run(tmp_path / "run", SETTINGS)
    assert read_settings(tmp_path / "run") == SETTINGS
    with pytest.raises(ValueError, match=r"run with split 'test', not 'val'; choose another"):
        open_run(tmp_path / "run", {**SETTINGS, "split": "val"})


def test_a_damaged_line_is_named(tmp_path):
    run(tmp_path / "run")
    path = tmp_path / "run" / "answers.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:50]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"Line 3 of .*answers.jsonl is damaged"):
        read_run(tmp_path / "run")
