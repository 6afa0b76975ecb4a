"""Benchmarks measure what they say: the same answers on both sides, counts that can be checked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from conftest import tiny_parts, tiny_texts
from measuring import speed
from measuring.flops import count_flops, pixellm_flops
from measuring.phases import PHASES
from measuring.released import answer_as_released
from measuring.report import make_report, make_tables
from measuring.speed import Bench
from measuring.workload import SIZES, random_config, random_images, requests_about
from pixellm.checkpoint.build import build_model


@pytest.fixture(scope="module")
def bench() -> Bench:
    torch.manual_seed(0)
    model, processor = build_model(tiny_parts(), tiny_texts())
    return Bench(model.eval(), processor, repeats=1)


@pytest.mark.parametrize(("length", "targets"), [(6, 1), (24, 0), (24, 2), (24, 4)])
def test_told_answers_have_the_length_and_the_targets_asked_for(
    bench: Bench, length: int, targets: int
) -> None:
    script = bench.write_script(length, targets)
    assert len(script) == length
    assert script.count(bench.model.config.codebook_token_ids[0]) == targets
    (prediction,) = bench.answer(requests_about(random_images(1, 32)), script)
    assert prediction.info["num_tokens"] == length
    assert len(prediction.segments) == targets


def test_targets_that_do_not_fit_are_refused(bench: Bench) -> None:
    assert not bench.fits(5, 1)
    with pytest.raises(ValueError, match="do not fit into 5 tokens"):
        bench.write_script(5, 1)


def test_the_stand_in_and_the_engine_find_the_same_masks(bench: Bench) -> None:
    script = bench.write_script(20, 2)
    (request,) = requests_about(random_images(1, 32))
    (prediction,) = bench.answer([request], script)
    own = np.stack([segment.mask for segment in prediction.segments])
    released = np.stack(answer_as_released(bench.model, bench.processor, request, script))
    assert own.shape == released.shape
    assert (own == released).mean() > 0.999


def test_every_table_has_its_rows_and_times_above_zero(bench: Bench) -> None:
    compared = speed.compare_with_released(bench, (5, 16), (1, 3))
    assert [(row["tokens"], row["targets"]) for row in compared] == [(16, 1), (16, 3)]
    tables = {
        "compared": compared,
        "targets": speed.grow_targets(bench, (1, 2), 4),
        "questions": speed.grow_questions(bench, (2,), 16, 1),
        "batch": speed.grow_batch(bench, (1, 2), 16, 1),
        "length": speed.grow_length(bench, (16, 20), 1),
    }
    for row in compared:
        assert row["ratio"] == row["released_s"] / row["engine_s"] > 0
        assert all(row[f"{phase}_s"] > 0 for phase in PHASES)
        # A group is read at once, and the end is not read at all.
        assert row["steps"] == 16 - 1 - row["targets"] * (bench.model.config.group_size - 1)
    report = make_report("python benchmarks/speed.py", {"cores": 1}, {}, tables)
    assert json.loads(json.dumps(report))["tables"].keys() == tables.keys()
    assert [table.row_count for table in make_tables(report)] == [2, 2, 1, 2, 2]


def test_ways_of_answering_take_turns_and_have_their_rows(bench: Bench) -> None:
    plain, rounded = speed.compare_ways(bench, speed.WAYS[:2], 20, 2)
    assert (plain["way"], rounded["way"]) == ("as it is", "int8")
    assert plain["ratio"] == plain["cpu_ratio"] == 1
    assert min(plain["word_s"], rounded["word_s"], rounded["answer_s"]) > 0


def test_flops_are_those_of_the_products(bench: Bench) -> None:
    layer = torch.nn.Linear(8, 4, device="meta")
    assert count_flops(lambda: layer(torch.empty(3, 8, device="meta"))) == 2 * 3 * 8 * 4
    config = bench.model.config
    few, many = (pixellm_flops(config, 10, words, 1) for words in (10, 20))
    assert few.vision == many.vision
    assert few.prefill == many.prefill
    assert few.masks == many.masks
    group = config.group_size
    assert 1 < (many.decode / (20 + group)) / (few.decode / (10 + group)) < 1.1
    text, tokens = config.text_config, 10 + config.num_image_tokens
    linear = 4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
    attention = 2 * tokens**2 * text.hidden_size
    expected = 2 * text.num_hidden_layers * (tokens * linear + attention)
    assert few.prefill == expected


@pytest.mark.parametrize("size", SIZES)
def test_random_models_have_the_paper_shape(size: str) -> None:
    config = random_config(size)
    assert (config.image_size, config.num_image_tokens, config.group_size) == (448, 256, 6)
    with pytest.raises(ValueError, match="There is no size"):
        random_config("1b")
