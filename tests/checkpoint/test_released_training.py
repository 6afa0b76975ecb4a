"""The training objective computes what the released code computed, number by number."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pixellm.model.losses import refinement_weights, target_refinement_loss_sum

PARITY = Path(os.environ.get("PIXELLM_PARITY_DIR", Path(__file__).parents[3] / "shared/parity"))
FORCED = PARITY / "official_a_forced"

pytestmark = pytest.mark.skipif(not FORCED.is_dir(), reason=f"the parity data is not at {FORCED}")


def golden():
    return json.loads((FORCED / "golden.json").read_text())


def test_target_refinement_is_the_released_overlap_loss_added_to_plain_bce():
    """Weights, value and gradient; with alpha 2 contested pixels count once more."""
    tensors = load_file(FORCED / "golden.safetensors")
    cases = golden()["overlap"]
    assert cases
    for case in cases:
        name = f"overlap{case['case']}"
        logits = tensors[f"{name}.logits"].flatten(1).requires_grad_()
        targets = tensors[f"{name}.targets"].flatten(1).float()
        wanted = tensors[f"{name}.weights"].flatten(1)
        counts = torch.tensor(case["counts"])
        answers = torch.repeat_interleave(torch.arange(len(counts)), counts)
        weights = refinement_weights(logits, answers, alpha=2.0)
        assert torch.equal(weights - 1, wanted), name
        everywhere, num = torch.ones_like(targets), case["num_masks"]
        loss = {
            alpha: target_refinement_loss_sum(logits, targets, answers, everywhere, alpha) / num
            for alpha in (1.0, 2.0)
        }
        overlap = loss[2.0] - loss[1.0]
        assert loss[1.0].item() == pytest.approx(case["plain_bce"], abs=1e-5)
        assert overlap.item() == pytest.approx(case["loss"], abs=1e-5)
        (gradient,) = torch.autograd.grad(overlap, logits)
        expected = tensors[f"{name}.grad"].flatten(1)
        assert float((gradient - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
