"""How numbers are printed: digits that the interval supports, a true minus sign, and n/a for what does not exist."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from t2i.report.model import HELD_OUT, ComparisonRow, PromptPanel

NOT_AVAILABLE = "n/a"
MINUS = "\N{MINUS SIGN}"
FIGURE_SPACE = "\N{FIGURE SPACE}"
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
PUNCTUATION_SPACE = "\N{PUNCTUATION SPACE}"
MOST_DECIMALS = 6
VERDICT_WORDS = {
    "better": "beats",
    "worse": "is worse than",
    "not distinguishable": "is not distinguishable from",
    "not measured": "was not measured against",
}


def level_words(levels: Iterable[float]) -> str:
    """Confidence of the intervals of some rows: `95 %`, or `90 and 95 %` where they differ."""
    return " and ".join(f"{100 * level:.4g}" for level in sorted(set(levels))) + " %"


def is_number(value: float | None) -> bool:
    """Whether there is a finite value to show."""
    return value is not None and math.isfinite(value)


def number(value: float | None, decimals: int, *, signed: bool = False) -> str:
    """Fixed-point text; `n/a` for None, NaN and infinities. A value that rounds to zero carries no sign."""
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def percent(rate: float | None) -> str:
    """A rate in [0, 1] as whole percent, without the sign."""
    return NOT_AVAILABLE if rate is None else number(rate * 100, 0)


def interval(low: float | None, high: float | None, decimals: int) -> str:
    """`[low, high]` without a line break, or `n/a` if either end is missing."""
    if not (is_number(low) and is_number(high)):
        return NOT_AVAILABLE
    return f"[{number(low, decimals)},{NO_BREAK_SPACE}{number(high, decimals)}]"


def percent_interval(low: float | None, high: float | None) -> str:
    """`[low, high]` of a rate in whole percent, or `n/a`."""
    return interval(None if low is None else low * 100, None if high is None else high * 100, 0)


def supported_decimals(low: float | None, high: float | None, fallback: float | None = None) -> int:
    """Decimals for two digits of the interval's half-width (0.031 -> 3); without one, three digits of `fallback`."""
    if low is not None and high is not None and math.isfinite(high - low) and high > low:
        return _decimals((high - low) / 2, digits=2)
    if fallback is not None and math.isfinite(fallback) and fallback != 0:
        return _decimals(abs(fallback), digits=3)
    return 3


def _decimals(size: float, digits: int) -> int:
    return min(MOST_DECIMALS, max(0, digits - 1 - math.floor(math.log10(size))))


def value_decimals(values: Sequence[float | None]) -> int:
    """Decimals that show three digits of the largest of some values of one kind."""
    sizes = [abs(value) for value in values if value is not None and math.isfinite(value)]
    return supported_decimals(None, None, max(sizes, default=None))


def score_decimals(panels: Iterable[PromptPanel]) -> dict[str, int]:
    """Scorer -> decimals that show three digits of its largest score in any of the panels."""
    values: dict[str, list[float | None]] = {}
    for panel in panels:
        for cell in panel.cells:
            for scorer, value in cell.scores:
                values.setdefault(scorer, []).append(value)
    return {scorer: value_decimals(found) for scorer, found in values.items()}


def align(texts: Sequence[str], point_space: str = PUNCTUATION_SPACE, digit_space: str = FIGURE_SPACE) -> list[str]:
    """Pad right-aligned numbers so that their decimal points stand below each other (with tabular figures)."""
    widest = max((_fraction_length(text) for text in texts), default=-1)
    return [
        text if text == NOT_AVAILABLE else text + _padding(_fraction_length(text), widest, point_space, digit_space)
        for text in texts
    ]


def _fraction_length(text: str) -> int:
    """Digits after the point; -1 if there is no point."""
    return len(text) - text.index(".") - 1 if "." in text else -1


def _padding(length: int, widest: int, point_space: str, digit_space: str) -> str:
    if length == widest:
        return ""
    return point_space + digit_space * widest if length < 0 else digit_space * (widest - length)


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min 07 s`, `2 h 05 min`."""
    if seconds is None or not math.isfinite(seconds):
        return NOT_AVAILABLE
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def byte_size(count: float | None) -> str:
    """`512 B`, `1.50 MiB`, `12.3 GiB`."""
    if count is None or not math.isfinite(count):
        return NOT_AVAILABLE
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{number(size, _decimals(max(size, 0.01), digits=3))} {unit}"


def counted(count: int, noun: str) -> str:
    """`1 prompt`, `240 prompts`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def outcomes(row: ComparisonRow) -> str:
    """`won/tied/lost` of arm B, or `n/a` where nothing was measured."""
    return NOT_AVAILABLE if row.verdict == "not measured" else f"{row.wins}/{row.ties}/{row.losses}"


def comparison_sentence(row: ComparisonRow) -> str:
    """One comparison in words: `tuned beats base on judge: +0.081 [0.050, 0.112] over 240 prompts`."""
    claim = f"{row.arm_b} {VERDICT_WORDS[row.verdict]} {row.arm_a} on {row.scorer}"
    if row.verdict == "not measured":
        return claim
    decimals = supported_decimals(row.low, row.high, row.difference)
    difference = number(row.difference, decimals, signed=True)
    figures = f"{difference}{NO_BREAK_SPACE}{interval(row.low, row.high, decimals)}"
    return f"{claim}: {figures} over {row.prompts}{NO_BREAK_SPACE}{'prompt' if row.prompts == 1 else 'prompts'}"


def headline(rows: Sequence[ComparisonRow]) -> str:
    """The sentence of the first held-out scorer; of the first scorer, saying so, if none was held out."""
    if not rows:
        return "No comparison was made."
    held_out = next((row for row in rows if row.role == HELD_OUT), None)
    if held_out is not None:
        return comparison_sentence(held_out) + "."
    about = "a control" if rows[0].role == "control" else "a scorer that was trained on"
    return f"{comparison_sentence(rows[0])}, {about}."
