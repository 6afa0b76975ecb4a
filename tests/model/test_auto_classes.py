from __future__ import annotations

from pathlib import Path

import torch

from conftest import OF_EXTRAS, TINY_QUESTION, python_without, square_image
from pixellm.engine import Engine

LOAD_WITH_AUTO_CLASSES = """
import pixellm.auto, pixellm.cli.chat, pixellm.cli.display
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
config = AutoConfig.from_pretrained(sys.argv[1])
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
processor = AutoProcessor.from_pretrained(sys.argv[1])
print(type(config).__name__, type(model).__name__, type(processor).__name__)
"""


def test_auto_classes_know_pixellm_and_the_core_needs_no_extra(tiny_model_dir: Path) -> None:
    done = python_without(OF_EXTRAS, LOAD_WITH_AUTO_CLASSES, tiny_model_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "PixelLMConfig",
        "PixelLMForConditionalGeneration",
        "PixelLMProcessor",
    ]


def test_the_base_model_and_the_tokenizer_have_auto_classes_too(
    tiny_model_dir: Path, tiny_engine: Engine
) -> None:
    from transformers import AutoModel, AutoTokenizer

    base = AutoModel.from_pretrained(tiny_model_dir).eval()
    whole = tiny_engine.model.model.state_dict()
    assert base.state_dict().keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in base.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert tokenizer.chat_template == tiny_engine.processor.chat_template


def test_the_transformers_way_from_messages_to_text(tiny_engine: Engine) -> None:
    model, processor = tiny_engine.model, tiny_engine.processor
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": square_image((2, 3))},
                {"type": "text", "text": TINY_QUESTION},
            ],
        }
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    written = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    answer = written[0, inputs["input_ids"].shape[1] :].tolist()
    decoded = processor.codec.decode_answer(answer)
    assert decoded.text == "There is a red square and a blue square."
    assert [decoded.text[:end] for end in decoded.ends] == [
        "There is a red square",
        "There is a red square and a blue square",
    ]


@torch.inference_mode()
def test_states_and_tuples_are_given_where_they_are_asked_for(tiny_engine: Engine) -> None:
    model = tiny_engine.model
    ids = torch.tensor([[1, 40, 41, 42, 43, 44]])
    plain = model(ids)
    full = model(ids, output_hidden_states=True)
    assert len(full.hidden_states) == model.config.text_config.num_hidden_layers + 1
    assert torch.equal(full.hidden_states[0], model.get_input_embeddings()(ids))
    assert torch.equal(full.hidden_states[-1], plain.hidden_states)
    assert torch.equal(full.logits, plain.logits)
    values = model(ids, return_dict=False)
    assert isinstance(values, tuple)
    assert torch.equal(values[0], plain.logits)
    assert plain.attentions is None
    trained = model(ids, labels=ids, output_hidden_states=True)
    assert torch.equal(trained.loss, model(ids, labels=ids).loss)
    assert torch.equal(trained.hidden_states[-1], plain.hidden_states)


def test_generate_collects_states_and_attention(tiny_model_dir: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tiny_model_dir, attn_implementation="eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    written = model.eval().generate(
        torch.tensor([[1, 40, 41]]),
        max_new_tokens=2,
        do_sample=False,
        return_dict_in_generate=True,
        **asked,
    )
    text = model.config.text_config
    for step, length in zip(range(len(written.hidden_states)), (3, 1), strict=False):
        states, attentions = written.hidden_states[step], written.attentions[step]
        assert [tuple(s.shape) for s in states] == [(1, length, text.hidden_size)] * (
            text.num_hidden_layers + 1
        )
        assert [tuple(a.shape) for a in attentions] == [
            (1, text.num_attention_heads, length, 3 + step)
        ] * text.num_hidden_layers


@torch.inference_mode()
def test_the_cache_changes_no_logits(tiny_engine: Engine) -> None:
    model = tiny_engine.model
    ids = torch.tensor([[1, 40, 41, 42, 43, 44]])
    whole = model(ids).logits
    first = model(ids[:, :4], use_cache=True)
    mask = torch.ones_like(ids)
    second = model(ids[:, 4:], attention_mask=mask, cache=first.cache)
    stepped = torch.cat([first.logits, second.logits], 1)
    torch.testing.assert_close(stepped, whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, whole[:, -2:])
