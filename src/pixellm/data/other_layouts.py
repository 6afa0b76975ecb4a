"""Folders that hold annotations, but not where a reader looks: what they are, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from pixellm.data.json_stream import scan_json

KEYS_OF_COCO = frozenset({"images", "annotations", "categories", "info", "licenses"})
"""One of them begins a file in COCO's format."""

_MOST_FILES = 50
"""That are looked into."""
_MOST_NAMED = 3


def advice_on(root: Path) -> str:
    """What to do with a folder of other annotations, as the end of a sentence; "" where unknown."""
    if _any(root, "labels/*.txt", "labels/*/*.txt", "*/labels/*.txt"):
        return f"{root} is in YOLO's format, and COCO instances JSON is read: export it as that"
    if _any(root, *(f"{'*/' * depth}[Aa]nnotations/*.xml" for depth in range(3))):
        return f"{root} is in Pascal VOC's format, and masks are read from COCO instances JSON"
    if _any(root, "annotations.xml"):
        return f"{root} is in CVAT's own format: export it as COCO 1.0"
    found = [path.relative_to(root).as_posix() for path in _coco_files(root)]
    if not found:
        return ""
    named = ", ".join(found[:_MOST_NAMED]) + (", ..." if len(found) > _MOST_NAMED else "")
    return (
        f"{root} holds {named} in COCO's format: name one (--with annotations={found[0]}) or "
        "another split"
    )


def advice_on_coco(root: Path, missing: Path) -> str:
    """As :func:`advice_on`, where a COCO file or its folder of images is missing."""
    return advice_on(root) if missing.suffix else "name the folder of its images with --images"


def is_coco(path: Path) -> bool:
    """Whether a JSON file begins as COCO's do; one that can't be read does not."""
    try:
        return any(key in KEYS_OF_COCO for key, *_ in islice(scan_json(path), 3))
    except (OSError, ValueError):
        return False


def _coco_files(root: Path) -> Iterator[Path]:
    paths = chain.from_iterable(
        sorted(root.glob(one)) for one in ("*.json", "*/*.json", "*/*/*.json")
    )
    return (path for path in islice(paths, _MOST_FILES) if is_coco(path))


def _any(root: Path, *patterns: str) -> bool:
    return any(True for pattern in patterns for _ in islice(root.glob(pattern), 1))
