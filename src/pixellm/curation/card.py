"""What the data card says: what a set holds, how it was made and under which licences.

Plain values from a summary; reads no ledger and no photos, and holds no date, path or address of a
server, so that the same run gives the same card.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pixellm.curation.proposal import prompt, prompts_fingerprint

_COUNTS = {
    "photos": "photos",
    "questions asked for": "tasks",
    "accepted, then left out": "dropped",
    "style of accepted questions": "styles",
    "rule broken in a first draft": "first",
    "rule still broken after the repair": "final",
    "licence": "licenses",
}
"""Table of the card -> counts of the summary."""

_NO_SETTINGS = ("model", "check_model", "prompts", "annotations", "captions", "text_only")
_PROMPTS = ("system.txt", "propose.txt", "repair.txt", "fit.txt")


def card_values(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the card's template, from the summary of a written set."""
    run = summary["run"]
    writer = run.get("model", "")
    seen = "captions and boxes, no image" if run.get("text_only") else "the photo and boxes"
    if writer == "template":
        seen = "categories, positions and sizes from the annotations; no model was asked"
    return {
        "splits": [
            (name, c["photos"], c["questions"], c["targets"], _mean(c["targets"], c["questions"]))
            for name, c in summary["splits"].items()
        ],
        "writer": writer,
        "seen": seen,
        "checker": run.get("check_model") or "none",
        "settings": [f"{key} {value}" for key, value in run.items() if key not in _NO_SETTINGS],
        "cost": sum(row[-1] for row in summary["models"]),
        "models": [(*row[:-1], f"{row[-1]:.4f}") for row in summary["models"]],
        "counts": {title: _counts(summary[name]) for title, name in _COUNTS.items()},
        "fingerprint": prompts_fingerprint(),
        "prompts": []
        if writer == "template"
        else [(name, prompt(name).rstrip()) for name in _PROMPTS],
    }


def _counts(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    rows = list(counts.items()) or [("none", 0)]
    return [*rows, ("total", sum(counts.values()))] if len(counts) > 1 else rows


def _mean(total: int, number: int) -> str:
    return f"{total / number:.2f}" if number else "-"
