"""Plots as SVG text, to stand in a page without scripts or fonts of their own.

Values in, markup out. Axes run from 0 to 1, as scores do; colours come from the page's style
sheet by class. It knows nothing of benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from pixellm.evaluation.curves import CalibrationBin
from pixellm.evaluation.intervals import Estimate

_WIDTH, _HEIGHT = 440, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 16, 44
_MOST_LABELS = 12

Point = tuple[float, float]


def bar_plot(title: str, bars: Mapping[str, Estimate], x_label: str) -> str:
    """Bars with their intervals, in the order given.

    Args:
        title: read out by screen readers, and shown in the caption.
        bars: label -> score; those without a value leave a gap.
        x_label: of the horizontal axis.
    """
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(bars), 1)
    marks = []
    for place, (label, estimate) in enumerate(bars.items()):
        middle = _LEFT + step * (place + 0.5)
        if estimate.value is not None:
            marks.append(_bar(middle, min(step * 0.6, 48), estimate, label))
        if len(bars) <= _MOST_LABELS:
            marks.append(_text(middle, _HEIGHT - _BOTTOM + 16, label, "middle"))
    return _plot(title, x_label, "score", "".join(marks), ticks=False)


def curve_plot(
    title: str, curves: Mapping[str, Sequence[Point]], x_label: str, y_label: str
) -> str:
    """Lines through points (x, y) in 0..1, a legend below the title.

    Args:
        title: of the plot.
        curves: name -> points.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
    """
    marks = []
    for place, (name, points) in enumerate(curves.items()):
        path = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in points)
        marks.append(f'<polyline class="line line{place}" points="{path}"/>')
        legend_y = _TOP + 14 * (place + 1)
        end = _WIDTH - _RIGHT
        marks.append(_text(end - 22, legend_y + 4, name, "end"))
        marks.append(
            f'<line class="line line{place}" x1="{end - 18}" x2="{end}" '
            f'y1="{legend_y}" y2="{legend_y}"/>'
        )
    return _plot(title, x_label, y_label, "".join(marks))


def calibration_plot(title: str, bins: Sequence[CalibrationBin]) -> str:
    """Mean IoU over mean score; the area of a dot is the share of masks, the diagonal ideal."""
    total = sum(one.count for one in bins) or 1
    marks = [
        f'<line class="ideal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1):.1f}" y2="{_y(1):.1f}"/>',
        *(
            f'<circle class="dot" cx="{_x(one.mean_score):.1f}" cy="{_y(one.mean_iou):.1f}" '
            f'r="{3 + 17 * (one.count / total) ** 0.5:.1f}"><title>{one.count} masks: score '
            f"{one.mean_score:.2f}, IoU {one.mean_iou:.2f}</title></circle>"
            for one in bins
        ),
    ]
    return _plot(title, "score that the model gives", "mean IoU", "".join(marks))


def _plot(title: str, x_label: str, y_label: str, marks: str, *, ticks: bool = True) -> str:
    """Axes around the marks."""
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" '
            f'y1="{_y(tick):.1f}" y2="{_y(tick):.1f}"/>'
        )
        parts.append(_text(_LEFT - 6, _y(tick) + 4, f"{tick:g}", "end"))
        if ticks:
            parts.append(_text(_x(tick), _HEIGHT - _BOTTOM + 16, f"{tick:g}", "middle"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_label, "middle"))
    parts.append(
        f'<text class="label" text-anchor="middle" '
        f'transform="translate(12 {middle}) rotate(-90)">{escape(y_label)}</text>'
    )
    return (
        f'<svg role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-label="{escape(title)}">'
        f"{''.join(parts)}{marks}</svg>"
    )


def _bar(middle: float, width: float, estimate: Estimate, label: str) -> str:
    value = estimate.value or 0.0
    whisker = ""
    if estimate.low is not None and estimate.high is not None:
        low, high = _y(estimate.low), _y(estimate.high)
        whisker = (
            f'<path class="whisker" d="M{middle:.1f} {low:.1f}V{high:.1f}'
            f"M{middle - 5:.1f} {low:.1f}h10M{middle - 5:.1f} {high:.1f}h10"
            '"/>'
        )
    return (
        f'<rect class="bar" x="{middle - width / 2:.1f}" y="{_y(value):.1f}" '
        f'width="{width:.1f}" height="{_y(0) - _y(value):.1f}">'
        f"<title>{escape(label)}: {escape(str(estimate))}</title></rect>{whisker}"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _x(value: float) -> float:
    return _LEFT + value * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float) -> float:
    return _HEIGHT - _BOTTOM - value * (_HEIGHT - _TOP - _BOTTOM)
