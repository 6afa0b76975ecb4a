"""What a terminal shows: answers in the colours of their masks, progress, tables of a report.

Formats with rich and reads nothing but the values it is handed. It decides nothing: commands
choose what to show and where, models and files live elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pixellm.cli.console import printable
from pixellm.report.page import WORDY_COLUMNS
from pixellm.report.page import Table as PlainTable
from pixellm.types import UNFAMILIAR, UNFAMILIAR_NOTE, Prediction
from pixellm.visualize import segment_color

if TYPE_CHECKING:
    from pixellm.evaluation.evaluate import Progress as EvaluationProgress
    from pixellm.llm.run import RequestProgress
    from pixellm.training.trainer import TrainEvent

CountProgress = Callable[..., None]
"""Called with done, total, and a figure where there is one."""

SECONDS_A_LINE = 10.0
"""How often long work says how far it is, where the console is no terminal."""

_FULL_SIZE_NOTE = "Full-size models know more: --model pixellm-7b, see `pixellm models`."

_LEAST_WORDS = 20
"""Characters that a column of sentences needs."""
_GAP, _EDGES = 3, 2
"""Characters between two columns, and at both ends of a line."""

_NO_LOSS = (
    "learning_rate",
    "grad_norm",
    "images_per_second",
    "tokens_per_second",
    "peak_memory_gb",
    "seconds_left",
    "dropped_turns",
    "dropped_rows",
)


def print_answer(console: Console, prediction: Prediction) -> None:
    """Show an answer, and below it a legend of its masks."""
    console.print(answer_text(prediction), soft_wrap=True, highlight=False)
    if prediction.segments:
        console.print(_legend(prediction), highlight=False)
    if filtered := prediction.info.get("num_filtered", 0):
        masks = (
            "1 mask is filtered: its" if filtered == 1 else f"{filtered} masks are filtered: their"
        )
        doubt = "" if prediction.segments else " What the answer names may not be there."
        note = Text(f"{masks} score is too low.{doubt}", "dim")
        console.print(note, soft_wrap=True)
    if prediction.info.get("familiarity", 1.0) < UNFAMILIAR:
        console.print(f"{UNFAMILIAR_NOTE} {_FULL_SIZE_NOTE}", style="dim", highlight=False)


def answer_text(prediction: Prediction) -> Text:
    """The answer; each grounded phrase in its mask's colour, its number in brackets behind it."""
    text, start = Text(), 0
    shown = printable(prediction.text)
    for index, segment in enumerate(prediction.segments):
        style = _style(index)
        begin, end = segment.span
        if end > start or not index:  # else it shares its phrase with the one before
            text.append(shown[start:begin])
            text.append(shown[begin:end], style)
        text.append(f" [{index + 1}]", style)
        start = end
    return text.append(shown[start:])


def _legend(prediction: Prediction) -> Table:
    height, width = prediction.size
    table = plain_table()
    for column in ("", "label", "score", "area"):
        table.add_column(column, overflow="fold")
    for index, segment in enumerate(prediction.segments):
        area = int(segment.mask.sum())
        share = f"{area:,} px, {area / (height * width):.1%}"
        label = Text(printable(segment.label))
        table.add_row(Text(f"[{index + 1}]", _style(index)), label, f"{segment.score:.2f}", share)
    return table


def _style(index: int) -> str:
    red, green, blue = segment_color(index)
    return f"bold rgb({red},{green},{blue})"


