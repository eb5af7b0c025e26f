"""What a report shows, as plain data.

Two rules hold everywhere. A difference is arm B minus arm A, in the scorer's own scale, so A is the baseline. A number
that does not exist is None (or NaN) and is shown as "n/a", never as 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ImageKey = tuple[str, int, int]
"""Prompt id, sample, seed: what images of two arms are paired by, as `records.GeneratedImage.key`."""

Verdict = Literal["better", "worse", "not distinguishable", "not measured"]
"""What the data say of arm B, the scorer's direction (higher or lower is better) taken into account."""


HELD_OUT = "held out"
"""Role of a scorer that no arm was trained on; only such a scorer can carry the headline's claim."""


@dataclass(frozen=True)
class ArmImages:
    """All images of one arm; the order of a report's arms is the order of its columns."""

    name: str
    images: tuple[tuple[ImageKey, Path], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One scorer over one arm. low, high: 95 % interval of the mean. values: raw scores, one per image."""

    scorer: str
    arm: str
    mean: float | None
    low: float | None
    high: float | None
    images: int
    """Images that have a score."""
    missing: int | None
    """Images without one; None if nobody counted."""
    values: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One scorer over two paired arms. low, high and win_low, win_high: intervals of `level`. Rates are in [0, 1]."""

    scorer: str
    arm_a: str
    arm_b: str
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    low: float | None
    high: float | None
    win_rate: float | None
    """Of B over A; how ties enter is the statistic's business."""
    win_low: float | None
    win_high: float | None
    wins: int
    ties: int
    losses: int
    prompts: int
    images: int
    """Image pairs."""
    verdict: Verdict
    role: str
    """`HELD_OUT` if no arm was trained on this scorer, else `trained on`; `control` for brightness and the like."""
    level: float = 0.95
    """Confidence of the intervals."""


@dataclass(frozen=True, kw_only=True)
class CategoryRow:
    """One scorer over the prompts of one category."""

    scorer: str
    category: str
    arm_a: str
    arm_b: str
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    low: float | None
    high: float | None
    prompts: int
    level: float = 0.95
    """Confidence of the interval."""


@dataclass(frozen=True, kw_only=True)
class CorrelationRow:
    """How far two scorers, or a scorer and a truth, order the same images alike."""

    scorer_a: str
    scorer_b: str
    kind: str
    """`Spearman`, `Kendall`, `Pearson` or `pairwise accuracy`."""
    value: float | None
    low: float | None
    high: float | None
    images: int


@dataclass(frozen=True)
class Curve:
    """One logged quantity. A NaN or infinite value is drawn as a gap."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    chart: str = ""
    """Curves of the same chart share its axes; empty: a chart of its own, titled by the name."""
    log_y: bool = False


@dataclass(frozen=True)
class Cell:
    """One image of a panel. image None: known to be missing (a path that does not exist is an error)."""

    arm: str
    image: Path | None
    scores: tuple[tuple[str, float | None], ...] = ()
    painted: str = ""
    """What the prompt was written out to, if it was not painted as it is."""


@dataclass(frozen=True)
class PromptPanel:
    """The images that the arms made of one prompt and seed. change: score of the last arm minus that of the first."""

    prompt_id: str
    prompt: str
    seed: int
    cells: tuple[Cell, ...]
    change: float | None = None


@dataclass(frozen=True)
class StageSummary:
    """One stage of the run. seconds: wall clock; None if it was not recorded."""

    name: str
    type: str
    seconds: float | None
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class EstimateRow:
    """One quantity of a training run: by arithmetic before it, and as measured. Texts with their units."""

    stage: str
    quantity: str
    estimated: str
    measured: str


@dataclass(frozen=True)
class Note:
    """What the numbers leave out: missing, blank, unreadable images, truncated prompts. count None: not counted."""

    label: str
    count: int | None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything on the page. Sections without rows are left out; time enters through `created` only."""

    title: str
    recipe_name: str
    created: str
    """Date and time of the run, as it is to be printed."""
    summary: str = ""
    """One paragraph below the headline."""
    arms: tuple[ArmImages, ...] = ()
    scores: tuple[ScoreRow, ...] = ()
    comparisons: tuple[ComparisonRow, ...] = ()
    categories: tuple[CategoryRow, ...] = ()
    correlations: tuple[CorrelationRow, ...] = ()
    panels: tuple[PromptPanel, ...] = ()
    panels_chosen: str = ""
    """How `panels` were chosen, e.g. `the first 12 prompts`: a reader must know that it was not by beauty."""
    worst_panels: tuple[PromptPanel, ...] = ()
    most_changed_panels: tuple[PromptPanel, ...] = ()
    curves: tuple[Curve, ...] = ()
    notes: tuple[Note, ...] = ()
    estimates: tuple[EstimateRow, ...] = ()
    stages: tuple[StageSummary, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
