"""Charts of the report as inline SVG: histograms of values, and points of two values."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 340, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 14, 22
_BINS = 36
_LABEL_WIDTH = 6.2  # of a letter, in pixels


def number(value: object) -> str:
    """A figure as the page shows it; a dash where there is none, and the sign of infinity."""
    if value is None:
        return "-"
    figure = float(value)  # type: ignore[arg-type]
    if math.isnan(figure):
        return "-"
    if math.isinf(figure):
        return "∞" if figure > 0 else "-∞"
    if figure == int(figure) and abs(figure) < 1e6:
        return f"{int(figure):,}"
    text = f"{figure:.1f}" if abs(figure) >= 100 else f"{figure:.2f}" if abs(figure) >= 10 else f"{figure:.3g}"
    return text


def histogram(values: NDArray[np.float64], marks: dict[str, float]) -> str:
    """A histogram of finite values with vertical marks, such as quantiles; empty without values.

    Args:
        values: (rows,) values; NaN and infinite ones are left out.
        marks: place of each mark by its name.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ""
    low, high = float(finite.min()), float(finite.max())
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):  # equal but for rounding: too close for bins
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(finite, bins=_BINS, range=(low, high))
    width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    bars = []
    for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            tall = max(1.0, height * count / counts.max())
            place = _LEFT + width * (start - low) / (high - low)
            title = f"{count} rows from {number(start)} to {number(end)}"
            bars.append(
                f'<rect x="{place:.1f}" y="{_TOP + height - tall:.1f}" width="{width / _BINS - 1:.1f}" height="{tall:.1f}">'
                f"<title>{escape(title)}</title></rect>"
            )
    lines = []
    for name, value in marks.items():
        if math.isfinite(value) and low <= value <= high:
            x = _LEFT + width * (value - low) / (high - low)
            anchor = "start" if x < WIDTH * 0.75 else "end"
            shift = 3 if anchor == "start" else -3
            lines.append(
                f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" y2="{_TOP + height}"/>'
                f'<text x="{x + shift:.1f}" y="{_TOP - 4}" text-anchor="{anchor}">{escape(name)}</text>'
            )
    return _svg(f'<g class="bars">{"".join(bars)}</g>{"".join(lines)}{_x_axis(low, high)}', "histogram")


def points(xs: Sequence[float], ys: Sequence[float], labels: Sequence[str], x_title: str, y_title: str) -> str:
    """Labelled points; infinite values lie on the edge of the chart."""
    (x_low, x_high), (y_low, y_high) = _range(xs), _range(ys)
    width, height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    parts = []
    for x, y, label in zip(xs, ys, labels, strict=True):
        across = _LEFT + width * (min(max(x, x_low), x_high) - x_low) / (x_high - x_low)
        down = _TOP + height * (1 - (min(max(y, y_low), y_high) - y_low) / (y_high - y_low))
        shown = label if len(label) <= 24 else f"{label[:23]}…"
        right = across + 8 + _LABEL_WIDTH * len(shown) < WIDTH
        title = f"{label}: {x_title} {number(x)}, {y_title} {number(y)}"
        parts.append(
            f'<circle class="dot" cx="{across:.1f}" cy="{down:.1f}" r="6"><title>{escape(title)}</title></circle>'
            f'<text class="label" x="{across + (9 if right else -9):.1f}" y="{down + 4:.1f}" '
            f'text-anchor="{"start" if right else "end"}">{escape(shown)}</text>'
        )
    titles = (
        f'<text x="{_LEFT}" y="{_TOP - 3}">{escape(y_title)} {number(y_low)} to {number(y_high)}</text>'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_title)}</text>'
    )
    return _svg(f"{titles}{_x_axis(x_low, x_high)}{''.join(parts)}", f"{y_title} by {x_title}")


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Least and greatest finite value with some room around."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = 0.12 * (high - low) or max(0.5, abs(high) * 0.1)
    return low - room, high + room


def _x_axis(low: float, high: float) -> str:
    base = HEIGHT - _BOTTOM
    return (
        f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>'
        f'<text x="{_LEFT}" y="{HEIGHT - 6}">{number(low)}</text>'
        f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{number(high)}</text>'
    )


def _svg(content: str, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{content}</svg>'
