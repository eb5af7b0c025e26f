"""Small charts as inline SVG: curves, intervals, histograms. Pure: the same data give the same text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from t2i.report.canvas import (
    BASELINE,
    CHARACTER_PX,
    Axis,
    Frame,
    bottom_axis,
    left_axis,
    legend,
    legend_height,
    line,
    px,
    series_class,
    shortened,
    text,
)
from t2i.report.model import CategoryRow, ComparisonRow, Curve
from t2i.report.numbers import NOT_AVAILABLE, level_words
from t2i.report.ticks import tick_label

Point = tuple[float, float]
CHART_WIDTH = 560
ROW_PX = 24
LONGEST_CATEGORY = 34
SMOOTHED_FROM = 40
"""Points of a curve from which a smoothed line is drawn beside it; over fewer the eye does better."""
NOISY_TRAVEL = 4
"""A curve is noisy when its steps up and down add up to more than this many times its range."""
MARK_WIDTH = 100


def line_chart(curves: Sequence[Curve], *, title: str, log_y: bool = False) -> str:
    """Curves over steps on shared axes, broken where a value is NaN or infinite (or, with log_y, not positive).

    A noisy curve is drawn pale, with its centred mean over `smoothing_window` points beside it.
    """
    key = [(curve.name, series_class(index)) for index, curve in enumerate(curves)] if len(curves) > 1 else []
    frame = Frame(CHART_WIDTH, 280, top=12 + legend_height(key, CHART_WIDTH))
    series = [_drawable(curve, log_y) for curve in curves]
    drawn = [(x, y) for points in series for x, y in points if math.isfinite(y)]
    if not drawn:
        return frame.nothing(title)
    x_axis = frame.horizontal(*_widened([x for x, _ in drawn]))
    y_axis = frame.vertical(*_widened([y for _, y in drawn], 0.05, log_y), is_log=log_y)
    parts = [*left_axis(frame, y_axis), *bottom_axis(frame, x_axis, "step"), *legend(key, frame)]
    for index, points in enumerate(series):
        css = f"line {series_class(index)}"
        if window := smoothing_window([y for _, y in points]):
            parts += _curve(points, x_axis, y_axis, f"{css} raw")
            points = smoothed(points, window)
        parts += _curve(points, x_axis, y_axis, css)
    return frame.svg(f"{title}, by step", parts)


def smoothing_window(values: Sequence[float]) -> int:
    """Points to average over: a twentieth (odd) of a long curve that keeps turning, else 0.

    A curve that rises and falls once, as a learning rate does, travels twice its range at most; a mean would bend it.
    """
    finite = _finite(*values)
    if len(finite) < SMOOTHED_FROM:
        return 0
    travelled = math.fsum(abs(b - a) for a, b in pairwise(finite))
    return len(finite) // 20 | 1 if travelled > NOISY_TRAVEL * (max(finite) - min(finite)) else 0


def smoothed(points: Sequence[Point], window: int) -> list[Point]:
    """Centred mean over up to `window` points, fewer at the ends and near gaps; a gap stays a gap.

    Centred, not exponential, so that the line does not lag behind the data it stands for.
    """
    half = window // 2
    sums = [0.0, *accumulate(y if math.isfinite(y) else 0.0 for _, y in points)]
    counts = [0, *accumulate(int(math.isfinite(y)) for _, y in points)]
    means = []
    for index, (x, y) in enumerate(points):
        first, end = max(0, index - half), min(len(points), index + half + 1)
        is_gap = not math.isfinite(y)
        means.append((x, math.nan if is_gap else (sums[end] - sums[first]) / (counts[end] - counts[first])))
    return means


def interval_chart(rows: Sequence[CategoryRow], *, title: str) -> str:
    """One whisker per category on a shared axis: the difference as a dot, its interval, a line at zero."""
    labels = [row.category for row in rows]
    left = 16 + round(CHARACTER_PX * min(LONGEST_CATEGORY, max(map(len, labels), default=0)))
    frame = Frame(CHART_WIDTH, 48 + ROW_PX * len(rows), left=left, top=4)
    known = [v for row in rows for v in _finite(row.difference, row.low, row.high)]
    if not known:
        return frame.nothing(title)
    axis = frame.horizontal(*_widened([*known, 0.0], 0.04))
    level = level_words(row.level for row in rows)
    parts = bottom_axis(frame, axis, f"difference, {level} interval", has_grid=True)
    parts.append(line(axis(0), frame.top, axis(0), frame.floor, "zero"))
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = frame.top + ROW_PX * (index + 0.5)
        parts.append(text(left - 10, y + 4, shortened(label, LONGEST_CATEGORY), "end", full=label))
        parts += _whisker(row, axis, y) or [text(axis(0) + 8, y + 4, NOT_AVAILABLE)]
    return frame.svg(f"{title}: differences with {level} intervals", parts)


def interval_mark(row: ComparisonRow) -> str:
    """The same whisker as a small mark for a table cell: zero in the middle, on a scale of its own."""
    reach = max(map(abs, _finite(row.difference, row.low, row.high)), default=0.0) or 1.0
    axis = Axis(-reach, reach, 6, MARK_WIDTH - 6)
    zero = [line(6, 10, MARK_WIDTH - 6, 10, "grid"), line(axis(0), 2, axis(0), 18, "zero")]
    return Frame(MARK_WIDTH, 20).svg(
        f"difference with its {level_words([row.level])} interval", [*zero, *_whisker(row, axis, 10)]
    )


def histogram(series: Sequence[tuple[str, Sequence[float]]], *, title: str, bins: int = 24) -> str:
    """Share of images per bin, one outline per arm over shared bins; the first of several arms is the grey baseline.

    Values that are not finite are left out, of n too.
    """
    finite = [_finite(*values) for _, values in series]
    names = [f"{name} (n = {len(values)})" for (name, _), values in zip(series, finite, strict=True)]
    classes = [BASELINE if len(series) > 1 else series_class(0), *map(series_class, range(len(series) - 1))]
    key = list(zip(names, classes, strict=True))
    frame = Frame(CHART_WIDTH, 240, top=12 + legend_height(key, CHART_WIDTH))
    everything = [value for values in finite for value in values]
    if not everything:
        return frame.nothing(title)
    x_axis = frame.horizontal(*_widened(everything))
    shares = [_shares(values, x_axis, bins) for values in finite]
    y_axis = frame.vertical(0.0, 1.05 * max(map(max, shares)))
    parts = left_axis(frame, y_axis, label=lambda share: f"{tick_label(round(100 * share, 9))} %")
    parts += [_outline(share, x_axis, y_axis, f"area {css}") for share, css in zip(shares, classes, strict=True)]
    parts += [*bottom_axis(frame, x_axis, title), *legend(key, frame)]
    return frame.svg(f"{title}: share of images by score", parts)


def _drawable(curve: Curve, log_y: bool) -> list[Point]:
    """(step, value) pairs; what cannot be drawn becomes NaN, which is drawn as a gap."""
    pairs = zip(curve.steps, curve.values, strict=True)
    return [(x, y if math.isfinite(y) and (y > 0 or not log_y) else math.nan) for x, y in pairs]


def _finite(*values: float | None) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _widened(values: Sequence[float], share: float = 0.0, is_log: bool = False) -> tuple[float, float]:
    """Range of values, widened by a share of itself on both sides and never empty."""
    low, high = min(values), max(values)
    if is_log:
        factor = (high / low) ** share if high > low else 2.0
        return low / factor, high * factor
    if high == low:
        return low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    return low - share * (high - low), high + share * (high - low)


def _shares(values: Sequence[float], axis: Axis, bins: int) -> list[float]:
    """Share of values in each of equally wide bins; the last bin holds its upper edge."""
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - axis.low) / (axis.high - axis.low) * bins))] += 1
    return [count / max(1, len(values)) for count in counts]


def _outline(share: Sequence[float], x_axis: Axis, y_axis: Axis, css: str) -> str:
    """The stairs over the bins, from floor to floor."""
    width = (x_axis.last_px - x_axis.first_px) / len(share)
    stairs = "".join(f"V{px(y_axis(s))}H{px(x_axis.first_px + (i + 1) * width)}" for i, s in enumerate(share))
    floor = px(y_axis.first_px)
    return f'<path class="{css}" d="M{px(x_axis.first_px)} {floor}{stairs}V{floor}"/>'


def _curve(points: Sequence[Point], x_axis: Axis, y_axis: Axis, css: str) -> list[str]:
    """A line between each two gaps; a value alone between gaps becomes a dot."""
    parts = []
    for run in _runs(points):
        pixels = [(px(x_axis(x)), px(y_axis(y))) for x, y in _thinned(run, x_axis)]
        if len(pixels) == 1:
            parts.append('<circle class="{} dot" cx="{}" cy="{}" r="2"/>'.format(css, *pixels[0]))
        else:
            parts.append(f'<path class="{css}" d="M{"L".join(f"{x} {y}" for x, y in pixels)}"/>')
    return parts


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """Split at the points whose value is NaN."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if math.isnan(point[1]):
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _thinned(run: list[Point], x_axis: Axis) -> list[Point]:
    """Of the points in one pixel column keep the first, lowest, highest and last: the same picture, smaller."""
    columns: dict[int, list[int]] = {}
    for index, (x, _) in enumerate(run):
        columns.setdefault(int(x_axis(x)), []).append(index)
    kept: list[int] = []
    for members in columns.values():
        by_value = sorted(members, key=lambda index: run[index][1])
        kept += sorted({members[0], by_value[0], by_value[-1], members[-1]})
    return [run[index] for index in kept]


def _whisker(row: CategoryRow | ComparisonRow, axis: Axis, y: float) -> list[str]:
    """The difference as a dot on its interval, stressed if that is clear of zero; empty without a difference."""
    if not _finite(row.difference):
        return []
    ends = _finite(row.low, row.high)
    css = "whisker clear" if len(ends) == 2 and (min(ends) > 0 or max(ends) < 0) else "whisker"
    parts = []
    if len(ends) == 2:
        low, high = map(axis, ends)
        parts = [line(low, y, high, y, css), line(low, y - 3, low, y + 3, css), line(high, y - 3, high, y + 3, css)]
    [difference] = map(axis, _finite(row.difference))
    return [*parts, f'<circle class="{css}" cx="{px(difference)}" cy="{px(y)}" r="3.5"/>']
