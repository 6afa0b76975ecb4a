"""The judge of the MUSE score: do the masks of an answer show what its words say?

A mask can overlap a true object while the text around it speaks of another. After matching, each
mask in the text is replaced by the description of the true object that it was matched to, and a
judge rates from 1 to 10 whether that object fits (Ren et al., CVPR 2024, section 5). A mask rated
below a threshold counts with intersection 0. Here are the items to be judged, a judge that compares
words offline and one that asks a language model; what follows from ratings is in
:mod:`pixellm.evaluation.judgement`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pixellm.evaluation.records import AnswerRecord
from pixellm.llm.client import (
    Client,
    NoReplyError,
    OpenAIClient,
    RefusedError,
    ReplySchema,
    Request,
    UnanswerableError,
    public_url,
)
from pixellm.llm.prices import Price, price_of
from pixellm.llm.run import RequestProgress, RequestRunner, RunLimits, StoppedError
from pixellm.llm.store import RequestStore
from pixellm.processing.phrases import phrase_before
from pixellm.types import Turn, split_marks

LOWEST, HIGHEST = 1.0, 10.0
"""Ends of the scale."""

DEFAULT_THRESHOLD = 3.0
"""Ratings below it reject a mask; the paper's value is not printed, this one is remembered."""

Verdict = dict[int, float]
"""The rating of each mask of an answer that matched an object, by its number from 1 on."""

REPROMPTS = 2
"""Times that a language model is told what was wrong with its reply."""

_SMALL_WORDS = re.compile(
    r"a|an|the|this|that|these|those|of|on|in|at|to|by|with|and|or|is|are|its|their|there"
)
"""Left out where words are compared."""
_SAME_WORD = 0.75
"""Two words count as one from this share of common letters on: "cups" and "cup"."""


@dataclass(frozen=True, slots=True)
class JudgeItem:
    """One answer to be judged.

    Attributes:
        masks: per mask, [start, end) of the phrase in the answer that it grounds, and the
            description of the true object that it was matched to; None for a mask that matched
            nothing, which is not judged.
    """

    question: str
    answer: str
    masks: tuple[tuple[tuple[int, int], str | None], ...]

    @property
    def matched(self) -> list[tuple[int, str, str]]:
        """(number from 1, phrase, description) of each mask that matched an object."""
        return [
            (number, self.answer[start:end], description)
            for number, ((start, end), description) in enumerate(self.masks, start=1)
            if description is not None
        ]

    def described_answer(self) -> str:
        """The answer with ``[NUMBER: description]`` in place of each matched mask, from 1 on.

        Square brackets of the texts themselves are dropped: they would pass for marks.
        """
        pieces, start = [], 0
        for number, ((_, end), description) in enumerate(self.masks, start=1):
            pieces.append(_without_brackets(self.answer[start:end]))
            if description is not None:
                pieces.append(f" [{number}: {_without_brackets(description).strip()}]")
            start = max(start, end)
        return "".join(pieces) + _without_brackets(self.answer[start:])

    def to_prompt(self) -> str:
        """What a language model is asked."""
        return f"Question: {self.question.strip()}\nAnswer: {self.described_answer().strip()}"


def judge_item(record: AnswerRecord, turn: Turn) -> JudgeItem:
    """What a judge is shown of an answer to a turn."""
    descriptions = describe_targets(turn)
    found = {match.prediction: match.truth for match in record.matches}
    described: list[str | None] = []
    for number in range(len(record.shown)):
        truth = found.get(number)
        described.append(None if truth is None else descriptions[truth])
    spans = [mask.span for mask in record.shown]
    return JudgeItem(record.question, record.answer, tuple(zip(spans, described, strict=True)))


def describe_targets(turn: Turn) -> tuple[str, ...]:
    """How the true answer speaks of each target, with the target's name where it says more."""
    described = []
    text, clauses = split_marks(turn.answer)
    for (start, stop), target in zip(clauses, turn.targets, strict=True):
        begin, end = phrase_before(text, stop, start)
        phrase = text[begin:end]
        known = not phrase or target.name.casefold() in phrase.casefold()
        described.append((phrase or target.name) if known else f"{phrase} ({target.name})")
    return tuple(described)


