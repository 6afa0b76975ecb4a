"""Adapters on a model: LoRA in its language model, and token rows that train apart from a table.

Attaches them, folds them into plain weights, and moves them to and from disk in peft's layout, as
a small folder that names the model it belongs to.

LoRA is peft's. Token rows are not: its rows copy the whole table at every pass, and a head loses
its bias under them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixellm.checkpoint.parts import LoraShape
from pixellm.checkpoint.sources import ADAPTER_CONFIG, is_adapter_folder
from pixellm.files import parse_json, read_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"

_BASE = "base_model_name_or_path"
_LANGUAGE_MODEL = "model.language_model."
_PREFIX, _THEIR_ROWS, _ROWS = "base_model.model.", ".token_adapter.trainable_tokens_delta", ".rows"


@dataclass(frozen=True, slots=True)
class Adapters:
    """What is attached to a model.

    Attributes:
        lora: None for none.
        token_rows: ids whose rows of token table and head are kept apart; () for none.
    """

    lora: LoraShape | None = None
    token_rows: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.lora is not None or bool(self.token_rows)


class ReplacedRows(nn.Module):
    """A matrix of tokens some of whose rows are a parameter of their own.

    Args:
        base: holds the whole matrix, (V, D); it never changes.
        ids: (K,) tokens whose rows are replaced.
        rows: (K, D).
    """

    def __init__(
        self, base: nn.Embedding | nn.Linear, ids: Sequence[int], rows: nn.Parameter
    ) -> None:
        super().__init__()
        self.base, self.rows = base, rows
        self.ids: Tensor
        self.register_buffer("ids", torch.tensor(ids, device=rows.device), persistent=False)


class TokenTable(ReplacedRows):
    """A token table with rows of its own."""

    def __init__(self, base: nn.Embedding, ids: Sequence[int], rows: nn.Parameter) -> None:
        super().__init__(base, ids, rows)
        index = torch.full((base.num_embeddings,), -1, device=rows.device)
        index[self.ids] = torch.arange(len(ids), device=rows.device)
        self.index: Tensor
        self.register_buffer("index", index, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) ids to (B, T, D), in the base's type."""
        embedded = self.base(input_ids)
        position = self.index[input_ids]
        replaced = F.embedding(position.clamp_min(0), self.rows).to(embedded.dtype)
        # The Gemma, BioGPT and XGLM families scale what they look up.
        scale = getattr(self.base, "embed_scale", 1.0)
        replaced = replaced * (scale.to(embedded.dtype) if isinstance(scale, Tensor) else scale)
        return torch.where((position >= 0)[..., None], replaced, embedded)


class TokenHead(ReplacedRows):
    """A language model's head with rows of its own."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., D) states to (..., V) logits."""
        logits = self.base(hidden_states)
        kind, bias = hidden_states.dtype, self.base.bias
        own_bias = bias[self.ids].to(kind) if isinstance(bias, Tensor) else None
        replaced = F.linear(hidden_states, self.rows.to(kind), own_bias)
        return logits.index_copy(-1, self.ids, replaced.to(logits.dtype))


def attach_adapters(model: Any, adapters: Adapters) -> None:
    """Put adapters into a PixelLM, in place; at first they change none of its outputs.

    Args:
        model: PixelLM for conditional generation, on any device, "meta" included.
        adapters: what to attach.
    """
    if adapters.lora is not None:
        language_model = model.model.language_model
        # peft asks the module that it is handed, transformers marks the whole model.
        language_model.is_loaded_in_4bit = getattr(model, "is_loaded_in_4bit", False)
        _attach_lora(language_model, adapters.lora)
    if adapters.token_rows:
        table, head = model.get_input_embeddings(), model.lm_head
        rows = _rows_of(table.weight, adapters.token_rows)
        tied = head.weight is table.weight
        head_rows = rows if tied else _rows_of(head.weight, adapters.token_rows)
        model.set_input_embeddings(TokenTable(table, adapters.token_rows, rows))
        model.set_output_embeddings(TokenHead(head, adapters.token_rows, head_rows))


def _attach_lora(language_model: nn.Module, lora: LoraShape) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    wanted = lora.target_modules
    if mixer := _mixer_within(language_model, wanted):
        raise ValueError(
            f"LoRA can't go into {mixer} layers, which read their weights past it; name layers of "
            "attention in lora.target_modules, or take `lora` out of the recipe."
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float is used as one
        lora_dropout=lora.dropout,
        target_modules=wanted[0] if wanted == ("all-linear",) else list(wanted),
    )
    try:
        inject_adapter_in_model(config, language_model)
    except ValueError as error:
        linear = (n.rpartition(".")[2] for n, m in language_model.named_modules() if _is_linear(m))
        raise ValueError(
            f"lora.target_modules {list(wanted)} are not in the language model; it has "
            f"{', '.join(dict.fromkeys(linear))}."
        ) from error
    for name, parameter in language_model.named_parameters():
        if is_lora_name(name):
            parameter.data = parameter.data.float()


