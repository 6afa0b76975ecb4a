"""The model of a run: built or loaded, adapters attached, in the types that its recipe asks for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixellm.checkpoint.adapters import (
    Adapters,
    attach_adapters,
    base_names,
    merged_state,
    save_adapters,
    without_adapters,
)
from pixellm.checkpoint.build import CONTROL_TOKENS, build_model
from pixellm.checkpoint.encoder_weights import load_vision_weights
from pixellm.checkpoint.io import load_model_and_processor, save_model
from pixellm.checkpoint.quantize import quantization_config
from pixellm.checkpoint.sources import is_adapter_folder, resolve_source
from pixellm.files import replace_folder
from pixellm.training.checkpoints import seed_everything
from pixellm.training.config import RunConfig
from pixellm.training.optim import group_parameters

BASE_FOLDER = "base"
"""Where a run that puts adapters on a new model keeps that model."""


@dataclass(frozen=True, slots=True)
class RunModel:
    """The model of a run, adapters attached; a base inside the run is told by an absolute path."""

    model: Any
    processor: Any
    adapters: Adapters = field(default_factory=Adapters)
    base: str = ""


def set_up_model(
    config: RunConfig, checkpoint: Path | None, texts: Iterable[str], *, is_main: bool
) -> RunModel:
    """Build or load the model of a run.

    Weights that a checkpoint holds in full precision are filled in by the caller. ``texts`` train
    a new tokenizer; they are read only where there is none yet.
    """
    if config.has_adapters:
        run_model = _set_up_with_adapters(config, texts, is_main=is_main)
    else:
        run_model = _set_up_whole(config, checkpoint, texts)
    if "target_refinement_alpha" in config.model:
        run_model.model.config.target_refinement_alpha = config.model["target_refinement_alpha"]
    return run_model


def _set_up_whole(config: RunConfig, checkpoint: Path | None, texts: Iterable[str]) -> RunModel:
    if checkpoint is not None:
        model, processor = load_model_and_processor(checkpoint / "model")
    elif "checkpoint" in config.model:
        model, processor = load_model_and_processor(config.model["checkpoint"])
        if source := config.model.get("vision_weights"):
            load_vision_weights(model, str(source))
        # Scores move with the weights: a limit found for other weights says nothing here.
        model.config.min_mask_score = float(config.model.get("min_mask_score", 0.0))
    else:
        model, processor = build_model(config.model, texts)
    _prepare_language_model(model, config)
    return RunModel(model.float(), processor)


def _set_up_with_adapters(config: RunConfig, texts: Iterable[str], *, is_main: bool) -> RunModel:
    model, processor, base = _load_base(config, texts, is_main=is_main)
    adapters = adapters_of(config, model, processor)
    seed_everything(config.seed)  # whether the model was built or read, on every process
    attach_adapters(model, adapters)
    _prepare_language_model(model, config)
    return RunModel(model, processor, adapters, base)


def _load_base(config: RunConfig, texts: Iterable[str], *, is_main: bool) -> tuple[Any, Any, str]:
    """The model under the adapters, and where it is found again."""
    own = (config.run_folder / BASE_FOLDER).absolute()
    dtype = torch.bfloat16 if _holds_bf16(config) else torch.float32
    if "checkpoint" in config.model:
        source = str(config.model["checkpoint"])
        found = resolve_source(source)
        loaded = (
            _load_rounded(found, config.quantize)
            if config.quantize
            else load_model_and_processor(found, dtype=dtype)
        )
        is_folder = Path(source).expanduser().is_dir()
        return *loaded, str(Path(found).absolute()) if is_folder else source
    if own.is_dir():
        return *load_model_and_processor(own, dtype=dtype), str(own)
    model, processor = build_model(config.model, texts)
    if is_main:
        replace_folder(own, lambda folder: save_model(folder, model, processor))
    return model.to(dtype), processor, str(own)


def _load_rounded(source: str, bits: str) -> tuple[Any, Any]:
    """A model whose language model lies in few bits on this process's GPU."""
    if is_adapter_folder(Path(source)):
        raise ValueError(f"{source} holds adapters; merge them before they are quantized.")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    rounding = quantization_config(bits, device, torch.bfloat16)
    return load_model_and_processor(
        source, dtype=torch.bfloat16, device=device, quantization_config=rounding
    )


def adapters_of(config: RunConfig, model: Any, processor: Any) -> Adapters:
    """What a recipe attaches to a model."""
    rows = added_tokens(model.config, processor) if config.rows_that_train == "added" else ()
    return Adapters(config.lora, rows)


def added_tokens(model_config: Any, processor: Any) -> tuple[int, ...]:
    """Ids of the codebook, of the image placeholder and of the template's control tokens."""
    vocabulary = processor.tokenizer.get_vocab()
    control = {token for tokens in CONTROL_TOKENS.values() for token in tokens}
    ids = {vocabulary[token] for token in control & vocabulary.keys()}
    ids |= {*model_config.codebook_token_ids, model_config.image_token_id}
    return tuple(sorted(i for i in ids if i < model_config.text_config.vocab_size))


def fixed_names(model: Any, config: RunConfig) -> frozenset[str]:
    """Names of the parameters that lie under adapters, or are told to stay."""
    fixed = base_names(model)
    if config.rows_that_train == "none":
        return fixed | _table_names(model)
    return fixed - _table_names(model) if fixed and config.rows_that_train == "all" else fixed


def _table_names(model: Any) -> frozenset[str]:
    """Names of token table and head, where these are plain."""
    tables = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    held = {n for n, m in model.named_modules() if id(m) in tables}
    return frozenset(f"{name}.weight" for name in held)


def names_that_train(
    parameters: Mapping[str, Tensor], config: RunConfig, fixed: frozenset[str]
) -> set[str]:
    """Names of the parameters that move in some stage."""
    trained: set[str] = set()
    for stage in config.stages:
        for group in group_parameters(parameters, stage, config.optimizer, fixed):
            trained.update(group.names if group.optimizer else ())
    return trained


def _holds_bf16(config: RunConfig) -> bool:
    return config.precision == "bf16" and config.lora is not None


def set_types(parameters: Mapping[str, Tensor], trained: set[str], config: RunConfig) -> None:
    """Float32 for what trains in some stage; what never does keeps 16 bits under LoRA with bf16.

    Integers, as a quantized model holds them, stay.
    """
    frozen_type = torch.bfloat16 if _holds_bf16(config) else torch.float32
    for name, parameter in parameters.items():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if name in trained else frozen_type)


def _prepare_language_model(model: Any, config: RunConfig) -> None:
    if config.gradient_checkpointing:
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})


def save_run_model(
    directory: Path,
    run_model: RunModel,
    state: Mapping[str, Tensor],
    trained: set[str],
    *,
    merged: bool,
) -> None:
    """Write the model of a run as it is used afterwards; the caller writes aside and renames.

    ``state`` holds whole tensors by the names of the adapted model, ``trained`` the names of those
    that may have moved. Merged, the model is written whole where adapters are attached.
    """
    model, adapters = run_model.model, run_model.adapters
    if adapters and not merged:
        base = run_model.base
        if Path(base).is_absolute() and Path(base).name == BASE_FOLDER:
            base = os.path.relpath(base, directory.absolute())
        moved = {name: value for name, value in state.items() if name in trained}
        save_adapters(directory, adapters, base, moved)
        return
    if adapters:
        state = merged_state(model)
    with without_adapters(model):
        model.save_pretrained(directory, state_dict=dict(state), safe_serialization=True)
    run_model.processor.save_pretrained(directory)
