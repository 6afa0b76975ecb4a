"""Dialogues to token ids and back, with text that people type kept apart from control tokens.

A prompt template is data: a Jinja chat template stored with the tokenizer. The template alone
decides where control tokens stand; questions are tokenised with control tokens switched off, so
``[SEG0]`` or ``<image>`` in a question stays plain text. Answers may hold ``{seg}`` marks, each
of which becomes one codebook group.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from pixellm.processing.bounded_template import (
    TEMPLATE_FAULTS,
    TemplateBoundsError,
    render_template,
)
from pixellm.processing.protection import (
    answer_pieces,
    control_words,
    protect_message,
    restore,
    unmarked,
)

Message = dict[str, Any]

_SLOT = re.compile("\ue000(\\d+)\ue001")
_GLUED = ",.;:!?)]}'\"%"


@dataclass(frozen=True, slots=True)
class EncodedDialogue:
    """Token ids of a dialogue.

    Attributes:
        ids: token ids, one image placeholder expanded to the model's number of image tokens.
        labelled: for each id, whether the model is to learn to write it.
        prefix: number of leading ids up to and including the image, shared by every dialogue
            about the same image; 0 without an image.
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
    """Build the usual messages of a dialogue about one image, in front of the first question.

    ``history`` has (question, answer) pairs, whose answers may hold ``{seg}`` marks; ``question``
    is a last one, still to be answered.
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
    """Encodes dialogues and decodes answers for one tokenizer and one codebook.

    The tokenizer, a fast one, knows the control tokens: the placeholder of an image, which becomes
    ``num_image_tokens`` ids, and the codebook's, in order. The template is Jinja.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str,
        image_token: str,
        codebook_tokens: Sequence[str],
        num_image_tokens: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.num_image_tokens = num_image_tokens
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
        self._control_pattern = re.compile(f"({control_words(self._control)})")
        self._written_pattern = unmarked(self._control)
        self._group = "".join(codebook_tokens)
        self._space_before_group = re.compile(rf"\s+(?={re.escape(self._group)})")
        self._plain = _without_control_tokens(tokenizer)
        self._control_ids = set(self._control.values()) - {tokenizer.unk_token_id}

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> EncodedDialogue:
        """Encode messages of roles "user" and "assistant" with text and image parts."""
        slots: list[tuple[str, str]] = []
        slotted = [self._with_slots(message, slots) for message in messages]
        rendered = self._fill_template(slotted, self.chat_template, add_generation_prompt)
        ending = self._prompt_ending(slotted, self.chat_template)
        ids: list[int] = []
        labelled: list[bool] = []
        prefix, after_answer = 0, False
        for piece, token, trim in self._pieces(self._control_pattern.split(rendered)):
            if token is None:
                after_answer = self._encode_text(piece, slots, ids, labelled, trim, ending)
                continue
            prefix = self._place(token, ids, prefix)
            is_end = after_answer and token == self.tokenizer.eos_token_id
            labelled += [is_end] * (len(ids) - len(labelled))
            after_answer = False
        return EncodedDialogue(tuple(ids), tuple(labelled), prefix)

    def render(
        self,
        messages: Sequence[Message],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Messages as the text of a prompt, for :meth:`encode_rendered`.

        Control words in the messages are marked, see :mod:`pixellm.processing.protection`;
        ``{seg}`` marks of answers become codebook tokens.
        """
        template = chat_template or self.chat_template
        protected = [protect_message(m, self._control_pattern, self._group) for m in messages]
        rendered = self._fill_template(protected, template, add_generation_prompt)
        ending = self._prompt_ending(protected, template)
        return self._space_before_group.sub(
            lambda space: ending if space[0].startswith(ending) else "", rendered
        )

    def encode_rendered(self, prompt: str) -> EncodedDialogue:
        """Encode a rendered prompt: control words without a mark are control tokens."""
        ids, prefix = list[int](), 0
        for piece, token, trim in self._pieces(self._written_pattern.split(prompt)):
            if token is None:
                run, _ = _trimmed(restore(piece), [], *trim)
                self._encode_run(run, [], ids, [])
            else:
                prefix = self._place(token, ids, prefix)
        return EncodedDialogue(tuple(ids), (False,) * len(ids), prefix)

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

    def _pieces(self, pieces: Sequence[str]) -> Iterator[tuple[str, int | None, tuple[bool, bool]]]:
        """Texts and control words in turn, (piece, id, swallowed).

        The id of a text is None; swallowed says whether the control words on its left and right
        take the whitespace beside them.
        """
        for number, piece in enumerate(pieces):
            if number % 2:
                yield piece, self._control[piece], (False, False)
            elif piece:
                before = pieces[number - 1] if number else ""
                behind = pieces[number + 1] if number + 1 < len(pieces) else ""
                left, right = (
                    self._swallows.get(word, (False, False)) for word in (before, behind)
                )
                yield piece, None, (left[1], right[0])

    def _place(self, token: int, ids: list[int], prefix: int) -> int:
        """Add a control token, a placeholder expanded; the prefix, or where it now ends."""
        if token != self.image_id:
            ids.append(token)
            return prefix
        if prefix:
            raise ValueError("A dialogue is about one image; this one places several.")
        ids += [token] * self.num_image_tokens
        return len(ids)

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

    def _fill_template(
        self, messages: Sequence[Message], chat_template: str, add_generation_prompt: bool
    ) -> str:
        try:
            return render_template(self.tokenizer, messages, chat_template, add_generation_prompt)
        except TemplateBoundsError as error:
            raise ValueError(f"The model's chat template {error}; it is not run.") from error
        except TEMPLATE_FAULTS as error:
            raise ValueError(f"The model's chat template fails: {error}") from error

    def _prompt_ending(self, messages: Sequence[Message], chat_template: str) -> str:
        """The whitespace that the prompt of an answer ends with; "" where nothing is answered.

        An answer begins right behind it. What else a template writes between its prompt and an
        answer, such as the space of "ASSISTANT: ", belongs to the answer's first word.
        """
        roles = [message["role"] for message in messages]
        first = roles.index("assistant") if "assistant" in roles else 0
        if not first:
            return ""
        prompt = self._fill_template(messages[:first], chat_template, True)
        return prompt[len(prompt.rstrip()) :]

    def _encode_text(
        self,
        piece: str,
        slots: list[tuple[str, str]],
        ids: list[int],
        labelled: list[bool],
        trim: tuple[bool, bool],
        ending: str,
    ) -> bool:
        """Encode text between control tokens; returns whether it ends in an answer.

        ``trim`` says whether the control token on the left and the one on the right swallow the
        whitespace beside them, ``ending`` what whitespace prompts end with.
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
            first, *rest = answer_pieces(text)
            bare = run.rstrip()
            prompt = bare + ending if run.startswith(bare + ending) else bare
            if rest and not first:  # a group follows its prompt as it does when it is generated
                run = prompt
            answer_spans.append((len(prompt), len(run) + len(first)))
            run += first
            for follower in rest:
                run, answer_spans = _trimmed(run, answer_spans, trim_left, right=False)
                self._encode_run(run, answer_spans, ids, labelled)
                trim_left = False
                ids += self.codebook_ids
                labelled += [True] * len(self.codebook_ids)
                run = follower
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
