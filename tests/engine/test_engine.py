from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_answers import assert_same

from conftest import TINY_QUESTION, TINY_QUESTION_WITHOUT_MASKS, square_image
from pixellm.engine import Engine, load, model_dtype, pick_device, pick_dtype
from pixellm.processing.prompts import dialogue_messages
from pixellm.types import Request

KNOWN = square_image((2, 3))


def test_an_answer_grounds_each_phrase_in_a_mask_of_original_pixels(tiny_engine: Engine) -> None:
    answer = tiny_engine.predict(KNOWN, TINY_QUESTION)
    assert answer.text == "There is a red square and a blue square."
    assert answer.question == TINY_QUESTION and answer.size == (32, 24)
    assert [segment.label for segment in answer.segments] == ["a red square", "a blue square"]
    red = (KNOWN == (255, 0, 0)).all(-1)
    for segment in answer.segments:
        assert answer.text[slice(*segment.span)] == segment.label
        assert segment.mask.shape == (32, 24) and segment.mask.dtype == bool
        assert 0.5 < segment.score <= 1
    found = answer.segments[0].mask
    assert (found & red).sum() / (found | red).sum() > 0.6


def test_unsure_masks_are_withheld_and_counted_and_their_words_stay(tiny_model_dir: Path) -> None:
    engine = load(tiny_model_dir, device="cpu")
    whole = engine.predict(KNOWN, TINY_QUESTION)
    assert len(whole.segments) == 2 and whole.info["num_filtered"] == 0
    better = max(segment.score for segment in whole.segments)
    # A stream decodes masks one by one, and their last digits may differ.
    strict = load(tiny_model_dir, device="cpu", min_mask_score=better - 1e-5)
    answer = strict.predict(KNOWN, TINY_QUESTION)
    assert answer.text == whole.text
    assert [segment.score for segment in answer.segments] == pytest.approx([better], abs=1e-5)
    assert answer.info["num_filtered"] == 1
    *pieces, last = strict.stream(KNOWN, TINY_QUESTION)
    shown = [piece.score for piece in pieces if not isinstance(piece, str)]
    assert shown == pytest.approx([better], abs=1e-5)
    assert_same(last, answer)


def test_a_model_may_bring_its_own_limit(tiny_model_dir: Path) -> None:
    engine = load(tiny_model_dir, device="cpu")
    engine.model.config.min_mask_score = 1.0
    assert Engine(engine.model, engine.processor).predict(KNOWN, TINY_QUESTION).segments == ()
    shown = Engine(engine.model, engine.processor, min_mask_score=0)
    assert len(shown.predict(KNOWN, TINY_QUESTION).segments) == 2
    with pytest.raises(ValueError, match=r"min_mask_score is 1\.5"):
        Engine(engine.model, engine.processor, min_mask_score=1.5)


def test_a_batch_equals_single_questions(tiny_engine: Engine) -> None:
    wide = np.full((8, 40, 3), 90, np.uint8)
    requests = [
        Request(KNOWN, TINY_QUESTION),
        Request(wide, "Is there a green one on the left of the blue square? " * 3),
        Request(KNOWN, TINY_QUESTION_WITHOUT_MASKS),
        Request(wide, TINY_QUESTION, ((TINY_QUESTION, "A red square {seg}."),)),
        Request(square_image((1, 1), (24, 32)), TINY_QUESTION),
    ]
    for request, answer in zip(requests, tiny_engine.predict_batch(requests), strict=True):
        alone = tiny_engine.predict(request.image, request.question, request.history)
        assert_same(answer, alone)
    assert tiny_engine.predict_batch([]) == []


def test_a_row_near_the_end_of_the_context_does_not_shorten_its_neighbours(
    tiny_engine: Engine,
) -> None:
    def length(question: str) -> int:
        messages = dialogue_messages((), question)
        return len(tiny_engine.processor.codec.encode(messages, add_generation_prompt=True).ids)

    long = next(q for n in range(256, 0, -1) if length(q := "red " * n) <= 250)
    answers = tiny_engine.predict_batch([Request(KNOWN, TINY_QUESTION), Request(KNOWN, long)])
    assert_same(answers[0], tiny_engine.predict(KNOWN, TINY_QUESTION))


