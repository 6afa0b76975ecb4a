"""The data sets that can be named: in recipes, and on the command line.

A table of names and where their classes are, which are imported when one is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from pixellm.data.dataset import Dataset

READERS: dict[str, str] = {
    "refcoco": "pixellm.data.refer:RefCoco",
    "refcoco+": "pixellm.data.refer:RefCocoPlus",
    "refcocog": "pixellm.data.refer:RefCocoG",
    "refclef": "pixellm.data.refer:RefClef",
    "grefcoco": "pixellm.data.refer:GRefCoco",
    "multi-refcoco": "pixellm.data.refer:MultiRefCoco",
    "multi-refcoco+": "pixellm.data.refer:MultiRefCocoPlus",
    "multi-refcocog": "pixellm.data.refer:MultiRefCocoG",
    "reasonseg": "pixellm.data.reasonseg:ReasonSeg",
    "muse": "pixellm.data.muse:Muse",
    "ade20k": "pixellm.data.semantic:Ade20k",
    "cocostuff": "pixellm.data.semantic:CocoStuff",
    "mapillary": "pixellm.data.semantic:Mapillary",
    "paco": "pixellm.data.coco_sets:PacoLvis",
    "pascal-part": "pixellm.data.coco_sets:PascalPart",
    "llava": "pixellm.data.dialogues:LlavaInstruct",
    "coco": "pixellm.data.coco_sets:OwnCoco",
    "photos": "pixellm.data.photos:Photos",
    "coco-expressions": "pixellm.data.coco_sets:OwnExpressions",
    "jsonl": "pixellm.data.dialogues:JsonlSamples",
    "labelme": "pixellm.data.labelme:LabelMe",
    "png-masks": "pixellm.data.png_masks:PngMasks",
}
"""Name -> `module:class` of its :class:`pixellm.data.dataset.Dataset`."""


def reader_class(name: str) -> type[Dataset]:
    """The class that reads a data set."""
    if name not in READERS:
        raise ValueError(f"There is no data set {name!r}; known: {', '.join(READERS)}.")
    module, _, attribute = READERS[name].partition(":")
    return getattr(import_module(module), attribute)


def open_reader(name: str, root: Path | str, split: str, **options: Any) -> Dataset:
    """Open a split of a data set by its name in :data:`READERS`, with options of its reader."""
    return construct(reader_class(name), name, (root, split), options)


def construct(kind: type, name: str, places: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """An object of a class, by the name that the user calls it, from values that a user wrote.

    Of options, values of plain types are checked against the signature; ValueError for an unknown
    or missing argument, or one of another type.
    """
    hints: dict[str, Any] = {}
    for base in reversed(kind.__mro__):  # a class hands on what it does not know
        hints |= get_type_hints(vars(base).get("__init__", object))
    for key in options.keys() & hints.keys():
        value = options[key]
        if isinstance(value, PurePath) or not _is_plain(hints[key]):
            continue
        try:
            TypeAdapter(hints[key]).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].replace("Input", f"{key} {value!r:.40}", 1)
            raise ValueError(f"Options of data set {name!r}: {reason}.") from None
    try:
        return kind(*places, **options)
    except TypeError as error:
        raise ValueError(f"Options of data set {name!r}: {error}.") from error


def _is_plain(hint: Any) -> bool:
    """Whether a type is a number, a text, a truth value, a path, or one of several of these."""
    if get_origin(hint) in (Union, UnionType):
        return all(map(_is_plain, get_args(hint)))
    return get_origin(hint) is Literal or hint in (bool, int, float, str, Path, NoneType)
