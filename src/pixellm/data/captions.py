"""What captions say of the people in an image: words that questions may use for "person".

An annotation says "person"; people ask for the man, the lady, the kids or the surfer. A word is
taken from captions in COCO's format only where they agree on it and speak of nobody else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pixellm.data.coco import read_captions

LEAST_CAPTIONS = 2
"""So many captions must use a word."""

_WORD = re.compile(r"[a-z]+")

_MEANT: Mapping[str, tuple[str, bool]] = {
    **dict.fromkeys(("man", "guy", "gentleman"), ("man", False)),
    **dict.fromkeys(("men", "guys", "gentlemen"), ("man", True)),
    **dict.fromkeys(("woman", "lady"), ("woman", False)),
    **dict.fromkeys(("women", "ladies"), ("woman", True)),
    "boy": ("boy", False),
    "boys": ("boy", True),
    "girl": ("girl", False),
    "girls": ("girl", True),
    **dict.fromkeys(("child", "kid", "baby", "toddler"), ("child", False)),
    **dict.fromkeys(("children", "kids", "babies", "toddlers"), ("child", True)),
}
"""A word of a caption -> whom it means, and whether several."""

_SAID = {
    "man": ("man", "guy"),
    "woman": ("woman", "lady"),
    "boy": ("boy", "kid"),
    "girl": ("girl", "kid"),
    "child": ("child", "kid"),
}
_ROLES = frozenset(
    {"player", "skier", "surfer", "skateboarder", "snowboarder", "rider", "batter", "skater"}
)


@dataclass(frozen=True, slots=True)
class PeopleWords:
    """Words for one of the people of an image, in the singular; and whether there are several."""

    words: tuple[str, ...]
    are_several: bool


def read_people_words(path: Path) -> dict[int | str | None, PeopleWords]:
    """Id of an image -> words for its people, of a file in COCO's format; none where in doubt."""
    found = {image: people_words(texts) for image, texts in read_captions(path).items()}
    return {image: words for image, words in found.items() if words is not None}


def people_words(captions: Sequence[str]) -> PeopleWords | None:
    """The words that an image's captions agree on; None where they don't."""
    meant: Counter[tuple[str, bool]] = Counter()
    roles: Counter[str] = Counter()
    for caption in captions:
        words = set(_WORD.findall(caption.lower()))
        meant.update({_MEANT[word] for word in words & _MEANT.keys()})
        roles.update(words & _ROLES)
    whom = {one for one, _ in meant}
    if len(whom) == 2 and "child" in whom and whom & {"boy", "girl"}:
        whom.discard("child")
    numbers = {several for _, several in meant}
    if len(whom) != 1 or len(numbers) != 1 or meant.total() < LEAST_CAPTIONS:
        return None
    (one,), (several,) = whom, numbers
    often = [role for role, count in roles.items() if count >= LEAST_CAPTIONS and not several]
    return PeopleWords((*_SAID[one], *sorted(often)), several)
