"""Values of annotation files as people's tools write them, and what can't be meant by them.

Whole numbers come as ``1``, ``1.0`` and ``"1"``, flags as words, paths with backslashes, and
anything may be null. What is no text is never turned into text.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pixellm.files import parse_json
from pixellm.types import SEG_MARK, split_marks, text_damage

_LARGEST_NUMBER = 2**53
_MOST_PIXELS = 2**31

_NOTHING = frozenset(
    {"background", "void", "ignore", "unlabeled", "unlabelled", "none", "null", "nan"}
)
_FLAGS = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True, "": False}


def parse_line(line: bytes) -> Any:
    """The values of a line of JSON; ValueError, one sentence, where it is none."""
    try:
        return parse_json(line)
    except ValueError as error:
        raise ValueError(f"It is no JSON ({error}).") from None


def whole_number(value: Any) -> int | None:
    """A whole number, written as one, as a float or as text; None for anything else."""
    if isinstance(value, str):
        digits = value.strip().removesuffix(".0")
        value = int(digits) if digits.removeprefix("-").isdecimal() and len(digits) < 18 else None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and abs(value) <= _LARGEST_NUMBER else None


def identity(value: Any) -> int | str | None:
    """An id: a whole number in any form, or a text; None for anything else."""
    number = whole_number(value)
    return value if number is None and isinstance(value, str) and value.strip() else number


def flag(value: Any) -> bool | None:
    """A yes or no, where null is no; None for what says neither."""
    if value is None:
        return False
    number = whole_number(value)
    known = value if isinstance(value, bool) else str(value if number is None else number)
    return known if isinstance(known, bool) else _FLAGS.get(known.strip().lower())


def size_fault(height: Any, width: Any) -> str:
    """Why two values are no size of an image; "" where they are one."""
    sides = whole_number(height), whole_number(width)
    if None in sides or min(sides) < 1 or sides[0] * sides[1] > _MOST_PIXELS:  # type: ignore[operator,type-var]
        return f"Its height and width are {height!r:.40} and {width!r:.40}."
    return ""


def text_fault(value: Any, what: str = "text", *, marks: bool = False) -> str:
    """Why a value can't be said in a dialogue; "" where it can.

    ``what`` is how a sentence calls it, such as "question"; segmentation marks may be in it where
    ``marks`` says so.
    """
    if not isinstance(value, str):
        return f"The {what} is no text but {value!r:.40}."
    if not any(letter.isprintable() and letter not in " ._" for letter in value):
        return f"The {what} is empty."
    if split_marks(value)[1] and not marks:
        return f"The {what} holds {SEG_MARK}, which marks masks in answers."
    damage = text_damage(value)
    return f"The {what} {damage}." if damage else ""


def is_nothing(name: str) -> bool:
    """Whether a class stands for what is no object, such as "background", or for no name."""
    return name.lower() in _NOTHING


def inner_file(folder: Path, name: str, start: Path | None = None) -> Path:
    """The file below a folder that an annotation names, backslashes turned.

    The name begins at ``start``, the folder itself where None. It may be absolute, or take a way
    through "..", as long as it ends below the folder; ValueError where it is empty or leads out.
    """
    base = Path(os.path.normpath(folder.absolute()))
    relative = name.replace("\\", "/")
    path = Path(os.path.normpath((start or folder).absolute() / relative))
    # Elsewhere than on Windows a drive is a folder's name, and can't be what was meant.
    is_drive = bool(PureWindowsPath(name).drive) and not Path(name).drive
    if not path.is_relative_to(base) or path == base or "\0" in name or is_drive:
        raise ValueError(
            f"{name!r:.200} leads out of {folder}; write it relative to that folder, or name one "
            "that holds it (--images, or the data's root)"
        )
    return folder / path.relative_to(base)


def inner_path(name: str) -> PurePosixPath:
    """A path below the folder that it is joined to, or ValueError; as of :func:`inner_file`."""
    path = PurePosixPath(posixpath.normpath(name.replace("\\", "/")) if name else "")
    outside = path.is_absolute() or ".." in path.parts or bool(PureWindowsPath(name).drive)
    if outside or not path.parts or "\0" in name:
        raise ValueError(f"{name!r:.200} leads out of the folder of images")
    return path
