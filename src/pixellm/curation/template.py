"""The writer that needs no model: honest questions from categories, positions and a table of uses.

It answers like a model would, with JSON text, and goes through the same rules. It says only what
the annotations support: a topic is used only when all objects of its categories are listed, and
positions and sizes come from masks and boxes. What is not annotated it can't know.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from itertools import combinations, pairwise
from typing import Any

from pixellm.curation.photos import Instance, Photo, seeded_fraction
from pixellm.curation.proposal import WriterRequest
from pixellm.llm.client import Reply, Request, UnanswerableError
from pixellm.masks import decode_mask
from pixellm.scenes.phrasing import plural_of

MOST_TARGETS = 8
"""An answer with more objects than this reads like a list, so such topics are passed over."""

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_Draft = dict[str, Any]
_EMPTY: _Draft = {"question": "", "answer": "", "objects": []}


class TemplateWriter:
    """A :class:`~pixellm.llm.client.Client` without a model.

    Args:
        seed: chooses among topics and wordings.
    """

    name = "template"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def complete(self, request: Request) -> Reply:
        """A question of the wanted style, or the empty reply where none is honest.

        A repair takes the next topic, since repeating the same words would be of no use.
        """
        if not isinstance(request, WriterRequest):
            raise UnanswerableError("Templates write about annotated photos only.")
        photo, style = request.task.photo, request.task.style
        found = _comparisons(photo) if style == "comparison" else _topics(photo, style)
        drafts = sorted(
            found, key=lambda draft: seeded_fraction(self._seed, photo.id, draft["answer"])
        )
        skip = 1 if request.kind == "repair" else 0
        draft = drafts[skip] if len(drafts) > skip else _EMPTY
        if draft["question"]:
            pick = seeded_fraction(self._seed, "wording", photo.id, style)
            wordings = draft["question"]
            draft = {**draft, "question": wordings[int(pick * len(wordings))]}
        return Reply(json.dumps(draft))


def describe(instances: Sequence[Instance], size: tuple[int, int]) -> dict[int, str] | None:
    """Descriptions by place that tell the instances of one class apart.

    Args:
        instances: all instances of one category in the photo.
        size: (height, width) of the photo.

    Returns:
        Description by instance id, or None where positions don't tell them apart.
    """
    height, width = size
    name = _called(instances[0].category)
    if len(instances) == 1:
        return {instances[0].id: f"the {name} {_place(instances[0], size)}"}
    for axis, span, ends in (
        (0, width, ("left", "right")),
        (1, height, ("upper", "lower")),
    ):
        ordered = sorted(instances, key=lambda instance: _centre(instance)[axis])
        steps = [_centre(b)[axis] - _centre(a)[axis] for a, b in pairwise(ordered)]
        if min(steps) < (0.08 if len(ordered) == 2 else 0.04) * span:
            continue
        if len(ordered) == 2:
            texts = [f"the {name} on the {ends[0]}", f"the {name} on the {ends[1]}"]
            if axis == 1:
                texts = [f"the upper {name}", f"the lower {name}"]
            return {i.id: text for i, text in zip(ordered, texts, strict=True)}
        if len(ordered) <= len(_ORDINALS):
            side = "from the left" if axis == 0 else "from the top"
            texts = [f"the {_ORDINALS[n]} {name} {side}" for n in range(len(ordered))]
            return {i.id: text for i, text in zip(ordered, texts, strict=True)}
    return None


def _topics(photo: Photo, style: str) -> Iterator[_Draft]:
    """Drafts of every topic of a style that the photo supports."""
    of_category = _by_category(photo)
    for topic in _table()["topics"]:
        also = topic.get("also", [])
        wanted = [*topic["of"], *also]
        if topic["style"] != style or set(wanted) & set(photo.left_out):
            continue
        members = [name for name in wanted if name in of_category]
        number = sum(len(of_category[name]) for name in members)
        if not set(also) < set(members) or not 2 <= number <= MOST_TARGETS:
            continue
        described = [describe(of_category[name], photo.size) for name in members]
        if all(described):
            objects = [pair for texts in described for pair in (texts or {}).items()]
            yield _draft(topic["ask"], topic["answer"], objects)


def _comparisons(photo: Photo) -> Iterator[_Draft]:
    """Drafts that compare two objects of one class, or of two classes, by size and place."""
    groups = {n: g for n, g in _by_category(photo).items() if n not in photo.left_out}
    for name, group in groups.items():
        texts = describe(group, photo.size) if len(group) == 2 else None
        if texts:
            pair = f"two {plural_of(_called(name))}"
            yield from _compare(group, texts, pair)
    singles = [group[0] for group in groups.values() if len(group) == 1]
    for first, second in combinations(singles[:4], 2):
        texts = {
            i.id: f"the {_called(i.category)} {_place(i, photo.size)}" for i in (first, second)
        }
        pair = f"{_called(first.category)} and the {_called(second.category)}"
        yield from _compare((first, second), texts, pair)


def _compare(two: Sequence[Instance], texts: dict[int, str], pair: str) -> Iterator[_Draft]:
    """A draft about the part of the photo that two objects take up, where it differs clearly."""
    area = {instance.id: int(decode_mask(instance.mask).sum()) for instance in two}
    large, small = sorted(two, key=lambda instance: -area[instance.id])
    ratio = area[large.id] / max(1, area[small.id])
    if ratio < 1.4:
        return
    extent = "more than twice as much of the photo as" if ratio > 2.2 else "more of the photo than"
    ask = [
        f"How do the {pair} differ in the room they take up in this photo?",
        f"Compare the {pair}, which of them looks larger in this photo?",
        f"Between the {pair}, what catches the eye first by its size in the photo?",
    ]
    large_text, small_text = texts[large.id], texts[small.id]
    answer = (
        f"{large_text[0].upper()}{large_text[1:]} {{seg:{large.id}}} fills {extent} "
        f"{small_text} {{seg:{small.id}}}."
    )
    yield _draft(ask, answer, [(large.id, large_text), (small.id, small_text)])


def _draft(ask: list[str], answer: str, objects: Sequence[tuple[int, str]]) -> _Draft:
    marked = [f"{text} {{seg:{number}}}" for number, text in objects]
    listed = ", ".join(marked[:-1]) + " and " + marked[-1]
    return {
        "question": ask,
        "answer": answer.replace("{objects}", listed),
        "objects": [{"id": number, "description": text} for number, text in objects],
    }


def _by_category(photo: Photo) -> dict[str, list[Instance]]:
    groups: dict[str, list[Instance]] = defaultdict(list)
    for instance in photo.instances:
        groups[instance.category].append(instance)
    return groups


def _place(instance: Instance, size: tuple[int, int]) -> str:
    """Where an object lies, in words, by the centre of its box in a 3 x 3 grid."""
    (x, y), (height, width) = _centre(instance), size
    if instance.box[2] > 0.8 * width:
        return "across the photo"
    row = ("top", "", "bottom")[min(2, int(3 * y / height))]
    column = ("left", "", "right")[min(2, int(3 * x / width))]
    if not row:
        return f"on the {column}" if column else "in the middle"
    return f"at the {row} {column}".rstrip()


def _called(category: str) -> str:
    """A category in everyday words."""
    return str(_table()["called"].get(category, category))


def _centre(instance: Instance) -> tuple[float, float]:
    x, y, width, height = instance.box
    return x + width / 2, y + height / 2


@cache
def _table() -> Any:
    """Names in everyday words and the topics: wordings, answer, the categories that belong."""
    return json.loads(resources.files(__package__).joinpath("topics.json").read_text("utf-8"))
