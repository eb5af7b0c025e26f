"""Small drawings as inline SVG. Pure: the same numbers give the same text; a number that is missing is not drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 520, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 8, 22
_MARK_WIDTH, _MARK_HEIGHT = 150, 16
_BINS = 24


def histogram(values_by_set: Sequence[Sequence[float]]) -> str:
    """Shares of the images in equal bins over the range of all sets; each set an outline of its own colour."""
    everything = [value for values in values_by_set for value in values]
    if not everything:
        return ""
    low, high = min(everything), max(everything)
    if low == high:
        low, high = low - 0.5, high + 0.5
    shares = [np.histogram(values, _BINS, (low, high))[0] / max(1, len(values)) for values in values_by_set]
    top = max(float(share.max()) for share in shares)
    inner, floor = WIDTH - _LEFT - _RIGHT, HEIGHT - _BOTTOM
    parts = [f'<line class="axis" x1="{_LEFT}" y1="{floor}" x2="{WIDTH - _RIGHT}" y2="{floor}"/>']
    for number, share in enumerate(shares):
        points = [f"{_LEFT},{floor}"]
        for index, part in enumerate(share):
            y = floor - (floor - _TOP) * float(part) / top
            points += [f"{_px(_LEFT + inner * (index + step) / _BINS)},{_px(y)}" for step in (0, 1)]
        points.append(f"{WIDTH - _RIGHT},{floor}")
        parts.append(f'<polygon class="area s{number}" points="{" ".join(points)}"/>')
    for place, anchor, value in (
        (_LEFT, "start", low),
        (WIDTH / 2, "middle", (low + high) / 2),
        (WIDTH - _RIGHT, "end", high),
    ):
        parts.append(f'<text x="{_px(place)}" y="{HEIGHT - 6}" text-anchor="{anchor}">{value:.4g}</text>')
    counts = ", ".join(str(len(values)) for values in values_by_set)
    return _svg(WIDTH, HEIGHT, f"Distribution of {counts} scores from {low:.4g} to {high:.4g}", parts)


def interval_mark(value: float, low: float, high: float, span: tuple[float, float]) -> str:
    """A dot with its interval on the scale of `span`, for comparing the rows of a table by eye."""
    start, end = span
    if start == end:
        start, end = start - 0.5, end + 0.5

    def place(number: float) -> str:
        return _px(4 + (_MARK_WIDTH - 8) * (number - start) / (end - start))

    middle = _MARK_HEIGHT / 2
    parts = [
        f'<line class="whisker" x1="{place(low)}" y1="{middle}" x2="{place(high)}" y2="{middle}"/>',
        f'<circle class="dot" cx="{place(value)}" cy="{middle}" r="3.2"/>',
    ]
    if start < 0 < end:
        parts.insert(0, f'<line class="zero" x1="{place(0)}" y1="1" x2="{place(0)}" y2="{_MARK_HEIGHT - 1}"/>')
    return _svg(_MARK_WIDTH, _MARK_HEIGHT, f"{value:.4g}, {low:.4g} to {high:.4g}", parts)


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


def _px(number: float) -> str:
    return f"{number:.1f}".rstrip("0").rstrip(".")
