"""Released PixelLM weights to a pixellm checkpoint, strictly and shard by shard.

What fits where is :mod:`~pixellm.checkpoint.tensor_moves`' business. What is dropped is kept in
the checkpoint's folder ``released``, so that the way back
(:mod:`~pixellm.checkpoint.convert_back`) gives the same bits. One shard is in memory at a time.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import GenerationConfig

from pixellm.checkpoint.convert_back import KEPT_DIR, convert_to_released, keep_rest
from pixellm.checkpoint.hub import fetch_directory
from pixellm.checkpoint.released_config import (
    RELEASED_ARCHITECTURE,
    is_released,
    read_config,
    released_pixellm_config,
    released_processor,
    released_tower_config,
)
from pixellm.checkpoint.released_tower import fetch_tower, write_tower
from pixellm.checkpoint.sentencepiece_tokenizer import build_fast_tokenizer
from pixellm.checkpoint.tensor_moves import MoveStream, dropped_names, moves_of
from pixellm.checkpoint.weight_files import (
    Progress,
    ShardWriter,
    WeightFiles,
    check_disk_space,
)
from pixellm.files import new_folder
from pixellm.model.config import PixelLMConfig
from pixellm.processing.processor import PixelLMProcessor

__all__ = ["KEPT_DIR", "convert_released", "convert_to_released", "write_settings"]


def convert_released(
    source: str | Path,
    out: str | Path,
    vision_tower: str | Path | None = None,
    *,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Convert a released PixelLM into a pixellm checkpoint.

    Args:
        source: directory or hub id of the released model.
        out: directory to write; it must not exist or be empty, and appears only when complete.
        vision_tower: directory or hub id of its CLIP; the one that its configuration names where
            None.
        revision: commit, tag or branch of ``source`` on the hub.
        progress: told how many bytes of how many are done.

    Returns:
        ``out``.

    Raises:
        FileNotFoundError: a file, repository or revision is missing.
        PermissionError: a gated repository.
        ValueError: a damaged or hostile file, a tower of the wrong width, or tensors that do not
            fit the table.
        OSError: not enough room on the disk.
    """
    out = Path(out)
    directory = fetch_directory(source, revision)
    values = read_config(directory)
    if not is_released(directory):
        raise ValueError(
            f"{directory} is no released PixelLM: its config.json does not name the architecture "
            f"{RELEASED_ARCHITECTURE}."
        )
    files = WeightFiles(directory)
    tower_dir = fetch_tower(values, vision_tower)
    tower = released_tower_config(read_config(tower_dir))
    tokenizer = build_fast_tokenizer(directory, ("<image>",))
    config = released_pixellm_config(values, tower, tokenizer, directory)
    stream = MoveStream(
        moves_of(config), config, dropped=dropped_names(config), place=str(directory)
    )
    stream.check_source_names(files.index)
    tower_files = WeightFiles(tower_dir)
    total = files.num_bytes + tower_files.num_bytes
    check_disk_space(out, int(total * 1.02) + (64 << 20))
    with new_folder(out) as partial:
        writer = ShardWriter(partial)
        write_tower(tower_files, tower, stream, writer)
        layout = _write_shards(files, stream, writer, progress, tower_files.num_bytes, total)
        stream.check_complete()
        writer.finish()
        keep_rest(directory, files, stream.extras, layout, partial / KEPT_DIR)
        write_settings(partial, config, released_processor(tokenizer, config))
    return out


def write_settings(directory: Path, config: PixelLMConfig, processor: PixelLMProcessor) -> None:
    """Write everything of a checkpoint but its weights."""
    config.save_pretrained(directory)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(directory)
    processor.save_pretrained(directory)


def _write_shards(
    files: WeightFiles,
    stream: MoveStream,
    writer: ShardWriter,
    progress: Progress | None,
    done: int,
    total: int,
) -> dict[str, list[str]]:
    """Convert every shard; returns the names that each file held, in order."""
    layout: dict[str, list[str]] = {}
    for name, tensors in files.shards():
        stream.check_source_names(tensors, complete=len(files.files) == 1)
        layout[name] = list(tensors)
        _convert_shard(tensors, stream, writer)
        done += (files.directory / name).stat().st_size
        if progress is not None:
            progress(done, total)
    return layout


def _convert_shard(tensors: dict[str, Tensor], stream: MoveStream, writer: ShardWriter) -> None:
    """Move one file's tensors over; none is referred to any more when this returns."""
    for key in list(tensors):
        for target, value in stream.take(key, tensors.pop(key)):
            writer.add(target, value)
    writer.flush()
