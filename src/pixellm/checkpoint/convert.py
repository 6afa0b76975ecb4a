"""Released PixelLM weights to a pixellm checkpoint and back, strictly and shard by shard.

Every tensor of the source is used or dropped by name, every tensor of the target is filled, and
shapes agree; anything else is an error that names the tensors. What is dropped is kept in the
checkpoint's folder ``released``, so that the way back gives the same bits. One shard is in memory
at a time. It knows names and values, and computes nothing but the position table's resize.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionConfig, GenerationConfig

from pixellm.checkpoint.hub import fetch_directory
from pixellm.checkpoint.io import check_files
from pixellm.checkpoint.released_config import (
    RELEASED_ARCHITECTURE,
    is_released,
    read_config,
    released_pixellm_config,
    released_processor,
    released_tower_config,
)
from pixellm.checkpoint.released_keys import DROPPED, Move, TableSizes, released_table
from pixellm.checkpoint.sentencepiece_tokenizer import build_fast_tokenizer
from pixellm.checkpoint.weight_files import (
    Progress,
    ShardWriter,
    WeightFiles,
    check_disk_space,
    written_aside,
)
from pixellm.model.config import PixelLMConfig
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.model.vision import resize_position_table
from pixellm.processing.processor import PixelLMProcessor

KEPT_DIR = "released"
"""Folder of a converted checkpoint with all that the way back needs."""

_EXTRAS = "extras.safetensors"
_LAYOUT = "layout.json"
_WEIGHT_SUFFIXES = (".bin", ".safetensors", ".pt", ".pth", ".h5", ".msgpack")
_KEPT_BYTES = 64 << 20
_TOWER_PREFIX = "model.vision_tower.encoder."
_TOWER_DROPPED = re.compile(
    r"(text_model\.|text_projection\.|visual_projection\.|logit_scale$"
    r"|vision_model\.embeddings\.position_ids$).*"
)
_POSITION_TABLE = "embeddings.position_embedding.weight"


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
    stream = MoveStream(_table(config), config, dropped=_dropped(config), place=str(directory))
    stream.check_source_names(files.index)
    tower_files = WeightFiles(tower_dir)
    total = files.num_bytes + tower_files.num_bytes
    check_disk_space(out, int(total * 1.02) + (64 << 20))
    with written_aside(out) as partial:
        writer = ShardWriter(partial)
        write_tower(tower_files, tower, stream, writer)
        layout = _write_shards(files, stream, writer, progress, tower_files.num_bytes, total)
        stream.check_complete()
        writer.finish()
        _keep_rest(directory, files, stream.extras, layout, partial / KEPT_DIR)
        write_settings(partial, config, released_processor(tokenizer, config))
    return out


def convert_to_released(
    source: str | Path, out: str | Path, *, progress: Progress | None = None
) -> Path:
    """Write a converted checkpoint back in the released layout, identical to the bit.

    The vision tower is left out, as in the release. Weights that were trained since are written
    as they are now.

    Args:
        source: a checkpoint that :func:`convert_released` wrote.
        out: directory to write; it must not exist or be empty.
        progress: told how many bytes of how many are done.

    Raises:
        FileNotFoundError: the checkpoint lacks its folder ``released``, or weights.
        ValueError: tensors that do not fit the table.
        OSError: not enough room on the disk.
    """
    directory, out = Path(source), Path(out)
    kept = directory / KEPT_DIR
    if not (kept / _LAYOUT).is_file():
        raise FileNotFoundError(
            f"{directory} lacks the folder {KEPT_DIR!r} with the parts that only released models "
            "have; copy it from the checkpoint that the model was trained from."
        )
    check_files(directory)
    config = PixelLMConfig.from_pretrained(directory)
    layout: dict[str, list[str]] = json.loads((kept / _LAYOUT).read_text(encoding="utf-8"))
    extras = load_file(kept / _EXTRAS) if (kept / _EXTRAS).is_file() else {}
    files = WeightFiles(directory)
    reader = _BackwardReader(files, _table(config), extras)
    reader.check_layout(layout)
    check_disk_space(out, int(files.num_bytes * 1.02) + (64 << 20))
    done = 0
    with written_aside(out) as partial:
        for path in sorted(kept.iterdir()):
            if path.name not in (_EXTRAS, _LAYOUT):
                shutil.copyfile(path, partial / path.name)
        for name, keys in layout.items():
            tensors = reader.read(keys)
            _save_shard(tensors, partial / name)
            done += sum(t.numel() * t.element_size() for t in tensors.values())
            del tensors
            if progress is not None:
                progress(min(done, files.num_bytes), files.num_bytes)
    return out


class MoveStream:
    """Applies a table's moves to tensors as they come, and keeps account of every name."""

    def __init__(
        self,
        table: Sequence[Move],
        config: PixelLMConfig,
        *,
        dropped: Sequence[str],
        place: str,
    ) -> None:
        self.by_source = {source: move for move in table for source in move.sources}
        self.dropped = re.compile("|".join(dropped)) if dropped else re.compile(r"(?!)")
        self.place = place
        self.expected = expected_shapes(config)
        self.filled: set[str] = set()
        self.waiting: dict[str, Tensor] = {}
        self.extras: dict[str, Tensor] = {}

    def check_source_names(self, names: Any, *, complete: bool = True) -> None:
        """Refuse names that the table doesn't know, and a table that isn't served.

        Raises:
            ValueError: naming the tensors.
        """
        if names is None:
            return
        unknown = [n for n in names if n not in self.by_source and not self.dropped.fullmatch(n)]
        if unknown:
            raise ValueError(
                f"{self.place} holds tensors that no rule knows: {_shown(unknown)}; "
                "is it another kind of model?"
            )
        missing = [n for n in self.by_source if n not in names] if complete else []
        if missing:
            raise ValueError(
                f"{self.place} lacks the tensors {_shown(missing)}; the download is incomplete or "
                "config.json is of another model."
            )

    def take(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Feed one source tensor; yields the target tensors that it completes."""
        move = self.by_source.get(name)
        if move is None:
            self.extras[name] = tensor.clone()
            return
        if len(move.sources) == 1:
            yield from self.put(zip(move.targets, apply_move(move, [tensor]), strict=True))
            return
        self.waiting[name] = tensor.clone()
        if all(source in self.waiting for source in move.sources):
            parts = [self.waiting.pop(source) for source in move.sources]
            yield from self.put(zip(move.targets, apply_move(move, parts), strict=True))

    def put(self, pairs: Any) -> Iterator[tuple[str, Tensor]]:
        """Check target tensors against the model's shapes and mark them as filled."""
        for name, tensor in pairs:
            shape = self.expected.get(name)
            if shape is None:
                raise ValueError(f"{self.place} gives {name}, which the model does not have.")
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{self.place} gives {name} the shape {tuple(tensor.shape)}, but its "
                    f"configuration makes it {shape}; config.json is of another model."
                )
            self.filled.add(name)
            yield name, tensor

    def check_complete(self) -> None:
        """Refuse a model with holes.

        Raises:
            ValueError: naming the tensors that nothing filled.
        """
        holes = [name for name in self.expected if name not in self.filled]
        if holes:
            raise ValueError(f"Nothing in {self.place} fills {_shown(holes)}.")


