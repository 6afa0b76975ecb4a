"""Dialogues to token ids and back, with text that people type kept apart from control tokens.

A prompt template is data: a Jinja chat template stored with the tokenizer. The template alone
decides where control tokens stand; questions are tokenised with control tokens switched off, so
``[SEG0]`` or ``<image>`` in a question stays plain text. Answers may hold ``{seg}`` marks, each
of which becomes one codebook group. This module knows no pictures and no tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from pixellm.types import SEG_MARK

Message = dict[str, Any]

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

_SLOT = re.compile("\ue000(\\d+)\ue001")
_GLUED = ",.;:!?)]}'\"%"


@dataclass(frozen=True, slots=True)
class EncodedDialogue:
    """Token ids of a dialogue.

    Attributes:
        ids: token ids, one image placeholder expanded to the model's number of image tokens.
        labelled: for each id, whether the model is to learn to write it.
        prefix: number of leading ids up to and including the image, shared by every dialogue
            about the same picture; 0 without a picture.
    """

    ids: tuple[int, ...]
    labelled: tuple[bool, ...]
    prefix: int


@dataclass(frozen=True, slots=True)
class DecodedAnswer:
    """An answer's text, and for each complete codebook group where its phrase ends in it."""

    text: str
    ends: tuple[int, ...]


