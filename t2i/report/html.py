"""The report as one HTML file: no script, no external asset, images inside; the same report gives the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2i.errors import DataError
from t2i.report.figures import category_table, comparison_groups, correlation_table, count_text, score_table
from t2i.report.images import MAGNIFIED_PX, data_uri, magnification, read_image, reduced
from t2i.report.model import HELD_OUT, CategoryRow, ComparisonRow, Curve, PromptPanel, Report
from t2i.report.numbers import (
    NOT_AVAILABLE,
    VERDICT_WORDS,
    counted,
    duration,
    headline,
    number,
    score_decimals,
    value_decimals,
)
from t2i.report.svg import histogram, interval_chart, line_chart, smoothing_window

FILE_NAME = "report.html"
ABSENT_PX = 128


@dataclass(frozen=True)
class Chart:
    """A finished SVG, its title and a line on how to read it."""

    title: str
    svg: str
    reading: str = ""


@dataclass(frozen=True)
class Picture:
    """An embedded image; width, height: the size at which it is shown, in CSS pixels."""

    source: str
    width: int
    height: int
    is_magnified: bool


@dataclass(frozen=True)
class PanelCell:
    """One image of a panel with its scores as text; picture None: no image."""

    arm: str
    picture: Picture | None
    scores: tuple[tuple[str, str], ...]
    painted: str


@dataclass(frozen=True)
class PanelView:
    """One panel as text and pictures. change: empty if it was not given."""

    prompt_id: str
    prompt: str
    seed: int
    change: str
    cells: tuple[PanelCell, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the box that stands for a missing image: those of the panel's first image."""
        pictures = [cell.picture for cell in self.cells if cell.picture]
        return (pictures[0].width, pictures[0].height) if pictures else (ABSENT_PX, ABSENT_PX)


@dataclass(frozen=True)
class PanelSection:
    """Panels below one heading."""

    anchor: str
    title: str
    lead: str
    panels: tuple[PanelView, ...]


def write_report(report: Report, folder: Path) -> Path:
    """Write `report.html` into an existing folder and return its path.

    Raises DataError naming the file if an image that a panel names is missing or unreadable.
    """
    from t2i.files import write_bytes

    path = folder / FILE_NAME
    # A lone surrogate (legal in JSON, not in UTF-8) becomes a character reference, which browsers show as U+FFFD.
    write_bytes(path, render(report).encode("utf-8", "xmlcharrefreplace"))
    return path


def render(report: Report) -> str:
    """The page as text."""
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # Only what our own chart functions return is trusted; they escape the names they are given.
    environment.filters["drawn"] = Markup
    template = environment.from_string(files("t2i.report").joinpath("template.html").read_text("utf-8"))
    return template.render(
        report=report,
        headline=headline(report.comparisons),
        agreement=_agreement(report.comparisons),
        missing=NOT_AVAILABLE,
        comparison_groups=comparison_groups(report.comparisons),
        notes=[(note.label, count_text(note.count), note.detail) for note in report.notes],
        arms=[(arm.name, counted(len(arm.images), "image")) for arm in report.arms],
        scores=score_table(report),
        histograms=_histograms(report),
        categories=[(_chart_of_categories(rows), category_table(rows)) for rows in _by_scorer(report.categories)],
        correlations=correlation_table(report),
        panel_sections=_panel_sections(report),
        curves=_curve_charts(report.curves),
        stages=[(stage, duration(stage.seconds)) for stage in report.stages],
    )


def _agreement(rows: Sequence[ComparisonRow]) -> str:
    """How many held-out comparisons say what, as a second look at the headline."""
    held_out = [row.verdict for row in rows if row.role == HELD_OUT]
    if len(held_out) < 2:
        return ""
    said = [f"{held_out.count(verdict)} {verdict}" for verdict in VERDICT_WORDS if verdict in held_out]
    return f"Of {len(held_out)} held-out comparisons: {', '.join(said)}."


def _histograms(report: Report) -> list[Chart]:
    """One chart per scorer that has values, the arms in the order of their rows."""
    scorers = dict.fromkeys(row.scorer for row in report.scores if row.values)
    series = {name: [(r.arm, r.values) for r in report.scores if r.scorer == name and r.values] for name in scorers}
    return [Chart(name, histogram(arms, title=name)) for name, arms in series.items()]


def _by_scorer(rows: Iterable[CategoryRow]) -> list[list[CategoryRow]]:
    """Rows of one scorer and pair of arms together: only these share an axis."""
    groups: dict[tuple[str, str, str], list[CategoryRow]] = {}
    for row in rows:
        groups.setdefault((row.scorer, row.arm_a, row.arm_b), []).append(row)
    return list(groups.values())


def _chart_of_categories(rows: Sequence[CategoryRow]) -> Chart:
    title = f"{rows[0].scorer}: {rows[0].arm_b} over {rows[0].arm_a}"
    return Chart(title, interval_chart(rows, title=title))


def _panel_sections(report: Report) -> list[PanelSection]:
    sections = [
        ("sample", "Images", report.panels_chosen, report.panels),
        ("worst", "Worst images", "The worst scores of the last arm.", report.worst_panels),
        ("changed", "Most changed images", "Largest change of score, either way.", report.most_changed_panels),
    ]
    decimals = score_decimals(panel for *_, panels in sections for panel in panels)
    return [
        PanelSection(anchor, title, lead, tuple(_panel_views(panels, decimals)))
        for anchor, title, lead, panels in sections
        if panels
    ]


def _panel_views(panels: Sequence[PromptPanel], decimals: dict[str, int]) -> list[PanelView]:
    places = value_decimals([panel.change for panel in panels])
    return [
        PanelView(
            panel.prompt_id,
            panel.prompt,
            panel.seed,
            "" if panel.change is None else number(panel.change, places, signed=True),
            tuple(
                PanelCell(
                    cell.arm,
                    None if cell.image is None else _picture(cell.image),
                    tuple((scorer, number(value, decimals[scorer])) for scorer, value in cell.scores),
                    cell.painted,
                )
                for cell in panel.cells
            ),
        )
        for panel in panels
    ]


def _picture(path: Path) -> Picture:
    """Embedded at its own size or 512 px wide, shown 128 to 256 px wide: sharp on dense screens and on paper."""
    image = reduced(read_image(path))
    width = min(MAGNIFIED_PX, image.width * magnification(image.width))
    return Picture(data_uri(image), width, max(1, round(image.height * width / image.width)), width > image.width)


def _curve_charts(curves: Sequence[Curve]) -> list[Chart]:
    """One chart per name in `Curve.chart`, in the order in which they first appear."""
    names = dict.fromkeys(curve.chart or curve.name for curve in curves)
    charts = []
    for name in names:
        members = [curve for curve in curves if (curve.chart or curve.name) == name]
        _check_lengths(members)
        log_y = any(curve.log_y for curve in members)
        has_smoothed = any(smoothing_window(curve.values) for curve in members)
        charts.append(Chart(name, line_chart(members, title=name, log_y=log_y), _reading(has_smoothed, log_y)))
    return charts


def _check_lengths(curves: Iterable[Curve]) -> None:
    for curve in curves:
        if len(curve.steps) != len(curve.values):
            raise DataError(f"curve {curve.name!r}: {len(curve.steps)} steps but {len(curve.values)} values.")


def _reading(has_smoothed: bool, log_y: bool) -> str:
    smoothing = "pale: as logged; strong: centred mean of 5 % of the points"
    return "; ".join([*(["logarithmic"] if log_y else []), *([smoothing] if has_smoothed else [])])
