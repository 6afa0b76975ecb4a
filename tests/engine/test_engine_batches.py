from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_answers import (
    PlainAnswer,
    answer_plainly,
    assert_plain,
    assert_same,
    build_talker,
    mixed_requests,
)
from scripted_answers import TEXT

from conftest import square_image
from pixellm.engine import AnswerOptions, Engine, cache
from pixellm.engine import engine as engine_module
from pixellm.types import Prediction, Request

LIMIT = 14


@pytest.fixture(scope="module")
def talker() -> Any:
    return build_talker()


@pytest.fixture(scope="module")
def plain(talker: Any) -> list[PlainAnswer]:
    return [answer_plainly(*talker, request, LIMIT) for request in mixed_requests()]


def test_the_plain_answers_are_of_all_kinds(talker: Any, plain: list[PlainAnswer]) -> None:
    config = talker[0].config
    ended = [answer.ids[-1] == config.eos_token_id for answer in plain]
    assert any(ended) and not all(ended)
    assert any(answer.masks for answer in plain) and not all(answer.masks for answer in plain)
    assert any(len(answer.masks) > 1 for answer in plain)


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_a_batch_of_any_size_equals_plain_generation(
    talker: Any, plain: list[PlainAnswer], count: int
) -> None:
    answers = Engine(*talker, LIMIT).predict_batch(mixed_requests(count))
    for answer, wanted in zip(answers, plain, strict=False):
        assert_plain(answer, wanted)


