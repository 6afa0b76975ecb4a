"""A job answers every row once, whatever is wrong with a row and whenever it is stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prediction_jobs import (
    BAD_ROWS,
    BATCH_SIZE,
    NUM_ROWS,
    SECONDS_A_BATCH,
    Stub,
    answer_job,
    make_job,
)

from conftest import TINY_QUESTION, square_image
from pixellm.data.rows import read_rows
from pixellm.engine import Engine
from pixellm.engine.answer_file import AnswerFile
from pixellm.engine.jobs import JobState, answer_here
from pixellm.engine.questions import RowWorker, answer_ahead, answer_rows
from pixellm.masks import decode_mask
from pixellm.types import Prediction, Request

KILLS = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a job and its answers; don't write into it."""
    folder = tmp_path_factory.mktemp("finished")
    make_job(folder)
    answer_job(folder, Stub())
    return folder


def copy_job(source: Path, target: Path, lines: int | None = None) -> Path:
    """The job's files in another folder, with the first lines of its answers."""
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    answers = target / "answers.jsonl"
    answers.write_bytes(b"".join(answers.read_bytes().splitlines(keepends=True)[:lines]))
    return answers


def values_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_every_row_has_its_line_in_order_and_bad_ones_say_why(finished: Path) -> None:
    lines = values_of(finished / "answers.jsonl")
    assert [line["row"] for line in lines] == list(range(NUM_ROWS))
    bad = {line["row"]: line["error"] for line in lines if "error" in line}
    assert bad.keys() == BAD_ROWS.keys()
    assert "missing.png" in bad[4]
    assert "not an image" in bad[9]
    assert "JSON" in bad[13]
    assert bad[20] == "The question is too long."
    assert all("\n" not in reason and len(reason) < 200 for reason in bad.values())


def test_a_line_holds_the_answer_with_masks_of_the_image(finished: Path) -> None:
    line = values_of(finished / "answers.jsonl")[1]
    assert (line["image"], line["question"], line["model"]) == ("1.png", "What is 1?", "stub")
    assert (line["width"], line["height"], line["answer"]) == (30, 20, "it: What is 1?")
    (segment,) = line["segments"]
    mask = decode_mask(segment["segmentation"])
    assert mask.shape == (20, 30)
    assert mask.sum() == segment["area"] > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_goes_on_to_the_same_file(finished: Path, tmp_path: Path) -> None:
    answers = copy_job(finished, tmp_path, lines=0)
    chance = random.Random(0)
    start = multiprocessing.get_context("fork").Process

    def written() -> int:
        return answers.read_bytes().count(b"\n")

    for _ in range(KILLS):
        before = written()
        process = start(target=answer_job, args=(tmp_path, Stub(SECONDS_A_BATCH)))
        process.start()
        while written() < before + BATCH_SIZE and process.is_alive():
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.8 * SECONDS_A_BATCH))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert written() >= before + BATCH_SIZE
    assert written() < NUM_ROWS
    process = start(target=answer_job, args=(tmp_path, Stub()))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert answers.read_bytes() == (finished / "answers.jsonl").read_bytes()


@pytest.mark.parametrize("lines", [0, 1, BATCH_SIZE, BATCH_SIZE + 1, NUM_ROWS - 1, NUM_ROWS])
@pytest.mark.parametrize("torn", [b"", b'{"row": '])
def test_going_on_gives_the_same_file_and_repeats_only_the_batch_in_flight(
    finished: Path, tmp_path: Path, lines: int, torn: bytes
) -> None:
    answers = copy_job(finished, tmp_path, lines)
    with answers.open("ab") as file:
        file.write(torn)
    stub = Stub()
    answer_job(tmp_path, stub)
    assert answers.read_bytes() == (finished / "answers.jsonl").read_bytes()
    first = lines if lines == NUM_ROWS else lines - lines % BATCH_SIZE
    expected = [f"What is {n}?" for n in range(first, NUM_ROWS) if n not in BAD_ROWS]
    assert stub.asked == expected


class Narrow(Stub):
    """A CPU's memory holds one question at a time, and never the eighth."""

    def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
        if len(requests) > 1 or requests[0].question == "What is 7?":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return super().predict_batch(requests)


def test_a_row_that_does_not_fit_into_memory_is_noted_and_the_rest_is_done(
    finished: Path, tmp_path: Path
) -> None:
    answers = copy_job(finished, tmp_path, lines=0)
    answer_job(tmp_path, Narrow())
    bad = {line["row"]: line["error"] for line in values_of(answers) if "error" in line}
    assert bad.keys() == BAD_ROWS.keys() | {7}
    assert "memory" in bad[7]


def test_a_mistake_in_the_model_is_no_row_s_fault(finished: Path, tmp_path: Path) -> None:
    class Broken(Stub):
        def predict_batch(self, requests: Sequence[Request]) -> list[Prediction]:
            raise RuntimeError("a bug")

    copy_job(finished, tmp_path, lines=0)
    with pytest.raises(RuntimeError, match="a bug"):
        answer_job(tmp_path, Broken())


