from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY_QUESTION, square_image
from pixellm.engine import Engine
from pixellm.processing.processor import PixelLMProcessor, visible_image_tokens
from pixellm.processing.prompts import dialogue_messages


@pytest.fixture
def processor(tiny_engine: Engine) -> PixelLMProcessor:
    return tiny_engine.processor


def asking(text: str, **image: Any) -> list[dict[str, Any]]:
    parts = [{"type": "image", **image}] if image else []
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@pytest.mark.parametrize(
    ("resized", "grid", "expected"),
    [
        ((32, 32), (2, 2), [1, 1, 1, 1]),
        ((32, 16), (2, 2), [1, 0, 1, 0]),
        ((17, 32), (2, 2), [1, 1, 1, 1]),
        ((1, 32), (2, 2), [1, 1, 0, 0]),
        ((9, 1), (4, 2), [1, 0, 1, 0, 0, 0, 0, 0]),
    ],
)
def test_image_tokens_in_the_padding_are_masked(
    resized: tuple[int, int], grid: tuple[int, int], expected: list[int]
) -> None:
    shown = visible_image_tokens(resized, 32, grid)
    assert shown.astype(int).tolist() == expected
    pixel_mask = torch.zeros(1, 1, 32, 32)
    pixel_mask[..., : resized[0], : resized[1]] = 1
    nearest = torch.nn.functional.interpolate(pixel_mask, size=grid, mode="nearest")
    assert nearest.flatten().int().tolist() == expected


def test_the_usual_messages_become_model_inputs(
    processor: PixelLMProcessor, tmp_path: Path
) -> None:
    pixels = square_image((2, 3), (16, 32))
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    sources = ({"image": pixels}, {"image": Image.fromarray(pixels)}, {"path": path}, {"url": path})
    batches = [
        processor.apply_chat_template(
            asking(TINY_QUESTION, **source),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
        for source in sources
    ]
    for batch in batches[1:]:
        assert all(torch.equal(value, batches[0][name]) for name, value in batch.items())
    first = batches[0]
    assert first["pixel_values"].shape == (1, 3, 32, 32)
    assert first["resized_sizes"].tolist() == [[16, 32]]
    # Four image tokens lead; the two of the lower half lie in the canvas's padding.
    assert first["attention_mask"][0, :5].tolist() == [1, 1, 0, 0, 1]
    image_id = processor.codec.image_id
    assert first["input_ids"][0, :4].tolist() == [image_id] * 4
    ids = processor.apply_chat_template(
        asking(TINY_QUESTION, image=pixels), add_generation_prompt=True, tokenize=True
    )
    assert torch.equal(ids, first["input_ids"])


def test_conversations_are_batched_with_padding_on_the_left(processor: PixelLMProcessor) -> None:
    images = [square_image((2, 3)), square_image((2, 3), (24, 30))]
    conversations = [
        asking("Hi?", image=images[0]),
        asking("And what is that on the left?", image=images[1]),
    ]
    options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    batch = processor.apply_chat_template(conversations, **options)
    assert batch["pixel_values"].shape[0] == 2
    for row, conversation in enumerate(conversations):
        alone = processor.apply_chat_template(conversation, **options)
        length = alone["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask"):
            assert torch.equal(batch[name][row, -length:], alone[name][0])
        assert batch["attention_mask"][row, :-length].sum() == 0


def test_rendered_prompts_give_the_same_ids(processor: PixelLMProcessor) -> None:
    image = square_image((2, 3))
    messages = asking(TINY_QUESTION, image=image)
    rendered = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert rendered == f"<image><user>{TINY_QUESTION}<assistant>"
    whole = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    called = processor(images=image, text=rendered)
    assert called.keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in called.items())


def test_control_words_that_were_typed_stay_text_in_rendered_prompts(
    processor: PixelLMProcessor,
) -> None:
    image = square_image((2, 3))
    messages = asking("Is <image> or [SEG0] in it?", image=image)
    rendered = processor.apply_chat_template(messages, add_generation_prompt=True)
    called = processor(images=image, text=rendered)
    whole = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert torch.equal(called["input_ids"], whole)
    assert int((whole == processor.codec.image_id).sum()) == 4
    assert processor.codec.codebook_ids[0] not in whole


