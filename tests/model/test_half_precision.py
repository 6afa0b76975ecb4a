"""Half precision: the mask path stays in float32 on every way into it, and nothing breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import TINY_QUESTION, square_image, square_sample
from pixellm import Engine, Request, load
from pixellm.checkpoint.io import load_model_and_processor, save_model
from pixellm.data.collate import Collator
from pixellm.model.modeling import PixelLMForConditionalGeneration
from pixellm.types import Sample

MASK_PATH = ("feature_projector", "codebook", "pixel_decoder")
EXACT_NAMES = (*(f"model.{part}." for part in MASK_PATH), "model.language_model.norm.")
HALVES = (torch.bfloat16, torch.float16)


def assert_mask_path_is_exact(model: Any, exact: Any, half: torch.dtype) -> None:
    """The mask path has the float32 model's bits, everything else is in half precision."""
    wanted = exact.state_dict()
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        if name.startswith(EXACT_NAMES):
            assert value.dtype == torch.float32, name
            assert torch.equal(value, wanted[name]), name
        else:
            assert value.dtype == half, name


@pytest.fixture(scope="module")
def exact(tiny_model_dir: Path) -> tuple[Any, Any]:
    return load_model_and_processor(tiny_model_dir)


@pytest.fixture
def batch(exact: tuple[Any, Any]) -> dict[str, Any]:
    """Three rows: two targets, none, and none again behind a longer text."""
    sample = square_sample()
    alone = Sample(sample.image, sample.size, sample.turns[1:], "no masks")
    batch = Collator(exact[1], mask_size=16)([[sample], [alone], [alone, alone]])
    del batch["sample_ids"]
    return batch


@pytest.mark.parametrize(
    ("way", "half"),
    zip(["from_pretrained", "to", "to_and_back_again", "named"], 2 * HALVES, strict=True),
    ids=str,
)
def test_the_mask_path_keeps_its_bits_on_every_way_into_half_precision(
    way: str, half: torch.dtype, exact: tuple[Any, Any], tiny_model_dir: Path
) -> None:
    if way == "from_pretrained":
        model: Any = PixelLMForConditionalGeneration.from_pretrained(tiny_model_dir, dtype=half)
    else:
        model, _ = load_model_and_processor(tiny_model_dir)
        if way == "named":
            model = model.bfloat16() if half is torch.bfloat16 else model.half()
        else:
            model = model.to(half)
        if way == "to_and_back_again":
            model = model.float().to("cpu", half)
    assert_mask_path_is_exact(model, exact[0], half)


def test_a_fresh_model_in_half_precision_has_its_mask_path_in_float32(
    exact: tuple[Any, Any],
) -> None:
    model: Any = PixelLMForConditionalGeneration._from_config(exact[0].config, dtype=torch.bfloat16)
    types = {part: getattr(model.model, part).dtype for part in MASK_PATH}
    assert set(types.values()) == {torch.float32}
    assert model.dtype == torch.bfloat16


def test_wider_types_and_the_meta_device_are_followed(tiny_model_dir: Path) -> None:
    model, _ = load_model_and_processor(tiny_model_dir)
    assert {p.dtype for p in model.double().parameters()} == {torch.float64}
    moved = model.to("meta", torch.bfloat16)
    assert {p.device.type for p in moved.parameters()} == {"meta"}
    assert moved.model.pixel_decoder.dtype == torch.float32


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_half_models_are_saved_and_loaded_to_the_bit(
    half: torch.dtype, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model, processor = load_model_and_processor(tiny_model_dir, dtype=half)
    save_model(tmp_path / "half", model, processor)
    again, _ = load_model_and_processor(tmp_path / "half", dtype=half)
    widened, _ = load_model_and_processor(tmp_path / "half")
    for name, value in model.state_dict().items():
        assert again.state_dict()[name].dtype == value.dtype, name
        assert torch.equal(again.state_dict()[name], value), name
        assert torch.equal(widened.state_dict()[name], value.float()), name


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_batches_of_several_images_get_the_masks_of_float32(
    half: str, tiny_model_dir: Path, tiny_engine: Engine
) -> None:
    engine = load(tiny_model_dir, device="cpu", dtype=half, max_new_tokens=48)
    images = [square_image((2, 3)), square_image((2, 3), (24, 32))]
    requests = [Request(image, TINY_QUESTION) for image in images]
    answers = engine.predict_batch(requests)
    assert answers[0].text == tiny_engine.predict(images[0], TINY_QUESTION).text
    assert len(answers[0].segments) == 2
    for segment, same in zip(
        answers[0].segments, tiny_engine.predict(images[0], TINY_QUESTION).segments, strict=True
    ):
        assert (segment.mask != same.mask).mean() < 0.02
        assert segment.score == pytest.approx(same.score, abs=0.02)
    assert all(np.isfinite(s.score) for answer in answers for s in answer.segments)


@pytest.mark.parametrize("way", ["half weights", "autocast"])
def test_training_in_half_precision_gives_the_losses_of_float32(
    way: str, exact: tuple[Any, Any], batch: dict[str, Any], tiny_model_dir: Path
) -> None:
    with torch.no_grad():
        wanted = exact[0](**batch)
    half = way == "half weights"
    model, _ = load_model_and_processor(
        tiny_model_dir, dtype=torch.bfloat16 if half else torch.float32
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=not half):
        found = model.train()(**batch)
    for name in ("loss", "text_loss", "mask_loss", "dice_loss"):
        assert getattr(found, name).item() == pytest.approx(
            getattr(wanted, name).item(), rel=0.1, abs=0.02
        ), name
    found.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.dtype == parameter.dtype, name
            assert torch.isfinite(parameter.grad).all(), name
    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None}
    assert set(MASK_PATH) <= trained
