"""From a task and the replies so far to what comes next: another request, or a verdict.

:func:`next_step` is a pure function of what the ledger keeps, which is why a run can be killed at
any point and goes on as if nothing had happened. No state, no clock, no network here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import islice
from string import Template
from typing import Any

from pixellm.curation.photos import Photo
from pixellm.curation.rules import (
    MARK,
    Draft,
    Row,
    Scene,
    Violation,
    Vocabulary,
    row_from_draft,
    verify,
)
from pixellm.llm.client import ImagePart, Reply, ReplySchema, Request

KINDS = ("propose", "repair", "fit")
"""What is asked about a task, in this order."""

IMAGE_SIDE, CROP_SIDE = 1024, 256
"""Long side in pixels of a photo as it is sent, whose frame the boxes in the prompt are in, and
of the crop of one object."""


class ListedObject(ReplySchema):
    """An object that the answer marks."""

    id: int
    description: str


class Proposal(ReplySchema):
    """The reply to ``propose`` and ``repair``."""

    question: str
    answer: str
    objects: list[ListedObject]


class Fits(ReplySchema):
    """The reply to ``fit``: whether each description fits its crop."""

    fits: list[bool]


_TRAILING_COMMA = re.compile(r",\s*(?=[}\]])")
_MAY_NAME_CLASSES = "comparison"


@cache
def prompt(name: str) -> str:
    """The text of a file of ``prompts/``."""
    folder = resources.files("pixellm.curation").joinpath("prompts")
    return folder.joinpath(name).read_text("utf-8")


@dataclass(frozen=True, slots=True)
class Task:
    """One question to be written.

    Attributes:
        id: its number in the ledger.
        photo: the photo.
        style: the kind of question, a key of ``prompts/styles.json``.
        number: 0, 1, ... for the questions about one photo.
    """

    id: int
    photo: Photo
    style: str
    number: int


@dataclass(frozen=True, slots=True)
class WriterRequest(Request):
    """A request with the task that it is about, for writers that don't read prompts."""

    task: Task = field(kw_only=True)