def plain_table(title: str | None = None) -> Table:
    """A table with a rule below its head and nothing else."""
    shown = Text(printable(title)) if title else None
    return Table(title=shown, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def print_table(console: Console, table: PlainTable) -> None:
    """Show a table whole: nothing is cut, whatever the width.

    Sentences and names wrap, figures do not. Columns that find no room beside the others follow in
    a table of their own, behind the first column.
    """
    cells = [[printable(cell) for cell in row] for row in table.rows]
    header, *rows = cells
    needed = _needed_widths(cells, console.width)
    title: str | None = table.title
    for columns in _columns_that_fit(needed, console.width):
        shown = plain_table(title)
        spare = console.width - _EDGES - sum(needed[column] + _GAP for column in columns)
        for column in columns:
            head, width = header[column], needed[column]
            if width < cell_len(head) <= width + spare:  # a head of several words on one line
                spare -= cell_len(head) - width
                width = cell_len(head)
            wraps = head in WORDY_COLUMNS
            shown.add_column(Text(head), width=None if wraps else width, overflow="fold")
        for row in rows:
            shown.add_row(*(Text(row[column]) for column in columns))
        console.print(shown, highlight=False)
        title = None


def _needed_widths(cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """Characters that each column takes; those of names at most what leaves room for one more."""
    needed = []
    for column, (head, *body) in enumerate(zip(*cells, strict=True)):
        if head in WORDY_COLUMNS:
            needed.append(_LEAST_WORDS)
        else:
            longest = max(map(cell_len, (*head.split(" "), *body)))
            needed.append(min(longest, width // 2 - _GAP if column == 0 else width // 2))
    return needed


def _columns_that_fit(needed: Sequence[int], width: int) -> list[list[int]]:
    """Indices of the columns of each part of a table; the first column is in all of them."""
    parts, left = [[0]], width - needed[0] - _EDGES
    for column in range(1, len(needed)):
        if needed[column] + _GAP > left and len(parts[-1]) > 1:
            parts.append([0])
            left = width - needed[0] - _EDGES
        parts[-1].append(column)
        left -= needed[column] + _GAP
    return parts


@contextmanager
def scored_progress(console: Console, unit: str) -> Iterator[EvaluationProgress]:
    """A bar over answered units, such as "scenes", with the gIoU so far, for an evaluation."""
    with counted_progress(console, unit) as show:
        yield lambda done, total, giou: show(
            done, total, "gIoU -" if giou is None else f"gIoU {giou:.3f}"
        )


@contextmanager
def judge_progress(console: Console) -> Iterator[RequestProgress]:
    """A bar over judged answers with the money spent, as a callback for a judge."""
    with counted_progress(console, "answers judged") as show:
        yield lambda done, total, usd: show(done, total, f"{usd:.4f} USD")


@contextmanager
def counted_progress(
    console: Console, unit: str, *, transient: bool = False
) -> Iterator[CountProgress]:
    """A bar over so many units with a figure beside it, told of done, total and figure.

    Where the console is no terminal, a line now and then. A transient bar goes at its end.
    """
    told = time.monotonic()
    texts = (
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[figure]}", markup=False),
    )
    columns = (BarColumn(), MofNCompleteColumn(), *texts, TimeRemainingColumn())
    hidden = not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=transient) as bar:
        task = bar.add_task(unit, total=None, figure="")

        def show(done: int, total: int, figure: str = "") -> None:
            nonlocal told
            bar.update(task, completed=done, total=total, figure=figure)
            if hidden and time.monotonic() >= told + SECONDS_A_LINE:
                line = f"{done}/{total} {unit}" + (f", {figure}" if figure else "")
                console.print(Text(line), soft_wrap=True)
                told = time.monotonic()

        yield show


class TrainDisplay:
    """Shows the events of a training run: what trains, a bar, losses, speed and time left.

    A context manager and the callback for the trainer. Where the console is no terminal, each log
    line of the run becomes a line of text.
    """

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TextColumn("steps"), console=console)
        self._task = self._bar.add_task("", total=None)
        self._figures = Text()
        self._console = console
        self._live = Live(self, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._live.stop()

    def __rich__(self) -> Group:
        return Group(self._bar, self._figures)

    def __call__(self, event: TrainEvent) -> None:
        """Show one event."""
        if self._console.is_terminal:
            self._live.start()  # only now: side processes of a run get no events
        stage = f"stage {event.stage}"
        self._bar.update(
            self._task, description=stage, completed=event.step, total=event.total_steps
        )
        if event.kind == "stage":
            print_table(self._console, _stage_table(event))
        elif event.kind == "step":
            self._figures = Text(_step_line(event.values))
            if not self._console.is_terminal:
                self._say(f"step {event.step}/{event.total_steps} {event.stage}: {self._figures}")
        elif event.kind == "end":
            if event.values["dropped_turns"]:
                self._say(_left_out_line(event.values))
        else:
            figures = ", ".join(f"{name} {_short(value)}" for name, value in event.values.items())
            self._say(f"step {event.step} {event.kind.replace('_', ' ')}: {figures}")

    def _say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


def _stage_table(event: TrainEvent) -> PlainTable:
    """What trains in a stage, module by module, and what is frozen."""
    title = f"Stage {event.stage}: {event.values['steps']} steps"
    if event.values["max_minutes"] is not None:
        title += f", {event.values['max_minutes']:g} minutes at most"
    rows: list[tuple[str, ...]] = [("module", "optimizer", "learning rate", "decay", "parameters")]
    for row in event.values["groups"]:
        rates = ("-", "-")
        if row["optimizer"] != "frozen":
            rates = (f"{row['learning_rate']:.1e}", f"{row['weight_decay']:g}")
        rows.append((row["module"], row["optimizer"], *rates, f"{row['parameters']:,}"))
    return PlainTable(title, rows, "stage")


def _step_line(values: Mapping[str, Any]) -> str:
    losses = [f"{name} {value:.3f}" for name, value in values.items() if name not in _NO_LOSS]
    left = timedelta(seconds=round(values["seconds_left"]))
    figures = (
        f"lr {values['learning_rate']:.1e}",
        f"{values['images_per_second']:.1f} images/s",
        f"{values['tokens_per_second']:,.0f} tokens/s",
        f"{values['peak_memory_gb']:.1f} GB",
        f"{left} left in stage",
    )
    return "  ".join((*losses, *figures))


def _left_out_line(values: Mapping[str, Any]) -> str:
    return (
        f"Left out because they do not fit into collate.max_length: {values['dropped_turns']:,} "
        f"turns, among them all of {values['dropped_rows']:,} of {values['samples']:,} images."
    )


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
