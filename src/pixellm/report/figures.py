"""Plots of plain numbers, by matplotlib: SVG that takes a page's colours, or PNG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from pixellm.files import MAKER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Interval = tuple[float | None, float | None, float | None]
"""A value, and the ends of its interval; None where there is none."""

_COLORS = {
    "ink": "#1c1e21",
    "soft": "#5d6470",
    "line": "#d9dde3",
    "bar": "#3b6fb6",
    "second": "#c2571a",
    "third": "#2f8f6b",
}
"""Variable of the page's style sheet -> its light value, which PNG files keep."""

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _COLORS["line"],
    "axes.labelcolor": _COLORS["soft"],
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler('color', ['{_COLORS['bar']}'])",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "grid.color": _COLORS["line"],
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": MAKER,
    "text.color": _COLORS["ink"],
    "text.parse_math": False,
    "xtick.color": _COLORS["soft"],
    "ytick.color": _COLORS["soft"],
}
_MOST_LABELS = 12
_LONGEST_LABEL = 40


def check_plots() -> None:
    """ImportError where plots can't be drawn, before the work that they are to show."""
    if find_spec("matplotlib") is None:
        raise ImportError("Plots need matplotlib; install it with `pip install 'pixellm[eval]'`.")


def score_bars(bars: Mapping[str, Interval], x_label: str) -> Figure:
    """Scores from 0 to 1 with their intervals, in the order given; one without value is a gap."""
    with _axes() as axes:
        for index, (value, low, high) in enumerate(bars.values()):
            if value is None:
                continue
            ends = None if low is None or high is None else [[value - low], [high - value]]
            style = {"capsize": 4, "ecolor": _COLORS["ink"]}
            axes.bar(index, value, width=0.6, color=_COLORS["bar"], yerr=ends, **style)
        labels = [*bars] if len(bars) <= _MOST_LABELS else []
        axes.set_xticks(range(len(labels)), [label[:_LONGEST_LABEL] for label in labels])
        axes.set_xlim(-0.6, len(bars) - 0.4)
        _unit_axis(axes, "y")
        axes.set(xlabel=x_label, ylabel="score")
        return axes.figure


def score_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, y_label: str
) -> Figure:
    """Lines through points in 0 to 1, each name with its x and its y."""
    colors = [_COLORS[name] for name in ("bar", "second", "third", "ink")]
    with _axes() as axes:
        for index, (name, (x, y)) in enumerate(curves.items()):
            axes.plot(x, y, color=colors[index % len(colors)], label=name, clip_on=False)
        _unit_axis(axes, "x")
        _unit_axis(axes, "y")
        axes.legend(loc="best")
        axes.set(xlabel=x_label, ylabel=y_label)
        return axes.figure


def score_dots(dots: Sequence[tuple[float, float, float]], x_label: str, y_label: str) -> Figure:
    """Points (x, y, share) in 0 to 1; a dot's area grows with its share, the diagonal is ideal."""
    with _axes() as axes:
        axes.plot([0, 1], [0, 1], color=_COLORS["soft"], linestyle="--", linewidth=1)
        if dots:
            x, y, shares = zip(*dots, strict=True)
            sizes = [12 + 500 * share for share in shares]
            axes.scatter(x, y, sizes, color=_COLORS["second"], alpha=0.65, clip_on=False)
        _unit_axis(axes, "x")
        _unit_axis(axes, "y")
        axes.set(xlabel=x_label, ylabel=y_label)
        return axes.figure


def count_bars(title: str, counts: Mapping[int, int], unit: str) -> Figure:
    """How often each number occurs."""
    with _axes(7, 4) as axes:
        from matplotlib.ticker import MaxNLocator

        axes.bar([*counts], [*counts.values()], color=_COLORS["bar"], width=0.85)
        axes.set(title=title, xlabel=title.lower(), ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return axes.figure


def ranking(title: str, counts: Sequence[tuple[str, int]], unit: str) -> Figure:
    """Names with their counts as bars that lie, the first on top."""
    with _axes(7, 7.5) as axes:
        names = [name[:_LONGEST_LABEL] for name, _ in counts]
        axes.barh(range(len(counts)), [n for _, n in counts], color=_COLORS["bar"], height=0.8)
        axes.set_yticks(range(len(counts)), names)
        axes.set(title=title, xlabel=unit)
        axes.margins(y=0.01)
        axes.invert_yaxis()
        return axes.figure


def to_svg(figure: Figure, title: str) -> Markup:
    """The figure for an HTML page: text as text, the page's colours, a title for screen readers."""
    drawn = _save(figure, "svg", {"Date": None, "Creator": None}).decode("utf-8")
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawn, flags=re.S)
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)  # these repeat from plot to plot
    box = re.search(r'viewBox="[^"]*"', drawn)
    opening = f'<svg role="img" {box.group() if box else ""} aria-label="{escape(title)}">'
    drawn = re.sub(r"<svg[^>]*>", lambda _: opening, drawn, count=1)
    for name, color in _COLORS.items():
        drawn = drawn.replace(color, f"var(--{name})")
    return Markup(drawn)


def to_png(figure: Figure) -> bytes:
    """The figure as a file that names its maker."""
    return _save(figure, "png", {"Software": MAKER})


@contextmanager
def _axes(width: float = 5, height: float = 3.2) -> Iterator[Any]:
    """Empty axes in the style of the pages; inches decide how large the text is beside them."""
    check_plots()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained").subplots()


def _unit_axis(axes: Any, name: str) -> None:
    """From 0 to 1, with a grid."""
    {"x": axes.set_xlim, "y": axes.set_ylim}[name](0, 1.005)
    {"x": axes.set_xticks, "y": axes.set_yticks}[name]([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis=name, linewidth=0.6)


def _save(figure: Figure, kind: str, metadata: dict[str, str | None]) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")  # SVG keeps the letter
        transparent = kind == "svg"
        figure.savefig(buffer, format=kind, dpi=130, metadata=metadata, transparent=transparent)
    return buffer.getvalue()
