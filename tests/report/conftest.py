"""Small reports built in code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from t2i.report.model import (
    ArmImages,
    CategoryRow,
    Cell,
    ComparisonRow,
    CorrelationRow,
    Curve,
    Note,
    PromptPanel,
    Report,
    ScoreRow,
    StageSummary,
)


@pytest.fixture
def comparison() -> ComparisonRow:
    return ComparisonRow(
        scorer="judge",
        arm_a="base",
        arm_b="tuned",
        mean_a=0.6431,
        mean_b=0.7243,
        difference=0.0812,
        low=0.0503,
        high=0.1121,
        win_rate=0.64,
        win_low=0.57,
        win_high=0.7,
        wins=118,
        ties=71,
        losses=51,
        prompts=240,
        images=480,
        verdict="better",
        role="held out",
    )


@pytest.fixture
def unmeasured(comparison: ComparisonRow) -> ComparisonRow:
    """A row without a single number."""
    nothing = dict.fromkeys(("mean_a", "mean_b", "difference", "low", "high", "win_rate", "win_low", "win_high"))
    counts = dict.fromkeys(("wins", "ties", "losses", "prompts", "images"), 0)
    return replace(comparison, scorer="aesthetic", verdict="not measured", **nothing, **counts)


@pytest.fixture
def panel(tmp_path: Path) -> PromptPanel:
    """One prompt, two arms, images of 64 x 64 px."""
    colours = {"base": (200, 30, 30), "tuned": (30, 30, 200)}
    for arm, colour in colours.items():
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{arm}.png")
    cells = tuple(Cell(arm, tmp_path / f"{arm}.png", (("judge", 0.5), ("clip", None))) for arm in colours)
    return PromptPanel("p1", "a red circle", 7, cells, 0.25)


@pytest.fixture
def report(comparison: ComparisonRow, unmeasured: ComparisonRow, panel: PromptPanel) -> Report:
    """Every section with at least one row."""
    pair = {"arm_a": "base", "arm_b": "tuned"}
    absent = dict.fromkeys(("mean_a", "mean_b", "difference", "low", "high"))
    return Report(
        title="Quickstart",
        recipe_name="quickstart",
        created="2025-01-31 14:02 UTC",
        summary="One paragraph.",
        arms=(ArmImages("base", ((("p1", 0, 7), Path("base.png")),)), ArmImages("tuned")),
        scores=(
            ScoreRow(
                scorer="judge", arm="base", mean=0.64, low=0.6, high=0.68, images=3, missing=None, values=(0, 1, 1)
            ),
            ScoreRow(scorer="judge", arm="tuned", mean=None, low=None, high=None, images=0, missing=3),
        ),
        comparisons=(comparison, unmeasured),
        categories=(
            CategoryRow(
                scorer="judge",
                category="colour",
                **pair,
                mean_a=0.5,
                mean_b=0.6,
                difference=0.1,
                low=0.0,
                high=0.2,
                prompts=9,
            ),
            CategoryRow(scorer="judge", category="shape", **pair, **absent, prompts=0),
        ),
        correlations=(
            CorrelationRow(scorer_a="judge", scorer_b="clip", kind="Spearman", value=0.4, low=0.3, high=0.5, images=9),
        ),
        panels=(panel,),
        panels_chosen="The first prompt.",
        worst_panels=(panel,),
        most_changed_panels=(panel,),
        curves=(Curve("loss", (0, 1, 2), (0.5, float("nan"), 0.3)), Curve("rate", (0, 1), (1e-4, 5e-5), log_y=True)),
        notes=(Note("blank images", 0), Note("near duplicates", None, "not counted")),
        stages=(StageSummary("train", "train", 214.0, (("steps", "400"),)), StageSummary("export", "export", None)),
        provenance=(("torch", "2.13.0"),),
    )
