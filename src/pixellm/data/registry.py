"""The data sets that can be named: in recipes, and on the command line.

A table of names and where their classes are, which are imported when one is opened.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    reader: type[Dataset] = getattr(import_module(module), attribute)
    return reader


def open_reader(name: str, root: Path | str, split: str, **options: Any) -> Dataset:
    """Open a split of a data set.

    Args:
        name: a key of :data:`READERS`.
        root: folder that holds the data sets.
        split: one of the reader's splits.
        options: further arguments of the reader, by name.
    """
    reader = reader_class(name)
    try:
        return reader(root, split, **options)
    except TypeError as error:
        raise ValueError(f"Options of data set {name!r}: {error}.") from error
