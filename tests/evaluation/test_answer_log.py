"""Runs that stop and go on, in one process or several, end with the same answers."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hand_made_scenes import Oracle, Shuffler, make_scene

from pixellm.evaluation.answer_log import open_run, read_answers, read_settings
from pixellm.evaluation.evaluate import ProcessGroup, answer_freely, answer_missing
from pixellm.evaluation.records import AnswerRecord, record_from_json, record_to_json
from pixellm.evaluation.scores import Rules

RULES = Rules("slots", "free", "strict")
SCENES = [make_scene(i) for i in range(4)]
QUESTIONS = [sample for scene in SCENES for sample in scene]
SETTINGS = {"benchmark": "scenes", "split": "test", "seed": 0}


def run(folder: Path, predictor: Oracle | None = None, group: ProcessGroup | None = None):
    open_run(folder, SETTINGS)
    return answer_missing(
        answer_freely(predictor or Shuffler(SCENES), 4),
        QUESTIONS,
        RULES,
        folder,
        group or ProcessGroup(),
    )


def timeless(records: list[AnswerRecord]) -> list[AnswerRecord]:
    return [replace(record, seconds=0.0) for record in records]


class Stopping(Shuffler):
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
    kept = read_answers(stopping)
    assert 0 < len(kept) < len(whole)
    predictor = Shuffler(SCENES)
    assert timeless(run(stopping, predictor)) == whole
    asked = {request.question for batch in predictor.batches for request in batch}
    assert not asked & {record.question for record in kept}


def test_a_finished_run_asks_nothing(tmp_path):
    run(tmp_path / "run")
    predictor = Shuffler(SCENES)
    run(tmp_path / "run", predictor)
    assert predictor.batches == []


def test_a_torn_line_and_a_dialogue_cut_in_half_are_asked_again(tmp_path):
    whole = timeless(run(tmp_path / "run"))
    (path,) = (tmp_path / "run").glob("answers-*.jsonl")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 30])
    assert len(read_answers(tmp_path / "run")) < len(whole)
    assert timeless(run(tmp_path / "run")) == whole


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
    assert len(list(shared.glob("answers-*.jsonl"))) == 3


def test_questions_answered_twice_count_once(tmp_path):
    whole = timeless(run(tmp_path / "run"))
    (path,) = (tmp_path / "run").glob("answers-*.jsonl")
    path.with_name("answers-007.jsonl").write_bytes(path.read_bytes())
    assert timeless(read_answers(tmp_path / "run")) == whole


def test_another_run_in_the_same_folder_is_refused(tmp_path):
    open_run(tmp_path / "run", SETTINGS)
    assert read_settings(tmp_path / "run") == SETTINGS
    with pytest.raises(ValueError, match=r"run with split 'test', not 'val'; choose another"):
        open_run(tmp_path / "run", {**SETTINGS, "split": "val"})


def test_a_damaged_line_is_named(tmp_path):
    run(tmp_path / "run")
    (path,) = (tmp_path / "run").glob("answers-*.jsonl")
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:50]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"Line 3 of .*answers-000.jsonl is damaged"):
        read_answers(tmp_path / "run")


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no evaluation"):
        read_settings(tmp_path)


def test_progress_hears_of_every_dialogue(tmp_path):
    heard = []
    open_run(tmp_path / "run", SETTINGS)
    answer = answer_freely(Oracle(SCENES), 4)
    answer_missing(
        answer, QUESTIONS, RULES, tmp_path / "run", progress=lambda *told: heard.append(told)
    )
    assert heard[-1] == (len(QUESTIONS), len(QUESTIONS), 1.0)
