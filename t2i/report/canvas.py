"""What every chart is drawn with: axes, frame, grid, legend and text, as strings of SVG.

Colours and text size come from the classes that `template.html` styles, so a chart follows the page into dark mode and
onto paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from t2i.report.ticks import linear_ticks, log_ticks, tick_label

CHARACTER_PX = 6.6
"""Generous mean width of a character at the 11 px of chart text; nothing can be measured here."""
LEGEND_ROW_PX = 20
LONGEST_NAME = 60
SERIES_COLOURS = 5
"""`template.html` colours the classes s0 to s4; later series start again."""
BASELINE = "baseline"
"""Class of the grey series that others are compared with."""
Series = tuple[str, str]
"""Name and class."""


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels. first_px belongs to `low`, last_px to `high` (the smaller one on a vertical axis)."""

    low: float
    high: float
    first_px: float
    last_px: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel position of a value inside [low, high]."""
        low, high, value = (math.log10(v) if self.is_log else v for v in (self.low, self.high, value))
        return self.first_px + (value - low) / (high - low) * (self.last_px - self.first_px)

    def ticks(self, wanted: int) -> list[float]:
        """Round values inside the axis."""
        return log_ticks(self.low, self.high) if self.is_log else linear_ticks(self.low, self.high, wanted)


@dataclass(frozen=True)
class Frame:
    """The plot area of one chart: its size and the margins around it, in pixels."""

    width: int
    height: int
    left: int = 52
    right: int = 16
    top: int = 12
    bottom: int = 44

    @property
    def floor(self) -> int:
        """Height of the horizontal axis."""
        return self.height - self.bottom

    def horizontal(self, low: float, high: float) -> Axis:
        """Axis along the bottom."""
        return Axis(low, high, self.left, self.width - self.right)

    def vertical(self, low: float, high: float, is_log: bool = False) -> Axis:
        """Axis along the left, growing upwards."""
        return Axis(low, high, self.floor, self.top, is_log)

    def svg(self, description: str, parts: Sequence[str]) -> str:
        """The finished chart; description: what a screen reader says."""
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        return f'<svg class="chart" {size} role="img" aria-label="{escape(description)}">{"".join(parts)}</svg>'

    def nothing(self, description: str) -> str:
        """A chart without a single value says so."""
        return self.svg(f"{description}: no values", [text(self.width / 2, self.height / 2, "no values", "middle")])


def left_axis(frame: Frame, axis: Axis, label: Callable[[float], str] = tick_label) -> list[str]:
    """Labels along the left and a hairline across the plot at each."""
    parts = []
    for tick in axis.ticks(5):
        y = axis(tick)
        parts.append(line(frame.left, y, frame.width - frame.right, y, "grid"))
        parts.append(text(frame.left - 8, y + 4, label(tick), "end"))
    return parts


def bottom_axis(frame: Frame, axis: Axis, title: str, has_grid: bool = False) -> list[str]:
    """Labels below the plot with short marks, or with hairlines up through it, and what the axis shows."""
    parts = [line(frame.left, frame.floor, frame.width - frame.right, frame.floor, "axis")]
    for tick in axis.ticks(6):
        x = axis(tick)
        mark = (frame.top, "grid") if has_grid else (frame.floor + 4, "axis")
        parts.append(line(x, frame.floor, x, *mark))
        parts.append(text(x, frame.floor + 17, tick_label(tick), "middle"))
    middle = (frame.left + frame.width - frame.right) / 2
    return [*parts, text(middle, frame.height - 7, shortened(title), "middle", css="label", full=title)]


def legend(series: Sequence[Series], frame: Frame) -> list[str]:
    """A key for each series, in as many rows as they need; `legend_height` is the room to leave for it."""
    parts = []
    for row_number, row in enumerate(_legend_rows(series, frame.width)):
        x, y = float(frame.left), 10.0 + LEGEND_ROW_PX * row_number
        for name, css in row:
            parts.append(line(x, y, x + 16, y, f"line {css}"))
            parts.append(text(x + 22, y + 4, shortened(name), full=name))
            x += _legend_width(name)
    return parts


def legend_height(series: Sequence[Series], width: int) -> int:
    """Pixels that the legend takes at the top of a chart of that width."""
    return LEGEND_ROW_PX * len(_legend_rows(series, width))


def _legend_rows(series: Sequence[Series], width: int) -> list[list[Series]]:
    """The series, broken into rows that fit."""
    rows: list[list[Series]] = []
    used = math.inf
    for name, css in series:
        needed = _legend_width(name)
        if used + needed > width - 60:
            rows.append([])
            used = 0.0
        rows[-1].append((name, css))
        used += needed
    return rows


def _legend_width(name: str) -> float:
    return 40 + CHARACTER_PX * min(LONGEST_NAME, len(name))


def series_class(index: int) -> str:
    """Class that colours the index-th series."""
    return f"s{index % SERIES_COLOURS}"


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """A name cut to fit; give the whole of it as `full` to `text`."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<line class="{css}" x1="{px(x1)}" y1="{px(y1)}" x2="{px(x2)}" y2="{px(y2)}"/>'


def text(x: float, y: float, shown: str, anchor: str = "start", css: str = "tick", full: str = "") -> str:
    """Escaped text on the baseline y; full: the whole of it, shown on hovering, where `shown` was cut."""
    title = f"<title>{escape(full)}</title>" if full and full != shown else ""
    return f'<text class="{css}" x="{px(x)}" y="{px(y)}" text-anchor="{anchor}">{title}{escape(shown)}</text>'


def px(value: float) -> str:
    """A coordinate to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