def test_an_assistant_may_have_spoken_in_plain_strings(processor: PixelLMProcessor) -> None:
    messages = [
        *asking("One?", image=square_image((2, 3))),
        {"role": "assistant", "content": "Yes, a red one {seg}."},
        {"role": "user", "content": "And more?"},
    ]
    ids = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    expected = processor.codec.encode(
        dialogue_messages([("One?", "Yes, a red one {seg}.")], "And more?"),
        add_generation_prompt=True,
    )
    assert ids[0].tolist() == list(expected.ids)


def test_what_does_not_fit_together_is_refused(processor: PixelLMProcessor) -> None:
    image = square_image((2, 3))
    with_place, without = dialogue_messages((), "Hi?"), dialogue_messages((), "Hi?", image=False)
    for conversations, images in (
        ([with_place, with_place], [image]),
        ([with_place], []),
        ([without], [image]),
        ([with_place, without], [image]),
        ([with_place, without], [image, image]),
    ):
        with pytest.raises(ValueError, match="place"):
            processor.encode_batch(conversations, images)
    with pytest.raises(ValueError, match='under "image" or "path"'):
        processor.apply_chat_template(with_place, tokenize=True)
    with pytest.raises(ValueError, match="own chat template"):
        processor.apply_chat_template(without, tokenize=True, chat_template="{{ messages }}")
    with pytest.raises(TypeError, match="tokenise"):
        processor.apply_chat_template(without, tokenise=True)
    with pytest.raises(TypeError, match="imagez"):
        processor(text="Hi?", imagez=[np.zeros((2, 2, 3), np.uint8)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": True}, "never cut"),
        ({"add_special_tokens": True}, "add_special_tokens"),
        ({"padding": "max_length"}, "'max_length'"),
        ({"padding_side": "lef"}, "'lef'"),
        ({"return_tensors": "np"}, "'np'"),
    ],
    ids=str,
)
def test_options_that_cannot_be_followed_are_refused(
    processor: PixelLMProcessor, options: dict[str, Any], message: str
) -> None:
    messages = dialogue_messages((), "Hi?", image=False)
    with pytest.raises(ValueError, match=message):
        processor(text="Hi?", **options)
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(messages, tokenize=True, **options)
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(messages, tokenize=True, processor_kwargs=options)


def test_options_that_can_be_followed_are(processor: PixelLMProcessor) -> None:
    long, short = (dialogue_messages((), text, image=False) for text in ("And there?", "Hi?"))
    options: dict[str, Any] = {"tokenize": True, "return_dict": True}
    left = processor.apply_chat_template([long, short], padding="longest", **options)
    right = processor.apply_chat_template(
        [long, short], processor_kwargs={"padding_side": "right"}, **options
    )
    length = int(left["attention_mask"][1].sum())
    assert left["attention_mask"][1, -length:].all() and right["attention_mask"][1, :length].all()
    assert torch.equal(left["input_ids"][1, -length:], right["input_ids"][1, :length])
    called = processor(text=["Hi?", "And there?"], padding_side="right", truncation=False)
    assert called["attention_mask"][0, 0] == 1
    with pytest.raises(ValueError, match="padding=True"):
        processor.apply_chat_template([long, short], padding=False, **options)
    alone = processor.apply_chat_template(short, padding=False, **options)
    assert alone["input_ids"].shape == (1, length)


def test_what_only_some_calls_can_do_is_refused(processor: PixelLMProcessor) -> None:
    messages = dialogue_messages((), "Hi?", image=False)
    with pytest.raises(ValueError, match="continue_final_message"):
        processor.apply_chat_template(messages, continue_final_message=True)
    with pytest.raises(ValueError, match="tokenize=True"):
        processor.apply_chat_template(messages, return_dict=True)


def test_a_saved_processor_encodes_and_decodes_alike(
    processor: PixelLMProcessor, tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path)
    again = PixelLMProcessor.from_pretrained(tmp_path)
    messages = dialogue_messages([(TINY_QUESTION, "A red square {seg} and 12 others.")], "[SEG0]?")
    first, second = processor.codec.encode(messages), again.codec.encode(messages)
    assert first == second
    assert again.codec.decode_answer(first.ids[5:]) == processor.codec.decode_answer(first.ids[5:])
    assert again.image_processor.to_dict() == processor.image_processor.to_dict()
    assert again.llm_grid == processor.llm_grid
    assert again.chat_template == processor.chat_template
