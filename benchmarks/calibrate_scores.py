"""Let a model's masks tell what they are worth, on photos that it was trained with.

    python benchmarks/calibrate_scores.py runs/nano/model --data coco --out runs/nano/calibrated

For models with `masks_per_thing`. Asks the questions of `eval coco` and `eval photos` about photos
of the training split, without a limit, and fits `worth`, by logistic regression, to the
intersection over union that each mask turns out to have. The limit, `min_mask_score`, is the lowest
of which so many questions for what is not there get no mask as `--denied` asks. Neither masks nor
texts change.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import pixellm
from pixellm.checkpoint.io import save_model
from pixellm.engine import Engine
from pixellm.evaluation.benchmarks import open_questions
from pixellm.evaluation.matching import match_by_iou
from pixellm.masks import decode_mask, pairwise_iou
from pixellm.types import BoolMask, Request, Sample

ABSENT = "absent"
"""Kind of the questions for a category that is not there."""

STRIDE = 512
"""Questions answered together."""


@dataclass
class Measured:
    """What the answers of some questions came to.

    Attributes:
        signs: (P, S) of every mask, see :meth:`pixellm.model.regions.RegionDecoder.signs`.
        ious: (P,) with what each mask was matched to; 0 for spurious ones.
        questions: (P,) of which question it is.
    """

    signs: Tensor
    ious: Tensor
    questions: Tensor


def choose_questions(data: Path, number: int) -> list[Sample]:
    """Questions of both benchmarks about the photos of the training split, half of each."""
    chosen: list[Sample] = []
    for name in ("coco", "photos"):
        asked = open_questions(name, "train", data)
        picked = random.Random(0).sample(range(len(asked)), min(number // 2, len(asked)))
        chosen += [asked[i] for i in sorted(picked)]
    return chosen


def choose_absent(data: Path, number: int) -> list[Sample]:
    """Questions for what photos of the training split do not show, one photo in turn."""
    asked = open_questions("photos", "train", data)
    order = random.Random(1).sample(range(len(asked)), len(asked))
    found = (asked[i] for i in order)
    return list(islice((one for one in found if one.turns[0].kind == ABSENT), number))


def measure(engine: Engine, samples: Sequence[Sample]) -> Measured:
    """Ask all questions, and compare every mask with what was meant."""
    seen: list[Tensor] = []
    worth = engine.model.model.pixel_decoder.worth
    hook = worth.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach().cpu()))
    ious: list[float] = []
    owners: list[int] = []
    scores: list[float] = []
    for start in range(0, len(samples), STRIDE):
        portion = samples[start : start + STRIDE]
        requests = [Request(one.image, one.turns[0].question) for one in portion]
        answers: list[Any] = [None] * len(portion)
        order: list[int] = []
        for index, answer in engine.predict_many(requests):
            answers[index] = answer
            order.append(index)
        for index in order:  # masks are drawn in the order in which answers are finished
            shown = [segment.mask for segment in answers[index].segments]
            truths = [decode_mask(one.mask) for one in portion[index].turns[0].targets]
            ious += worth_of(shown, truths)
            scores += [segment.score for segment in answers[index].segments]
            owners += [start + index] * len(shown)
        print(f"{start + len(portion)}/{len(samples)} questions")
    hook.remove()
    signs = torch.cat(seen)
    told = worth.cpu()(signs)[:, 0].sigmoid()
    right = [abs(a - b) < 1e-4 or not b for a, b in zip(told.tolist(), scores, strict=True)]
    assert all(right), "signs and masks are not in one order"
    return Measured(signs, torch.tensor(ious), torch.tensor(owners))


def worth_of(shown: Sequence[BoolMask], truths: Sequence[BoolMask]) -> list[float]:
    """Of each mask the intersection over union with its own truth."""
    ious = np.zeros(len(shown))
    if len(shown) and len(truths):
        both = np.stack(shown), np.stack(truths)
        table = pairwise_iou(*both)
        for i, j in match_by_iou(*both):
            ious[i] = table[i, j]
    return [float(one) for one in ious]


def fit(signs: Tensor, ious: Tensor, decay: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Weights (S,) and bias of the logistic regression of shares on signs."""
    weight = torch.zeros(signs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    x, y = signs.double(), ious.double()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(x @ weight + bias, y)
        value = value + decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach().float(), bias.detach().float()


def choose_limit(scores: Tensor, questions: Tensor, number: int, denied: float) -> float:
    """The lowest limit under which the share ``denied`` of so many questions has no mask."""
    surest = torch.zeros(number).scatter_reduce(0, questions, scores, "amax")
    return round(float(np.quantile(surest.numpy(), denied)) + 5e-4, 3)


def calibration_error(scores: Tensor, ious: Tensor) -> float:
    """Mean distance of scores and truth over ten bins, weighted by masks."""
    bins = (scores * 10).long().clamp(max=9)
    gaps = [(scores[bins == b] - ious[bins == b]).sum().abs() for b in bins.unique()]
    return float(torch.stack(gaps).sum() / len(scores))


def main() -> None:
    """Measure, fit, and write the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--absent", type=int, default=400)
    parser.add_argument("--denied", type=float, default=0.94)
    options = parser.parse_args()
    engine = pixellm.load(options.model, min_mask_score=0)
    measured = measure(engine, choose_questions(options.data, options.questions))
    absent = choose_absent(options.data, options.absent)
    denials = measure(engine, absent)
    worth = engine.model.model.pixel_decoder.worth
    weight, bias = fit(measured.signs, measured.ious)
    with torch.no_grad():
        worth.weight.copy_(weight[None])
        worth.bias.copy_(bias[None])
    scores, unwanted = ((one.signs @ weight + bias).sigmoid() for one in (measured, denials))
    limit = choose_limit(unwanted, denials.questions, len(absent), options.denied)
    engine.model.config.min_mask_score = limit
    kept = scores >= limit
    print(f"worth: {[round(one, 3) for one in weight.tolist()]}, bias {float(bias):.3f}")
    print(f"limit {limit}: {int(kept.sum())} of {len(kept)} masks are shown")
    error = calibration_error(scores[kept], measured.ious[kept])
    print(f"calibration error of what is shown: {error:.3f}")
    save_model(options.out, engine.model, engine.processor)


if __name__ == "__main__":
    main()