class Judge(ABC):
    """Anything that rates answers; ratings below ``threshold`` reject a mask.

    ValueError for a threshold off the scale, 1 to 10.
    """

    kind: str
    name: str

    def __init__(self, threshold: float = DEFAULT_THRESHOLD) -> None:
        if not LOWEST <= threshold <= HIGHEST:
            raise ValueError(f"The judge's threshold is from 1 to 10, not {threshold}.")
        self.threshold = threshold

    @abstractmethod
    def rate(
        self, items: Sequence[JudgeItem], progress: RequestProgress | None = None
    ) -> list[Verdict | None]:
        """Rate the masks of every item that matched an object, 1 to 10; None for no verdict."""

    def describe(self) -> dict[str, Any]:
        """What a rating depends on, for reports; nothing secret."""
        return {"kind": self.kind, "threshold": self.threshold}


class SimilarityJudge(Judge):
    """Compares each phrase with its description word by word; offline, free, and literal.

    The rating is 1 + 9 F1 over words, small words left out; similar spellings are one word. It
    knows no synonyms: "fruit" for a banana is rejected.
    """

    kind = name = "similarity"

    def rate(
        self, items: Sequence[JudgeItem], progress: RequestProgress | None = None
    ) -> list[Verdict | None]:
        """Rate every item; there is always a verdict."""
        rated: list[Verdict | None] = []
        for item in items:
            rated.append(
                {
                    number: LOWEST + (HIGHEST - LOWEST) * phrase_similarity(phrase, description)
                    for number, phrase, description in item.matched
                }
            )
            if progress is not None:
                progress(len(rated), len(items), 0.0)
        return rated


def _without_brackets(text: str) -> str:
    return re.sub(r"[\[\]]", "", text)


def phrase_similarity(first: str, second: str) -> float:
    """F1 of the words that two phrases share, 0 to 1; 0 where one has no words of weight."""
    left, right = _words(first), _words(second)
    if not (left and right):
        return 0.0
    free, common = list(right), 0
    for word in left:
        near = max(free, key=lambda other: _likeness(word, other), default="")
        if near and _likeness(word, near) >= _SAME_WORD:
            free.remove(near)
            common += 1
    return 2 * common / (len(left) + len(right))


def _words(text: str) -> list[str]:
    words = re.findall(r"\w+", text.casefold())
    return [word for word in words if not _SMALL_WORDS.fullmatch(word)]


def _likeness(first: str, second: str) -> float:
    return SequenceMatcher(None, first, second, autojunk=False).ratio()


class ObjectRating(ReplySchema):
    """A language model's score of one object."""

    object: int
    score: int


class ModelRatings(ReplySchema):
    """A language model's reply to one answer."""

    ratings: list[ObjectRating]


