"""The data card: what a set holds, how it was made and under which licences, as Markdown.

Text from a summary; reads no ledger and no photos, and holds no date, path or address of a server,
so that the same run gives the same card.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pixellm.curation.proposal import prompt, prompts_fingerprint


def write_card(summary: Mapping[str, Any], path: Path) -> None:
    """Write the card of a set.

    Args:
        summary: as :func:`pixellm.curation.write.write_set` gathers it.
        path: the file.
    """
    path.write_text(card(summary), "utf-8")


def card(summary: Mapping[str, Any]) -> str:
    """The card's text."""
    run = summary["run"]
    splits = [
        (name, c["photos"], c["questions"], c["targets"], _mean(c["targets"], c["questions"]))
        for name, c in summary["splits"].items()
    ]
    cost = sum(row[-1] for row in summary["models"])
    models = [(*row[:-1], f"{row[-1]:.4f}") for row in summary["models"]]
    writer = run.get("model", "")
    checker = _plain(run.get("check_model") or "none")
    seen = "captions and boxes, no image" if run.get("text_only") else "the photo and boxes"
    if writer == "template":
        seen = "categories, positions and sizes from the annotations; no model was asked"
    return "\n".join(
        [
            "# Multi-target reasoning segmentation set (MUSE format)",
            "",
            "Questions about photos whose answers carry an instance mask for every object they "
            "mention, generated with `pixellm curate` after the method of the PixelLM paper.",
            "",
            "## Contents",
            "",
            *_table(("split", "photos", "questions", "targets", "targets per question"), splits),
            "",
            "`muse_*.json` are in the MUSE format, `parquet/` holds the same rows one question a "
            "line with their style, key and licence. `file_name` is below the folder of images "
            "that the set was made from; the photos themselves are not part of the set.",
            "",
            "## How it was made",
            "",
            f"- Writer: `{_plain(writer)}`, which saw {seen}.",
            f"- Second model that checked descriptions: `{checker}`.",
            f"- Settings: {_settings(run)}.",
            f"- Cost of the replies: {cost:.4f} USD.",
            "",
            *_table(("model", "request", "replies", "tokens in", "tokens out", "USD"), models),
            "",
            "## Every photo accounted for",
            "",
            *_counts("photos", summary["photos"]),
            "",
            *_counts("questions asked for", summary["tasks"]),
            "",
            *_counts("accepted, then left out", summary["dropped"]),
            "",
            *_counts("style of accepted questions", summary["styles"]),
            "",
            *_counts("rule broken in a first draft", summary["first"]),
            "",
            *_counts("rule still broken after the repair", summary["final"]),
            "",
            "## Licences of the photos",
            "",
            "Each photo keeps its own licence; `licenses.csv` names it photo by photo with its "
            "source.",
            "",
            *_counts("licence", summary["licenses"]),
            "",
            "## Known limits",
            "",
            "Annotations leave objects out, so an object that is not outlined is never part of an "
            "answer. Answers by a model were checked by rules, and by a second model or by people "
            "only where it says so above.",
            "",
            *_prompts(writer),
        ]
    )


def _prompts(writer: str) -> list[str]:
    if writer == "template":
        return []
    lines = [f"## Prompts (fingerprint {prompts_fingerprint()})", ""]
    for name in ("system.txt", "propose.txt", "repair.txt", "fit.txt"):
        lines += [f"`{name}`", "", "````text", prompt(name).rstrip(), "````", ""]
    return lines


def _settings(run: Mapping[str, Any]) -> str:
    own = ("model", "check_model", "prompts", "annotations", "captions", "text_only")
    return ", ".join(_plain(f"{key} {value}") for key, value in run.items() if key not in own)


def _counts(title: str, counts: Mapping[str, int]) -> list[str]:
    rows = list(counts.items()) or [("none", 0)]
    total = [("total", sum(counts.values()))] if len(counts) > 1 else []
    return _table((title, "number"), [*rows, *total])


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [_plain(cell).replace("|", "/") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _plain(value: Any) -> str:
    """Text of the run on one line, with nothing in it that a reader of Markdown takes for HTML."""
    return escape(" ".join(str(value).split()), quote=False)


def _mean(total: int, number: int) -> str:
    return f"{total / number:.2f}" if number else "-"
