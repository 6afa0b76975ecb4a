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
from pixellm.masks import Size, decode_mask
from pixellm.scenes.phrasing import join_phrases, plural_of

MOST_TARGETS = 7
"""An answer with more objects than this reads like a list, so such topics are passed over."""

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
_Draft = dict[str, Any]
_EMPTY: _Draft = {"question": "", "answer": "", "objects": []}


class TemplateWriter:
    """A :class:`~pixellm.llm.client.Client` without a model; a seed chooses topics and wordings."""

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
        drafts = sorted(
            _drafts(photo, style),
            key=lambda draft: seeded_fraction(self._seed, photo.id, draft["question"][0]),
        )
        skip = 1 if request.kind == "repair" else 0
        if len(drafts) <= skip:
            return Reply(json.dumps(_EMPTY))
        draft = dict(drafts[skip])
        for part in ("question", "answer"):
            pick = seeded_fraction(self._seed, part, photo.id, style)
            draft[part] = draft[part][int(pick * len(draft[part]))]
        return Reply(json.dumps(draft))


def styles_for(photo: Photo, styles: Sequence[str]) -> tuple[str, ...]:
    """Those of the styles in which a template has an honest question about a photo."""
    return tuple(style for style in styles if any(True for _ in _drafts(photo, style)))


def describe(instances: Sequence[Instance], size: Size) -> dict[int, str] | None:
    """Descriptions, by id, that tell all instances of one class in a photo apart.

    By place, or by size; None where neither tells them apart.
    """
    name = _called(instances[0].category)
    if len(instances) == 1:
        return {instances[0].id: f"the {name} {_place(instances[0], size)}"}
    if in_order := _in_order(instances, name, size):
        return in_order
    in_cells = {one.id: f"the {name} {_place(one, size)}" for one in instances}
    if len(set(in_cells.values())) == len(in_cells):
        return in_cells
    return _by_size(instances, name) if len(instances) == 2 else None


def _in_order(instances: Sequence[Instance], name: str, size: Size) -> dict[int, str] | None:
    height, width = size
    for axis, span, low, high in ((0, width, "left", "right"), (1, height, "top", "bottom")):
        ordered = sorted(instances, key=lambda instance: _centre(instance)[axis])
        steps = [_centre(b)[axis] - _centre(a)[axis] for a, b in pairwise(ordered)]
        if len(ordered) > len(_ORDINALS) or min(steps) < (0.08 if len(steps) < 3 else 0.03) * span:
            continue
        at = "on the" if axis == 0 else "at the"
        texts = [f"the {name} {at} {low}", f"the {name} {at} {high}"]
        if len(ordered) == 3:
            texts.insert(1, f"the {name} in the middle")
        elif len(ordered) > 3:
            texts = [f"the {_ORDINALS[n]} {name} from the {low}" for n in range(len(ordered))]
            texts[-1] = f"the last {name} from the {low}"
            if axis == 0:
                texts[0], texts[-1] = f"the leftmost {name}", f"the rightmost {name}"
        return {i.id: text for i, text in zip(ordered, texts, strict=True)}
    return None


def _by_size(instances: Sequence[Instance], name: str) -> dict[int, str] | None:
    """Descriptions of two by how large they look, where one looks twice as large."""
    small, large = sorted(instances, key=lambda one: one.box[2] * one.box[3])
    if large.box[2] * large.box[3] < 2 * small.box[2] * small.box[3]:
        return None
    return {large.id: f"the larger {name}", small.id: f"the smaller {name}"}


def _drafts(photo: Photo, style: str) -> Iterator[_Draft]:
    yield from _comparisons(photo) if style == "comparison" else _topics(photo, style)


