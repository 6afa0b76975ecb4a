"""Models to and from disk, strictly: every weight and every setting is accounted for.

A checkpoint is a directory as transformers writes it: ``config.json``, safetensors shards, the
processor and ``tokenizer.json``. Pickles are refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import GenerationConfig
from transformers.initialization import no_init_weights
from transformers.utils import logging

from pixellm.checkpoint.model_files import check_config, check_files, check_sizes, read_json
from pixellm.checkpoint.pretrained import from_pretrained, told_as
from pixellm.checkpoint.sources import EMBEDDED_DIR, is_adapter_folder, resolve_source
from pixellm.checkpoint.weights import first_names
from pixellm.files import claim_folder
from pixellm.model.config import PixelLMConfig
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.processing.processor import PixelLMProcessor


def load_model_and_processor(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    vision_tower: str | Path | None = None,
    quantization_config: Any | None = None,
    offload_folder: str | Path | None = None,
    max_memory: dict[int | str, int | str] | None = None,
) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """Load a model and its processor, ready for evaluation.

    Args:
        source: an embedded name, a directory, a run's folder, or a hub id. Adapters are folded
            into the weights of the model that they belong to, whose revision and vision tower
            are meant then.
        dtype: floating type of the weights in memory.
        device: where the weights go.
        revision: commit, tag or branch on the hub.
        vision_tower: CLIP of a released PixelLM, which is converted once into the cache; the one
            that it names where None.
        quantization_config: of transformers, for weights that are quantized as they are read.
        offload_folder: for models that do not fit: spread weights over GPUs, main memory and,
            where both are full, this folder. ``device`` does not count then.
        max_memory: by device, "cpu" or the number of a GPU, with ``offload_folder``; all that is
            free where None.

    Raises:
        FileNotFoundError: no such model, or a file of it is missing.
        ValueError: a damaged shard, unknown settings, weights that do not fit, or adapters
            that are to be quantized or spread.
    """
    if max_memory is not None and offload_folder is None:
        raise ValueError("max_memory counts only where a model is spread; give offload_folder.")
    found = resolve_source(source)
    if is_adapter_folder(Path(found)):
        if quantization_config is not None or offload_folder is not None:
            raise ValueError(
                f"{found} holds adapters, which are folded into whole weights in memory; to "
                f"quantize or spread the model run: pixellm merge {found} --out DIR"
            )
        model, processor = _load_with_adapters(Path(found), dtype, revision, vision_tower)
        return model.to(device), processor
    resolved = _own_checkpoint(found, vision_tower, revision)
    is_local = Path(resolved).is_dir()
    files = check_files(Path(resolved)) if is_local else []
    placement = _placement(quantization_config, device, offload_folder, max_memory)
    if Path(resolved).parent == EMBEDDED_DIR and not placement:
        return _load_embedded(Path(resolved), dtype, device)
    try:
        with told_as(f"The model {str(source)!r} cannot be read, one of its files is damaged"):
            if is_local:
                check_sizes(from_pretrained(PixelLMConfig, resolved), files, str(source))
            with _without_progress_bar() if is_local else nullcontext():
                model, report = from_pretrained(
                    PixelLMForConditionalGeneration,
                    resolved,
                    dtype=dtype,
                    revision=revision,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # reported below with its name
                    **placement,
                )
            processor = from_pretrained(PixelLMProcessor, resolved, revision=revision)
    except SafetensorError as error:
        raise ValueError(
            f"A weight file of {source} is damaged or cut short ({error}); copy it again."
        ) from error
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"The model {str(source)!r} cannot be loaded: {first}") from error
    _check_report(source, report)
    _check_finite(source, model)
    _check_agreement(source, model, processor)
    model.eval()
    return (model if placement else model.to(device)), processor


def _load_embedded(
    directory: Path, dtype: torch.dtype, device: str | torch.device
) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """One of the package's own models.

    Its weights lie in one file under the names that the model has, so they go in as they are:
    transformers' loader prepares the renamings of all its families first, a second of every start.
    """
    config: PixelLMConfig = from_pretrained(PixelLMConfig, directory)
    config.name_or_path = str(directory)
    with no_init_weights(), torch.random.fork_rng(devices=[]):  # weights are replaced
        model = PixelLMForConditionalGeneration(config)
    model.tie_weights()
    tied = set() if not config.tie_word_embeddings else set(model._tied_weights_keys)
    report = model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)
    missing = sorted(set(report.missing_keys) - tied)
    _check_report(directory, {"missing_keys": missing, "unexpected_keys": report.unexpected_keys})
    model.generation_config = GenerationConfig.from_pretrained(directory)
    processor = from_pretrained(PixelLMProcessor, directory)
    return model.eval().to(device, dtype), processor


_FLOATING = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})


@torch.no_grad()
def _check_finite(source: str | Path, model: torch.nn.Module) -> None:
    """Refuse weights that are not numbers: all that follows from them would be wrong in silence.

    Rounded weights are tensors of their libraries' own classes, and were looked at where they were
    rounded from.
    """
    stored = model.state_dict().keys()  # computed buffers may hold infinity, as masks do
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in stored]
    for name, weight in [*model.named_parameters(), *buffers]:
        is_plain = type(weight.data) is torch.Tensor
        if not is_plain or weight.device.type == "meta" or weight.dtype not in _FLOATING:
            continue
        if not bool(torch.isfinite(weight.sum(dtype=torch.float32))):  # one pass, no copy
            raise ValueError(
                f"The weights of {source} are damaged: {name} holds NaN or infinity; train again "
                "from an earlier checkpoint, or copy the model again."
            )


def _check_agreement(source: str | Path, model: Any, processor: PixelLMProcessor) -> None:
    """Refuse files that mean different tokens or images by the same settings.

    Such a model would answer, with masks of no object or without an end.
    """
    config, ids = model.config, processor.tokenizer.convert_tokens_to_ids
    settings = {
        "codebook_token_ids": ids(processor.codebook_tokens),
        "image_token_id": ids(processor.image_token),
        "llm_grid": processor.llm_grid,
        "evidence_tokens": processor.evidence_tokens,
        "image_size": processor.image_processor.image_size,
    }
    for name, value in settings.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"The files of {source} do not belong together: {name} is "
                f"{getattr(config, name)} in config.json, {value} by its processor and tokenizer."
            )
    end = model.generation_config.eos_token_id
    ends, count = end if isinstance(end, list) else [end], config.text_config.vocab_size
    if not all(one is None or (type(one) is int and 0 <= one < count) for one in ends):
        raise ValueError(f"{source}: eos_token_id of generation_config.json, {end!r}, is no token.")


def load_config(
    source: str | Path, *, revision: str | None = None, vision_tower: str | Path | None = None
) -> PixelLMConfig:
    """The configuration of a model, or of the one that adapters belong to; no weights are read.

    Args:
        source: as of :func:`load_model_and_processor`; a released PixelLM is converted for it.
        revision: commit, tag or branch on the hub.
        vision_tower: CLIP of a released PixelLM; the one that it names where None.
    """
    found = resolve_source(source)
    if is_adapter_folder(Path(found)):
        with _base_model(Path(found)) as base:
            return load_config(base, revision=revision, vision_tower=vision_tower)
    resolved = _own_checkpoint(found, vision_tower, revision)
    if Path(resolved).is_dir():
        check_config(Path(resolved))
    try:
        config: PixelLMConfig = from_pretrained(PixelLMConfig, resolved, revision=revision)
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"The model {str(source)!r} cannot be loaded: {first}") from error
    return config


def _own_checkpoint(source: str, vision_tower: str | Path | None, revision: str | None) -> str:
    """The source itself, or the conversion of a released model."""
    config = Path(source) / "config.json"
    if config.is_file() and read_json(config).get("model_type") == PixelLMConfig.model_type:
        return source
    from pixellm.checkpoint.released import usable_checkpoint  # slow to import

    return usable_checkpoint(source, vision_tower, revision)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Draw no bar over files that are on the disk; a download keeps its own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _placement(
    quantization_config: Any | None,
    device: str | torch.device,
    offload_folder: str | Path | None,
    max_memory: dict[int | str, int | str] | None,
) -> dict[str, Any]:
    """Where weights are read to, where they can't be moved later: quantized or spread."""
    placement: dict[str, Any] = {}
    if quantization_config is not None:
        placement |= {"quantization_config": quantization_config, "device_map": {"": device}}
    if offload_folder is not None:
        folder = str(offload_folder)
        placement |= {"device_map": "auto", "offload_folder": folder, "max_memory": max_memory}
    if placement and find_spec("accelerate") is None:
        raise ImportError(
            "Models are spread or quantized with accelerate: pip install 'pixellm[train]'."
        )
    if offload_folder is not None:
        claim_folder(Path(offload_folder))
    return placement


