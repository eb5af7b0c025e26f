"""Score tables and comparisons as lines for a terminal."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rewards.comparison import compare_tables
from rewards.score_table import ScoreTable

if TYPE_CHECKING:
    from rewards.suites import Suite


def mean_lines(table: ScoreTable) -> list[str]:
    """One line per scorer: mean over prompts with its 95 % interval. An image without a prompt is one of its own."""
    lines = [f"{'scorer':<20} {'mean':>10}  {'95 % interval by prompt':<25} {'images':>6}  scale"]
    for scorer in table.scorers:
        found = table.mean(scorer.name)
        mean = f"{found.mean:.4f}" if found else "-"
        span = f"{found.interval.low:.4f} to {found.interval.high:.4f}" if found and found.interval else None
        images = found.images if found else 0
        lines.append(f"{scorer.name:<20} {mean:>10}  {span or 'needs 2 prompts':<25} {images:>6}  {scorer.scale}")
    return lines


def finding_lines(table: ScoreTable) -> list[str]:
    """What was looked for and how often it was found, zeros too."""
    lines = [f"images: {len(table.rows)}"]
    for finding in table.findings:
        first = finding.first if len(finding.first) <= 200 else finding.first[:200] + "..."
        lines.append(f"{finding.label}: {finding.count}" + (f" (first: {first})" if finding.count else ""))
    return lines


def defect_lines(suite: Suite, *, with_all: bool = False) -> list[str]:
    """Kinds of defects in a suite's file with their number and first id; with_all: every one, with what was found."""
    lines = []
    for kind, count in sorted(Counter(defect.kind for defect in suite.defects).items()):
        found = [defect for defect in suite.defects if defect.kind == kind]
        lines.append(f"suite {suite.name}, {kind}: {count} (first: {found[0].item})")
        if with_all:
            lines += [" ".join(filter(None, ("  " + one.item, one.question))) + f": {one.detail}" for one in found]
    return lines


def comparison_lines(a: ScoreTable, b: ScoreTable) -> list[str]:
    """One line per scorer that both have: difference, interval, win rate, p-value by Holm, verdict; then the gaps."""
    found = compare_tables(a, b)
    lines = []
    for row in found.rows:
        result = row.result
        holds = "" if not result.distinguishable or row.holds else "; not after Holm's correction"
        lines.append(
            f"{row.scorer:<20} {result.verdict}{holds}; wins {100 * result.win_rate:.1f} % "
            f"({100 * result.win_low:.1f} to {100 * result.win_high:.1f}, {result.win_method}), "
            f"{result.wins}/{result.ties}/{result.losses} won/tied/lost, p {row.adjusted:.4f} (Holm, "
            f"{len(found.rows)} scorers)"
        )
    return [*lines, *found.gaps]