def _topics(photo: Photo, style: str) -> Iterator[_Draft]:
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
    """Drafts that compare two objects of one class, or of two classes, by size or height."""
    groups = {n: g for n, g in _by_category(photo).items() if n not in photo.left_out}
    for name, group in groups.items():
        texts = describe(group, photo.size) if len(group) == 2 else None
        if texts and texts != _by_size(group, _called(name)):  # else the answer repeats itself
            yield from _larger(group, texts, f"of the two {plural_of(_called(name))}", "")
    singles = [group[0] for group in groups.values() if len(group) == 1]
    for first, second in combinations(singles[:5], 2):
        two = (first, second)
        texts = {i.id: f"the {_called(i.category)} {_place(i, photo.size)}" for i in two}
        names = f", the {_called(first.category)} or the {_called(second.category)}"
        yield from _larger(two, texts, "", names)
        yield from _higher(two, texts, names)


def _larger(
    two: Sequence[Instance], texts: dict[int, str], whose: str, names: str
) -> Iterator[_Draft]:
    """A draft about the part of the photo that two objects take up, where it differs clearly."""
    area = {instance.id: int(decode_mask(instance.mask).sum()) for instance in two}
    large, small = sorted(two, key=lambda instance: -area[instance.id])
    ratio = area[large.id] / max(1, area[small.id])
    if ratio < 1.4:
        return
    extent = "more than twice as much of the photo as" if ratio > 2.2 else "more of the photo than"
    which = f"Which {whose}".rstrip()
    ask = [
        f"{which} looks larger in this photo{names}?",
        f"{which} takes up more of this photo{names}?",
        f"{which} would catch the eye first by its size{names}?",
    ]
    verb = "take up" if large.category in _table()["pairs"] else "takes up"
    yield _comparison(ask, f"{verb} {extent}", texts, large, small)


def _higher(two: Sequence[Instance], texts: dict[int, str], names: str) -> Iterator[_Draft]:
    """A draft about which of two objects is higher up, where one ends before the other begins."""
    upper, lower = sorted(two, key=lambda one: one.box[1])
    if upper.box[1] + upper.box[3] > lower.box[1]:
        return
    ask = [
        f"Which is higher up in this photo{names}?",
        f"Which is closer to the top of this photo{names}?",
    ]
    verb = "are" if upper.category in _table()["pairs"] else "is"
    yield _comparison(ask, f"{verb} higher up than", texts, upper, lower)


def _comparison(
    ask: list[str], verb: str, texts: dict[int, str], first: Instance, second: Instance
) -> _Draft:
    """A draft whose answer sets one object against another."""
    one, other = (f"{texts[instance.id]} {{seg:{instance.id}}}" for instance in (first, second))
    objects = [(instance.id, texts[instance.id]) for instance in (first, second)]
    return _draft(ask, [f"{one[0].upper()}{one[1:]} {verb} {other}."], objects)


def _draft(ask: list[str], answers: list[str], objects: Sequence[tuple[int, str]]) -> _Draft:
    listed = join_phrases([f"{text} {{seg:{number}}}" for number, text in objects])
    return {
        "question": ask,
        "answer": [answer.replace("{objects}", listed) for answer in answers],
        "objects": [{"id": number, "description": text} for number, text in objects],
    }


def _by_category(photo: Photo) -> dict[str, list[Instance]]:
    groups: dict[str, list[Instance]] = defaultdict(list)
    for instance in photo.instances:
        groups[instance.category].append(instance)
    return groups


def _place(instance: Instance, size: Size) -> str:
    """Where an object lies, in words, by the centre of its box in a 3 x 3 grid."""
    (x, y), (height, width) = _centre(instance), size
    row = ("top", "", "bottom")[min(2, int(3 * y / height))]
    column = ("left", "", "right")[min(2, int(3 * x / width))]
    if instance.box[2] > 0.8 * width:
        if instance.box[3] > 0.6 * height:
            return "that fills most of the photo"
        return f"along the {row}" if row else "that reaches from side to side"
    if not row:
        return f"on the {column}" if column else "in the middle"
    return f"at the {row} {column}".rstrip()


def _called(category: str) -> str:
    return str(_table()["called"].get(category, category))


def _centre(instance: Instance) -> tuple[float, float]:
    x, y, width, height = instance.box
    return x + width / 2, y + height / 2


@cache
def _table() -> Any:
    """Names in everyday words and the topics: wordings, answer, the categories that belong."""
    return json.loads(resources.files(__package__).joinpath("topics.json").read_text("utf-8"))
