"""The comparison as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from t2i.report.model import ComparisonRow
from t2i.report.numbers import (
    NO_BREAK_SPACE,
    align,
    counted,
    headline,
    interval,
    level_words,
    number,
    outcomes,
    percent,
    percent_interval,
    supported_decimals,
)

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

STYLES = {"better": "bold green", "worse": "bold red", "not distinguishable": "dim", "not measured": "dim"}


def comparison_table(rows: Sequence[ComparisonRow]) -> Table:
    """Two lines per scorer: means, difference, win rate, verdict; beneath, dimmed: role, intervals, outcomes.

    Differences and rates are of the second arm over the first. Fits 80 columns. Names are shown as they are, never read
    as markup.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    pairs = list(dict.fromkeys((row.arm_a, row.arm_b) for row in rows))
    has_arms = len(pairs) != 1
    arm_a, arm_b = ("first", "second") if has_arms else pairs[0]
    caption = Text(_prompts(rows))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1), caption=caption, caption_justify="left")
    for heading, below in (("arms", ""), ("scorer", "role")) if has_arms else (("scorer", "role"),):
        table.add_column(_two_lines(heading, below), overflow="fold")
    for arm in (arm_a, arm_b):
        table.add_column(Text(arm, justify="right"), overflow="fold")
    for heading, below in (("difference", f"{level_words(row.level for row in rows)} interval"), ("win %", "interval")):
        table.add_column(_two_lines(heading, below), justify="right", no_wrap=True)
    table.add_column(_two_lines("verdict", "won/tied/lost"), min_width=len("distinguishable"), overflow="fold")
    means_a = _means([row.mean_a for row in rows], rows, len(arm_a))
    means_b = _means([row.mean_b for row in rows], rows, len(arm_b))
    for row, mean_a, mean_b in zip(rows, means_a, means_b, strict=True):
        names = [_two_lines(f"{row.arm_b} over {row.arm_a}")] if has_arms else []
        verdict = _two_lines(row.verdict, outcomes(row), STYLES[row.verdict])
        table.add_row(*names, _two_lines(row.scorer, row.role), Text(mean_a), Text(mean_b), *_figures(row), verdict)
    return table


def print_comparison(rows: Sequence[ComparisonRow]) -> None:
    """Print the table and its headline; what the terminal's encoding lacks becomes a question mark."""
    from rich.console import Console

    console = Console()
    with console.capture() as captured:
        console.print(comparison_table(rows))
        console.print(headline(rows), markup=False, emoji=False)
    # Lines are broken by now, and many encodings have no such space.
    text = captured.get().replace(NO_BREAK_SPACE, " ")
    console.file.write(text.encode(console.encoding, "replace").decode(console.encoding))
    console.file.flush()


def _prompts(rows: Sequence[ComparisonRow]) -> str:
    """How many prompts each row is over; one number where all agree."""
    counts = {row.prompts for row in rows}
    if len(counts) == 1:
        return f"over {counted(counts.pop(), 'prompt')}"
    return "prompts: " + ", ".join(f"{row.scorer} {row.prompts}" for row in rows)


def _two_lines(first: str, second: str = "", style: str = "") -> Text:
    from rich.text import Text

    return Text.assemble((first, style), *([("\n" + second, "dim")] if second else []))


def _figures(row: ComparisonRow) -> tuple[Text, Text]:
    """Difference and win rate, each above its interval."""
    places = _decimals(row)
    return (
        _two_lines(number(row.difference, places, signed=True), interval(row.low, row.high, places)),
        _two_lines(percent(row.win_rate), percent_interval(row.win_low, row.win_high)),
    )


def _means(means: Sequence[float | None], rows: Sequence[ComparisonRow], width: int) -> list[str]:
    """A column with its decimal points aligned, padded here: rich strips the spaces of what it aligns to the right."""
    texts = [number(mean, _decimals(row)) for mean, row in zip(means, rows, strict=True)]
    aligned = align(texts, point_space=" ", digit_space=" ")
    return [text.rjust(max(width, *map(len, aligned))) for text in aligned]


def _decimals(row: ComparisonRow) -> int:
    return supported_decimals(row.low, row.high, row.difference)
