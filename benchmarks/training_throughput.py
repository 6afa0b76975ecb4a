"""Training throughput: images per second and peak memory, against a plain loop.

The plain loop does what the released code does: the decoder runs image by image, logits are
made for every position, masks are compared at the size of the image, and every batch carries a
1024 x 1024 float image that nothing reads. Both loops see the same random images, texts and
masks, and move the same parameters with AdamW. Each figure comes from a process of its own.

    python benchmarks/training_throughput.py --model nano-scenes --model 110m --json out.json
    python benchmarks/training_throughput.py --model 7b --device cuda --json out.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMAGE = (480, 640)
DUMMY_SIDE = 1024
RECIPE_7B = Path(__file__).parents[1] / "src/pixellm/recipes" / "pixellm_7b.yaml"

MODEL_110M = {
    "vision": {
        "config": {
            "model_type": "clip_vision_model",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "patch_size": 16,
        }
    },
    "text": {
        "config": {
            "model_type": "llama",
            "vocab_size": 8192,
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
        }
    },
    "settings": {"image_size": 224, "llm_grid": [7, 7], "llm_projector_size": 768},
}


def shape_of(name: str) -> Any:
    """Configuration of a model by its name here."""
    from pixellm.checkpoint.sources import EMBEDDED_DIR
    from pixellm.model.config import PixelLMConfig
    from pixellm.training.config import load_config
    from pixellm.training.plan import model_shape_from_parts

    if name == "nano-scenes":
        return PixelLMConfig.from_pretrained(EMBEDDED_DIR / "nano-scenes")
    parts = MODEL_110M if name == "110m" else load_config(RECIPE_7B).model["sizes"]
    return model_shape_from_parts(parts)[0]


def build(name: str, device: str) -> Any:
    """The model with random weights; the encoder frozen, the 7B one under LoRA in 16 bits."""
    import torch

    from pixellm.checkpoint.adapters import Adapters, attach_adapters, base_names
    from pixellm.checkpoint.parts import LoraShape
    from pixellm.model.modeling import PixelLMForConditionalGeneration

    torch.manual_seed(0)
    large = name == "7b"
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if large else torch.float32)
    with torch.device(device):
        model = PixelLMForConditionalGeneration(shape_of(name))
    torch.set_default_dtype(kept)
    fixed: frozenset[str] = frozenset()
    if large:
        lora = LoraShape()
        attach_adapters(model, Adapters(lora, tuple(model.config.codebook_token_ids)))
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        fixed = base_names(model)
    for parameter_name, parameter in model.named_parameters():
        trains = parameter_name not in fixed and "vision_tower" not in parameter_name
        parameter.requires_grad_(trains)
        parameter.data = parameter.data.float() if trains else parameter.data
    return model.train()


def random_batch(shape: Any, rows: int, length: int, targets: int, device: str) -> dict[str, Any]:
    """Rows of an image, text and `targets` codebook groups each."""
    import torch

    from pixellm.model.pixel_masks import pack_masks

    generator = torch.Generator().manual_seed(1)
    group, side = shape.group_size, shape.image_size
    ordinary = min(shape.image_token_id, *shape.codebook_token_ids)
    ids = torch.randint(3, ordinary, (rows, length), generator=generator)
    ids[:, 1 : 1 + shape.num_image_tokens] = shape.image_token_id
    labels = ids.clone()
    labels[:, : 1 + shape.num_image_tokens] = -100
    step = (length - shape.num_image_tokens - 2) // targets
    assert step > group, "the rows are too short for so many targets"
    for index in range(targets):
        start = 2 + shape.num_image_tokens + index * step
        ids[:, start : start + group] = torch.tensor(shape.codebook_token_ids)
    drawn = torch.rand(rows * targets, side, side, generator=generator) > 0.5
    masks, sizes = pack_masks(list(drawn.numpy()))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "pixel_values": torch.randn(rows, 3, side, side, generator=generator),
        "pixel_mask": torch.ones(rows, side, side, dtype=torch.bool),
        "target_masks": masks,
        "target_sizes": sizes,
        "target_rows": torch.arange(rows).repeat_interleave(targets),
        "target_answers": torch.arange(rows).repeat_interleave(targets),
    }
    return {key: value.to(device) for key, value in batch.items()}


def our_loss(model: Any, batch: dict[str, Any]) -> Any:
    return model(**batch).loss


def plain_loss(model: Any, batch: dict[str, Any]) -> Any:
    """Image by image, at the size of the image, with logits for every position."""
    import torch.nn.functional as F

    from pixellm.model.codebook import find_groups
    from pixellm.model.losses import dice_loss

    ids = batch["input_ids"]
    encoded, _ = model.model.encode_images(batch["pixel_values"], batch["pixel_mask"])
    hidden = model.model(ids, encoded.tokens, batch["attention_mask"]).last_hidden_state
    logits = model.lm_head(hidden)[:, :-1].float()
    loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    codebook = ids.new_tensor(model.config.codebook_token_ids)
    for row in range(len(ids)):
        rows, starts = find_groups(ids[row : row + 1], codebook)
        embeddings = model.target_embeddings(hidden[row : row + 1], rows, starts)
        features = [feature[row : row + 1] for feature in encoded.features]
        masks = model.decode_masks(embeddings, features, rows)[:, None].float()
        masks = F.interpolate(masks, IMAGE, mode="bilinear").flatten(1)
        truth = batch["full_masks"][batch["target_rows"] == row].flatten(1).float()
        bce = F.binary_cross_entropy_with_logits(masks, truth)
        dice = dice_loss(masks, truth).mean()
        loss = loss + (2.0 * bce + 0.5 * dice) / len(ids)
    return loss


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One loop of one model: images per second over the steps after the first two."""
    import torch

    from pixellm.training.trainer import peak_memory

    device, rows, plain = job["device"], job["rows"], job["loop"] == "plain"
    if device == "cpu":
        torch.set_num_threads(job["threads"])
    model = build(job["model"], device)
    batch = random_batch(model.config, rows, job["length"], job["targets"], device)
    if plain:
        full = torch.rand(rows * job["targets"], *IMAGE) > 0.5
        batch |= {
            "full_masks": full.to(device),
            "dummy": torch.zeros(rows, 3, DUMMY_SIDE, DUMMY_SIDE, device=device),
        }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    loss_of: Callable[..., Any] = plain_loss if plain else our_loss
    started = 0.0
    for step in range(job["steps"] + 2):
        if step == 2:
            started = _now(device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = _now(device) - started
    return {
        **job,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained": sum(parameter.numel() for parameter in trained),
        "pictures_per_second": round(rows * job["steps"] / seconds, 3),
        "peak_memory_gb": round(peak_memory(torch.device(device)) / 1e9, 3),
    }


def _now(device: str) -> float:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def estimate_7b(rows: int, length: int) -> float:
    """What `pixellm train --dry-run` says of the 7B recipe on one GPU with these rows, in GB."""
    from pixellm.training.config import load_config
    from pixellm.training.plan import plan_run

    config = load_config(RECIPE_7B, [f"stages.0.batch_size={rows}", f"collate.max_length={length}"])
    return plan_run(config).stages[0].memory[0].total / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--model", action="append", choices=["nano-scenes", "110m", "7b"], required=True
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=int, default=4, help="images per step")
    parser.add_argument("--targets", type=int, default=6, help="masks per image")
    parser.add_argument("--length", type=int, default=0, help="tokens per row; 0 suits the model")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    fresh = multiprocessing.get_context("spawn")
    for model in options.model:
        length = options.length or {"nano-scenes": 256, "110m": 256, "7b": 832}[model]
        for loop in ("plain", "pixellm"):
            job = {
                "model": model,
                "loop": loop,
                "device": options.device,
                "rows": options.rows,
                "targets": options.targets,
                "length": length,
                "steps": options.steps,
                "threads": options.threads,
            }
            with fresh.Pool(1) as pool:
                result = pool.apply(measure, (job,))
            if model == "7b" and loop == "pixellm":
                result["estimated_memory_gb"] = round(estimate_7b(options.rows, length), 3)
            print(json.dumps(result), flush=True)
            results.append(result)
    if options.json:
        machine = {"machine": platform.processor() or platform.machine(), "results": results}
        options.json.write_text(json.dumps(machine, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
