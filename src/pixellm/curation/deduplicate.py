"""Near-equal questions, per photo and over the whole set.

Exact, not sampled: all pairs above the threshold are found through the rarest words of each
question (prefix filtering), so the result depends on nothing but the questions and their order.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

NEAR_EQUAL = 0.8
"""Jaccard similarity of the word sets from which on two questions are near-equal."""

_WORD = re.compile(r"[a-z0-9']+")


def near_duplicates(questions: Sequence[tuple[str, str]], max_repeats: int = 3) -> set[int]:
    """Positions of the questions to leave out of (photo id, question) in order of preference.

    A question goes when it is near-equal to an earlier one about the same photo, or to
    ``max_repeats`` earlier ones over the set: the same good question about three photos is variety
    of images, about three hundred it is a habit of the writer.
    """
    words = [frozenset(_WORD.findall(text.casefold())) for _, text in questions]
    frequency = Counter(word for question in words for word in question)
    index: dict[str, list[int]] = defaultdict(list)
    dropped: set[int] = set()
    for position, question in enumerate(words):
        # Two sets this alike share one of the rarest words of each (Chaudhuri et al., 2006).
        rare_first = sorted(question, key=lambda word: (frequency[word], word))
        prefix = rare_first[: len(question) - math.ceil(NEAR_EQUAL * len(question)) + 1]
        candidates = {other for word in prefix for other in index[word]}
        alike = [
            other
            for other in candidates
            if len(question & words[other]) >= NEAR_EQUAL * len(question | words[other])
        ]
        same_photo = any(questions[other][0] == questions[position][0] for other in alike)
        if same_photo or len(alike) >= max_repeats:
            dropped.add(position)
            continue
        for word in prefix:
            index[word].append(position)
    return dropped
