"""Your own photos in COCO format, asked for their categories.

Reads an instances JSON as annotation tools export it. The file and the folder of images have
names that the caller chooses; everything else that makes a question is
:mod:`~pixellm.data.classes`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixellm.data.dataset import path_of_split
from pixellm.data.readers.coco_classes import CocoClasses

ANNOTATIONS = "annotations/instances_{split}.json"
"""Where the annotations usually are, below the root."""

ROBOFLOW_FILE = "_annotations.coco.json"
"""What Roboflow calls the annotations in each split's folder of images."""


class OwnCoco(CocoClasses):
    """A COCO instances file of your own, asked for its categories.

    Args:
        root: folder that the other two are below.
        split: put in place of ``{split}`` in both.
        seed: another seed gives another order, grouping and wording.
        annotations: the instances JSON, below ``root``.
        images: the folder that each ``file_name`` is below, below ``root``; by default the first of
            ``{split}/images``, ``{split}``, ``images/{split}`` and ``images`` that is there.
        options: see :class:`~pixellm.data.classes.ClassDataset`; here ``targets`` is
            ``instances`` unless told otherwise.

    Raises:
        ValueError: the file is damaged or holds nothing to ask for.
        FileNotFoundError: the file or the folder is missing.
    """

    name = "coco"
    title = "Your own photos: a COCO instances file, asked for its categories"
    splits = ("train", "val", "test")
    obtain = "export your annotations as COCO instances JSON"

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        seed: int = 0,
        *,
        annotations: str = ANNOTATIONS,
        images: str = "",
        **options: Any,
    ) -> None:
        files = own_files(Path(root), split, annotations, images)
        super().__init__(root, split, seed, *files, **{"targets": "instances", **options})

    @classmethod
    def files(cls, root: Path, split: str) -> tuple[Path, ...]:
        """The annotation file and the folder of images under their default names."""
        return own_files(root, split)


def own_files(
    root: Path, split: str, annotations: str = ANNOTATIONS, images: str = ""
) -> tuple[Path, Path]:
    """The annotation file and the folder of images, there or not.

    Where the usual file is not there, it is the first of these that is: COCO's own
    "instances_train2017.json" with the folder "train2017"; Roboflow's
    "train/_annotations.coco.json", whose val is "valid"; and for the split to train on CVAT's
    "annotations/instances_default.json".

    Args:
        root: folder that both are below.
        split: put in place of ``{split}`` in both.
        annotations: path of the file.
        images: path of the folder; "" for the usual one.
    """
    usual = path_of_split(root, annotations, split)
    path = published_or(usual)
    folder = _image_folder(root, split) if path == usual else root / f"{split}2017"
    if annotations == ANNOTATIONS and not path.exists():
        for other, beside in _exported(root, split):
            if other.is_file():
                path, folder = other, beside
                break
    return path, path_of_split(root, images, split) if images else folder


def published_or(path: Path) -> Path:
    """The path, or that of COCO's own file with 2017 in its name where only that one is there."""
    published = path.with_name(f"{path.stem}2017{path.suffix}")
    return published if published.exists() and not path.exists() else path


def _exported(root: Path, split: str) -> Iterator[tuple[Path, Path]]:
    """Where annotation tools put the file and the images of a split."""
    for folder in (root / split, *([root / "valid"] if split == "val" else ())):
        yield folder / ROBOFLOW_FILE, folder
    if split == OwnCoco.splits[0]:
        yield root / "annotations/instances_default.json", _image_folder(root, split)


def _image_folder(root: Path, split: str) -> Path:
    """Where the images of a split usually are; the plain ``root/split`` where there are none."""
    usual = (root / split / "images", root / split, root / "images" / split, root / "images")
    return next((folder for folder in usual if folder.is_dir()), root / split)