def _mixer_within(language_model: nn.Module, wanted: Sequence[str]) -> str:
    """The class of a state space's mixer that LoRA would go into; "" where there is none."""
    for module in language_model.modules():
        if type(module).__name__.endswith("Mixer"):
            inner = {name.rpartition(".")[2] for name, _ in module.named_modules()}
            if "all-linear" in wanted or inner & {*wanted}:
                return type(module).__name__
    return ""


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _rows_of(weight: Tensor, ids: Sequence[int]) -> nn.Parameter:
    return nn.Parameter(weight.detach()[list(ids)].float().clone())


def is_lora_name(name: str) -> bool:
    """Whether a parameter's name is one that LoRA added."""
    return ".lora_" in name


def base_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters under adapters, which never train.

    With LoRA that is the whole language model with its head; with rows alone, the tables.
    """
    names = [name for name, _ in model.named_parameters()]
    tables = [n for n, m in model.named_modules() if isinstance(m, ReplacedRows)]
    fixed = {n for n in names if n.rpartition(".")[0] in {f"{t}.base" for t in tables}}
    if any(map(is_lora_name, names)):
        own = {f"{table}.rows" for table in tables}
        within = ("model.language_model.", "lm_head.")
        fixed |= {n for n in names if n.startswith(within) and not is_lora_name(n)} - own
    return frozenset(fixed & set(names))


def _adapted(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """(parent, attribute, module) of every module that adapters replaced."""
    found: list[tuple[nn.Module, str, Any]] = []
    for name, module in model.named_modules():
        if isinstance(module, ReplacedRows) or hasattr(module, "lora_A"):
            parent, _, attribute = name.rpartition(".")
            found.append((model.get_submodule(parent), attribute, module))
    return found


def _plain(module: Any) -> Any:
    return module.base if isinstance(module, ReplacedRows) else module.get_base_layer()


def _weight_name(module: Any) -> str:
    """The parameter of the plain module that is adapted; experts hold theirs by other names."""
    return str(getattr(module, "parameter_name", "weight"))


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The model has its plain modules back inside, base weights and names included."""
    adapted = _adapted(model)
    for parent, attribute, module in adapted:
        setattr(parent, attribute, _plain(module))
    try:
        yield
    finally:
        for parent, attribute, module in adapted:
            setattr(parent, attribute, module)


@torch.no_grad()
def merged_weight(module: Any) -> Tensor:
    """The weight of an adapted module with its adapter in it, in the base's type."""
    base = getattr(_plain(module), _weight_name(module))
    if isinstance(module, ReplacedRows):
        merged: Tensor = base.detach().clone()
        merged[module.ids] = module.rows.to(merged.dtype)
        return merged
    delta = module.get_delta_weight("default")
    return (base.detach().float() + delta.float()).to(base.dtype)


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Weights of the plain model with the adapters in them, by plain name; the model stays.

    Weights that the model ties are one tensor here too.
    """
    adapted = [(module, _plain(module)) for _, _, module in _adapted(model)]
    with without_adapters(model):
        names = {id(module): name for name, module in model.named_modules()}
        state: dict[str, Tensor] = dict(model.state_dict())
    shared: dict[int, Tensor] = {}
    for module, plain in adapted:
        name = _weight_name(module)
        merged = shared.setdefault(id(getattr(plain, name)), merged_weight(module))
        state[f"{names[id(plain)]}.{name}"] = merged
    return state


@torch.no_grad()
def fold_adapters(model: nn.Module) -> None:
    """Replace adapted modules by plain ones with the adapters in their weights, in place."""
    adapted = _adapted(model)
    merged = [merged_weight(module) for _, _, module in adapted]
    for (parent, attribute, module), weight in zip(adapted, merged, strict=True):
        plain = _plain(module)
        setattr(parent, attribute, plain)
        getattr(plain, _weight_name(module)).copy_(weight)
    inner: Any = getattr(model, "model", None)
    if inner is not None and hasattr(inner.language_model, "peft_config"):
        del inner.language_model.peft_config


def save_adapters(
    directory: Path, adapters: Adapters, base: str, state: Mapping[str, Tensor]
) -> None:
    """Write adapters and whatever else has trained, as peft does.

    Args:
        directory: created where needed; callers write aside and rename.
        adapters: what is attached.
        base: the model they belong to: a name, a folder (relative to ``directory`` where it
            starts with a dot) or a hub id.
        state: tensors by the names that they have while adapters are attached.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    lora = adapters.lora or LoraShape(rank=1, alpha=1.0, dropout=0.0)
    plain = [n for n in state if not is_lora_name(n) and not n.endswith(_ROWS)]
    tables = sorted(n.removesuffix(_ROWS) for n in state if n.endswith(_ROWS))
    values = {
        "peft_type": "LORA",
        _BASE: base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted({n.partition(".lora_")[0] for n in state if is_lora_name(n)}),
        "trainable_token_indices": {name: list(adapters.token_rows) for name in tables} or None,
        "modules_to_save": sorted({".".join(n.split(".")[:2]) for n in plain}) or None,
        "inference_mode": True,
    }
    (directory / ADAPTER_CONFIG).write_text(json.dumps(values, indent=2), encoding="utf-8")
    unique = _without_repeats(state)
    save_file(
        {_peft_name(n): v.contiguous() for n, v in unique.items()}, directory / ADAPTER_WEIGHTS
    )


