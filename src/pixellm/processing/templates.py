"""Prompt templates as data: Jinja chat templates, stored with the tokenizer of a model.

They write control tokens and place what people typed. The texts of the codebook's tokens stand
here too.
"""

from __future__ import annotations

VICUNA_TEMPLATE = (
    "{{ bos_token }}A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<im_start><image><im_end>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %} "
    "{% else %}ASSISTANT: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""The released model's conversation (PAPER facts, 6.6)."""

COMPACT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}"
    "{{ '<user>' if message['role'] == 'user' else '<assistant>' }}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}"
    "{{ '<user>' if message['role'] == 'user' else '<assistant>' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] != 'user' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Four control tokens a turn, for small models: <image><user>question<assistant>answer</s>."""


def codebook_token_names(group_size: int) -> list[str]:
    """Texts of the codebook's tokens, ``[SEG0]`` to ``[SEG{group_size - 1}]``."""
    return [f"[SEG{i}]" for i in range(group_size)]