def test_an_image_is_encoded_once_over_questions_and_turns(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower, calls = tiny_engine.model.model.vision_tower, list[int]()
    forward = tower.forward

    def counted(pixel_values: torch.Tensor, pixel_mask: torch.Tensor) -> list[torch.Tensor]:
        calls.append(len(pixel_values))
        return forward(pixel_values, pixel_mask)

    monkeypatch.setattr(tower, "forward", counted)
    fresh = square_image((7, 9))
    chat = tiny_engine.chat(fresh)
    chat.ask(TINY_QUESTION)
    chat.ask(TINY_QUESTION_WITHOUT_MASKS)
    tiny_engine.predict_batch([Request(fresh.copy(), "And what else?")] * 3)
    assert calls == [1]


def test_a_chat_hands_earlier_turns_on_with_their_marks(tiny_engine: Engine) -> None:
    chat = tiny_engine.chat(KNOWN)
    first = chat.ask(TINY_QUESTION)
    assert chat.history == [(TINY_QUESTION, "There is a red square {seg} and a blue square {seg}.")]
    second = chat.ask(TINY_QUESTION_WITHOUT_MASKS)
    assert chat.last is second and len(chat.history) == 2
    direct = tiny_engine.predict(KNOWN, TINY_QUESTION_WITHOUT_MASKS, chat.history[:1])
    assert_same(second, direct)
    assert len(first.segments) == 2


@pytest.mark.parametrize("gpu_dtype", ["bfloat16", "float16"])
def test_a_model_says_what_it_is_run_in_on_a_gpu(
    tiny_model_dir: Path, tmp_path: Path, gpu_dtype: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gpu_dtype": gpu_dtype}))
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert model_dtype(model, gpu) is getattr(torch, gpu_dtype)
    assert model_dtype(model, cpu) is torch.float32
    assert model_dtype(model, gpu, "float32") is torch.float32
    assert model_dtype(model, gpu, quantize="int8") is getattr(torch, gpu_dtype)
    assert model_dtype(model, gpu, quantize="int4") is torch.bfloat16, "has products in it alone"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gpu_dtype": "int8"}))
    with pytest.raises(ValueError, match="gpu_dtype is 'int8'"):
        load(model, device="cpu")


def test_models_run_in_bfloat16_on_a_gpu_unless_they_say_otherwise(tiny_model_dir: Path) -> None:
    for model in ("nano-scenes", tiny_model_dir):
        assert model_dtype(model, torch.device("cuda")) is torch.bfloat16


def test_devices_and_types_go_by_name() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_dtype("auto", torch.device("cpu")) is torch.float32
    assert pick_dtype("auto", torch.device("cuda"), "float16") is torch.float16
    assert pick_dtype("bfloat16", torch.device("cuda"), "float16") is torch.bfloat16
    with pytest.raises(ValueError, match="no device 'abacus'"):
        pick_device("abacus")
    for name in ("int64", "float33"):
        with pytest.raises(ValueError, match="floating type"):
            pick_dtype(name, torch.device("cpu"))


def test_kept_images_are_no_more_than_their_number_and_bytes(
    tiny_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tiny_engine.model, tiny_engine.processor, cached_images=3)
    (image,) = engine.images.prepare([KNOWN])
    assert not isinstance(image, Exception)
    others = [np.full((32, 24, 3), shade, np.uint8) for shade in range(5)]
    for room, kept in ((9, 3), (2, 2)):
        size = room * image.encoded.num_bytes
        monkeypatch.setattr("pixellm.engine.images.MAX_CACHED_BYTES", size)
        engine.images.prepare(others)
        assert len(engine.images) == kept
    monkeypatch.setattr("pixellm.engine.images.MAX_CACHED_BYTES", 0)
    engine.images.prepare([KNOWN])
    assert len(engine.images) == 1


def test_an_engine_that_forgets_keeps_nothing(tiny_engine: Engine) -> None:
    engine = Engine(tiny_engine.model, tiny_engine.processor, 8)
    engine.predict(KNOWN, TINY_QUESTION)
    assert len(engine.images) and len(engine._prefixes)
    engine.forget()
    assert not len(engine.images) and not len(engine._prefixes)
