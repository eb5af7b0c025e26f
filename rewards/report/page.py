"""The page as one file: no script, nothing loaded from elsewhere, images inside; the same report, the same bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.errors import InputError
from rewards.report.charts import histogram, interval_mark
from rewards.report.model import Panel, Report, ScorerSection
from rewards.report.thumbnails import Thumbnail, thumbnail
from rewards.tables import Correlation, MeanRow, ScorerComparison

MISSING = "not scored"
NO_INTERVAL = "needs 2 prompts"


@dataclass(frozen=True)
class Cell:
    """Mean with interval, as text and as a drawing."""

    mean: str
    span: str
    mark: str
    counts: str


@dataclass(frozen=True)
class PictureView:
    """An image of a panel."""

    set_name: str
    score: str
    file: str
    thumbnail: Thumbnail


@dataclass(frozen=True)
class PanelView:
    """A panel as text and pictures; change: empty if nothing is compared."""

    prompt: str
    change: str
    pictures: tuple[PictureView, ...]


@dataclass(frozen=True)
class SectionView:
    """One scorer as text and drawings. categories: (category, a cell per set)."""

    section: ScorerSection
    histogram: str
    categories: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    worst: tuple[PanelView, ...]
    changed: tuple[PanelView, ...]


@dataclass(frozen=True)
class DifferenceView:
    """One scorer's comparison as text."""

    scorer: str
    difference: str
    span: str
    mark: str
    wins: str
    outcomes: str
    p_value: str
    verdict: str
    css: str


def write_report(report: Report, path: Path) -> None:
    """Write the page, whole or not at all. Raises InputError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A lone surrogate (legal in JSON, not in UTF-8) becomes a character reference, which browsers show as U+FFFD.
        temporary.write_bytes(render(report).encode("utf-8", "xmlcharrefreplace"))
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from error


def render(report: Report) -> str:
    """The page as text."""
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # Only what our own drawing functions return is trusted; they hold numbers alone.
    environment.filters["drawn"] = Markup
    template = environment.from_string(files("rewards.report").joinpath("template.html").read_text("utf-8"))
    return template.render(
        report=report,
        percent=f"{100 * report.level:.4g} %",
        missing=MISSING,
        means=[(scorer, _mean_cells(report, index)) for index, scorer in enumerate(report.scorers)],
        differences=_differences(report),
        sections=[_section(section) for section in report.sections],
        correlations=[(name, [_correlation(row) for row in rows]) for name, rows in report.correlations if rows],
    )


def _number(value: float) -> str:
    return f"{value:.4g}"


def _span(low: float, high: float) -> str:
    return f"{_number(low)} to {_number(high)}"


def _cells(rows: Sequence[MeanRow | None]) -> tuple[Cell | None, ...]:
    """Cells of one table row or column, drawn on one scale if there are two. None for what was not scored."""
    ends = [end for row in rows if row and row.interval for end in (row.interval.low, row.interval.high)]
    span = (min(ends), max(ends)) if len(ends) > 2 else None
    return tuple(_cell(row, span) if row else None for row in rows)


def _cell(row: MeanRow, span: tuple[float, float] | None) -> Cell:
    counts = f"{row.images} image{'s' * (row.images != 1)}, {row.prompts} prompt{'s' * (row.prompts != 1)}"
    if row.interval is None:
        return Cell(_number(row.mean), NO_INTERVAL, "", counts)
    low, high = row.interval.low, row.interval.high
    mark = interval_mark(row.mean, low, high, span) if span else ""
    return Cell(_number(row.mean), _span(low, high), mark, counts)


def _mean_cells(report: Report, index: int) -> tuple[Cell | None, ...]:
    return _cells([one.means[index] for one in report.sets])


def _differences(report: Report) -> list[DifferenceView]:
    rows = report.comparison.rows if report.comparison else ()
    return [_difference(row) for row in rows]


def _difference(row: ScorerComparison) -> DifferenceView:
    result = row.result
    is_better = row.holds and result.distinguishable
    verdict = "not distinguishable" if not result.distinguishable else result.verdict.partition(" (")[0]
    if result.distinguishable and not row.holds:
        verdict = "not after Holm's correction"
    edge = max(abs(result.low), abs(result.high))
    return DifferenceView(
        scorer=row.scorer,
        difference=f"{result.difference:+.4g}",
        span=f"{result.low:+.4g} to {result.high:+.4g}",
        mark=interval_mark(result.difference, result.low, result.high, (-edge, edge)),
        wins=f"{100 * result.win_rate:.1f} % ({100 * result.win_low:.1f} to {100 * result.win_high:.1f})",
        outcomes=f"{result.wins} / {result.ties} / {result.losses}",
        p_value=f"{row.adjusted:.4f}",
        verdict=verdict,
        css="clear" if is_better else "even",
    )


def _section(section: ScorerSection) -> SectionView:
    names = list(dict.fromkeys(row.group for rows in section.categories for row in rows))
    by_set = [{row.group: row for row in rows} for rows in section.categories]
    flat = _cells([rows.get(name) for name in names for rows in by_set])
    width = len(by_set)
    return SectionView(
        section=section,
        histogram=histogram(section.values),
        categories=tuple((name, flat[width * at : width * (at + 1)]) for at, name in enumerate(names)),
        worst=tuple(_panel(panel) for panel in section.worst),
        changed=tuple(_panel(panel) for panel in section.changed),
    )


def _panel(panel: Panel) -> PanelView:
    pictures = [
        PictureView(shown.set_name, _number(shown.score), shown.image.name, thumbnail(shown.image))
        for shown in panel.images
    ]
    change = "" if panel.change is None else f"{panel.change:+.4g}"
    return PanelView(panel.prompt, change, tuple(pictures))


def _correlation(row: Correlation) -> tuple[str, str, str, str, int]:
    pair = f"{row.first} and {row.second}"
    if row.interval is None:
        return pair, "none", row.reason, "", row.images
    found = row.interval
    mark = interval_mark(found.value, found.low, found.high, (-1.0, 1.0))
    return pair, f"{found.value:+.2f}", f"{found.low:+.2f} to {found.high:+.2f}", mark, row.images
