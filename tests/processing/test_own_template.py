"""Chat templates of language models, as their families write them, for dialogues about an image."""

from __future__ import annotations

from typing import Any

import pytest

from pixellm.checkpoint.build import train_tokenizer
from pixellm.processing.own_template import adopt_chat_template
from pixellm.processing.prompts import PromptCodec, dialogue_messages

IM = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\nYou help.<|im_end|>\n' }}"
    "{%- endif %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' and loop.last and enable_thinking is not false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{{- message.content.strip() + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
SPACED = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = [
    (IM, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
    (HEADERS, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
]
IDS = ["im", "gemma", "headers"]
CODEBOOK = ["[SEG0]", "[SEG1]"]


def tokenizer_with(template: str | None, control: list[str]) -> Any:
    texts = ["Which squares are there? There is a red square.", "user assistant model system"] * 3
    tokenizer = train_tokenizer(texts, 340, [*control, "<image>", *CODEBOOK])
    tokenizer.chat_template = template
    return tokenizer


def codec_of(tokenizer: Any, template: str) -> PromptCodec:
    return PromptCodec(tokenizer, template, "<image>", CODEBOOK, num_image_tokens=4)


@pytest.mark.parametrize(("template", "control", "end"), TEMPLATES, ids=IDS)
def test_an_own_template_asks_as_the_family_does_and_teaches_the_end(
    template: str, control: list[str], end: str
) -> None:
    tokenizer = tokenizer_with(template, control)
    codec = codec_of(tokenizer, adopt_chat_template(tokenizer))
    assert tokenizer.eos_token == end
    question, answer = "Which squares?", "There is a red square {seg}."
    asked = codec.encode(dialogue_messages((), question), add_generation_prompt=True)
    whole = codec.encode(dialogue_messages([(question, answer)]))
    assert whole.ids[: len(asked.ids)] == asked.ids
    assert asked.ids.count(codec.image_id) == 4 and asked.prefix == whole.prefix > 0
    answered = whole.ids[len(asked.ids) :]
    stop = answered.index(tokenizer.eos_token_id) + 1
    assert all(whole.labelled[len(asked.ids) :][:stop])
    assert codec.decode_answer(answered[: stop - 1]).text == "There is a red square."
    assert "think" not in tokenizer.decode(whole.ids)
    # As the family's own template writes it, but for the image.
    own = [{"role": "user", "content": "<image>\n" + question}]
    plain = tokenizer.apply_chat_template(
        own, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    rendered = codec.render(dialogue_messages((), question), add_generation_prompt=True)
    assert rendered == plain


@pytest.mark.parametrize(("template", "control", "end"), TEMPLATES, ids=IDS)
def test_control_words_that_were_typed_stay_text(
    template: str, control: list[str], end: str
) -> None:
    tokenizer = tokenizer_with(template, control)
    codec = codec_of(tokenizer, adopt_chat_template(tokenizer))
    usual = codec.encode(dialogue_messages((), "why"), add_generation_prompt=True)
    typed = f"why {end} {' '.join(control)} <image> [SEG0] </s>"
    found = codec.encode(dialogue_messages((), typed), add_generation_prompt=True)
    special = set(tokenizer.convert_tokens_to_ids([*control, "<image>", *CODEBOOK, "</s>"]))
    assert [i for i in found.ids if i in special] == [i for i in usual.ids if i in special]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        (SPACED, "between a prompt and its answer"),
        (HEADERS.replace("add_generation_prompt", "false"), "between a prompt and its answer"),
        ("{{ raise_exception('tools only') }}", "tools only"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "ends no answer"),
    ],
)
def test_templates_that_dialogues_do_not_fit_are_refused(
    template: str | None, message: str
) -> None:
    tokenizer = tokenizer_with(template, TEMPLATES[2][1])
    with pytest.raises(ValueError, match=rf"{message}.*pass --template vicuna"):
        adopt_chat_template(tokenizer)
