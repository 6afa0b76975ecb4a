"""A ten-line model and data set with the real interfaces."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pixellm.training import stream, trainer
from pixellm.training.config import RunConfig, parse_config
from pixellm.training.setup import RunModel
from pixellm.types import Sample, Turn


class TinyTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> list[Tensor]:
        return [self.conv(pixel_values)]


class TinyModel(nn.Module):
    """Text, mask and DICE losses that depend on every input, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vision_depths=[-1], vision_channels={"-1": 8})
        self.model = nn.Module()
        self.model.vision_tower = TinyTower()
        self.model.language_model = nn.Module()
        self.model.language_model.layers = nn.ModuleList([nn.Linear(8, 8)])
        self.model.pixel_decoder = nn.Linear(8, 8)
        self.embed = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 16)
        self.dropout = nn.Dropout(0.1)

    def forward(self, input_ids: Tensor, labels: Tensor, pixel_values: Tensor, **batch: Any) -> Any:
        maps = self.model.vision_tower(pixel_values, batch["pixel_mask"])
        image = maps[0].mean((2, 3))
        states = self.embed(input_ids) + image[:, None]
        states = self.dropout(self.model.language_model.layers[0](states))
        text = nn.functional.cross_entropy(
            self.head(states[:, :-1]).flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        logits = (maps[0] * self.model.pixel_decoder(states[:, -1])[:, :, None, None]).sum(1)
        logits = logits[batch["target_rows"]]
        truth = batch["target_masks"].float()
        bce = nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        chance = logits.sigmoid()
        dice = 1 - (2 * (chance * truth).sum((1, 2)) + 1) / ((chance + truth).sum((1, 2)) + 1)
        return SimpleNamespace(
            text_loss=text / batch["num_label_tokens"],
            mask_loss=bce.mean((1, 2)).sum() / batch["num_targets"],
            dice_loss=dice.sum() / batch["num_targets"],
            feature_maps=maps,
            decoder_features=None,
        )


class TinyDataset:
    class_names = ("left", "right")

    def __init__(self, seed: int = 0, length: int = 1_000_000, poison: int = -1) -> None:
        self.seed, self.length, self.poison = seed, length, poison

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Sample, ...]:
        pixels = np.random.default_rng((self.seed, index)).integers(0, 255, (16, 16, 3), np.uint8)
        turn = Turn("What is it?", "Noise.")
        name = f"tiny-{index}-poison" if index == self.poison else f"tiny-{index}"
        return (Sample(pixels, (16, 16), (turn,), name),)


class TinyCollator:
    """Rows with differing numbers of labels and targets, drawn from each image's pixels."""

    def __init__(self, *sizes: Any) -> None:
        self.sizes = sizes

    def __call__(self, rows: list[tuple[Sample, ...]]) -> dict[str, Any]:
        pixels = torch.stack([torch.from_numpy(np.asarray(row[0].image)) for row in rows])
        values = pixels.permute(0, 3, 1, 2).float() / 255
        for index, row in enumerate(rows):
            if row[0].id.endswith("poison"):
                values[index, 0, 0, 0] = float("nan")
        ids = pixels[:, 0, :6, 0].long() % 16
        labels = torch.where(pixels[:, 0, :6, 1] > 100, ids, -100)
        counts = [1 + int(image[0, 0, 0]) % 3 for image in pixels]
        target_rows = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts))
        classes = pixels[:, :8, :8, 2].long() % 3
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": torch.where(classes[:, 0, :6] == 0, -100, labels),
            "pixel_values": values,
            "pixel_mask": torch.ones(len(rows), 16, 16, dtype=torch.bool),
            "target_masks": (pixels[target_rows, :4, :4, 1] > 127).to(torch.uint8),
            "target_rows": target_rows,
            "target_answers": target_rows,
            "patch_classes": torch.where(pixels[:, :8, :8, 1] < 20, -100, classes),
            "sample_ids": [dialogue.id for row in rows for dialogue in row],
        }


class TinyRun(trainer.Run):
    """The real run with tiny parts."""

    def _set_up_model(self, checkpoint: Path | None, sources: Any) -> RunModel:
        return RunModel(TinyModel(), None)

    def _collator(self) -> Any:
        return TinyCollator()

    def _save_model(self, folder: Path, state: dict[str, Tensor]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / "weights.pt")


def use_tiny_parts() -> None:
    """Lets `train` build tiny runs, for the rest of the process."""
    stream.DATASETS["tiny"] = "tiny_training:TinyDataset"
    trainer.Run = TinyRun  # type: ignore[misc]


def tiny_config(folder: Path, **changes: Any) -> RunConfig:
    """Two stages: six encoder-only steps, then eight joint ones."""
    joint = {
        "name": "joint",
        "steps": 8,
        "batch_size": 4,
        "accumulation": 2,
        "warmup_steps": 2,
        "decay_fraction": 0.5,
        "learning_rate": 0.01,
        "loss": {"patch_class": 0.1},
    }
    encoder = {
        "name": "encoder",
        "steps": 6,
        "batch_size": 4,
        "warmup_steps": 0,
        "learning_rate": 0.01,
        "loss": {"text": 0, "mask": 0, "dice": 0, "patch_class": 1},
    }
    raw = {
        "name": "tiny",
        "output_dir": str(folder),
        "model": {"fresh": {}},
        "data": [{"name": "tiny"}],
        "stages": [encoder, joint],
        "checkpoint": {"every_steps": 3, "keep_last": 2},
        "ema_decay": 0.9,
        "log_every": 1,
        "threads": 1,
    }
    return parse_config({**raw, **changes})


def final_weights(run: Path, folder: str = "model") -> dict[str, Tensor]:
    """Weights that a finished run saved."""
    return torch.load(run / folder / "weights.pt", weights_only=True)


def assert_same_weights(one: Path, other: Path, folder: str = "model") -> None:
    """Two runs ended alike, to the bit."""
    for name, value in final_weights(one, folder).items():
        assert torch.equal(value, final_weights(other, folder)[name]), name