def request_key(task: int, kind: str) -> str:
    """What the store finds the replies to a task by."""
    return f"{task}/{kind}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a task.

    Attributes:
        status: ``accepted``, ``rejected``, or ``failed`` (no reply could be had, or the server
            refused the request; the next run asks again).
        row: the question, when accepted.
        violations: why it was not accepted.
        first_violations: the broken rules of the first draft, mended since or not.
    """

    status: str
    row: Row | None = None
    violations: tuple[Violation, ...] = ()
    first_violations: tuple[Violation, ...] = ()


@dataclass(frozen=True)
class Writing:
    """How tasks are turned into requests; the same for a whole run.

    Attributes:
        vocabulary: categories of the whole data set.
        text_only: the model sees captions, no image.
        check_fit: a second model looks at the crop of every described object.
    """

    vocabulary: Vocabulary
    text_only: bool = False
    check_fit: bool = False
    styles: Mapping[str, str] = field(default_factory=lambda: json.loads(prompt("styles.json")))

    def next_step(self, task: Task, replies: Mapping[str, Reply]) -> WriterRequest | Verdict:
        """What comes next for a task, from the replies so far by kind of request."""
        if "propose" not in replies:
            return self._request(task, "propose", (("user", self._propose(task)),))
        row, violations = self._judge(task, replies["propose"])
        first = violations
        if row is None and "repair" not in replies:
            if violations[0].rule in ("refusal", "nothing_to_ask"):
                return Verdict("rejected", violations=violations, first_violations=first)
            return self._repair(task, replies["propose"], violations)
        if row is None:
            row, violations = self._judge(task, replies["repair"])
        if row is None:
            return Verdict("rejected", violations=violations, first_violations=first)
        if not self.check_fit:
            return Verdict("accepted", row, first_violations=first)
        if "fit" not in replies:
            return self._ask_fit(task, row)
        unfit = _read_fit(replies["fit"], row)
        status = "rejected" if unfit else "accepted"
        return Verdict(status, None if unfit else row, unfit, first)

    def _judge(self, task: Task, reply: Reply) -> tuple[Row | None, tuple[Violation, ...]]:
        parsed = parse_draft(reply)
        if isinstance(parsed, Violation):
            return None, (parsed,)
        named = task.style == _MAY_NAME_CLASSES
        violations = verify(parsed, Scene(task.photo, self.vocabulary, may_name_classes=named))
        return (None, tuple(violations)) if violations else (row_from_draft(parsed), ())

    def _propose(self, task: Task) -> str:
        photo = task.photo
        scale = 1.0 if self.text_only else min(1.0, IMAGE_SIDE / max(photo.size))
        lines = []
        for instance in photo.instances:
            x, y, w, h = instance.box
            box = [round(value * scale) for value in (x, y, x + w, y + h)]
            lines.append(json.dumps({"id": instance.id, "class": instance.category, "box": box}))
        view = ""
        if self.text_only:
            view = (
                " You can't see it: the boxes and the captions are all that is known. Describe "
                "objects by place and size, and invent no looks."
            )
        captions = [json.dumps(c[:300]) for c in photo.captions[:5]]
        return Template(prompt("propose.txt")).substitute(
            style=self.styles[task.style],
            height=round(photo.size[0] * scale),
            width=round(photo.size[1] * scale),
            view=view,
            objects="\n".join(lines),
            captions="\n".join(["\nCaptions of the photo:", *captions] if captions else []),
        )

    def _repair(self, task: Task, first: Reply, violations: Sequence[Violation]) -> WriterRequest:
        says = "\n".join(f"- {violation.says}" for violation in violations)
        text = Template(prompt("repair.txt")).substitute(faults=says)
        earlier = (("user", self._propose(task)), ("assistant", first.text[:6000]))
        return self._request(task, "repair", (*earlier, ("user", text)))

    def _ask_fit(self, task: Task, row: Row) -> WriterRequest:
        known = task.photo.by_id()
        lines = "\n".join(json.dumps(text) for _, text in row.targets)
        text = Template(prompt("fit.txt")).substitute(count=len(row.targets), descriptions=lines)
        path = task.photo.file_name
        crops = tuple(ImagePart(path, CROP_SIDE, known[number].box) for number, _ in row.targets)
        key = request_key(task.id, "fit")
        return WriterRequest(key, "fit", "", (("user", text),), Fits, crops, task=task)

    def _request(self, task: Task, kind: str, turns: tuple[tuple[str, str], ...]) -> WriterRequest:
        photo = () if self.text_only else (ImagePart(task.photo.file_name, IMAGE_SIDE),)
        key = request_key(task.id, kind)
        return WriterRequest(key, kind, prompt("system.txt"), turns, Proposal, photo, task=task)


def parse_draft(reply: Reply) -> Draft | Violation:
    """Read a proposal, forgiving about the wrapping, strict about the content.

    A violation is ``refusal``, ``truncated``, ``bad_json`` or ``nothing_to_ask``.
    """
    if reply.finish == "refusal":
        return Violation("refusal", "The model refused.")
    data = _find_object(reply.text, "question")
    if data is None:
        if reply.finish == "length":
            return Violation("truncated", "The reply was cut off; use fewer words.")
        return Violation("bad_json", "The reply is no JSON object of the wanted form.")
    question, answer = data.get("question"), data.get("answer")
    objects: Any = data.get("objects")
    if not question and not objects:
        return Violation("nothing_to_ask", "The writer found no good question of this kind.")
    try:
        question, answer = _read_text(question), _read_text(answer)
        pairs = tuple((_read_id(item["id"]), _read_text(item["description"])) for item in objects)
    except (KeyError, TypeError, ValueError):
        return Violation("bad_json", "Use the keys question, answer, objects, id and description.")
    return Draft(question, answer, pairs)


def prompts_fingerprint() -> str:
    """A short hash of all prompts: rows written under other prompts are told apart by it."""
    names = ("system.txt", "propose.txt", "repair.txt", "fit.txt", "styles.json")
    return hashlib.sha256("\0".join(prompt(name) for name in names).encode()).hexdigest()[:16]


def _find_object(text: str, key: str) -> dict[str, Any] | None:
    """The first JSON object with a key, in a text that may wrap it in prose or a code fence."""
    decoder = json.JSONDecoder()
    braces = re.finditer(r"\{(?!\s*seg)", text, re.IGNORECASE)
    for start in [match.start() for match in islice(braces, 20)]:
        for candidate in (text[start:], _TRAILING_COMMA.sub("", text[start:])):
            try:
                found, _ = decoder.raw_decode(candidate)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict) and key in found:
                return found
    return None


def _read_fit(reply: Reply, row: Row) -> tuple[Violation, ...]:
    data = _find_object(reply.text, "fits") or {}
    fits = data.get("fits")
    if not isinstance(fits, list) or len(fits) != len(row.targets):
        return (Violation("fit_unreadable", "The second model gave no clear verdict."),)
    if not all(fit is True for fit in fits):
        return (Violation("unfit", "A description doesn't fit its object."),)
    return ()


def _read_id(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError("An id is a whole number.")
    mark = MARK.fullmatch(str(value))
    return int(mark[1] if mark else value)


def _read_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("Text is wanted here.")
    return " ".join(value.split())
