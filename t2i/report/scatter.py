"""Several arms in the plane of two scorers, with those that no other beats in both."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from t2i.report.canvas import BASELINE, CHARACTER_PX, Axis, Frame, bottom_axis, left_axis, line, px, shortened, text

STYLE = (
    "<style>text{font:11px system-ui,sans-serif;fill:#333}.grid{stroke:#ddd}.axis{stroke:#888}"
    ".whisker{stroke:#2a6fbb;fill:#2a6fbb}.baseline{stroke:#888;fill:#888}.front{stroke:#2a6fbb;stroke-dasharray:4 3}"
    "</style>"
)
"""For a file that stands alone; on a page the template's own classes apply."""


@dataclass(frozen=True)
class ArmPoint:
    """Means of one arm by two scorers, and the intervals of their differences from the base, moved to its mean."""

    name: str
    x: float
    y: float
    x_interval: tuple[float, float]
    y_interval: tuple[float, float]
    on_front: bool
    is_base: bool = False


def frontier_chart(points: Sequence[ArmPoint], x_label: str, y_label: str) -> str:
    """Each arm as a cross of its two 95 % intervals; a broken line through those on the front; the base in grey."""
    frame = Frame(640, 420, left=64, bottom=48)
    x_axis = frame.horizontal(*_range([value for p in points for value in (p.x, *p.x_interval)]))
    y_axis = frame.vertical(*_range([value for p in points for value in (p.y, *p.y_interval)]))
    parts = [STYLE, *left_axis(frame, y_axis), *bottom_axis(frame, x_axis, x_label)]
    parts.append(text(8, frame.top + 4, shortened(y_label), css="label", full=y_label))
    front = sorted((p.x, p.y) for p in points if p.on_front)
    for (x1, y1), (x2, y2) in itertools.pairwise(front):
        parts.append(line(x_axis(x1), y_axis(y1), x_axis(x2), y_axis(y2), "front"))
    for point in points:
        parts += _cross(point, x_axis, y_axis, frame)
    svg = frame.svg(f"{y_label} against {x_label}", parts)
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def _cross(point: ArmPoint, x_axis: Axis, y_axis: Axis, frame: Frame) -> list[str]:
    css = BASELINE if point.is_base else "whisker"
    x, y = x_axis(point.x), y_axis(point.y)
    fits = x + 8 + CHARACTER_PX * len(point.name) < frame.width
    label = text(x + 6, y - 6, point.name) if fits else text(x - 6, y - 6, point.name, "end")
    return [
        line(x_axis(point.x_interval[0]), y, x_axis(point.x_interval[1]), y, css),
        line(x, y_axis(point.y_interval[0]), x, y_axis(point.y_interval[1]), css),
        f'<circle class="{css}" cx="{px(x)}" cy="{px(y)}" r="4"/>',
        label,
    ]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.5
    return low - room, high + room
