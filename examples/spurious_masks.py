"""Why the release's MUSE score rewards masks that nobody asked for: three invented models.

One image, one question, two true objects. All three models are made up here: an honest one,
one that adds spurious masks to the same answer, and one that shows spurious masks alone. Draws
their answers into docs/evaluation/spurious.png and prints their scores as a Markdown table:

    python examples/spurious_masks.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pixellm import MuseScorer
from pixellm.visualize import draw_contact_sheet, draw_overlay

OUT = Path(__file__).resolve().parents[1] / "docs" / "evaluation" / "spurious.png"
SIZE = (240, 320)
NUM_SPURIOUS = 10
SURE = 9.0
"""Logit inside each mask, and its negative outside: what a confident model gives."""

CUP, PLATE = (40, 110, 110, 200), (150, 120, 290, 190)
"""The true objects, as boxes (left, top, right, bottom) in pixels."""

Mask = NDArray[np.bool_]


def ellipse(box: tuple[int, int, int, int]) -> Mask:
    """(H, W) bool, an ellipse that fills the box."""
    image = Image.new("1", (SIZE[1], SIZE[0]))
    ImageDraw.Draw(image).ellipse(box, fill=1)
    return np.asarray(image)


def shifted(box: tuple[int, int, int, int], by: int) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return left + by, top, right + by, bottom


def draw_table() -> Image.Image:
    """The image: a cup and a plate on a table."""
    image = Image.new("RGB", (SIZE[1], SIZE[0]), (222, 214, 200))
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((0, 90, SIZE[1], SIZE[0]), fill=(176, 137, 104))
    canvas.ellipse(CUP, fill=(70, 110, 160))
    canvas.ellipse(PLATE, fill=(240, 240, 236))
    return image


def invent_answers() -> dict[str, list[Mask]]:
    """The masks of each model."""
    rng = np.random.default_rng(0)
    honest = [ellipse(shifted(CUP, 8)), ellipse(shifted(PLATE, 12))]
    corners = [(int(rng.integers(0, 270)), int(rng.integers(0, 60))) for _ in range(NUM_SPURIOUS)]
    spurious = [ellipse((x, y, x + 45, y + 28)) for x, y in corners]
    return {"honest": honest, "spraying": honest + spurious, "blind and spraying": spurious}


def score_models() -> dict[str, dict[str, float]]:
    """Model -> gIoU and cIoU under both protocols."""
    truths = np.stack([ellipse(CUP), ellipse(PLATE)])
    scores = {}
    for name, masks in invent_answers().items():
        logits = np.where(np.stack(masks), SURE, -SURE)
        row = {}
        for protocol in ("strict", "released"):
            scorer = MuseScorer(protocol)
            scorer.update([(logits, truths)])
            found = scorer.compute()
            row |= {f"{protocol} {key}": found[key.lower()] for key in ("gIoU", "cIoU")}
        scores[name] = row
    return scores


def table_lines(scores: dict[str, dict[str, float]]) -> list[str]:
    """The scores as a Markdown table."""
    columns = list(next(iter(scores.values())))
    answers = invent_answers()
    lines = [f"| model | masks | {' | '.join(columns)} |", "| --- " * (2 + len(columns)) + "|"]
    for name, row in scores.items():
        values = " | ".join(f"{row[column]:.2f}" for column in columns)
        lines.append(f"| {name} | {len(answers[name])} | {values} |")
    return lines


def draw_answers(scores: dict[str, dict[str, float]]) -> Image.Image:
    """The truth and the three answers, their scores below."""
    image = draw_table()
    tiles = [draw_overlay(image, [ellipse(CUP), ellipse(PLATE)], ["the cup", "the plate"])]
    captions = ["asked for: the cup and the plate"]
    for name, masks in invent_answers().items():
        tiles.append(draw_overlay(image, masks))
        row = scores[name]
        captions.append(
            f"{name}\nstrict gIoU {row['strict gIoU']:.2f}, cIoU {row['strict cIoU']:.2f}\n"
            f"released gIoU {row['released gIoU']:.2f}, cIoU {row['released cIoU']:.2f}"
        )
    return draw_contact_sheet(tiles, captions, columns=4, tile_width=320)


def main() -> None:
    scores = score_models()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    draw_answers(scores).save(OUT, optimize=True)
    print("\n".join(table_lines(scores)))


if __name__ == "__main__":
    main()
