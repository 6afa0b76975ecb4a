from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from scripted_answers import build_family, follow, prompt_batch, recompute_states

from conftest import TINY_QUESTION, TINY_QUESTION_WITHOUT_MASKS, square_image
from measuring.generation import generate_answers
from pixellm.engine import Engine, cache
from pixellm.engine.row import Row

GROUP = -1
ANSWERS = [[20, GROUP, 21, 22, GROUP], [GROUP, GROUP, 23], [24, 25, 26]]


def expanded(answer: list[int], codebook: list[int]) -> list[int]:
    return [i for a in answer for i in (codebook if a == GROUP else [a])]


@pytest.mark.parametrize(
    ("codebook_states", "reading"),
    [
        ("own", "one pass"),
        ("predicting", "two passes"),
        ("own", "two passes"),
        ("own", "each row alone"),
        ("predicting", "no cache"),
    ],
)
def test_every_way_of_reading_gives_the_states_of_one_pass_over_the_answer(
    codebook_states: str, reading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = build_family("clip", "llama", codebook_states=codebook_states)
    monkeypatch.setitem(cache._PADDING_BUDGETS, "cpu", 0 if reading == "two passes" else 1000)
    if reading in ("each row alone", "no cache"):
        monkeypatch.setattr("pixellm.engine.batch.longest_slot", lambda model: 0)
    if reading == "no cache":
        model.model.reading = replace(model.model.reading, caches=False)
    batch = prompt_batch(processor)
    for row, (answer, script) in enumerate(
        zip(follow(model, batch, ANSWERS), ANSWERS, strict=True)
    ):
        ids = [*expanded(script, model.config.codebook_token_ids), model.config.eos_token_id]
        assert answer.ids == ids
        assert len(answer.group_states) == script.count(GROUP)
        if GROUP in script:
            states = torch.stack(answer.group_states)
            whole = recompute_states(model, batch, row, ids)
            torch.testing.assert_close(states, whole, atol=1e-4, rtol=1e-4)


def test_text_alone_is_answered_without_an_image() -> None:
    model, processor = build_family("clip", "llama")
    batch = processor.encode_batch([[{"role": "user", "content": "Hello"}]])
    (answer,) = follow(model, batch, [[20, 21]])
    assert answer.ids == [20, 21, model.config.eos_token_id] and not answer.group_states


def known_batch(engine: Engine) -> Any:
    conversations = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": square_image((2, 3))},
                    {"type": "text", "text": question},
                ],
            }
        ]
        for question in (TINY_QUESTION, TINY_QUESTION_WITHOUT_MASKS)
    ]
    return engine.processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True
    )


@torch.inference_mode()
def test_generate_of_transformers_gives_the_same_answers(tiny_engine: Engine) -> None:
    model, batch = tiny_engine.model, known_batch(tiny_engine)
    pad, length = model.config.pad_token_id, batch["input_ids"].shape[1]
    encoded, _ = model.model.encode_images(batch["pixel_values"], batch["pixel_mask"])
    ours = generate_answers(
        model,
        batch["input_ids"],
        batch["attention_mask"],
        encoded,
        eos_ids=frozenset([model.config.eos_token_id]),
        max_new_tokens=40,
    )
    assert [len(answer.group_states) for answer in ours] == [2, 0]
    for use_cache in (True, False):
        theirs = model.generate(**batch, max_new_tokens=40, do_sample=False, use_cache=use_cache)
        for row, answer in zip(theirs[:, length:].tolist(), ours, strict=True):
            assert [i for i in row if i != pad] == answer.ids


def test_the_image_placeholder_is_never_written(tiny_engine: Engine) -> None:
    model, batch = tiny_engine.model, known_batch(tiny_engine)
    image = model.config.image_token_id
    with torch.inference_mode():
        encoded, _ = model.model.encode_images(batch["pixel_values"], batch["pixel_mask"])

    def prefer_placeholders(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
        logits = logits.clone()
        logits[:, [image, *model.config.codebook_token_ids[1:]]] += 1000
        chosen: list[int] = logits.argmax(-1).tolist()
        return chosen

    answers = generate_answers(
        model,
        batch["input_ids"],
        batch["attention_mask"],
        encoded,
        eos_ids=frozenset([model.config.eos_token_id]),
        max_new_tokens=12,
        choose=prefer_placeholders,
        forbidden_ids=(image,),
    )
    for answer in answers:
        assert image not in answer.ids
        whole = len(answer.group_states) * model.config.group_size
        assert sum(i in model.config.codebook_token_ids for i in answer.ids) <= whole + 3
