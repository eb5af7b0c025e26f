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
    """Compare the images that both tables scored, n-th image of a prompt with n-th image.

    Raises InputError when no scorer is in both, when one of them is another version in the other table, or when
    fewer than 2 prompts are in both.
    """
    names = (a.name, b.name) if a.name != b.name else (f"{a.name} (first)", f"{b.name} (second)")
    shared = _shared_scorers(a, b)
    left, right, gaps = {}, {}, []
    for scorer in shared:
        first, second = a.column(scorer.name), b.column(scorer.name)
        both = [key for key in first if key in second]
        alone = len(first) + len(second) - 2 * len(both)
        if alone:
            gaps.append(f"{scorer.name}: {alone} images without a partner are left out")
        left[scorer.name] = {key: first[key] for key in both}
        right[scorer.name] = {key: second[key] for key in both}
    lower = frozenset(scorer.name for scorer in shared if not scorer.higher_is_better)
    rows = compare_scorers(left, right, names=names, lower_is_better=lower)
    gaps += [f"{name}: scored in one table only" for name in _alone(a, b)]
    return TableComparison(names, tuple(rows), tuple(gaps))


def pairs(a: ScoreTable, b: ScoreTable, scorer: str) -> list[Pair]:
    """The pairs of images that a scorer scored in both tables, in order of a."""
    rows_a, rows_b = _by_key(a), _by_key(b)
    return [
        Pair(key[0], rows_a[key], rows_b[key], rows_a[key].scores[scorer], rows_b[key].scores[scorer])
        for key in a.column(scorer)
        if key in rows_b and scorer in rows_b[key].scores
    ]


def _by_key(table: ScoreTable) -> dict[Key, Row]:
    return dict(zip(table.keys, table.rows, strict=True))


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
