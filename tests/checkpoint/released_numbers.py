"""What the released code computed: where it lies, and how ours is compared with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pixellm.checkpoint.released import convert_released

PARITY = Path(os.environ.get("PIXELLM_PARITY_DIR", ""))
OFFICIAL = PARITY / "official_a"


def convert_original(folder: Path, out: Path) -> Path:
    """The released checkpoint of a model as one of ours."""
    (tower,) = (path for path in folder.glob("clip*") if path.is_dir())
    return convert_released(folder / "checkpoint", out, tower)


def with_one_image_id(ids: Sequence[int], image: int, theirs: int = -200) -> list[int]:
    """Ids with the image's as one, by the release's number."""
    kept = [v for i, v in enumerate(ids) if v != image or not i or ids[i - 1] != image]
    return [theirs if value == image else value for value in kept]


def distance(found: Tensor, wanted: Tensor) -> float:
    """Largest difference."""
    assert found.shape == wanted.shape
    return float((found.detach().double() - wanted.double()).abs().max()) if wanted.numel() else 0.0


def share_off(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value."""
    return distance(found, wanted) / float(wanted.double().abs().max()) if wanted.numel() else 0.0


def spread_distance(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the standard deviation of what is wanted."""
    return distance(found, wanted) / float(wanted.double().std())
