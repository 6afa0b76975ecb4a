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
from pixellm.engine.jobs import JobState

STATE = JobState(done=8, bad=1, total=20, images=6, seconds=2.0)


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
        (display.answers_progress, (STATE,), "8/20 questions, 3.00 images/s"),
        (
            partial(display.scored_progress, unit="scenes"),
            (3, 9, 0.5),
            "3/9 scenes, gIoU 0.500",
        ),
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


def test_a_terminal_gets_a_bar_with_the_speed_and_no_lines(clock: Clock) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100)
    with display.answers_progress(console) as show:
        clock.now += 60
        show(STATE)
    assert "8/20" in output.getvalue() and "3.00 images/s" in output.getvalue()
    assert "8/20 questions, " not in output.getvalue()


def test_names_in_a_bar_are_shown_as_they_are() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100)
    with display.counted_progress(console, "images of [b]{x}[/b]") as show:
        show(3, 9)
    assert "images of [b]{x}[/b]" in output.getvalue()


def test_no_speed_is_made_up_before_the_first_answer(clock: Clock) -> None:
    output = io.StringIO()
    with display.answers_progress(Console(file=output, force_terminal=False)) as show:
        clock.now += 31
        show(JobState(0, 0, 20))
    assert output.getvalue() == "0/20 questions, - images/s\n"