def _load_with_adapters(
    directory: Path, dtype: torch.dtype, revision: str | None, vision_tower: str | Path | None
) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """The model that adapters belong to, with them folded into its weights."""
    with _base_model(directory) as base:
        model, processor = load_model_and_processor(
            base, dtype=dtype, revision=revision, vision_tower=vision_tower
        )
    from pixellm.checkpoint.adapters import fold_adapters, load_adapters  # needed by few

    load_adapters(model, directory)
    fold_adapters(model)
    return model, processor


@contextmanager
def _base_model(directory: Path) -> Iterator[str]:
    """The source of the model that adapters belong to; a missing one is told as theirs."""
    from pixellm.checkpoint.adapters import read_adapter_config  # needed by few

    _, base = read_adapter_config(directory)
    try:
        yield base
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{directory} holds adapters for the model {base!r}, which cannot be loaded: {error}"
        ) from error


def save_model(
    directory: Path | str,
    model: PixelLMForConditionalGeneration,
    processor: PixelLMProcessor,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a checkpoint into ``directory``.

    Args:
        directory: created where needed. Callers that must not leave half a checkpoint write
            aside and rename, as the trainer does.
        model: any device and type.
        processor: the model's own.
        dtype: floating type on disk; the model's own where None.
    """
    state = None
    if dtype is not None:
        state = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in model.state_dict().items()
        }
        model.config.dtype = dtype
    model.save_pretrained(directory, state_dict=state, safe_serialization=True)
    processor.save_pretrained(directory)


def _check_report(source: str | Path, report: dict[str, Any]) -> None:
    """Every weight must have been found, used and fitted."""
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in report.get(problem) or ())
        if keys:
            raise ValueError(
                f"The weights of {source} do not fit ({problem}): {first_names(keys)}."
            )
