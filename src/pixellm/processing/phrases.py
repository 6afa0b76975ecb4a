"""Which words of an answer a mask grounds: the noun phrase right before a codebook group.

A hand-made reader of short English answers, without a parser or a tagger; where its word lists
don't reach (other languages, odd grammar) it falls back to the words behind the last punctuation
mark.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NUMBERS = _words("one ones two three four five six seven eight nine ten eleven twelve both other")
_DETERMINERS = _NUMBERS | _words(
    "the a an this that these those my your his her its our their another each every either any "
    "some all several many few no"
)
_PRONOUNS = _words("i you we he she it they what who there here that")
_CONJUNCTIONS = _words("and or but nor plus while because so if when where whereas")
_RELATIVES = _words("who which whose that")
_FINITE_VERBS = _words(
    "is are was were be been am has have had do does did can could will would shall should may "
    "might must cannot holds shows keeps helps lets makes wears contains includes"
)
_PRESENTING_VERBS = _words(
    "use used need want see find choose pick take grab get try show segment suggest recommend "
    "mean think thinking looking talking like prefer reach go look wear hold bring help make give "
    "found shown called"
)
# With these, "in the basket" says where something goes and not which thing it is.
_MOVING_VERBS = _words(
    "put place set lay hang pour cut slice chop paint write draw fill cover attach tie wrap clean "
    "wipe sweep dry wash fix hit cook fry boil bake eat drink carry store keep open close sit "
    "throw drop load pack plant stick"
)
_FILLERS = _words(
    "sure yes ok okay well here there then also now maybe perhaps probably certainly clearly "
    "finally just only simply please not"
)
_BREAKING_PREPOSITIONS = _words("into onto using via toward towards as")
_PREPOSITIONS = _BREAKING_PREPOSITIONS | _words(
    "in on at with without near by beside besides behind under underneath below beneath above "
    "over between among inside outside across along around against beyond through from for to "
    "than like about within of"
)
_NEARNESS = _words("next close closer closest near nearer nearest adjacent opposite")
_SIDES = _words("left right top bottom side front back rear far middle")

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_BOUNDARY = re.compile(r"[,;:](?!\d)|[.!?](?=\s|$)|[()\[\]{}\"“”—–&/|\n]|\s-\s")
_LINKING_TAIL = re.compile(
    r"\s(?:is|are|was|were)(?:\s+(?:also|here|there|right|shown|highlighted|marked|located"
    r"|segmented|at|as|by|in))*\W*$",
    re.IGNORECASE,
)


def phrase_before(text: str, end: int, start: int = 0) -> tuple[int, int]:
    """Find the noun phrase that ends right before a codebook group.

    It opens with the determiner or number of its noun, and keeps what follows and tells the
    thing apart ("the man in a red shirt", "the cup on the left", "the dog that is asleep");
    without a determiner it is what stands behind the last verb, preposition or conjunction. It
    never crosses a comma, "and" or "or". A linking verb between phrase and group is left out
    ("the red apple is [SEG]").

    Args:
        text: an answer, without special tokens.
        end: where the group stands, in characters.
        start: where the previous group stood; the phrase doesn't begin before it.

    Returns:
        [start, end) of the phrase in ``text``, without spaces and punctuation around it; empty,
        at ``end``, only if there is no word between ``start`` and ``end``.

    Example:
        >>> answer = "You could use the pair of scissors"
        >>> first, last = phrase_before(answer, len(answer))
        >>> answer[first:last]
        'the pair of scissors'
    """
    region = text[start:end]
    tail = _LINKING_TAIL.search(region)
    if tail and _WORD.search(region, 0, tail.start()):
        region = region[: tail.start()]
    words = list(_WORD.finditer(region))
    if not words:
        return end, end
    closing = words[-1]
    boundaries = _BOUNDARY.finditer(region, 0, closing.start())
    behind = max((mark.end() for mark in boundaries), default=0)
    words = [word for word in words if word.start() >= behind]
    plain = [word.group().lower().replace("’", "'") for word in words]
    opening = words[_Reader(plain).opening()]
    return start + opening.start(), start + closing.end()


class _Reader:
    """Reads a clause word by word and remembers where its last noun phrase began.

    Attributes:
        begin: index of the phrase's first word, as far as read.
        opened: a determiner or number opened the phrase.
        linked: the next determiner continues the phrase ("in *a* red shirt").
        moved: the verb before tells where something goes, so a preposition starts anew.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self._restart(0)

    def opening(self) -> int:
        """Index of the first word of the phrase that ends with the last word."""
        for index in range(len(self.words) - 1):  # the last word always belongs to the phrase
            self._read(index)
        return self.begin

    def _read(self, index: int) -> None:
        word = self.words[index]
        if word in _CONJUNCTIONS:
            self._restart(index + 1)
        elif self._is_relative(index):
            self.linked = True
        elif self._is_verb(index):
            self._restart(index + 1, moved=word in _MOVING_VERBS)
        elif word in _PREPOSITIONS:
            self._read_preposition(index)
        elif word in _DETERMINERS or word.isdigit():
            self._read_determiner(index)
        elif word.endswith("ing") and self.opened:  # "a woman holding a cup"
            self.linked = True
        elif word in _FILLERS and not self.opened:
            self._restart(index + 1)

    def _restart(self, index: int, moved: bool = False) -> None:
        self.begin, self.opened, self.linked, self.moved = index, False, False, moved

    def _read_determiner(self, index: int) -> None:
        word, before = self.words[index], self.words[max(index - 1, 0)]
        number = word in _NUMBERS or word.isdigit()
        continues = self.linked or before in _DETERMINERS or number
        if not (self.opened and continues):
            self.begin, self.opened = index, True
        self.linked = False

    def _read_preposition(self, index: int) -> None:
        word = self.words[index]
        if word == "of" and index > self.begin:
            self.opened = self.linked = True
            return
        breaking = word in _BREAKING_PREPOSITIONS or (
            word == "to" and not self._is_spatial_to(index)
        )
        if self.opened and not self.moved and not breaking:
            self.linked = True
        else:
            self._restart(index + 1)

    def _is_spatial_to(self, index: int) -> bool:
        """Whether "to" says where a thing is: "next to", "to the left of"."""
        return self.words[index - 1] in _NEARNESS or bool(
            _SIDES.intersection(self.words[index + 1 : index + 4])
        )

    def _is_relative(self, index: int) -> bool:
        """Whether the word is a relative pronoun, or a verb in a run right behind one."""
        word = self.words[index]
        if not self.opened or index == self.begin:
            return False
        if word in _RELATIVES:
            follower = self.words[index + 1]
            verb = follower in _FINITE_VERBS or follower in _PRESENTING_VERBS
            return word != "that" or verb or follower.endswith(("s", "ed"))
        return word in _FINITE_VERBS and self._is_relative(index - 1)

    def _is_verb(self, index: int) -> bool:
        word, follower = self.words[index], self.words[index + 1]
        stem, apostrophe, _ = word.partition("'")
        if word in _PRONOUNS - _DETERMINERS - _RELATIVES or (apostrophe and stem in _PRONOUNS):
            return True
        if word == "that" and follower in _DETERMINERS:  # "I think that the dog"
            return True
        if word == "can":  # the thing, not the verb: "a can of", "the can on", "the can is"
            before = self.words[index - 1] if index else ""
            thing = _PREPOSITIONS | _NEARNESS | _FINITE_VERBS
            return before not in _DETERMINERS and follower not in thing
        if word in _FINITE_VERBS or word.endswith("n't"):
            return True
        return not self.opened and (word in _PRESENTING_VERBS or word in _MOVING_VERBS)
