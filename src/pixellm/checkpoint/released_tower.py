"""The CLIP tower of a released PixelLM, which its own files leave out: found, and written.

It knows names and values, and computes nothing but the position table's resize.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig

from pixellm.checkpoint.hub import fetch_directory
from pixellm.checkpoint.tensor_moves import MoveStream, first_names
from pixellm.checkpoint.weight_files import ShardWriter, WeightFiles
from pixellm.model.vision import resize_position_table

_TOWER_PREFIX = "model.vision_tower.encoder."
_TOWER_DROPPED = re.compile(
    r"(text_model\.|text_projection\.|visual_projection\.|logit_scale$"
    r"|vision_model\.embeddings\.position_ids$).*"
)
_POSITION_TABLE = "embeddings.position_embedding.weight"


def fetch_tower(values: dict[str, Any], vision_tower: str | Path | None) -> Path:
    """The directory of a released model's CLIP.

    Raises:
        FileNotFoundError: it is neither given nor named, or cannot be had.
    """
    named = values.get("vision_tower") or values.get("mm_vision_tower")
    if vision_tower is None and named is None:
        raise FileNotFoundError("config.json names no vision tower; pass --vision-tower.")
    if vision_tower is not None:
        return fetch_directory(vision_tower)
    try:
        return fetch_directory(str(named))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The model's own vision tower is missing: {error} "
            "Or pass --vision-tower with a copy of it."
        ) from error


def write_tower(
    files: WeightFiles, tower: CLIPVisionConfig, stream: MoveStream, writer: ShardWriter
) -> None:
    """Write the CLIP tower; its position table is resized as the release does.

    Raises:
        ValueError: tensors that the tower doesn't have, or lacks, or of another shape.
    """
    side = tower.image_size // tower.patch_size
    names = {n.removeprefix(_TOWER_PREFIX) for n in stream.expected if _TOWER_PREFIX in n}
    for file, tensors in files.shards():
        for name, tensor in tensors.items():
            if _TOWER_DROPPED.fullmatch(name):
                continue
            own = name.removeprefix("vision_model.")
            if own not in names:
                raise ValueError(f"{files.directory / file} holds {name}, which no CLIP tower has.")
            if own == _POSITION_TABLE:
                # In float32: the release interpolates at run time and never rounds the result.
                tensor = resize_position_table(
                    tensor.float(), (side, side), layout="class_last", mode="bilinear"
                )
            for target, value in stream.put([(_TOWER_PREFIX + own, tensor)]):
                writer.add(target, value)
        writer.flush()
    holes = sorted(n for n in names if _TOWER_PREFIX + n not in stream.filled)
    if holes:
        raise ValueError(f"The vision tower {files.directory} lacks {first_names(holes)}.")
