"""gRefCOCO: expressions that none, one or many objects fit.

Laid out as the refer family, but ``grefs(unc).json`` holds the expressions. Knows that file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pixellm.data.dataset import BadRow
from pixellm.data.readers.expressions import Expression
from pixellm.data.readers.json_index import scan_json
from pixellm.data.readers.refer import ReferReader

_NOTHING = -1
"""Stands in a list of annotations where nothing fits."""


class GRefCoco(ReferReader):
    """gRefCOCO; arguments as :class:`pixellm.data.readers.refer.ReferReader`."""

    name = "grefcoco"
    title = "gRefCOCO: expressions for none, one or many objects of COCO photos"
    splits = ("train", "val", "testA", "testB")
    partitions: ClassVar = {"unc": splits}
    folder = "refer_seg/grefcoco"
    obtain = (
        "github.com/henghuiding/gRefCOCO says where to download the annotations, and the images "
        "are train2014 of cocodataset.org"
    )

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """See :meth:`Dataset.files`."""
        folder = root / cls.folder
        images = cls.find_folder(root, cls.image_folders)
        return folder / "instances.json", folder / "grefs(unc).json", images

    @property
    def expressions_path(self) -> Path:
        """The file of expressions."""
        return self.root / self.folder / f"grefs({self.partition}).json"

    def read_expressions(self, bad: list[BadRow]) -> Iterator[Expression]:
        """See :meth:`ExpressionReader.read_expressions`."""
        for place, (_, _, _, ref) in enumerate(scan_json(self.expressions_path)):
            yield from self.expressions_of(ref, place, bad)

    def annotations_of(self, ref: Mapping[str, Any]) -> tuple[int, ...]:
        """Ids of the objects that fit an entry; () where nothing does.

        Raises:
            KeyError, TypeError, ValueError: the entry is malformed.
        """
        ids = tuple(int(identity) for identity in ref["ann_id"])
        return () if ref.get("no_target") or ids == (_NOTHING,) else ids