def test_a_finished_job_loads_no_engine(finished: Path, tmp_path: Path) -> None:
    copy_job(finished, tmp_path)
    rows = read_rows(tmp_path / "questions.jsonl")

    def load() -> Stub:
        raise AssertionError

    answer = answer_here(lambda: RowWorker(load, "stub"))
    state = answer_rows(rows, tmp_path / "answers.jsonl", "stub", answer, BATCH_SIZE)
    assert state == JobState(NUM_ROWS, len(BAD_ROWS), NUM_ROWS, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": "Another?"}, "Line 3 of .* answers something else"),
        ({"model": "other"}, "answers something else"),
        (None, "Line 3 of .* is damaged"),
    ],
)
def test_answers_of_another_job_are_left_alone(
    finished: Path, tmp_path: Path, change: dict[str, str] | None, message: str
) -> None:
    answers = copy_job(finished, tmp_path)
    lines = answers.read_bytes().splitlines(keepends=True)
    lines[2] = b"?\n" if change is None else json.dumps(json.loads(lines[2]) | change).encode()
    whole = b"\n".join(line.rstrip() for line in lines) + b"\n"
    answers.write_bytes(whole + b'{"row": 9, "ans')  # torn by a kill
    content = answers.read_bytes()
    with pytest.raises(ValueError, match=message):
        answer_job(tmp_path, Stub())
    assert answers.read_bytes() == content


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with (
        AnswerFile(tmp_path / "a.jsonl", 1, 1),
        pytest.raises(OSError, match="Another process is writing"),
    ):
        AnswerFile(tmp_path / "a.jsonl", 1, 1)


def test_what_finds_no_room_is_taken_back(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs limits on the size of files")
    path = tmp_path / "answers.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    line = b'{"row": 0}\n'
    with AnswerFile(path, 2, 1) as answers:
        answers.append(0, line)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * len(line) - 1, limits[1]))
        try:
            with pytest.raises(OSError, match="cannot be written"):
                answers.append(1, line)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == line
        answers.append(1, line)
    assert path.read_bytes() == 2 * line


def test_a_folder_is_asked_one_question_about_each_image(finished: Path) -> None:
    (finished / "questions.txt").write_text("no image")
    rows = read_rows(finished, "What?")
    assert [row.image for row in rows] == [*(f"{n}.png" for n in range(5)), "text.png"]
    assert {row.question for row in rows} == {"What?"}
    with pytest.raises(ValueError, match="say what to ask"):
        read_rows(finished)


def test_lines_may_leave_the_question_to_all_and_give_a_history(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        {"image": "sub/../a.png"},
        {"image": "a.png", "question": "And?", "history": [["What?", "A cup {seg}."]]},
        {"image": "a.png", "history": "no list"},
        {"question": "What?"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    rows = read_rows(path, "Where?")
    assert [row.question for row in rows] == ["Where?", "And?", "Where?", "What?"]
    assert rows[0].source == tmp_path / "a.png"
    assert rows[1].history == (("What?", "A cup {seg}."),)
    assert "history" in rows[2].problem
    assert "image" in rows[3].problem
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        read_rows(tmp_path / "none.jsonl")


def test_ahead_gives_the_same_file_and_reads_no_more_than_one_batch_ahead(
    finished: Path, tmp_path: Path
) -> None:
    answers = copy_job(finished, tmp_path, lines=0)
    rows = read_rows(tmp_path / "questions.jsonl")
    answer_rows(rows, answers, "stub", answer_ahead(Stub, "stub"), BATCH_SIZE)
    assert answers.read_bytes() == (finished / "answers.jsonl").read_bytes()
    assert list(answer_ahead(Stub, "stub")([])) == []


def test_an_engines_answers_depend_on_their_batch_alone(
    tiny_engine: Engine, tmp_path: Path
) -> None:
    """Images come again in other batches and in other company; a stop changes no digit."""
    rng = np.random.default_rng(0)
    for number in range(5):
        noise = rng.integers(0, 20, (32, 24, 1), dtype=np.uint8)
        pixels = square_image((2, 3 + number)) // 20 * 19 + noise // 2
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "5.png").write_text("not an image")
    order = [0, 1, 2, 3, 0, 5, 4, 0, 1, 1, 3, 0, 2]
    lines = [json.dumps({"image": f"{n}.png", "question": TINY_QUESTION}) for n in order]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines), "ascii")
    rows = read_rows(tmp_path / "questions.jsonl")
    engine = Engine(tiny_engine.model, tiny_engine.processor, 48, min_mask_score=0.0)

    def run(path: Path, lines: int) -> bytes:
        whole = path.read_bytes() if path.exists() else b""
        path.write_bytes(b"".join(whole.splitlines(keepends=True)[:lines]))
        answer_rows(rows, path, "tiny", answer_ahead(lambda: engine, "tiny"), BATCH_SIZE)
        return path.read_bytes()

    whole = run(tmp_path / "answers.jsonl", 0)
    assert whole.count(b'"segmentation"') > BATCH_SIZE
    assert whole.count(b'"error"') == 1
    engine.predict(tmp_path / "3.png", TINY_QUESTION)
    for stopped_at in range(0, len(order), BATCH_SIZE):
        assert run(tmp_path / "answers.jsonl", stopped_at) == whole