def expected_shapes(config: PixelLMConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors, without making them; a tied head is left out."""
    with torch.device("meta"):
        model = PixelLMForConditionalGeneration(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.text_config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def apply_move(move: Move, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The targets of a move, from its sources in order."""
    if move.change == "squeeze_first":
        return [tensors[0][0]]
    if move.change == "split_mask_tokens":
        iou_token, mask_tokens = tensors
        return [mask_tokens[:1], torch.cat([iou_token, mask_tokens[1:]])]
    return list(tensors)


def undo_move(move: Move, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sources of a move, from its targets in order."""
    if move.change == "squeeze_first":
        return [tensors[0][None]]
    if move.change == "split_mask_tokens":
        mask_token, context = tensors
        return [context[:1], torch.cat([mask_token, context[1:]])]
    return list(tensors)


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
        raise ValueError(f"The vision tower {files.directory} lacks {_shown(holes)}.")


def write_settings(directory: Path, config: PixelLMConfig, processor: PixelLMProcessor) -> None:
    """Write everything of a checkpoint but its weights."""
    config.save_pretrained(directory)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(directory)
    processor.save_pretrained(directory)


def _table(config: PixelLMConfig) -> list[Move]:
    sizes = TableSizes(
        text_layers=config.text_config.num_hidden_layers,
        scales=config.num_scales,
        decoder_layers=config.decoder_layers,
        upsampled_scales=tuple(
            scale for scale, factor in enumerate(config.decoder_upsampling) if factor == 2
        ),
    )
    table = released_table(sizes)
    if config.text_config.tie_word_embeddings:
        table = [move for move in table if move.sources != ("lm_head.weight",)]
    return table


def _dropped(config: PixelLMConfig) -> tuple[str, ...]:
    tied = (r"lm_head\.weight",) if config.text_config.tie_word_embeddings else ()
    return (*DROPPED, *tied)


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


def _keep_rest(
    source: Path,
    files: WeightFiles,
    extras: dict[str, Tensor],
    layout: dict[str, list[str]],
    kept: Path,
) -> None:
    """Keep the dropped tensors and all small files of the source for the way back."""
    kept.mkdir()
    for path in sorted(source.iterdir()):
        small = path.is_file() and path.stat().st_size < _KEPT_BYTES
        if small and path.suffix not in _WEIGHT_SUFFIXES and path.name not in files.files:
            shutil.copyfile(path, kept / path.name)
    if extras:
        save_file({name: t.contiguous() for name, t in extras.items()}, kept / _EXTRAS)
    text = json.dumps(layout, indent=2)
    (kept / _LAYOUT).write_text(text + "\n", encoding="utf-8")


class _BackwardReader:
    """Reads released tensors out of a checkpoint, one by one."""

    def __init__(
        self, files: WeightFiles, table: Sequence[Move], extras: dict[str, Tensor]
    ) -> None:
        self.files = files
        self.by_source = {source: move for move in table for source in move.sources}
        self.extras = extras
        self.homes: dict[str, str] = {}
        for name in files.files:
            with safe_open(files.directory / name, "pt") as opened:
                self.homes |= dict.fromkeys(opened.keys(), name)

    def check_layout(self, layout: dict[str, list[str]]) -> None:
        """Every name of the layout must have a source, and every tensor a place in it."""
        wanted = {key for keys in layout.values() for key in keys}
        known = set(self.by_source) | set(self.extras)
        if wanted != known:
            raise ValueError(
                f"The folder {KEPT_DIR!r} of {self.files.directory} is of another model; it "
                f"differs in {_shown(sorted(wanted ^ known))}."
            )
        targets = {target for move in self.by_source.values() for target in move.targets}
        missing = sorted(targets - set(self.homes))
        if missing:
            raise ValueError(f"{self.files.directory} lacks the tensors {_shown(missing)}.")

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The released tensors of ``keys``."""
        return {key: self._read_one(key) for key in keys}

    def _read_one(self, key: str) -> Tensor:
        if key in self.extras:
            return self.extras[key]
        move = self.by_source[key]
        parts = undo_move(move, [self._load(target) for target in move.targets])
        return parts[move.sources.index(key)].contiguous()

    def _load(self, name: str) -> Tensor:
        with safe_open(self.files.directory / self.homes[name], "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        return tensor


def _save_shard(tensors: dict[str, Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def _shown(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest
