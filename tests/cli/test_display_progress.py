"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest
from rich.console import Console

from pixellm.cli import display


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("progress", "step", "line"),
    [
        (partial(display.scored_progress, unit="scenes"), (3, 9, 0.5), "3/9 scenes, gIoU 0.500"),
        (display.judge_progress, (3, 9, 0.25), "3/9 answers judged, 0.2500 USD"),
        (partial(display.counted_progress, unit="[b]images[/b]"), (3, 9), "3/9 [b]images[/b]"),
    ],
)
def test_a_log_gets_a_line_every_ten_seconds(
    clock: Clock,
    progress: Callable[[Console], AbstractContextManager[Any]],
    step: tuple[Any, ...],
    line: str,
) -> None:
    output = io.StringIO()
    with progress(Console(file=output, force_terminal=False)) as show:
        for seconds in (1, 8, 1, 9, 1, 0):
            clock.now += seconds
            show(*step)
    assert output.getvalue() == f"{line}\n" * 2


def test_a_terminal_gets_a_bar_with_the_figure_and_names_as_they_are(clock: Clock) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100)
    with display.counted_progress(console, "images of [b]{x}[/b]") as show:
        clock.now += 60
        show(3, 9, "3.00 images/s")
    shown = output.getvalue()
    assert "3/9" in shown and "3.00 images/s" in shown and "images of [b]{x}[/b]" in shown
    assert "3/9 images" not in shown