def _peft_name(name: str) -> str:
    """What peft calls a tensor in its files."""
    if name.endswith(_ROWS):
        return f"{_PREFIX}{name.removesuffix(_ROWS)}{_THEIR_ROWS}"
    return _PREFIX + re.sub(r"(\.lora_\w+)\.default\b", r"\1", name)


def _own_name(name: str) -> str:
    """The inverse of :func:`_peft_name`."""
    name = name.removeprefix(_PREFIX)
    if name.endswith(_THEIR_ROWS):
        return name.removesuffix(_THEIR_ROWS) + _ROWS
    return re.sub(r"(\.lora_\w+)", r"\1.default", name)


def _without_repeats(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One name for each tensor; tied ones come back together when they are attached."""
    seen: set[int] = set()
    kept = {}
    for name, value in state.items():
        if value.data_ptr() not in seen or value.numel() == 0:
            seen.add(value.data_ptr())
            kept[name] = value
    return kept


def read_adapter_config(directory: Path) -> tuple[Adapters, str]:
    """What is attached, and the source of the model that it belongs to.

    Raises:
        ValueError: the file is damaged, or the adapters belong to themselves in the end.
    """
    path = directory / ADAPTER_CONFIG
    try:
        values = parse_json(path.read_bytes())
        targets = tuple(str(n).removeprefix(_LANGUAGE_MODEL) for n in values["target_modules"])
        names = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
        sizes = {own: values[theirs] for own, theirs in names.items()}
        rows = [*(values.get("trainable_token_indices") or {}).values(), []]
        lora = LoraShape(**sizes, target_modules=targets) if targets else None
        adapters = Adapters(lora, tuple(map(int, rows[0])))
        base = str(values[_BASE])
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy the adapters again.") from error
    base = _from_here(directory, base)
    below, seen = Path(base), {directory.resolve()}
    while is_adapter_folder(below):
        if below.resolve() in seen:
            raise ValueError(f"{path} names {base} as its model, which leads back to it.")
        seen.add(below.resolve())
        below = Path(_from_here(below, read_json(below / ADAPTER_CONFIG).get(_BASE)))
    return adapters, base


def _from_here(directory: Path, base: Any) -> str:
    """A source that adapters name; relative ones begin at their folder."""
    name = str(base)
    return os.path.normpath(directory / name) if name.startswith(".") else name


@torch.no_grad()
def load_adapters(model: Any, directory: Path) -> None:
    """Attach the adapters of a folder to the model they belong to, and fill them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    adapters, base = read_adapter_config(directory)
    path = directory / ADAPTER_WEIGHTS
    try:
        state = {_own_name(name): value for name, value in load_file(path).items()}
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); copy it again.") from error
    attach_adapters(model, adapters)
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    bad = [n for n, v in state.items() if n not in own or own[n].shape != v.shape]
    needed = {name for name in own if is_lora_name(name) or name.endswith(".rows")}
    if bad or not needed <= _with_tied(own, state):
        name = bad[0] if bad else min(needed - state.keys())
        raise ValueError(f"{path} does not fit the model {base}: {name}.")
    for name, value in state.items():
        own[name].copy_(value)


def _with_tied(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> set[str]:
    """Names that are filled when those of ``state`` are."""
    filled = {id(own[name]) for name in state if name in own}
    return {name for name, value in own.items() if id(value) in filled}
