"""Two score tables of the same prompts, image by image."""

from __future__ import annotations

from dataclasses import dataclass

from rewards.errors import InputError
from rewards.score_table import Key, Row, ScorerFacts, ScoreTable
from rewards.tables import ScorerComparison, compare_scorers


@dataclass(frozen=True)
class Pair:
    """Two images of one prompt, one of each table, and what a scorer gives them."""

    prompt: str
    a: Row
    b: Row
    score_a: float
    score_b: float

    @property
    def change(self) -> float:
        """Score of a minus that of b."""
        return self.score_a - self.score_b


@dataclass(frozen=True)
class TableComparison:
    """names: of the tables, different; rows: a comparison per scorer; gaps: what could not be compared, and why."""

    names: tuple[str, str]
    rows: tuple[ScorerComparison, ...]
    gaps: tuple[str, ...]


def compare_tables(a: ScoreTable, b: ScoreTable) -> TableComparison:
    """Compare the images that both tables scored, as `partners` pairs them.

    Raises InputError when no scorer is in both, when one of them is another version in the other table, when
    fewer than 2 prompts are in both, or as `partners`.
    """
    names = (a.name, b.name) if a.name != b.name else (f"{a.name} (first)", f"{b.name} (second)")
    shared = _shared_scorers(a, b)
    matched = partners(a, b)
    left, right, gaps = {}, {}, []
    for scorer in shared:
        both = _scored_by(scorer.name, matched)
        alone = len(a.column(scorer.name)) + len(b.column(scorer.name)) - 2 * len(both)
        if alone:
            gaps.append(f"{scorer.name}: {alone} images without a partner are left out")
        left[scorer.name] = {key: first.scores[scorer.name] for key, (first, _) in both.items()}
        right[scorer.name] = {key: second.scores[scorer.name] for key, (_, second) in both.items()}
    lower = frozenset(scorer.name for scorer in shared if not scorer.higher_is_better)
    rows = compare_scorers(left, right, names=names, lower_is_better=lower)
    gaps += [f"{name}: scored in one table only" for name in _alone(a, b)]
    return TableComparison(names, tuple(rows), tuple(gaps))


def pairs(a: ScoreTable, b: ScoreTable, scorer: str) -> list[Pair]:
    """The pairs of images that a scorer scored in both tables, in order of a."""
    both = _scored_by(scorer, partners(a, b))
    return [
        Pair(key[0], first, second, first.scores[scorer], second.scores[scorer])
        for key, (first, second) in both.items()
    ]


def partners(a: ScoreTable, b: ScoreTable) -> dict[Key, tuple[Row, Row]]:
    """Which image of a prompt belongs to which, by a's keys, in order of a.

    Images of a prompt that have the same name; if none have, the n-th and the n-th. Raises InputError where that is
    not known: other names, and more images in one table than in the other.
    """
    others: dict[str, list[Row]] = {}
    for (unit, _), row in zip(b.keys, b.rows, strict=True):
        others.setdefault(unit, []).append(row)
    own: dict[str, list[tuple[Key, Row]]] = {}
    for key, row in zip(a.keys, a.rows, strict=True):
        own.setdefault(key[0], []).append((key, row))
    found: dict[Key, tuple[Row, Row]] = {}
    for unit, rows in own.items():
        by_name = {b.name_of(row): row for row in others.get(unit, ())}
        named = {key: (row, by_name[a.name_of(row)]) for key, row in rows if a.name_of(row) in by_name}
        if by_name and not named:
            if len(rows) != len(by_name):
                raise InputError(
                    f"{unit!r} has {len(rows)} images in {a.name} and {len(by_name)} in {b.name}, of other names, so "
                    "which belong together is not known. Name both alike, or score as many of each."
                )
            named = {key: (row, other) for (key, row), other in zip(rows, by_name.values(), strict=True)}
        found |= named
    return {key: found[key] for key in a.keys if key in found}


def _scored_by(scorer: str, matched: dict[Key, tuple[Row, Row]]) -> dict[Key, tuple[Row, Row]]:
    """Pairs of which a scorer scored both images."""
    return {key: rows for key, rows in matched.items() if all(scorer in row.scores for row in rows)}


def _shared_scorers(a: ScoreTable, b: ScoreTable) -> list[ScorerFacts]:
    others = {scorer.name: scorer for scorer in b.scorers}
    shared = [scorer for scorer in a.scorers if scorer.name in others]
    if not shared:
        raise InputError(f"{a.name} and {b.name} have no scorer in common; score both with the same ones.")
    for scorer in shared:
        if scorer.id != others[scorer.name].id:
            raise InputError(
                f"{scorer.name} is {scorer.id} in {a.name} and {others[scorer.name].id} in {b.name}: other weights, "
                "options or libraries, so the numbers cannot be compared. Score both in the same way."
            )
    return shared


def _alone(a: ScoreTable, b: ScoreTable) -> list[str]:
    return sorted({scorer.name for scorer in a.scorers} ^ {scorer.name for scorer in b.scorers})
