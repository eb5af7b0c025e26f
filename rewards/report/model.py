"""What the page shows, as data: no HTML, no drawing. A value that is missing is None, never 0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rewards.comparison import TableComparison
from rewards.score_table import Finding, ScorerFacts
from rewards.tables import Correlation, MeanRow


@dataclass(frozen=True)
class SetSummary:
    """One set of images. means: in order of the report's scorers, None where nothing was scored."""

    name: str
    images: int
    prompts: int
    means: tuple[MeanRow | None, ...]
    findings: tuple[Finding, ...]
    unreadable: tuple[str, ...]
    """What is wrong with each image that could not be read; the first few."""


@dataclass(frozen=True)
class Shown:
    """An image with one scorer's number."""

    image: Path
    set_name: str
    score: float


@dataclass(frozen=True)
class Panel:
    """Images of one prompt beside each other. change: score of the first minus that of the second, if compared."""

    prompt: str
    images: tuple[Shown, ...]
    change: float | None = None


@dataclass(frozen=True)
class ScorerSection:
    """Everything about one scorer. values, categories: one entry per set."""

    scorer: ScorerFacts
    values: tuple[tuple[float, ...], ...]
    categories: tuple[tuple[MeanRow, ...], ...]
    worst: tuple[Panel, ...]
    changed: tuple[Panel, ...]


@dataclass(frozen=True)
class Report:
    """One or two sets of images, scored. comparison: for two."""

    title: str
    level: float
    sets: tuple[SetSummary, ...]
    scorers: tuple[ScorerFacts, ...]
    sections: tuple[ScorerSection, ...]
    correlations: tuple[tuple[str, tuple[Correlation, ...]], ...]
    """Name of a set -> correlations between its scorers."""
    comparison: TableComparison | None = None
