"""Plots: SVG that takes the page's colours and keeps text as text, PNG that names its maker."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from pixellm.files import check_file
from pixellm.report import figures

HOSTILE = "$x^2$ </text><script>alert(1)</script>&\"'"
DRAWN = {
    "bars": lambda: figures.score_bars(
        {HOSTILE: (0.5, 0.4, 0.6), "none": (None, None, None), "no interval": (1.0, None, None)},
        HOSTILE,
    ),
    "curves": lambda: figures.score_curves({HOSTILE: ([0, 0.5, 1], [1, 0.5, 0])}, "x", HOSTILE),
    "dots": lambda: figures.score_dots([(0.2, 0.3, 0.5), (0.8, 0.7, 0.5)], HOSTILE, "y"),
    "no dots": lambda: figures.score_dots([], HOSTILE, "y"),
    "counts": lambda: figures.count_bars(HOSTILE, {1: 4, 3: 9}, HOSTILE),
    "ranking": lambda: figures.ranking(HOSTILE, [(HOSTILE, 3), ("中文", 1)], "targets"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_plot_is_text_and_colours_of_the_page(name):
    drawn = str(figures.to_svg(DRAWN[name](), HOSTILE))
    assert drawn == figures.to_svg(DRAWN[name](), HOSTILE)
    assert "<script" not in drawn and "http" not in drawn
    root = ElementTree.fromstring(drawn.replace("<svg", '<svg xmlns:xlink="x"', 1))
    assert root.get("aria-label") == HOSTILE
    assert any("$x^2$ </text><script>" in text for text in root.itertext())
    assert not re.search(r"#[0-9a-f]{6}|url\((?!#)", drawn)
    assert "var(--soft)" in drawn


def test_intervals_are_drawn_where_there_are_any():
    with_interval = figures.to_svg(figures.score_bars({"a": (0.5, 0.4, 0.6)}, "x"), "t")
    without = figures.to_svg(figures.score_bars({"a": (0.5, None, None)}, "x"), "t")
    assert "var(--ink)" in with_interval and "var(--ink)" not in without


def test_png_files_name_their_maker(tmp_path):
    path = tmp_path / "plot.png"
    path.write_bytes(figures.to_png(figures.count_bars("Targets", {1: 2}, "questions")))
    check_file(path)
    assert path.stat().st_size > 5000


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pixellm\[eval\]"):
        figures.count_bars("Targets", {1: 2}, "questions")
