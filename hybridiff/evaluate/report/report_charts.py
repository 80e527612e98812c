"""Charts of the report as inline SVG: histograms of values, and points of two values."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 18, 34
_ACROSS, _DOWN = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM  # pixels of the plot
_BINS = 36
_TICKS = 4  # of an axis, about
_MARK_WIDTH = 32  # of a mark's name, in pixels
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
    return f"{figure:.1f}" if abs(figure) >= 100 else f"{figure:.2f}" if abs(figure) >= 10 else f"{figure:.4g}"


def histogram(values: NDArray[np.float64], marks: dict[str, float], x_title: str) -> str:
    """A histogram of finite values with vertical marks, such as quantiles; empty without values.

    Args:
        values: (rows,) values; NaN and infinite ones are left out.
        marks: place of each mark by its name.
        x_title: what the values are, with their unit.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ""
    low, high = float(finite.min()), float(finite.max())
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):  # equal but for rounding: too close for bins
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(finite, bins=_BINS, range=(low, high))
    most = int(counts.max())
    bars = []
    for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            tall = max(1.0, _DOWN * count / most)
            title = f"{count} rows from {number(start)} to {number(end)}"
            bars.append(
                f'<rect x="{_x(start, low, high):.1f}" y="{_TOP + _DOWN - tall:.1f}" width="{_ACROSS / _BINS - 1:.1f}" '
                f'height="{tall:.1f}"><title>{escape(title)}</title></rect>'
            )
    lines = []
    places = [(name, _x(value, low, high)) for name, value in marks.items() if low <= value <= high]
    for index, (name, x) in enumerate(places):
        is_close = any(abs(other - x) < _MARK_WIDTH for _, other in places[index + 1 :])
        anchor, shift = ("end", -3) if x > WIDTH * 0.75 or is_close else ("start", 3)
        lines.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{_TOP + _DOWN}"/>'
            f'<text x="{x + shift:.1f}" y="{_TOP - 8}" text-anchor="{anchor}">{escape(name)}</text>'
        )
    counted = [tick for tick in _ticks(0, most) if tick == int(tick)]
    axes = _axes(_ticks(low, high), (low, high), counted, (0, most), x_title, "rows")
    return _svg(f'{axes}<g class="bars">{"".join(bars)}</g>{"".join(lines)}', f"histogram of {x_title}")


def points(xs: Sequence[float], ys: Sequence[float], labels: Sequence[str], x_title: str, y_title: str) -> str:
    """Labelled points; infinite values lie on the edge of the chart, and say so."""
    (x_low, x_high), (y_low, y_high) = _range(xs), _range(ys)
    parts = []
    for x, y, label in zip(xs, ys, labels, strict=True):
        across = _x(min(max(x, x_low), x_high), x_low, x_high)
        down = _y(min(max(y, y_low), y_high), y_low, y_high)
        shown = label if len(label) <= 24 else f"{label[:23]}…"
        shown += "" if math.isfinite(y) else f" ({number(y)})"
        right = across + 8 + _LABEL_WIDTH * len(shown) < WIDTH
        title = f"{label}: {x_title} {number(x)}, {y_title} {number(y)}"
        parts.append(
            f'<circle class="dot" cx="{across:.1f}" cy="{down:.1f}" r="6"><title>{escape(title)}</title></circle>'
            f'<text class="label" x="{across + (9 if right else -9):.1f}" y="{down + 4:.1f}" '
            f'text-anchor="{"start" if right else "end"}">{escape(shown)}</text>'
        )
    axes = _axes(_ticks(x_low, x_high), (x_low, x_high), _ticks(y_low, y_high), (y_low, y_high), x_title, y_title)
    return _svg(f"{axes}{''.join(parts)}", f"{y_title} by {x_title}")


def _x(value: float, low: float, high: float) -> float:
    return _LEFT + _ACROSS * (value - low) / (high - low)


def _y(value: float, low: float, high: float) -> float:
    return _TOP + _DOWN * (1 - (value - low) / (high - low))


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Least and greatest finite value with some room around."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = 0.12 * (high - low) or max(0.5, abs(high) * 0.1)
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Round values between two others."""
    rough = (high - low) / _TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [place * step for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _axes(
    x_ticks: Sequence[float],
    x_range: tuple[float, float],
    y_ticks: Sequence[float],
    y_range: tuple[float, float],
    x_title: str,
    y_title: str,
) -> str:
    """Both axes: lines, ticks with their values, titles."""
    base = _TOP + _DOWN
    parts = [f'<text x="2" y="{_TOP - 8}">{escape(y_title)}</text>']
    for tick in y_ticks:
        y = _y(tick, *y_range)
        parts.append(
            f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_tick(tick)}</text>'
        )
    for tick in x_ticks:
        x = _x(tick, *x_range)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>'
            f'<text x="{x:.1f}" y="{base + 15}" text-anchor="middle">{_tick(tick)}</text>'
        )
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    parts.append(f'<text x="{_LEFT + _ACROSS / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_title)}</text>')
    return "".join(parts)


def _tick(value: float) -> str:
    return f"{value:.6g}"


def _svg(content: str, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{content}</svg>'
