"""Let a model know what its targets are and what its masks are worth, on its training photos.

    python benchmarks/calibrate_scores.py runs/nano/model --data coco --out runs/nano/calibrated

For models with `masks_per_thing`. Asks the questions of `eval coco` and `eval photos` about photos
of the training split, without a limit. First `kind`, which reads the class of a target from its
embedding, is fitted anew to the nouns of the phrases that the model wrote, whatever the photo
shows: in training it learns of what the encoder finds, mistakes included. So is `lone`, which tells
one of several from all of a kind, to what was asked. Then it fits `worth`, by logistic regression,
to the intersection over union that each mask turns out to have. The limit, `min_mask_score`, is the
lowest with which nine of ten objects that are not there have no mask. Texts change by `--lift`
alone.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pixellm
from pixellm.checkpoint.io import save_model
from pixellm.engine import Engine
from pixellm.evaluation.benchmarks import open_questions
from pixellm.evaluation.matching import match_by_iou
from pixellm.masks import decode_mask, pairwise_iou
from pixellm.model.projection import ImageProjector
from pixellm.scenes.photo_knowledge import knowledge_of_categories
from pixellm.types import BoolMask, Prediction, Request, Sample

ABSENT = "absent"
"""Kind of the questions for a category that is not there."""

STRIDE = 512
"""Questions answered together."""


ONE_OF_SEVERAL = frozenset(
    ("left", "right", "top", "bottom", "middle", "largest", "smallest", "nth", "nearest", "size")
)
"""Kinds of the questions that mean one object of its kind; the others mean all that they name."""

EPOCHS, BATCH = 60, 256
"""Of the fits of what targets tell."""


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
    """Questions for what the first photos of the training split do not show."""
    asked = open_questions("photos", "train", data)
    found = (asked[i] for i in range(len(asked)))
    return list(islice((one for one in found if one.turns[0].kind == ABSENT), number))


def nouns_of(class_names: Sequence[str]) -> list[tuple[re.Pattern[str], int]]:
    """What classes are called, the longest names first, and which class each name is of."""
    knowledge, keys = knowledge_of_categories(tuple(class_names))
    names = [
        (phrase.lower(), index)
        for index, name in enumerate(class_names)
        for phrase in knowledge.concepts[keys[name]].phrases
    ]
    names.sort(key=lambda one: -len(one[0]))
    return [(re.compile(rf"\b{re.escape(phrase)}\b"), index) for phrase, index in names]


@torch.no_grad()
def lift(projector: ImageProjector, amount: float) -> None:
    """Add so much of what a sure class writes into a finding's token for its likeliest class."""
    count = projector.num_classes
    sure, shares = projector.evidence_projection.weight[:, : 2 * count].chunk(2, 1)
    shares += amount * sure