@pytest.mark.parametrize("max_batch", [1, 2, 3])
def test_rows_that_wait_enter_as_others_finish(
    talker: Any, plain: list[PlainAnswer], max_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = counted_rows(monkeypatch)
    answers = Engine(*talker, LIMIT, max_batch=max_batch).predict_batch(mixed_requests())
    for answer, wanted in zip(answers, plain, strict=True):
        assert_plain(answer, wanted)
    assert max(widths) == max_batch


@pytest.mark.parametrize("text", ["qwen2", "gpt_neox"])
def test_other_families_equal_plain_generation(text: str) -> None:
    talker = build_talker(text, codebook_states="predicting")
    check_family(talker)


def test_a_window_shorter_than_a_row_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    mistral = {**TEXT["llama"], "model_type": "mistral", "sliding_window": 12}
    monkeypatch.setitem(TEXT, "mistral", mistral)
    talker = build_talker("mistral")
    assert cache.longest_slot(talker[0]) == 12
    check_family(talker)
    talker[0].model.reading = replace(talker[0].model.reading, caches=False)
    check_family(talker)


def check_family(talker: Any) -> None:
    requests = mixed_requests(3)
    answers = Engine(*talker, LIMIT).predict_batch(requests)
    for answer, request in zip(answers, requests, strict=True):
        assert_plain(answer, answer_plainly(*talker, request, LIMIT))


def test_steps_of_fixed_shape_equal_plain_generation(
    talker: Any, plain: list[PlainAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = set()

    def uncompiled(model: Any) -> Any:
        def run(ids: torch.Tensor, **inputs: Any) -> Any:
            shapes.add((*ids.shape, inputs["attention_mask"].shape[-1]))
            return model.model(ids, **inputs)

        return run

    monkeypatch.setattr(engine_module, "compile_forward", uncompiled)
    engine = Engine(*talker, LIMIT, max_batch=3, compile=True)
    engine.warm_up(batch=3)
    for _ in range(2):  # the second time in buffers that were used before
        for answer, wanted in zip(engine.predict_batch(mixed_requests()), plain, strict=True):
            assert_plain(answer, wanted)
    group = talker[0].config.group_size
    assert {rows for rows, _, _ in shapes} == {1, 2, 4}
    assert {width for _, width, _ in shapes} == {1, group}
    assert len({length for _, _, length in shapes}) <= 2


def test_compiled_steps_are_whole_graphs_and_equal_plain_generation(
    talker: Any, plain: list[PlainAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = pytest.importorskip("torch._dynamo.utils").counters
    compile_whole, graphs = torch.compile, list[int]()

    def traced(function: Any, **_: Any) -> Any:
        # The front end alone: no compiler of C++ or CUDA is needed.
        return compile_whole(function, backend="eager", fullgraph=True, dynamic=False)

    monkeypatch.setattr(torch, "compile", traced)
    engine = Engine(*talker, LIMIT, max_batch=1, compile=True)
    counters.clear()
    for _ in range(2):
        for answer, wanted in zip(engine.predict_batch(mixed_requests(3)), plain, strict=False):
            assert_plain(answer, wanted)
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] == graphs[1]


def test_beginnings_that_were_read_before_change_nothing_and_are_not_read_again(
    talker: Any, plain: list[PlainAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = counted_ids(monkeypatch)
    image = square_image((2, 3))
    requests = [Request(image, request.question) for request in mixed_requests()]
    without = Engine(*talker, LIMIT, prefix_bytes=0).predict_batch(requests)
    everything = sum(read)
    read.clear()
    engine = Engine(*talker, LIMIT)
    for one, other in zip(engine.predict_batch(requests), without, strict=True):
        assert_same(one, other)
    prefix = talker[0].config.num_image_tokens
    assert everything - sum(read) == prefix * (len(requests) - 1)
    read.clear()
    for request, wanted in zip(requests, without, strict=True):
        assert_same(engine.predict(request.image, request.question), wanted)
    assert everything - sum(read) == prefix * len(requests)


def test_what_is_kept_of_prompts_stays_within_its_bytes(talker: Any) -> None:
    requests = mixed_requests(3)
    engine = Engine(*talker, LIMIT)
    engine.predict_batch(requests)
    each = engine._prefixes.num_bytes // 3
    small = Engine(*talker, LIMIT, prefix_bytes=2 * each)
    found, wanted = small.predict_batch(requests), engine.predict_batch(requests)
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)
    assert small._prefixes.num_bytes == 2 * each


def test_ten_turns_of_a_session_equal_ten_fresh_prompts(
    talker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = counted_ids(monkeypatch)
    chat = Engine(*talker, 6).chat(square_image((2, 3)))
    questions = ["What?", "Is it red?", "Which one?", "And there?", "Why?"] * 2
    turns = [chat.ask(question) for question in questions]
    together = sum(read)
    assert [question for question, _ in chat.history] == questions and chat.last is turns[-1]
    read.clear()
    fresh = Engine(*talker, 6, prefix_bytes=0)
    for number, (question, turn) in enumerate(zip(questions, turns, strict=True)):
        assert_same(turn, fresh.predict(chat.image, question, chat.history[:number]))
    assert together < sum(read) / 3


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("too much"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["gpu", "cpu"],
)
def test_memory_that_runs_out_halves_the_batch_and_loses_nothing(
    talker: Any, plain: list[PlainAnswer], monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    language_model = talker[0].model.language_model
    forward, fits = language_model.forward, [3]

    def limited(*args: Any, **inputs: Any) -> Any:
        if len(inputs["inputs_embeds"]) > fits[0]:
            raise error
        return forward(*args, **inputs)

    monkeypatch.setattr(language_model, "forward", limited)
    engine = Engine(*talker, LIMIT)
    for answer, wanted in zip(engine.predict_batch(mixed_requests()), plain, strict=True):
        assert_plain(answer, wanted)
    assert engine.max_batch == 3
    fits[0] = 0
    with pytest.raises(type(error), match=r"^(too much|Default)"):
        engine.predict_batch(mixed_requests())


def test_memory_that_runs_out_in_the_middle_of_a_group_loses_nothing(
    talker: Any, plain: list[PlainAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cache._PADDING_BUDGETS, "cpu", 0)
    forward, failed = cache.SlotRows.forward, list[int]()

    def failing(self: Any, rows: Any, new_ids: Any) -> Any:
        if any(row.group for row in rows) and len(failed) < 2:
            failed.append(len(rows))
            raise torch.OutOfMemoryError("too much")
        return forward(self, rows, new_ids)

    monkeypatch.setattr(cache.SlotRows, "forward", failing)
    engine = Engine(*talker, LIMIT)
    for answer, wanted in zip(engine.predict_batch(mixed_requests()), plain, strict=True):
        assert_plain(answer, wanted)
    assert len(failed) == 2


def test_what_is_kept_for_others_goes_before_a_single_row_does_not_fit(
    talker: Any, plain: list[PlainAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, forward = Engine(*talker, LIMIT), cache.SlotRows.forward
    request = mixed_requests(1)[0]
    assert_plain(engine.predict(request.image, request.question), plain[0])
    assert len(engine._prefixes) == 1

    def limited(self: Any, rows: Any, new_ids: Any) -> Any:
        if len(engine._prefixes):
            raise torch.OutOfMemoryError("too much")
        return forward(self, rows, new_ids)

    monkeypatch.setattr(cache.SlotRows, "forward", limited)
    assert_plain(engine.predict(request.image, request.question), plain[0])
    assert len(engine._prefixes) == 0 and engine.max_batch > 1


def test_images_and_masks_that_do_not_fit_together_are_done_apart(
    talker: Any, plain: list[PlainAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = talker[0]
    encode, decode = model.model.encode_images, model.decode_masks

    def encode_one(pixels: Any, mask: Any) -> Any:
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("too much")
        return encode(pixels, mask)

    def decode_two(embeddings: Any, features: Any, rows: Any, **options: Any) -> Any:
        if len(embeddings) > 2:
            raise torch.OutOfMemoryError("too much")
        return decode(embeddings, features, rows, **options)

    monkeypatch.setattr("pixellm.engine.answers.PIXELS_AT_ONCE", 1)
    monkeypatch.setattr(model.model, "encode_images", encode_one)
    monkeypatch.setattr(model, "decode_masks", decode_two)
    for answer, wanted in zip(
        Engine(model, talker[1], LIMIT).predict_batch(mixed_requests()), plain, strict=True
    ):
        assert_plain(answer, wanted)


def test_a_drawn_answer_depends_on_its_request_and_seed_alone(talker: Any) -> None:
    engine = Engine(*talker, LIMIT)
    drawn = [AnswerOptions(temperature=1.5, top_p=0.95, seed=seed) for seed in range(6)]
    mixed = [*drawn, AnswerOptions()]
    requests = [mixed_requests(1)[0]] * 7
    together = engine.predict_batch(requests, mixed)
    assert len({answer.text for answer in together}) > 3
    for request, options, answer in zip(requests, mixed, together, strict=True):
        alone = engine.predict(
            request.image,
            request.question,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
        )
        assert_same(answer, alone)
    assert_same(together[6], engine.predict(requests[0].image, requests[0].question))


def test_many_requests_are_answered_as_they_come_and_bad_ones_named(
    talker: Any, plain: list[PlainAnswer], tmp_path: Path
) -> None:
    good, taken = mixed_requests(), list[int]()
    asked: list[Request] = [*good, Request(tmp_path / "none.png", "What?")]
    asked.insert(2, Request(good[0].image, "word " * 400))

    def arriving() -> Iterator[Request]:
        for index, request in enumerate(asked):
            taken.append(index)
            yield request

    answers = Engine(*talker, LIMIT, max_batch=2).predict_many(arriving())
    first = [next(answers) for _ in range(2)]
    assert len(taken) < len(asked)
    found = dict([*first, *answers])
    assert sorted(found) == list(range(len(asked)))
    assert isinstance(found[2], ValueError) and "context holds" in str(found[2])
    assert isinstance(found[8], FileNotFoundError)
    for index, wanted in zip([0, 1, 3, 4, 5, 6, 7], plain, strict=True):
        answer = found[index]
        assert isinstance(answer, Prediction)
        assert_plain(answer, wanted)


def test_a_batch_with_a_bad_request_is_refused(talker: Any, tmp_path: Path) -> None:
    requests = [*mixed_requests(2), Request(tmp_path / "none.png", "What?")]
    with pytest.raises(FileNotFoundError, match="none"):
        Engine(*talker, LIMIT).predict_batch(requests)
    with pytest.raises(ValueError, match="2 options for 3 requests"):
        Engine(*talker, LIMIT).predict_batch(requests, [AnswerOptions()] * 2)
    with pytest.raises(ValueError, match="max_batch"):
        Engine(*talker, max_batch=0)


def test_a_limit_in_the_middle_of_a_group_keeps_the_masks_of_whole_ones(
    talker: Any, plain: list[PlainAnswer]
) -> None:
    number = next(i for i, answer in enumerate(plain) if len(answer.masks) > 1)
    request, whole = mixed_requests()[number], plain[number]
    limits = range(1, len(whole.ids) + 1)
    options = [AnswerOptions(max_new_tokens=limit) for limit in limits]
    answers = Engine(*talker).predict_batch([request] * len(limits), options)
    last, cut = talker[0].config.codebook_token_ids[-1], 0
    for answer, limit in zip(answers, limits, strict=True):
        kept = whole.ids[:limit]
        assert answer.info["num_tokens"] == limit
        assert len(answer.segments) == kept.count(last)
        for segment, mask in zip(answer.segments, whole.masks, strict=False):
            assert np.array_equal(segment.mask, mask)
        cut += kept[-1] in talker[0].config.codebook_token_ids[:-1] and bool(answer.segments)
    assert cut > 0


def counted_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every pass from now on."""
    return _counted(monkeypatch, lambda rows, new_ids: len(rows))


def counted_ids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids read in every pass from now on."""
    return _counted(monkeypatch, lambda rows, new_ids: sum(map(len, new_ids)))


def _counted(monkeypatch: pytest.MonkeyPatch, measure: Any) -> list[int]:
    forward, counts = cache.SlotRows.forward, list[int]()

    def counting(self: Any, rows: Any, new_ids: Any) -> Any:
        counts.append(measure(rows, new_ids))
        return forward(self, rows, new_ids)

    monkeypatch.setattr(cache.SlotRows, "forward", counting)
    return counts
