"""An image with the classes that its annotation gives, before anything is asked about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pixellm.data.table import BadRow
from pixellm.types import RLE


@dataclass(frozen=True, slots=True)
class AnnotatedClass:
    """One class, or part of one, in one image.

    Attributes:
        name: what its targets are called.
        masks: one per instance, or one for the whole region; over the image.
        crowds: regions that hold many instances without telling them apart.
        askable: False where the masks may not be all there is of the class, or its name says
            nothing; such a class is known to be there, and never asked for.
        wordings: names that a question may use; the name alone where empty.
    """

    name: str
    masks: tuple[RLE, ...]
    crowds: tuple[RLE, ...] = ()
    askable: bool = True
    wordings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One image with its classes.

    Attributes:
        image: its file, or its pixels.
        size: (height, width).
        id: names it in logs.
        classes: each name once.
        faults: what of it can't be used, with its row in the file.
        source: which collection it is from; "" where unknown.
        people: what its people may be called, beside the usual words.
    """

    image: Path | NDArray[np.uint8]
    size: tuple[int, int]
    id: str
    classes: tuple[AnnotatedClass, ...]
    faults: tuple[BadRow, ...] = ()
    source: str = ""
    people: tuple[str, ...] = ()
