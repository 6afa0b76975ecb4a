"""How surprised a model is by true answers about scenes, by kind of question.

    python benchmarks/answer_losses.py nano-scenes [MODEL ...] [--num 120] [--kinds several,order]

Teacher forcing on the split val, one dialogue an image: nats per answer, and for answers with
several masks nats of each name, first to last. A name's nats are those of all tokens from the mask
before up to its own: articles, commas and the begin of its mask are in it, and in the first name's
the answer's first words, drawn from several wordings, which costs about 0.7 that nobody can know.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from statistics import fmean

import torch

import pixellm
from pixellm.data.collate import Collator
from pixellm.scenes.dataset import ScenesDataset

_BATCH = 20
_LISTS = ("several", "order")


def answer_costs(model: pixellm.Engine, kind: str, count: int) -> list[list[float]]:
    """Nats of each answer in masks + 1 pieces, cut behind the first token of each mask."""
    data = ScenesDataset("val", length=count, dialogues_per_image=1, kinds={kind: 1.0})
    collate = Collator(model.processor, mask_size=8)
    first_of_group = model.processor.codec.codebook_ids[0]
    costs = []
    for start in range(0, count, _BATCH):
        batch = collate([data[i] for i in range(start, min(start + _BATCH, count))])
        labels = batch["labels"][:, 1:]
        inputs = {
            name: value
            for name, value in batch.items()
            if isinstance(value, torch.Tensor) and name not in ("labels", "patch_classes")
            if not name.startswith("target")
        }
        with torch.no_grad():
            logits = model.model(**inputs).logits[:, :-1].log_softmax(-1)
        for row, wanted in zip(logits, labels, strict=True):
            pieces = [0.0]
            for place in (wanted != -100).nonzero()[:, 0].tolist():
                token = int(wanted[place])
                pieces[-1] -= float(row[place, token])
                if token == first_of_group:
                    pieces.append(0.0)
            costs.append(pieces)
    return costs


def main() -> None:
    """Print one line per kind, and one per length of list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--num", type=int, default=120)
    parser.add_argument("--kinds", default="naming,several,use,category,half,relative,nearest,size")
    arguments = parser.parse_args()
    for name in arguments.models:
        model = pixellm.load(name)
        model.model.eval()
        print(f"{name}, {arguments.num} questions of each kind of the split val")
        for kind in arguments.kinds.split(","):
            costs = answer_costs(model, kind, arguments.num)
            print(f"  {kind:10} {fmean(map(sum, costs)):.2f} nats per answer")
            lists = defaultdict(list)
            for pieces in costs if kind in _LISTS else []:
                lists[len(pieces) - 1].append(pieces[:-1])
            for length, rows in sorted(lists.items()):
                means = ", ".join(f"{fmean(column):.2f}" for column in zip(*rows, strict=True))
                print(f"    {length} names, {len(rows)} answers: {means}")


if __name__ == "__main__":
    main()
