"""A language model's own chat template as the template of dialogues about an image.

Chat templates of language models expect messages of plain text, and end an answer with a token
that their tokenizer may not call its end.
"""

from __future__ import annotations

import re
from typing import Any

from pixellm.processing.bounded_template import (
    TEMPLATE_FAULTS,
    TemplateBoundsError,
    render_template,
)

IMAGE_TOKEN = "<image>"
_PLAIN_MESSAGES = (
    "{%- set plain = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set written = namespace(text='') -%}"
    "{%- if message['content'] is string -%}{%- set written.text = message['content'] -%}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set written.text = written.text + '<image>\\n' -%}"
    "{%- elif part['type'] == 'text' -%}{%- set written.text = written.text + part['text'] -%}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- set one = {'role': message['role'], 'content': written.text} -%}"
    "{%- set plain.messages = plain.messages + [one] -%}"
    "{%- endfor -%}"
    "{%- set messages = plain.messages -%}"
    "{%- set enable_thinking = false -%}"
    "{%- set date_string = '26 Jul 2024' -%}"
)
"""Messages of parts to messages of text, for what follows; no thoughts, and every day alike."""

_ANSWER = "\ue000"


def adopt_chat_template(tokenizer: Any) -> str:
    """Make a tokenizer's own chat template the template of dialogues about an image.

    It takes messages with image parts. The tokenizer's end token becomes the one that ends an
    answer there.
    """
    own = tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    if not own:
        raise ValueError("The tokenizer has no chat template; pass --template vicuna.")
    template = _PLAIN_MESSAGES + str(own)
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}
    try:
        prompt, whole = (
            render_template(tokenizer, messages, template, len(messages) == 1)
            for messages in ([question], [question, answer])
        )
    except TemplateBoundsError as error:
        raise _unfit(str(error)) from error
    except TEMPLATE_FAULTS as error:
        raise _unfit(f"fails ({error})") from error
    if not whole.startswith(prompt) or whole.count(IMAGE_TOKEN) != 1:
        raise _unfit("writes a dialogue that does not begin with its prompt")
    tokens = sorted((t.content for t in tokenizer.added_tokens_decoder.values()), key=len)
    ends = "|".join(map(re.escape, reversed(tokens)))
    answered = whole[len(prompt) :]
    if not answered.startswith(_ANSWER):
        raise _unfit("writes something between a prompt and its answer")
    end = re.match(ends, answered.removeprefix(_ANSWER)) if ends else None
    if end is None:
        raise _unfit("ends no answer with a token of its own")
    tokenizer.eos_token = end[0]
    return template


def _unfit(reason: str) -> ValueError:
    return ValueError(f"The tokenizer's chat template {reason}; pass --template vicuna.")
