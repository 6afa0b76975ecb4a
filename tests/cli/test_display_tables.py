"""Tables in a terminal: nothing of a figure is hidden, whatever the width and the names."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from pixellm.cli.display import print_table
from pixellm.report.page import Table

LONG = "runs/a_model_with_a_rather_long_name_that_someone_gave_it-7b-instruct-v2"
BENCHMARK = "multi-refcocog, umd, test: expressions of several objects asked together"
HEADER = ("score", "A", "B", "B - A, 95 % interval", "resamples in which B is not above A")
TABLES = {
    "comparison": [HEADER, ("giou", "0.512", "0.623", "+0.111 [+0.052, +0.170]", "0.001")],
    "groups": [
        ("kind", "questions", *(f"score_{n}" for n in range(9))),
        (BENCHMARK, "1234", *(f"0.{n}12 [0.{n}01, 0.{n}23]" for n in range(9))),
        ("half", "5", *(9 * "-")),
    ],
    "headline": [
        ("score", "value", "95 % interval", "meaning"),
        (LONG, "0.987", "0.912 to 0.999", 8 * "words that explain the score "),
    ],
    "wide cells": [("model", LONG, BENCHMARK), (LONG, LONG, "12345.678 [1, 2]")],
    "markup": [("[b]model[/b]", "value"), ("[red]\x1b[31mmine[/red]", "0.5")],
    "no rows": [("sample", "A", "question")],
}


def shown(width: int, rows: list[tuple[str, ...]]) -> str:
    output = io.StringIO()
    print_table(Console(file=output, width=width), Table(LONG, rows, "name"))
    return output.getvalue()


@pytest.mark.parametrize("width", [80, 60, 200])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_shown_whole(name: str, width: int) -> None:
    text = shown(width, TABLES[name])
    assert "…" not in text and "..." not in text and "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width
    letters = re.sub(r"\s", "", text)
    for row in TABLES[name]:
        for cell in row:
            for figure in re.findall(r"[+-]?\d+\.\d+", cell):
                assert figure in text
            for word in cell.replace("\x1b", "\N{REPLACEMENT CHARACTER}").split():
                assert len(word) > 20 or word in letters
    if name == "headline":
        assert text.count("0.987") == 1


def test_columns_without_room_follow_behind_the_first() -> None:
    text = shown(80, TABLES["groups"])
    assert text.count("kind") > 1 and text.count("half") == text.count("kind")
    assert text.count(LONG[:20]) == 1  # the title
    assert "B - A, 95 % interval" in shown(80, TABLES["comparison"])
    assert HEADER[-1] in shown(100, TABLES["comparison"])
    assert shown(600, TABLES["groups"]).count("kind") == 1