def read_targets(engine: Engine, samples: Iterable[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Answer questions freely, one by one.

    Returns:
        The whole embedding (N, L * C) of every target whose phrase names a class, the class, and
        whether one of several was asked for.
    """
    decoder = engine.model.model.pixel_decoder
    nouns = nouns_of(engine.model.config.vision_config.class_names)
    seen = list[Tensor]()
    instances = decoder.instances

    def note(targets: Tensor, *others: object) -> object:
        seen.extend(targets.float().flatten(1))
        return instances(targets, *others)

    decoder.instances = note
    embeddings, classes, is_one = list[Tensor](), list[int](), list[bool]()
    for sample in samples:
        seen.clear()
        (answer,) = engine.predict_batch([Request(sample.image, sample.turns[0].question)])
        phrases = dict.fromkeys((one.span, one.label.lower()) for one in answer.segments)
        if len(phrases) != len(seen):
            continue  # a phrase without any mask: which of them it is can't be told
        for embedding, (_, phrase) in zip(seen, phrases, strict=True):
            named = next((index for noun, index in nouns if noun.search(phrase)), None)
            if named is not None:
                embeddings.append(embedding.clone())
                classes.append(named)
                is_one.append(sample.turns[0].kind in ONE_OF_SEVERAL)
    del decoder.instances  # the method of the class is back
    return torch.stack(embeddings), torch.tensor(classes), torch.tensor(is_one)


def fit_readout(readout: nn.Sequential, embeddings: Tensor, truth: Tensor) -> None:
    """Fit the layers that read something from a target's embedding, from random weights.

    Args:
        readout: of the decoder; one output tells yes or no, several tell classes.
        embeddings: (N, L * C).
        truth: (N,) classes, or bools.
    """
    torch.manual_seed(0)
    for layer in readout:
        if isinstance(layer, nn.Linear | nn.LayerNorm):
            layer.reset_parameters()
    *inner, last = readout
    layers = nn.Sequential(*inner, nn.Dropout(0.1), last).train()
    optimizer = torch.optim.AdamW(layers.parameters(), weight_decay=1e-3)
    steps = EPOCHS * max(1, len(truth) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for _ in range(steps):
        picked = torch.randint(len(truth), (BATCH,))
        told, meant = layers(embeddings[picked]), truth[picked]
        if truth.dtype == torch.bool:
            loss = F.binary_cross_entropy_with_logits(told[:, 0], meant.float())
        else:
            loss = F.cross_entropy(told, meant)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    layers.eval()


def measure(engine: Engine, samples: Sequence[Sample]) -> Measured:
    """Ask all questions, and compare every mask with what was meant."""
    seen: list[tuple[Tensor, list[float]]] = []
    worth = engine.model.model.pixel_decoder.worth
    hook = worth.register_forward_hook(
        lambda _, inputs, told: seen.append((inputs[0], told[:, 0].sigmoid().tolist()))
    )
    found: list[tuple[float, float, int]] = []  # score, truth and question of each mask
    for start in range(0, len(samples), STRIDE):
        portion = samples[start : start + STRIDE]
        asked = [Request(one.image, one.turns[0].question) for one in portion]
        # Masks are drawn in the order in which answers are finished.
        for index, answer in engine.predict_many(asked):
            if not isinstance(answer, Prediction):
                raise answer
            truths = [decode_mask(one.mask) for one in portion[index].turns[0].targets]
            ious = worth_of([one.mask for one in answer.segments], truths)
            scores = [one.score for one in answer.segments]
            found += [
                (score, iou, start + index)
                for score, iou in zip(scores, ious, strict=True)
                if score  # an empty mask's is 0, whatever its signs
            ]
        print(f"{start + len(portion)}/{len(samples)} questions", flush=True)
    hook.remove()
    signs = torch.cat([one for one, _ in seen])
    told = [score for _, scores in seen for score in scores]
    # An answer leaves out what it showed before: each of its masks is the next with its score.
    places, place = list[int](), -1
    for score, _, _ in found:
        place = told.index(score, place + 1)
        places.append(place)
    truth = torch.tensor([iou for _, iou, _ in found])
    owners = torch.tensor([question for _, _, question in found])
    return Measured(signs[places], truth, owners)


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


def weigh_limits(scores: Tensor, ious: Tensor, unwanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What limits from 0.01 to 0.99 come to.

    Args:
        scores: (P,) of the masks of questions for what is there.
        ious: (P,) what they are worth.
        unwanted: (N,) of the surest mask of each question for what is not there; 0 without one.

    Returns:
        The limits, of each the share of worth that is kept, and the share of the absent that has
        no mask.
    """
    limits = torch.arange(1, 100) / 100
    kept = torch.stack([ious[scores >= limit].sum() for limit in limits]) / ious.sum()
    denied = torch.stack([(unwanted < limit).float().mean() for limit in limits])
    return limits, kept, denied


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
    parser.add_argument(
        "--denied", type=float, default=0.9, help="share of the absent, of the limit"
    )
    parser.add_argument(
        "--lift",
        type=float,
        default=0.0,
        help="how loud an unsure finding names its likeliest class, of how loud a sure one does: "
        "the more, the sooner words claim what there is little sign of; scores then tell",
    )
    parser.add_argument("--kinds", type=int, default=4000, help="questions; 0 leaves them as is")
    options = parser.parse_args()
    engine = pixellm.load(options.model, min_mask_score=0)
    lift(engine.model.model.image_projector, options.lift)
    if options.kinds:
        decoder = engine.model.model.pixel_decoder
        samples = choose_questions(options.data, options.kinds)
        targets, classes, is_one = read_targets(engine, samples)
        fit_readout(decoder.kind, targets, classes)
        fit_readout(decoder.lone, targets, is_one)
        with torch.no_grad():
            right = (decoder.kind(targets).argmax(1) == classes).float().mean()
            alone = ((decoder.lone(targets)[:, 0] > 0) == is_one).float().mean()
        print(f"classes: {right:.3f} of {len(classes)} targets, with which they were fitted")
        print(f"one of several: {alone:.3f}")
    measured = measure(engine, choose_questions(options.data, options.questions))
    absent = choose_absent(options.data, options.absent)
    denials = measure(engine, absent)
    worth = engine.model.model.pixel_decoder.worth
    weight, bias = fit(measured.signs, measured.ious)
    with torch.no_grad():
        worth.weight.copy_(weight[None])
        worth.bias.copy_(bias[None])
    scores, unwanted = ((one.signs @ weight + bias).sigmoid() for one in (measured, denials))
    surest = torch.zeros(len(absent)).scatter_reduce(0, denials.questions, unwanted, "amax")
    limits, worthy, denied = weigh_limits(scores, measured.ious, surest)
    for place in range(4, 50, 5):
        print(f"limit {limits[place]:.2f}: {worthy[place]:.3f} kept, {denied[place]:.3f} denied")
    best = int((denied >= options.denied).nonzero()[0, 0])
    limit = round(float(limits[best]), 2)
    engine.model.config.min_mask_score = limit
    kept = scores >= limit
    print(f"worth: {[round(one, 3) for one in weight.tolist()]}, bias {float(bias):.3f}")
    print(f"limit {limit}: {int(kept.sum())} of {len(kept)} masks are shown, {worthy[best]:.2f} of")
    print(f"what they are worth; {denied[best]:.2f} of what is not there has none")
    error = calibration_error(scores[kept], measured.ious[kept])
    print(f"calibration error of what is shown: {error:.3f}")
    save_model(options.out, engine.model, engine.processor)


if __name__ == "__main__":
    main()
