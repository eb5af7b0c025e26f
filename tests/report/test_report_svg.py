"""Charts: ticks by hand, gaps, escaping, well-formed XML."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from t2i.report.canvas import Axis
from t2i.report.model import CategoryRow, ComparisonRow, Curve, Report
from t2i.report.numbers import MINUS
from t2i.report.svg import histogram, interval_chart, interval_mark, line_chart, smoothed, smoothing_window
from t2i.report.ticks import linear_ticks, log_ticks, tick_label

NAN = float("nan")


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("text")]


def paths(svg: str, css: str = "line") -> list[str]:
    found = ElementTree.fromstring(svg).iter("path")
    return [path.attrib["d"] for path in found if path.attrib["class"].split()[0] == css]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 97, [0, 20, 40, 60, 80]),
        (-0.07, 0.21, [0, 0.1, 0.2]),
        (0, 1e-4, [0, 2e-5, 4e-5, 6e-5, 8e-5, 1e-4]),
        (1999, 2001, [1999, 1999.5, 2000, 2000.5, 2001]),
    ],
)
def test_linear_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert linear_ticks(low, high) == ticks


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.1, 10, [0.1, 0.3, 1, 3, 10]),
        (0.9, 11, [1, 2, 5, 10]),
        (1e-6, 1, [1e-6, 1e-4, 1e-2, 1]),
        (2.1, 2.9, [2.2, 2.4, 2.6, 2.8]),
    ],
)
def test_log_ticks_are_round_and_few(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == ticks


def test_tick_labels_are_short() -> None:
    values = (0, 0.2, -0.1, 2e-5, 1500, 20_000, 3e6, 2e9)
    assert [tick_label(v) for v in values] == ["0", "0.2", f"{MINUS}0.1", f"2e{MINUS}5", "1500", "20k", "3M", "2G"]


def test_an_axis_maps_its_ends_and_its_middle() -> None:
    assert [Axis(0, 10, 100, 200)(v) for v in (0, 5, 10)] == [100, 150, 200]
    assert [Axis(1, 100, 0, 2, is_log=True)(v) for v in (1, 10, 100)] == [0, 1, 2]


def test_a_chart_draws_values_where_its_axes_say() -> None:
    [path] = paths(line_chart([Curve("loss", (0, 10), (0.0, 1.0))], title="loss"))
    # Plot area: x 52..544, y 236..12; the vertical range 0..1 is widened by 5 % on both sides.
    bottom, top = 236 - 0.05 / 1.1 * 224, 236 - 1.05 / 1.1 * 224
    assert path == f"M52 {bottom:.1f}L544 {top:.1f}"


def test_ticks_stand_on_the_chart() -> None:
    shown = texts(line_chart([Curve("loss", (0, 100), (0.0, 1.0))], title="loss"))
    assert shown == ["0", "0.5", "1", "0", "20", "40", "60", "80", "100", "step"]


def test_nan_and_infinity_are_gaps_and_a_lone_value_is_a_dot() -> None:
    svg = line_chart([Curve("loss", (0, 1, 2, 3, 4, 5), (1.0, 2.0, NAN, 1.5, math.inf, NAN))], title="loss")
    assert len(paths(svg)) == 1
    assert svg.count("<circle") == 1
    assert "nan" not in svg
    assert "inf" not in svg


def test_a_log_chart_leaves_out_what_is_not_positive() -> None:
    svg = line_chart([Curve("loss", (0, 1, 2, 3, 4), (1.0, 2.0, 0.0, 10.0, 5.0))], title="loss", log_y=True)
    assert len(paths(svg)) == 2


@pytest.mark.parametrize("values", [(), (NAN, NAN)])
def test_a_curve_without_values_says_so(values: tuple[float, ...]) -> None:
    assert texts(line_chart([Curve("loss", tuple(range(len(values))), values)], title="loss")) == ["no values"]


def test_a_constant_curve_is_drawn() -> None:
    assert len(paths(line_chart([Curve("rate", (0, 1), (0.0, 0.0))], title="rate"))) == 1


def test_smoothing_is_a_centred_mean_that_keeps_gaps() -> None:
    points = [(0.0, 1.0), (1.0, 4.0), (2.0, NAN), (3.0, 6.0), (4.0, 8.0)]
    means = [y for _, y in smoothed(points, 3)]
    assert [y for y in means if not math.isnan(y)] == [2.5, 2.5, 7.0, 7.0]
    assert math.isnan(means[2])


def test_only_long_noisy_curves_are_smoothed() -> None:
    noisy = [float(index % 2) for index in range(100)]
    assert smoothing_window(noisy) == 5
    assert smoothing_window(noisy[:39]) == 0
    assert smoothing_window([float(index) for index in range(100)]) == 0
    svg = line_chart([Curve("loss", tuple(range(100)), tuple(noisy))], title="loss")
    assert [element.attrib["class"] for element in ElementTree.fromstring(svg).iter("path")] == [
        "line s0 raw",
        "line s0",
    ]


def test_long_curves_keep_their_extremes_in_little_text() -> None:
    values = [0.0] * 50_000
    values[31_234] = 1.0
    svg = line_chart([Curve("loss", tuple(range(50_000)), tuple(values))], title="loss")
    highest = f" {236 - 1.05 / 1.1 * 224:.1f}"
    assert highest in paths(svg)[0]
    assert len(svg) < 60_000


def test_several_curves_have_a_legend_and_one_has_none() -> None:
    curve = Curve("loss", (0, 1), (0.0, 1.0))
    assert "held-out" in texts(line_chart([curve, replace(curve, name="held-out")], title="t"))
    assert "loss" not in texts(line_chart([curve], title="t"))


def test_intervals_show_zero_and_stress_only_what_is_clear_of_it(report: Report) -> None:
    row = report.categories[0]
    rows = [replace(row, low=0.05), replace(row, low=-0.05), *report.categories[1:]]
    svg = interval_chart(rows, title="judge")
    circles = [circle.attrib["class"] for circle in ElementTree.fromstring(svg).iter("circle")]
    assert circles == ["whisker clear", "whisker"]
    assert svg.count('class="zero"') == 1
    assert "n/a" in texts(svg)


def test_a_difference_without_an_interval_is_a_dot_alone(report: Report) -> None:
    row: CategoryRow = replace(report.categories[0], low=None, high=None)
    svg = interval_chart([row], title="judge")
    assert svg.count("<circle") == 1
    assert 'line class="whisker' not in svg


def test_a_mark_has_zero_in_its_middle(comparison: ComparisonRow, unmeasured: ComparisonRow) -> None:
    assert 'class="zero" x1="50"' in interval_mark(comparison)
    assert "circle" not in interval_mark(unmeasured)


def test_histogram_bars_are_shares_of_each_arm() -> None:
    svg = histogram([("base", [0.0, 0.0, 0.0, 1.0]), ("tuned", [0.0, 1.0, NAN])], title="judge", bins=2)
    # The highest share, 3/4, is at 1/1.05 of the plot's height; heights scale with the share.
    heights = [[float(y) for y in re.findall(r"V([\d.]+)H", path)] for path in paths(svg, "area")]
    floor, room = 196, 196 - 32
    expected = [[0.75, 0.25], [0.5, 0.5]]
    for shares, drawn in zip(expected, heights, strict=True):
        assert drawn == pytest.approx([floor - share / (1.05 * 0.75) * room for share in shares], abs=0.06)
    assert {"base (n = 4)", "tuned (n = 2)"} <= set(texts(svg))


def test_names_in_charts_are_escaped(report: Report) -> None:
    hostile = "<script>alert('x')</script>\"&"
    curve = Curve(hostile, (0, 1), (0.0, 1.0))
    row = replace(report.categories[0], category=hostile)
    for svg in (
        line_chart([curve, curve], title=hostile),
        interval_chart([row], title=hostile),
        histogram([(hostile, [0.0, 1.0])], title=hostile),
    ):
        assert "<script" not in svg
        assert hostile in "".join(ElementTree.fromstring(svg).itertext())
