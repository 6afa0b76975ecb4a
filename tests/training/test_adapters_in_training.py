"""LoRA and token rows: what moves, what never does, and that merging changes nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from test_training_real_model import Squares, real_config
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from typer.testing import CliRunner

from pixellm.checkpoint.adapters import (
    Adapters,
    TokenHead,
    attach_adapters,
    base_names,
    fold_adapters,
    merged_state,
    without_adapters,
)
from pixellm.checkpoint.io import load_model_and_processor
from pixellm.checkpoint.parts import LoraShape
from pixellm.data.collate import Collator
from pixellm.training import stream
from pixellm.training.config import parse_config
from pixellm.training.trainer import train

LORA = LoraShape(rank=2, alpha=8.0, dropout=0.0, target_modules=("q_proj", "v_proj"))


@pytest.fixture(autouse=True)
def squares(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(stream.DATASETS, "squares", "test_training_real_model:Squares")
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the first run's precision
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """An untrained model, its processor, and the folder that it lies in."""
    from pixellm.checkpoint.build import build_model
    from pixellm.checkpoint.io import save_model

    torch.manual_seed(0)
    model, processor = build_model(
        real_config(Path()).model, ["Show all. A red one and a blue one. Is there a green one? No."]
    )
    folder = tmp_path_factory.mktemp("base") / "start"
    save_model(folder, model, processor)
    return model, processor, folder


def load_base(base: tuple[Any, Any, Path]) -> Any:
    return load_model_and_processor(base[2])[0]


def batch_of(processor: Any) -> dict[str, Any]:
    batch = Collator(processor, mask_size=16)([Squares()[0], Squares()[1]])
    return {name: value for name, value in batch.items() if name != "sample_ids"}


def outputs(model: Any, processor: Any) -> list[Tensor]:
    batch = batch_of(processor)
    with torch.no_grad():
        model.eval()
        losses = model(**batch)
        del batch["labels"]
        return [losses.loss, losses.mask_logits, model(**batch).logits]


def assert_close(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def rows_of(model: Any) -> tuple[int, ...]:
    return tuple(model.config.codebook_token_ids)


def move_what_trains(model: Any, processor: Any) -> None:
    """One large step of everything that is not under adapters."""
    fixed = base_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in fixed)
    model.train()(**batch_of(processor)).loss.backward()
    for name, parameter in model.named_parameters():
        if name not in fixed and parameter.grad is not None:
            parameter.data -= 0.5 * parameter.grad.sign() * 0.1


def test_fresh_adapters_change_no_output(base: Any) -> None:
    model = load_base(base)
    before = outputs(model, base[1])
    attach_adapters(model, Adapters(LORA, rows_of(model)))
    assert_close(outputs(model, base[1]), before)


@pytest.mark.parametrize("tied", [False, True])
def test_training_adapters_leaves_the_language_model_as_it_was(base: Any, tied: bool) -> None:
    model = load_base(base)
    if tied:
        model.lm_head.weight = model.get_input_embeddings().weight
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attach_adapters(model, Adapters(LORA, rows_of(model)))
    move_what_trains(model, base[1])

    with without_adapters(model):
        after = dict(model.state_dict())
    untouched = [n for n in before if "language_model" in n or "lm_head" in n]
    assert untouched
    assert all(torch.equal(after[name], before[name]) for name in untouched)
    assert not torch.equal(
        after["model.codebook.text_projection.0.weight"],
        before["model.codebook.text_projection.0.weight"],
    )

    merged = merged_state(model)
    new = list(rows_of(model))
    old = [i for i in range(len(merged["lm_head.weight"])) if i not in new]
    for table in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
        assert torch.equal(merged[table][old], before[table][old])
        assert (merged[table][new] != before[table][new]).any(1).all()
    query = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged[query], before[query])
    assert (merged["lm_head.weight"] is merged[table]) == tied


def test_folded_adapters_answer_as_attached_ones(base: Any) -> None:
    model = load_base(base)
    attach_adapters(model, Adapters(LORA, rows_of(model)))
    move_what_trains(model, base[1])
    attached = outputs(model, base[1])
    fold_adapters(model)
    assert not any(isinstance(m, TokenHead) or hasattr(m, "lora_A") for m in model.modules())
    assert_close(outputs(model, base[1]), attached)


@pytest.mark.parametrize(
    ("sizes", "targets"),
    [
        ({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}, ("c_attn",)),
        (real_config(Path()).model["text"]["config"], ("all-linear",)),
    ],
    ids=["gpt2", "llama"],
)
@torch.no_grad()
def test_lora_folds_into_other_language_models(
    sizes: dict[str, Any], targets: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    holder = nn.Module()
    holder.model = nn.Module()
    shape = AutoConfig.for_model(**sizes, vocab_size=50)
    holder.model.language_model = AutoModel.from_config(shape).eval()
    attach_adapters(holder, Adapters(LoraShape(rank=2, dropout=0.0, target_modules=targets)))
    for name, parameter in holder.named_parameters():
        if ".lora_B" in name:
            nn.init.normal_(parameter)
    ids = torch.tensor([[1, 2, 3]])
    attached = holder.model.language_model(ids).last_hidden_state
    fold_adapters(holder)
    folded = holder.model.language_model(ids).last_hidden_state
    torch.testing.assert_close(folded, attached, atol=1e-5, rtol=1e-5)


def test_target_modules_that_are_not_there_are_named_with_those_that_are(base: Any) -> None:
    lora = LoraShape(target_modules=("query",))
    with pytest.raises(ValueError, match=r"\['query'\] are not in the language model.*q_proj"):
        attach_adapters(load_base(base), Adapters(lora))


def lora_config(folder: Path, start: Path, **changes: Any) -> Any:
    raw = real_config(folder).model_dump(mode="json")
    joint = raw["stages"][1] | {"steps": 4, "learning_rate": 0.01, "freeze": ["*vision_tower"]}
    raw |= {
        "model": {"checkpoint": str(start)},
        "stages": [joint],
        "lora": {"rank": 2, "alpha": 8, "dropout": 0.1},
        "checkpoint": {"every_steps": 2, "keep_last": 9},
        "gradient_checkpointing": True,
    }
    return parse_config({**raw, **changes})


def test_a_run_writes_adapters_that_load_merge_and_resume_to_the_bit(
    base: Any, tmp_path: Path
) -> None:
    config = lora_config(tmp_path, base[2])
    before = (base[2] / "model.safetensors").read_bytes()
    run = train(config)
    assert (base[2] / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in (run / "model").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    saved = (run / "model" / "adapter_model.safetensors").read_bytes()
    stages = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    rows = {row["module"]: row for row in stages[0]["groups"]}
    assert rows["model.language_model"]["optimizer"] == "frozen"
    assert rows["model.language_model (LoRA)"]["parameters"] == 2 * 2 * 2 * 64
    assert rows["model.language_model (added token rows)"]["optimizer"] == "adamw"

    loaded, processor = load_model_and_processor(run)
    result = CliRunner().invoke(_app(), ["merge", str(run), "--out", str(tmp_path / "whole")])
    assert result.exit_code == 0, result.output
    whole, _ = load_model_and_processor(tmp_path / "whole")
    assert_close(outputs(whole, processor), outputs(loaded, processor))
    start = load_base(base)
    assert not torch.allclose(outputs(start, processor)[2], outputs(loaded, processor)[2])

    train(config, resume=run / "checkpoints" / "step_00000002")
    assert (run / "model" / "adapter_model.safetensors").read_bytes() == saved


def test_adapters_on_a_new_model_keep_it_beside_them(tmp_path: Path) -> None:
    fresh = real_config(tmp_path).model
    config = lora_config(tmp_path / "a", Path(), model=fresh, precision="bf16", ema_decay=0.0)
    run = train(config)
    moved = tmp_path / "moved"
    run.rename(moved)
    model, _ = load_model_and_processor(moved)
    assert model.config.model_type == "pixellm"
    checkpoint, _ = load_model_and_processor(moved / "checkpoints" / "step_00000004")
    for name, value in checkpoint.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_quantization_without_a_gpu_and_merging_of_whole_models_are_refused(
    base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = lora_config(tmp_path, base[2], quantize="nf4", precision="bf16")
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        train(config)
    with pytest.raises(ValueError, match="quantize needs `lora`"):
        lora_config(tmp_path, base[2], quantize="nf4", precision="bf16", lora=None)
    result = CliRunner().invoke(_app(), ["merge", str(base[2]), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "whole model already" in result.output


def _app() -> Any:
    from pixellm.cli.main import app

    return app