def dialogue_messages(
    history: Sequence[tuple[str, str]], question: str | None = None, *, image: bool = True
) -> list[Message]:
    """Build the usual messages of a dialogue about one picture.

    Args:
        history: (question, answer) pairs; answers may hold ``{seg}`` marks.
        question: a last question still to be answered.
        image: place the picture in front of the first question.
    """
    turns: list[tuple[str, str]] = []
    for asked, answered in history:
        turns += [("user", asked), ("assistant", answered)]
    if question is not None:
        turns.append(("user", question))
    messages: list[Message] = [
        {"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns
    ]
    if image and messages:
        messages[0]["content"].insert(0, {"type": "image"})
    return messages


class PromptCodec:
    """Encodes dialogues and decodes answers for one tokenizer and one codebook."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str,
        image_token: str,
        codebook_tokens: Sequence[str],
        num_image_tokens: int,
        label_lead: int = 0,
    ) -> None:
        """Prepare a codec.

        Args:
            tokenizer: a fast tokenizer that knows the control tokens.
            chat_template: Jinja template of a dialogue.
            image_token: text of the image placeholder.
            codebook_tokens: texts of the codebook's tokens, in order.
            num_image_tokens: ids that one placeholder becomes.
            label_lead: ids in front of each answer that are labelled with it; the released model
                learns to write the colon of "ASSISTANT:", 1.

        Raises:
            ValueError: the tokenizer lacks one of the named control tokens.
        """
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.num_image_tokens = num_image_tokens
        self.label_lead = label_lead
        vocabulary = tokenizer.get_vocab()
        missing = [t for t in (image_token, *codebook_tokens) if t not in vocabulary]
        if missing:
            raise ValueError(f"The tokenizer lacks the control tokens {', '.join(missing)}.")
        self.image_id = vocabulary[image_token]
        self.codebook_ids = tuple(vocabulary[t] for t in codebook_tokens)
        self._control = {
            token.content: index for index, token in tokenizer.added_tokens_decoder.items()
        }
        self._swallows = {
            token.content: (token.lstrip, token.rstrip)
            for token in tokenizer.added_tokens_decoder.values()
        }
        by_length = sorted(self._control, key=len, reverse=True)
        self._control_pattern = re.compile("(" + "|".join(map(re.escape, by_length)) + ")")
        self._plain = _without_control_tokens(tokenizer)
        self._control_ids = set(self._control.values()) - {tokenizer.unk_token_id}

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> EncodedDialogue:
        """Encode messages of roles "user" and "assistant" with text and image parts.

        Raises:
            ValueError: the dialogue holds more than one picture, or a message of another role.
        """
        slots: list[tuple[str, str]] = []
        rendered = self.tokenizer.apply_chat_template(
            [self._with_slots(message, slots) for message in messages],
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
        ids: list[int] = []
        labelled: list[bool] = []
        prefix, after_answer = 0, False
        pieces = self._control_pattern.split(rendered)
        neighbours = zip([None, *pieces], pieces, [*pieces[1:], None], strict=False)
        for before, piece, behind in neighbours:
            if not piece:
                continue
            if piece in self._control:
                token = self._control[piece]
                count = self.num_image_tokens if token == self.image_id else 1
                if token == self.image_id and prefix:
                    raise ValueError("A dialogue is about one picture; this one places several.")
                ids += [token] * count
                labelled += [after_answer and token == self.tokenizer.eos_token_id] * count
                if token == self.image_id:
                    prefix = len(ids)
                after_answer = False
            else:
                trim = (
                    self._swallows.get(before or "", (False, False))[1],
                    self._swallows.get(behind or "", (False, False))[0],
                )
                after_answer = self._encode_text(piece, slots, ids, labelled, trim)
        return EncodedDialogue(tuple(ids), self._add_lead(labelled), prefix)

    def decode_answer(self, ids: Sequence[int]) -> DecodedAnswer:
        """Read an answer: plain text, and where each complete group's phrase ends.

        A group that was cut short leaves no mark, and no text.
        """
        text, ends, chunk = "", list[int](), list[int]()
        position, group = 0, len(self.codebook_ids)
        while position < len(ids):
            if tuple(ids[position : position + group]) == self.codebook_ids:
                text = self._join(text, chunk, bool(ends)).rstrip()
                ends.append(len(text))
                chunk = []
                position += group
            else:
                chunk.append(ids[position])
                position += 1
        return DecodedAnswer(self._join(text, chunk, bool(ends)).rstrip(), tuple(ends))

    def mark_answer(self, answer: DecodedAnswer) -> str:
        """The answer with its ``{seg}`` marks back in place, for the history of a dialogue."""
        pieces, start = [], 0
        for end in answer.ends:
            pieces.append(answer.text[start:end].replace(SEG_MARK, "") + " " + SEG_MARK)
            start = end
        return "".join(pieces) + answer.text[start:].replace(SEG_MARK, "")

    def _join(self, text: str, chunk: list[int], after_group: bool) -> str:
        """Append a chunk of ids; text behind a group gets the space that its tokens swallow."""
        piece = self.tokenizer.decode(
            chunk, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if not text:
            return piece.lstrip()
        piece = piece.lstrip() if after_group else piece
        glue = "" if not piece or piece[0] in _GLUED or piece[0].isspace() else " "
        return text + (glue if after_group else "") + piece

    def _with_slots(self, message: Message, slots: list[tuple[str, str]]) -> Message:
        """Replace a message's texts by numbered slots, so that the template cannot read them."""
        if message["role"] not in ("user", "assistant"):
            raise ValueError(f"A message is by the user or the assistant, not {message['role']!r}.")
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        replaced = []
        for part in parts:
            if part.get("type") == "text":
                slots.append((message["role"], part["text"]))
                part = {"type": "text", "text": f"\ue000{len(slots) - 1}\ue001"}
            replaced.append(part)
        return {"role": message["role"], "content": replaced}

    def _add_lead(self, labelled: list[bool]) -> tuple[bool, ...]:
        """Label the ids in front of each answer too, :attr:`label_lead` of them."""
        starts = [i for i, label in enumerate(labelled) if label and not (i and labelled[i - 1])]
        for start in starts:
            first = max(0, start - self.label_lead)
            labelled[first:start] = [True] * (start - first)
        return tuple(labelled)

    def _encode_text(
        self,
        piece: str,
        slots: list[tuple[str, str]],
        ids: list[int],
        labelled: list[bool],
        trim: tuple[bool, bool],
    ) -> bool:
        """Encode text between control tokens; returns whether it ends in an answer.

        ``trim`` says whether the control token on the left and the one on the right swallow the
        whitespace beside them.
        """
        trim_left, trim_right = trim
        run, answer_spans = "", list[tuple[int, int]]()
        ends_in_answer, position = False, 0
        for match in _SLOT.finditer(piece):
            run += piece[position : match.start()]
            role, text = slots[int(match[1])]
            position = match.end()
            ends_in_answer = role == "assistant" and position == len(piece)
            if role != "assistant":
                run += text
                continue
            first, *rest = text.split(SEG_MARK)
            first = first.rstrip() if rest else first
            # The space that a prompt ends before is the answer's own, where it is a token.
            answer_spans.append((len(run.rstrip()), len(run) + len(first)))
            run += first
            for follower in rest:
                run, answer_spans = _trimmed(run, answer_spans, trim_left, right=False)
                self._encode_run(run, answer_spans, ids, labelled)
                trim_left = False
                ids += self.codebook_ids
                labelled += [True] * len(self.codebook_ids)
                run = follower.strip()
                answer_spans = [(0, len(run))]
        run += piece[position:]
        run, answer_spans = _trimmed(run, answer_spans, trim_left, trim_right)
        self._encode_run(run, answer_spans, ids, labelled)
        return ends_in_answer

    def _encode_run(
        self, run: str, answer_spans: list[tuple[int, int]], ids: list[int], labelled: list[bool]
    ) -> None:
        """Tokenise plain text; a token is labelled where it overlaps an answer."""
        if not run:
            return
        for token, (start, end) in self._plain_tokens(run):
            ids.append(token)
            labelled.append(any(start < high and end > low for low, high in answer_spans))

    def _plain_tokens(self, run: str, shift: int = 0) -> Iterator[tuple[int, tuple[int, int]]]:
        """Ids of a text and their [start, end) in characters; never a control token's id."""
        encoding = self._plain.encode(run, add_special_tokens=False)
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self._control_ids and end - start > 1:
                # Merges of ordinary pieces spell a control token: cut the text inside it.
                yield from self._plain_tokens(run[: start + 1], shift)
                yield from self._plain_tokens(run[start + 1 :], shift + start + 1)
                return
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            yield token, (start + shift, end + shift)


def _without_control_tokens(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The same tokenizer, to which every added token is a text like any other."""
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in values["added_tokens"]:
        token["special"] = True
    plain = Tokenizer.from_str(json.dumps(values))
    plain.encode_special_tokens = True
    return plain


def _trimmed(
    run: str, spans: list[tuple[int, int]], left: bool, right: bool
) -> tuple[str, list[tuple[int, int]]]:
    """Drop whitespace at the ends of a run; spans keep pointing at the same characters."""
    start = len(run) - len(run.lstrip()) if left else 0
    kept = run[start:].rstrip() if right else run[start:]
    return kept, [(low - start, high - start) for low, high in spans]
