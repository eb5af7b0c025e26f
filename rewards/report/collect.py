"""From score tables to what the page shows."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.comparison import compare_tables, pairs
from rewards.errors import InputError
from rewards.report.model import Panel, Report, ScorerSection, SetSummary, Shown
from rewards.score_table import Row, ScorerFacts, ScoreTable
from rewards.tables import Correlation, correlations

LEVEL = 0.95
WORST = 8
"""Images shown per scorer: those of the first set that it likes least."""
CHANGED = 6
"""Pairs shown per scorer: half of them those that rose most, half those that fell most."""
LISTED = 20
"""Unreadable images that are listed by name."""


def collect(tables: Sequence[ScoreTable]) -> Report:
    """A report about one table, or a comparison of two. Raises InputError for another number, or as `compare_tables`.

    For two, scorers are those of either table; a scorer of one table has no numbers for the other.
    """
    if len(tables) not in (1, 2):
        raise InputError(f"a report is about one or two sets of images; found {len(tables)}.")
    comparison = compare_tables(*tables) if len(tables) == 2 else None
    names = comparison.names if comparison is not None else (tables[0].name,)
    scorers = tuple({scorer.name: scorer for table in tables for scorer in table.scorers}.values())
    return Report(
        title=" and ".join(names),
        level=LEVEL,
        sets=tuple(_summary(name, table, scorers) for name, table in zip(names, tables, strict=True)),
        scorers=scorers,
        sections=tuple(_section(scorer, names, tables) for scorer in scorers),
        correlations=tuple((name, _correlations(table)) for name, table in zip(names, tables, strict=True)),
        comparison=comparison,
    )


def _summary(name: str, table: ScoreTable, scorers: Sequence[ScorerFacts]) -> SetSummary:
    return SetSummary(
        name=name,
        images=len(table.rows),
        prompts=len({row.prompt for row in table.rows if row.prompt is not None}),
        means=tuple(table.mean(scorer.name) for scorer in scorers),
        findings=table.findings,
        unreadable=tuple(row.problem for row in table.rows if row.problem is not None)[:LISTED],
    )


def _section(scorer: ScorerFacts, names: Sequence[str], tables: Sequence[ScoreTable]) -> ScorerSection:
    return ScorerSection(
        scorer=scorer,
        values=tuple(tuple(table.column(scorer.name).values()) for table in tables),
        categories=tuple(tuple(table.by_category(scorer.name)) for table in tables),
        worst=_worst(scorer, names[0], tables[0]),
        changed=_changed(scorer, names, tables) if len(tables) == 2 else (),
    )


def _correlations(table: ScoreTable) -> tuple[Correlation, ...]:
    return tuple(correlations({scorer.name: table.column(scorer.name) for scorer in table.scorers}, level=LEVEL))


def _worst(scorer: ScorerFacts, name: str, table: ScoreTable) -> tuple[Panel, ...]:
    """The images that a scorer likes least, of different prompts."""
    sign = 1.0 if scorer.higher_is_better else -1.0
    scored = [row for row in table.rows if scorer.name in row.scores]
    worst: dict[str, Row] = {}
    for row in sorted(scored, key=lambda row: sign * row.scores[scorer.name]):
        worst.setdefault(row.prompt or table.name_of(row), row)
    return tuple(
        Panel(prompt, (Shown(row.image, name, row.scores[scorer.name]),)) for prompt, row in list(worst.items())[:WORST]
    )


def _changed(scorer: ScorerFacts, names: Sequence[str], tables: Sequence[ScoreTable]) -> tuple[Panel, ...]:
    """Pairs that differ most, one per prompt: the largest rises, then the largest falls."""
    found = sorted(pairs(tables[0], tables[1], scorer.name), key=lambda pair: -pair.change)
    half = CHANGED // 2
    rises = [pair for pair in found if pair.change > 0][:half]
    falls = [pair for pair in reversed(found) if pair.change < 0][:half]
    return tuple(
        Panel(
            pair.prompt,
            (Shown(pair.a.image, names[0], pair.score_a), Shown(pair.b.image, names[1], pair.score_b)),
            pair.change,
        )
        for pair in (*rises, *falls)
    )
