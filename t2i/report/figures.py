"""The tables of the page: rows of finished text, digits and units decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from t2i.report.model import CategoryRow, ComparisonRow, Report
from t2i.report.numbers import (
    NOT_AVAILABLE,
    align,
    counted,
    interval,
    level_words,
    number,
    outcomes,
    percent,
    percent_interval,
    supported_decimals,
)
from t2i.report.svg import interval_mark


@dataclass(frozen=True)
class Table:
    """Text of a table. The first `names` columns hold names (left), the others figures (right)."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1


@dataclass(frozen=True)
class ComparisonGroup:
    """All scorers over the same two arms."""

    arm_a: str
    arm_b: str
    rows: tuple[dict[str, str], ...]
    level: str
    """Confidence of the intervals, in words."""


def comparison_groups(rows: Sequence[ComparisonRow]) -> list[ComparisonGroup]:
    """One table for each pair of arms, in the order in which the pairs first appear."""
    pairs = list(dict.fromkeys((row.arm_a, row.arm_b) for row in rows))
    own = {pair: [row for row in rows if (row.arm_a, row.arm_b) == pair] for pair in pairs}
    return [
        ComparisonGroup(*pair, _comparison_cells(found), level_words(row.level for row in found))
        for pair, found in own.items()
    ]


def _comparison_cells(rows: Sequence[ComparisonRow]) -> tuple[dict[str, str], ...]:
    """Cells by name, as the template places them."""
    decimals = [supported_decimals(row.low, row.high, row.difference) for row in rows]
    means_a = align([number(row.mean_a, places) for row, places in zip(rows, decimals, strict=True)])
    means_b = align([number(row.mean_b, places) for row, places in zip(rows, decimals, strict=True)])
    differences = align([number(r.difference, places, signed=True) for r, places in zip(rows, decimals, strict=True)])
    return tuple(
        {
            "scorer": row.scorer,
            "role": row.role,
            "mean_a": mean_a,
            "mean_b": mean_b,
            "difference": difference,
            "interval": interval(row.low, row.high, places),
            "mark": interval_mark(row),
            "win_rate": percent(row.win_rate),
            "win_interval": percent_interval(row.win_low, row.win_high),
            "outcomes": outcomes(row),
            "prompts": str(row.prompts),
            "pairs": counted(row.images, "pair"),
            "verdict": row.verdict,
        }
        for row, places, mean_a, mean_b, difference in zip(rows, decimals, means_a, means_b, differences, strict=True)
    )


def score_table(report: Report) -> Table:
    """Means by scorer and arm; each row has the digits that its interval supports."""
    rows = report.scores
    decimals = [supported_decimals(row.low, row.high, row.mean) for row in rows]
    means = align([number(row.mean, places) for row, places in zip(rows, decimals, strict=True)])
    cells = [
        (row.scorer, row.arm, mean, interval(row.low, row.high, places), str(row.images), count_text(row.missing))
        for row, places, mean in zip(rows, decimals, means, strict=True)
    ]
    return Table(("scorer", "arm", "mean", "95 % interval", "images scored", "without a score"), tuple(cells), names=2)


def category_table(rows: Sequence[CategoryRow]) -> Table:
    """Digits by the narrowest interval, so that one column holds one number of decimals."""
    places = max(supported_decimals(row.low, row.high, row.difference) for row in rows)
    cells = [
        (
            row.category,
            number(row.mean_a, places),
            number(row.mean_b, places),
            number(row.difference, places, signed=True),
            interval(row.low, row.high, places),
            str(row.prompts),
        )
        for row in rows
    ]
    head = (
        "category",
        rows[0].arm_a,
        rows[0].arm_b,
        "difference",
        f"{level_words(row.level for row in rows)} interval",
        "prompts",
    )
    return Table(head, tuple(cells))


def correlation_table(report: Report) -> Table:
    """Coefficients to two decimals."""
    cells = [
        (row.scorer_a, row.scorer_b, row.kind, number(row.value, 2), interval(row.low, row.high, 2), str(row.images))
        for row in report.correlations
    ]
    return Table(("scorer", "with", "measure", "value", "95 % interval", "images"), tuple(cells), names=3)


def count_text(count: int | None) -> str:
    """A count, or `n/a` if nobody counted."""
    return NOT_AVAILABLE if count is None else str(count)
