"""Whether a model knows where things lie: sides and order in its answers about scenes.

    pixellm eval scenes --model nano-scenes --split val --num 250 --out val
    python benchmarks/scene_sides.py val

Of the objects that answers about a half of the image name, counts those that lie in it; of pairs
named one behind the other, those that go from left to right, as all true answers do. A model that
does not know is right half of the time. What a mask covers does not count, but an object whose mask
is filtered is passed over. Draws the scenes again; no model is asked.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

from pixellm.evaluation.records import AnswerRecord, read_run
from pixellm.scenes.dataset import ScenesDataset
from pixellm.scenes.knowledge import Knowledge, load_knowledge
from pixellm.scenes.phrasing import concept_of_phrase

_SIDES = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "upper": (1, -1)}
_SIDES |= {"bottom": (1, 1), "lower": (1, 1)}
_IN_ORDER = ("half", "relative", "category", "use")
_AXES = ("left or right", "top or bottom")

Centers = dict[str, tuple[float, float]]


@cache
def centers_of(image: str) -> Centers:
    """Where the objects of an image lie, from -1 to 1; those that are there once."""
    split, seed, index = image.rsplit("-", 2)
    scene = ScenesDataset(split, seed=int(seed), length=int(index) + 1).scene(int(index))
    height, width = scene.image.shape[:2]
    counts = Counter(one.concept for one in scene.objects)
    return {
        one.concept: (2 * one.center[0] / width - 1, 2 * one.center[1] / height - 1)
        for one in scene.objects
        if counts[one.concept] == 1
    }


def named_centers(record: AnswerRecord, knowledge: Knowledge) -> list[tuple[float, float]]:
    """Where the objects that an answer names lie, in its order."""
    centers = centers_of(record.image)
    names = [concept_of_phrase(mask.label, knowledge) for mask in record.shown]
    return [centers[name] for name in names if name in centers]


def main() -> None:
    """Print what was right of how many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    knowledge = load_knowledge()
    right, asked = Counter[str](), Counter[str]()
    for record in read_run(parser.parse_args().folder).records:
        if record.kind not in _IN_ORDER:
            continue
        named = named_centers(record, knowledge)
        for one, following in pairwise(named):
            asked["order"] += one != following
            right["order"] += one[0] < following[0]
        word = re.search("|".join(_SIDES), record.question.lower())
        if record.kind == "half" and word:
            axis, sign = _SIDES[word[0]]
            asked[_AXES[axis]] += len(named)
            right[_AXES[axis]] += sum(center[axis] * sign > 0 for center in named)
    for name in (*_AXES, "order"):
        print(f"{name}: {right[name]} of {asked[name]}")


if __name__ == "__main__":
    main()
