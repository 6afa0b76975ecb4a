"""Data sets of objects and their parts: PACO-LVIS and Pascal-Part.

Both are COCO-style files whose category names are "object" or "object:part". Here that becomes
"the wheel of the car" or "car wheel"; everything else is :class:`CocoClasses`' business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixellm.data.readers.coco_classes import CocoClasses

_SENSE = re.compile(r"_?\(.*?\)")


class _Parts(CocoClasses):
    """What both sets share; they are asked for regions, or for instances where told so."""

    def __init__(
        self, root: Path | str, split: str = "train", seed: int = 0, **options: Any
    ) -> None:
        annotations, images = self.files(Path(root), split)
        super().__init__(root, split, seed, annotations, images, **options)

    def names_of(self, category: Mapping[str, Any]) -> tuple[str, ...]:
        """An object as it is; of "car:wheel" the class "car wheel", and both ways to ask for it."""
        words = _SENSE.sub("", str(category["name"])).replace("_", " ").split(":")
        thing, *part = (" ".join(word.split()) for word in words)
        if not part:
            return (thing,)
        return f"{thing} {part[0]}", f"{part[0]} of the {thing}", f"{thing} {part[0]}"


class PacoLvis(_Parts):
    """PACO-LVIS: 75 kinds of objects, 456 kinds of parts of them, on COCO photos."""

    name = "paco"
    title = "PACO-LVIS: objects and their parts"
    splits = ("train", "val", "test")
    obtain = (
        "download paco_lvis_v1.zip from github.com/facebookresearch/paco into "
        "vlpart/paco/annotations, and the photos from cocodataset.org into coco"
    )

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The annotations, and the folder that holds ``train2017`` and ``val2017``."""
        folder = root / "vlpart" / "paco" / "annotations"
        return folder / f"paco_lvis_v1_{split}.json", root / "coco"


class PascalPart(_Parts):
    """Pascal-Part as VLPart distributes it: parts of 20 kinds of objects."""

    name = "pascal-part"
    title = "Pascal-Part: parts of things and animals"
    splits = ("train", "val")
    obtain = (
        "download the annotations linked from github.com/facebookresearch/VLPart into "
        "vlpart/pascal_part, and VOC2010 from host.robots.ox.ac.uk/pascal/VOC/voc2010 beside them"
    )

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The annotations, and the folder of photos."""
        folder = root / "vlpart" / "pascal_part"
        return folder / f"{split}.json", folder / "VOCdevkit" / "VOC2010" / "JPEGImages"
