"""A model that was trained to read a suffix behind reasoning questions is asked with it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmark_layouts import write_benchmark
from known_answers import Knowing
from reported import run_benchmark

from conftest import TINY_QUESTION, square_image, square_sample
from pixellm.checkpoint.io import load_model_and_processor, save_model
from pixellm.data.collate import Collator
from pixellm.data.registry import open_reader
from pixellm.engine import Engine
from pixellm.engine.jobs import answer_here
from pixellm.engine.questions import RowWorker, answer_rows
from pixellm.evaluation.benchmarks import open_rows
from pixellm.evaluation.compare import compare_runs
from pixellm.evaluation.evaluate import BenchmarkRun
from pixellm.types import Request, Sample, Turn

SUFFIX = "Answer with masks."


@pytest.fixture(scope="module")
def suffixed(tiny_model_dir, tmp_path_factory):
    """The tiny model saved with a suffix in its prompt settings."""
    folder = tmp_path_factory.mktemp("suffixed") / "model"
    model, processor = load_model_and_processor(tiny_model_dir)
    processor.reasoning_suffix = SUFFIX
    save_model(folder, model, processor)
    return Engine(*load_model_and_processor(folder), max_new_tokens=24)


@pytest.fixture
def read(suffixed, monkeypatch):
    """The text of every prompt that the engine's processor encodes."""
    texts, encode = [], type(suffixed.processor.codec).encode

    def noting(codec, messages, **options):
        encoded = encode(codec, messages, **options)
        texts.append(codec.tokenizer.decode(encoded.ids, skip_special_tokens=True))
        return encoded

    monkeypatch.setattr(type(suffixed.processor.codec), "encode", noting)
    return texts


def test_the_suffix_is_saved_with_the_model(suffixed, tiny_engine):
    assert suffixed.processor.reasoning_suffix == SUFFIX
    assert tiny_engine.processor.reasoning_suffix == ""


def test_only_questions_that_take_it_are_asked_with_it(suffixed, tiny_engine, read):
    image = square_image((2, 3))
    for takes_suffix in (False, True):
        (answer,) = suffixed.predict_batch([Request(image, "Which?", (), takes_suffix)])
        assert answer.question == "Which?"
    assert "Which?" in read[0] and SUFFIX not in read[0]
    assert f"Which? {SUFFIX}" in read[1]
    tiny_engine.predict_batch([Request(image, TINY_QUESTION, (), True)])
    assert read[2].strip() == TINY_QUESTION


@pytest.mark.parametrize("mode, protocol", [("free", "strict"), ("forced", "released")])
def test_muse_is_asked_with_it_and_the_report_says_so(
    mode, protocol, suffixed, tiny_engine, read, tmp_path
):
    data = write_benchmark("muse", tmp_path / "data")
    run = BenchmarkRun("muse", "tiny", "val", data, mode=mode, protocol=protocol)
    _, records = run_benchmark(run, tmp_path / "run", lambda: suffixed, report=True)
    asked = [text for text in read if SUFFIX in text]
    questions = {sample.turns[0].question for sample in run.open()}
    assert {record.question for record in records} == questions
    assert len(asked) >= len(questions)
    assert all(any(f"{question} {SUFFIX}" in text for text in asked) for question in questions)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["settings"]["suffix"] == (
        SUFFIX
    )
    for name in ("report.md", "report.html"):
        shown = (tmp_path / "run" / name).read_text().replace("&quot;", '"').replace("&#34;", '"')
        assert f'followed by "{SUFFIX}"' in shown
    again, _ = run_benchmark(run, tmp_path / "run", lambda: pytest.fail("all is answered"))
    assert again.num_questions == len(records)
    if mode == "forced":
        return
    run_benchmark(run, tmp_path / "plain", lambda: tiny_engine, report=True)
    assert "questions asked as they stand" in (tmp_path / "plain" / "report.md").read_text()
    assert compare_runs(tmp_path / "plain", tmp_path / "run").num_left_out == 0


def test_other_benchmarks_ask_nobody_with_it(suffixed, read, tmp_path):
    data = write_benchmark("refcoco", tmp_path / "data")
    run = BenchmarkRun("refcoco", "tiny", "val", data)
    run_benchmark(run, tmp_path / "run", lambda: suffixed)
    assert read and not any(SUFFIX in text for text in read)
    assert "suffix" not in json.loads((tmp_path / "run" / "run.json").read_text())


def test_answers_to_questions_with_another_suffix_are_not_mixed(suffixed, tmp_path):
    data = write_benchmark("muse", tmp_path / "data")
    run = BenchmarkRun("muse", "tiny", "val", data)
    run_benchmark(run, tmp_path / "run", lambda: Knowing(run.open()))
    answers = tmp_path / "run" / "answers.jsonl"
    first = answers.read_bytes().splitlines(keepends=True)[0]
    answers.write_bytes(first)
    with pytest.raises(ValueError, match=f"suffix '', but the model now asks with '{SUFFIX}'"):
        run_benchmark(run, tmp_path / "run", lambda: suffixed)
    assert answers.read_bytes() == first


def test_training_asks_with_it_too(suffixed, tiny_engine, tmp_path):
    item = open_reader("muse", write_benchmark("muse", tmp_path), "val")[0]
    assert all(turn.takes_suffix for sample in item for turn in sample.turns)
    sample = square_sample()
    turn = Turn(TINY_QUESTION, sample.turns[0].answer, sample.turns[0].targets, "", True)
    row = [[Sample(sample.image, sample.size, (turn,), "one")]]
    texts = []
    for engine in (tiny_engine, suffixed):
        ids = Collator(engine.processor, mask_size=16)(row)["input_ids"][0]
        texts.append(engine.processor.tokenizer.decode(ids, skip_special_tokens=True))
    assert SUFFIX not in texts[0]
    assert f"{TINY_QUESTION} {SUFFIX}" in texts[1]


def test_predictions_of_muse_are_asked_with_it_and_name_the_question(suffixed, read, tmp_path):
    rows = open_rows("muse", write_benchmark("muse", tmp_path / "data"), "val")
    spread = answer_here(lambda: RowWorker(lambda: suffixed, "tiny"))
    answer_rows(rows, tmp_path / "out.jsonl", "tiny", spread, 2)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["question"] for line in lines] == [row.question for row in rows]
    assert all(any(f"{row.question} {SUFFIX}" in text for text in read) for row in rows)
    assert np.all([SUFFIX not in line["question"] for line in lines])