class LLMJudge(Judge):
    """Rates answers with a language model; a verdict in the cache is not asked for again.

    Verdicts are found by a digest of all that they depend on: model, server, rules and text. A
    second run with the same answers sends nothing, costs nothing and gives the same scores, and
    needs neither key nor server. Where the cache is empty a missing key shows at once, before
    hours of answering.

    Args:
        model: the model's name at its server.
        base_url: address of an OpenAI-compatible server; None for OpenAI's.
        cache: SQLite file of all ratings so far.
        threshold: ratings below it reject a mask.
        max_cost: USD that the cache's replies may cost in all; None for no limit.
        price: of the model's tokens; from the table of known models where None.
        workers: requests at the same time.
        timeout: seconds that one attempt may take.

    Raises:
        ValueError: an address that is none, a cost below 0, the price of a hosted model is not
            known, or its key is missing.
        OSError: the file can't be used.
    """

    kind = "llm"

    def __init__(
        self,
        model: str,
        base_url: str | None,
        cache: Path,
        threshold: float = DEFAULT_THRESHOLD,
        *,
        max_cost: float | None = None,
        price: Price | None = None,
        workers: int = 8,
        timeout: float = 60.0,
    ) -> None:
        super().__init__(threshold)
        if max_cost is not None and not max_cost >= 0:
            raise ValueError(f"The judge's cost cap is 0 USD or more, not {max_cost:g}.")
        if base_url is not None and not _is_address(base_url):
            raise ValueError(
                f"The judge's server is an address such as http://localhost:8000/v1, not "
                f"{base_url!r}."
            )
        self.name = model
        self.limits = RunLimits(workers, max_cost)
        self._server = public_url(base_url)
        self._price = price or price_of(model, base_url)
        self._connect: Callable[[], Client] = functools.cache(
            lambda: OpenAIClient(model, base_url, timeout)
        )
        rules = resources.files("pixellm.evaluation").joinpath("prompts", "judge.txt")
        self._system = rules.read_text(encoding="utf-8").strip()
        self.store = RequestStore(cache)
        if self.store.is_empty():
            self._connect()

    def describe(self) -> dict[str, Any]:
        """What a rating depends on."""
        return super().describe() | {"model": self.name, "server": self._server}

    def rate(
        self, items: Sequence[JudgeItem], progress: RequestProgress | None = None
    ) -> list[Verdict | None]:
        """Rate every item; equal items are asked about once.

        Returns:
            Verdicts in order; None where the model gave no usable one in all attempts. The next
            run asks for those again.

        Raises:
            OSError: the cost cap leaves no room for a further request, no request can be served
                (a wrong key, model or address, a server that fails or refuses again and again),
                or the store fails.
        """
        texts = {item: item.to_prompt() for item in items if item.matched}
        numbers = {text: [n for n, *_ in item.matched] for item, text in texts.items()}
        verdicts = {text: self._stored(text, numbers[text]) for text in numbers}
        missing = [text for text, verdict in verdicts.items() if verdict is None]

        def ask(text: str) -> None:
            verdicts[text] = self._ask(runner, text, numbers[text])

        if missing:
            runner = RequestRunner(
                self.store, {"": self._connect()}, {self.name: self._price}, self.limits
            )
            show = progress or (lambda done, total, spent: None)
            stopped = runner.run_all(missing, ask, show, len(verdicts))
            if not runner.num_replies and runner.last_failure and not stopped:
                stopped = f"All requests to the judge {runner.last_failure}; run again later."
            if stopped:
                raise StoppedError(stopped)
        elif progress is not None:
            progress(len(verdicts), len(verdicts), self.store.spent())
        return [verdicts[texts[item]] if item in texts else {} for item in items]

    def _stored(self, text: str, numbers: Sequence[int]) -> Verdict | None:
        """The verdict of an earlier run, or None."""
        reply = self.store.reply(self._key(text))
        try:
            return None if reply is None else read_ratings(reply.text, numbers)
        except ValueError:
            return None

    def _ask(self, runner: RequestRunner, text: str, numbers: Sequence[int]) -> Verdict | None:
        """The verdict on one answer, through bad replies; None where there was none."""
        turns: tuple[tuple[str, str], ...] = (("user", text),)
        for _ in range(1 + REPROMPTS):
            request = Request(self._key(text), "judge", self._system, turns, ModelRatings)
            try:
                reply = runner.ask(request)
                return read_ratings(reply.text, numbers)
            except (NoReplyError, RefusedError, UnanswerableError):
                return None
            except ValueError as error:
                complaint = f"{error} Reply again, with the JSON object alone."
                turns = (*turns, ("assistant", reply.text), ("user", complaint))
        return None

    def _key(self, text: str) -> str:
        content = json.dumps([self.name, self._server, self._system, text], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


def read_ratings(text: str, numbers: Sequence[int]) -> Verdict:
    """Rating by number of object, from a model's reply, each object of ``numbers`` once.

    Words and a code fence around the JSON object are passed over. A ValueError says to the model
    what is wrong.
    """
    match = re.search(r"\{.*\}", text, flags=re.DOTALL)
    try:
        rows = json.loads(match[0] if match else text)["ratings"]
        pairs = [(row["object"], row["score"]) for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(
            'This was not a JSON object of the form {"ratings": [{"object": 1, "score": 7}]}.'
        ) from None
    for number, score in pairs:
        is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if not is_number or not LOWEST <= score <= HIGHEST:
            raise ValueError(f"The score of object {number!r} is {score!r}, not one from 1 to 10.")
    if sorted(str(number) for number, _ in pairs) != sorted(map(str, numbers)):
        raise ValueError(f"The objects to rate, each once, are {', '.join(map(str, numbers))}.")
    return {int(number): float(score) for number, score in pairs}


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False
