"""The rules that a proposed question and answer must keep, each with a name and a sentence.

Pure functions over text: nothing here asks a model, reads a file or mends anything. The rules are
those that the paper gives its writer (Ren et al., CVPR 2024, section 4), plus what keeps the
format from breaking and foreign text from getting through.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pixellm.curation.photos import Photo
from pixellm.scenes.phrasing import plural_of
from pixellm.types import SEG_MARK


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MARK = re.compile(r"\{\s*seg\s*:\s*#?(\d{1,6})\s*\}", re.IGNORECASE)
"""How a draft marks an object, ``{seg:3}``; forgiving about spaces and case."""

_ARTICLE = re.compile(r"^(?:the|a|an)\s+", re.IGNORECASE)
_WORD = re.compile(r"[\w'’-]+")
_SEVERAL = re.compile(
    r"\?.*\?|;|(?:^|\s)(?:\(?[0-9a-c][.)]|[-•*])\s|\band\s+(?:what|which|who|where|why|how|when)\b",
    re.IGNORECASE | re.DOTALL,
)
_LEAK = re.compile(
    r"[\[(]\s*\d+(?:\.\d+)?\s*,|\b\d{2,4}\s*[,x×]\s*\d{2,4}\b|#\s*\d|\bpixels?\b|\bcoordinates?\b"
    r"|\bbounding\b|\b(?:id|ids|instance|object|item)\s*(?:number|no\.?)?\s*[:=]?\s*\d",
    re.IGNORECASE,
)
_FOREIGN = re.compile(
    r"\bapi[ _-]?key|\bsk-\w|\bpasswords?\b|\bsystem prompt|\bas an ai\b|\blanguage model\b"
    r"|\b(?:ignore|disregard|forget)\s+(?:all|any|the|these|those|previous|prior|your)\b"
    r"|\bjson\b|\bannotat|\bdata ?set\b|\bhttps?:|\bwww\.|<\s*[a-z/!]|```|[{}]"
    r"|[\x00-\x1f\ud800-\udfff]",
    re.IGNORECASE,
)
_FUNCTION_WORDS = _words(
    "the a an of in on at to and is are be for with what which would could you if that this it "
    "from by these there"
)
# Class names that are also everyday verbs, colours or general words: only "the orange" names one.
_EVERYDAY = _words(
    "orange bear tie train book remote person people mouse bow can clock kite fan iron bowl "
    "present watch stop light"
)
_DEFINITE = re.compile(
    r"\b(?:the|this|that|these|those|both|his|her|their)\s+(?:[\w-]+\s+)?$", re.I
)


@dataclass(frozen=True, slots=True)
class Draft:
    """A proposal as its writer gave it; the answer marks objects ``{seg:ID}`` behind their phrase.

    ``descriptions`` are (id, description) of each object, in the writer's order.
    """

    question: str
    answer: str
    descriptions: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A question that kept all rules, its answer with one ``{seg}`` behind each target's phrase.

    ``targets`` are (instance id, description) in the order of their marks.
    """

    question: str
    answer: str
    targets: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule: its name, for counting, and a sentence that tells the writer what to mend."""

    rule: str
    says: str


class Vocabulary:
    """Finds the categories of a data set, all given, in running text, singular and plural."""

    def __init__(self, categories: Iterable[str]) -> None:
        self._names: dict[tuple[str, ...], set[str]] = {}
        for category in categories:
            plain = re.sub(r"\s*\(.*?\)", "", category).casefold().strip()
            for form in (plain, plural_of(plain)) if plain else ():
                self._names.setdefault(tuple(_WORD.findall(form)), set()).add(category)
        self._longest = max(map(len, self._names), default=0)

    def find(self, text: str) -> list[tuple[str, frozenset[str]]]:
        """The (words, categories they may stand for) of each category named in the text."""
        spans = [match.span() for match in _WORD.finditer(text)]
        words = [text[start:end].casefold() for start, end in spans]
        found, position = [], 0
        while position < len(words):
            for length in range(min(self._longest, len(words) - position), 0, -1):
                named = words[position : position + length]
                names = self._names.get(tuple(named))
                if not names:
                    continue
                is_everyday = length == 1 and named[0] in _EVERYDAY
                if not is_everyday or _DEFINITE.search(text[: spans[position][0]]):
                    found.append((" ".join(named), frozenset(names)))
                    position += length - 1
                    break
            position += 1
        return found


@dataclass(frozen=True, slots=True)
class Scene:
    """What a draft is held against.

    Attributes:
        photo: the photo with its instances.
        vocabulary: the categories of the whole data set.
        may_name_classes: the style asks about objects by their class, as comparisons do.
    """

    photo: Photo
    vocabulary: Vocabulary
    may_name_classes: bool = False


def verify(draft: Draft, scene: Scene) -> list[Violation]:
    """The rules that a draft breaks, in the order of :data:`RULES`; none for a good one."""
    return [Violation(name, says) for name, rule in RULES.items() if (says := rule(draft, scene))]


def row_from_draft(draft: Draft) -> Row:
    """The row of a draft without violations: marks lose their ids, targets follow the marks."""
    descriptions = dict(draft.descriptions)
    targets = tuple((number, descriptions[number]) for number in _marked(draft))
    answer = re.sub(rf"\s*(?:{MARK.pattern})", f" {SEG_MARK}", draft.answer.strip(), flags=re.I)
    return Row(draft.question.strip(), answer, targets)


def _unknown_id(draft: Draft, scene: Scene) -> str:
    known = scene.photo.by_id()
    wrong = sorted({*_marked(draft), *dict(draft.descriptions)} - set(known))
    return f"There is no object {wrong[0]}; use the ids of the list only." if wrong else ""


def _too_few_targets(draft: Draft, scene: Scene) -> str:
    few = len(set(_marked(draft))) < 2
    return "The answer must mark at least two different objects with {seg:ID}." if few else ""


def _repeated_mark(draft: Draft, scene: Scene) -> str:
    listed = [number for number, _ in draft.descriptions]
    twice = any(len(set(one)) < len(one) for one in (_marked(draft), listed))
    return "Mark and list each object once only." if twice else ""


def _mark_without_object(draft: Draft, scene: Scene) -> str:
    missing = set(_marked(draft)) - set(dict(draft.descriptions))
    return f"Object {min(missing)} is marked but not listed in objects." if missing else ""


def _object_without_mark(draft: Draft, scene: Scene) -> str:
    missing = set(dict(draft.descriptions)) - set(_marked(draft))
    return f"Object {min(missing)} is listed but has no mark in the answer." if missing else ""


def _stray_mark(draft: Draft, scene: Scene) -> str:
    rest = [MARK.sub("", draft.answer), draft.question, *(text for _, text in draft.descriptions)]
    stray = any("{" in text or "}" in text or "[seg" in text.casefold() for text in rest)
    return "Marks are written {seg:ID}, and stand in the answer only." if stray else ""


def _phrase_differs(draft: Draft, scene: Scene) -> str:
    descriptions = dict(draft.descriptions)
    for match in MARK.finditer(draft.answer):
        words = _plain(descriptions.get(int(match[1]), ""))
        if words and not _plain(draft.answer[: match.start()]).endswith(words):
            return (
                f"Write the description of object {match[1]} word for word right before its mark."
            )
    return ""


def _unmarked_mention(draft: Draft, scene: Scene) -> str:
    here = _categories(scene.photo)
    for word, categories in scene.vocabulary.find(_outside(draft)):
        if categories & here:
            return f"The answer names a {word} without a mark; mark it or leave it out."
    return ""


def _absent_object(draft: Draft, scene: Scene) -> str:
    here = _categories(scene.photo)
    for word, categories in scene.vocabulary.find(MARK.sub("", draft.answer)):
        if not categories & here:
            return f"The answer names a {word}, which is not in the list of objects."
    return ""


def _not_rephrased(draft: Draft, scene: Scene) -> str:
    known = scene.photo.by_id()
    for number, text in draft.descriptions:
        if number in known and _plain(text) == _plain(known[number].category):
            return f"Describe object {number} by its place, shape or looks, not by its class alone."
    return ""


def _same_description(draft: Draft, scene: Scene) -> str:
    texts = [_plain(text) for _, text in draft.descriptions]
    same = len(set(texts)) < len(texts)
    return "Two objects have the same description; tell them apart." if same else ""


def _gives_away(draft: Draft, scene: Scene) -> str:
    question = _plain(draft.question)
    if any(_plain(text) in question for _, text in draft.descriptions if len(text.split()) > 1):
        return "The question holds a description of the answer; let it be found out."
    known = scene.photo.by_id()
    targets = {known[number].category for number in _marked(draft) if number in known}
    named = {c for _, categories in scene.vocabulary.find(draft.question) for c in categories}
    if not scene.may_name_classes and targets and targets <= named:
        return "The question names all objects of the answer; ask for them by reasoning."
    return ""


def _several_questions(draft: Draft, scene: Scene) -> str:
    several = _SEVERAL.search(draft.question.strip())
    return "Ask one question about one complete activity, not a list of parts." if several else ""


def _lengths(draft: Draft, scene: Scene) -> str:
    pieces = [("question", draft.question, 5, 60), ("answer", MARK.sub(" ", draft.answer), 5, 220)]
    pieces += [(f"description of object {n}", text, 2, 60) for n, text in draft.descriptions]
    for name, text, low, high in pieces:
        words = len(_WORD.findall(text))
        if not low <= words <= high:
            return f"The {name} has {words} words; {low} to {high} are wanted."
    return ""


def _language(draft: Draft, scene: Scene) -> str:
    text = f"{draft.question} {MARK.sub(' ', draft.answer)}"
    letters = [character for character in text if character.isalpha()]
    plain = sum(character.isascii() for character in letters)
    common = {word.casefold() for word in _WORD.findall(text)} & _FUNCTION_WORDS
    english = plain >= 0.95 * len(letters) and len(common) >= 3
    return "" if english else "Write question and answer in English."


def _leak(draft: Draft, scene: Scene) -> str:
    found = next((match for text in _texts(draft) if (match := _LEAK.search(text))), None)
    return "No coordinates, ids or image sizes in the text." if found else ""


def _foreign_text(draft: Draft, scene: Scene) -> str:
    found = any(_FOREIGN.search(text) for text in _texts(draft))
    return (
        "The text holds something that is no part of a question about the photo." if found else ""
    )


RULES: Mapping[str, Callable[[Draft, Scene], str]] = {
    "unknown_id": _unknown_id,
    "too_few_targets": _too_few_targets,
    "repeated_mark": _repeated_mark,
    "mark_without_object": _mark_without_object,
    "object_without_mark": _object_without_mark,
    "stray_mark": _stray_mark,
    "phrase_differs": _phrase_differs,
    "unmarked_mention": _unmarked_mention,
    "absent_object": _absent_object,
    "not_rephrased": _not_rephrased,
    "same_description": _same_description,
    "gives_away": _gives_away,
    "several_questions": _several_questions,
    "lengths": _lengths,
    "language": _language,
    "leak": _leak,
    "foreign_text": _foreign_text,
}
"""Every rule by name, in the order in which violations are reported."""


def _marked(draft: Draft) -> list[int]:
    return [int(number) for number in MARK.findall(draft.answer)]


def _texts(draft: Draft) -> list[str]:
    return [draft.question, MARK.sub("", draft.answer), *(text for _, text in draft.descriptions)]


def _plain(text: str) -> str:
    """Lower case, single spaces, no leading article: for comparing phrases."""
    return _ARTICLE.sub("", " ".join(MARK.sub(" ", text).casefold().split()))


def _outside(draft: Draft) -> str:
    """The answer without the phrases that carry a mark."""
    descriptions = dict(draft.descriptions)
    rest, start = [], 0
    for match in MARK.finditer(draft.answer):
        piece = " ".join(draft.answer[start : match.start()].split())
        words = _plain(descriptions.get(int(match[1]), ""))
        if words and piece.casefold().endswith(words):
            piece = piece[: -len(words)]
        rest.append(piece)
        start = match.end()
    return " | ".join([*rest, draft.answer[start:]])


def _categories(photo: Photo) -> set[str]:
    return {instance.category for instance in photo.instances} | set(photo.left_out)
