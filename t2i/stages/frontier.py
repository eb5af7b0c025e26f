"""Several arms against one base: checkpoints, adapter strengths, methods at equal compute, and those none beats."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from t2i.files import write_text
from t2i.stages.base import Stage, StageContext
from t2i.stages.compare import COMPARISON_FILE, Compare

if TYPE_CHECKING:
    from t2i.report.scatter import ArmPoint

FRONTIER_FILE, CHART_FILE = "frontier.json", "frontier.svg"


class Frontier(Stage):
    """Write `frontier.json`, every arm compared with the base by every scorer, and `frontier.svg`, two of them.

    An arm is on the front if no other, the base included, has a mean at least as good by both scorers and better by
    one. Each interval is for its own comparison: with many arms, some lie clear of 0 by chance.
    """

    version: ClassVar[int] = 2
    produces: ClassVar[str] = "frontier"
    shows_names: ClassVar[bool] = True
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"base_from": ("scores",), "arms_from": ("scores",)}

    type: Literal["frontier"] = "frontier"
    base_from: str
    """The score stage of the base."""
    arms_from: tuple[str, ...] = Field(min_length=1)
    """The score stages of the arms, of the same prompts and scorers; `tuned/*` names all of a matrix."""
    axes: tuple[str, str]
    """Labels of the two scorers of the chart: horizontal, vertical. Take one that was held out."""
    resamples: int = Field(default=10_000, ge=1000)
    """Bootstrap resamples of prompts."""

    @model_validator(mode="after")
    def _two_axes(self) -> Frontier:
        if self.axes[0] == self.axes[1]:
            raise ValueError("axes: give two different scorers")
        return self

    def run(self, context: StageContext) -> dict[str, Any]:
        from t2i.report.scatter import frontier_chart

        base = context.inputs["base_from"][0]
        arms = [self._compared(base, arm, number, context) for number, arm in enumerate(context.inputs["arms_from"])]
        points = self._points(arms)
        result = {
            "base": self.base_from,
            "axes": list(self.axes),
            "arms": arms,
            "front": [point.name for point in points if point.on_front],
        }
        write_text(context.folder / FRONTIER_FILE, json.dumps(result, indent=2, sort_keys=True) + "\n")
        write_text(context.folder / CHART_FILE, frontier_chart(points, *self.axes))
        return {"front": result["front"], "arms": [arm["name"] for arm in arms]}

    def _compared(
        self, base: tuple[str, Path], arm: tuple[str, Path], number: int, context: StageContext
    ) -> dict[str, Any]:
        """The rows of a comparison of one arm with the base, which also stands in a folder of its own."""
        folder = context.folder / f"arm-{number:02d}"
        folder.mkdir(exist_ok=True)
        compare = Compare(a_from=base[0], b_from=arm[0], resamples=self.resamples)
        inputs = {"a_from": [base], "b_from": [arm]}
        compare.run(dataclasses.replace(context, folder=folder, inputs=inputs))
        found = json.loads((folder / COMPARISON_FILE).read_text())
        return {"name": arm[0], "overall": found["overall"], "categories": found["categories"]}

    def _points(self, arms: list[dict[str, Any]]) -> list[ArmPoint]:
        from rewards.blend import pareto_front
        from t2i.report.scatter import ArmPoint

        rows = [[self._row(arm, label) for label in self.axes] for arm in arms]
        base_x, base_y = (row["mean_a"] for row in rows[0])
        means = [[base_x, base_y], *([row["mean_b"] for row in pair] for pair in rows)]
        signs = [1 if row["higher_is_better"] else -1 for row in rows[0]]
        front = pareto_front([[sign * mean[axis] for mean in means] for axis, sign in enumerate(signs)])
        alone = ((base_x, base_x), (base_y, base_y))
        points = [ArmPoint(self.base_from, base_x, base_y, *alone, bool(front[0]), is_base=True)]
        for arm, (x, y), beaten_by_none in zip(arms, rows, front[1:], strict=True):
            across, up = ((row["mean_a"] + row["low"], row["mean_a"] + row["high"]) for row in (x, y))
            points.append(ArmPoint(arm["name"], x["mean_b"], y["mean_b"], across, up, bool(beaten_by_none)))
        return points

    def _row(self, arm: dict[str, Any], label: str) -> dict[str, Any]:
        from t2i.errors import ConfigError
        from t2i.suggestions import did_you_mean

        known = {row["label"]: row for row in arm["overall"]}
        if label not in known:
            raise ConfigError(f"axes: {arm['name']} has no scorer {label!r}{did_you_mean(label, known)}")
        if "difference" not in known[label]:
            raise ConfigError(f"axes: {label!r} was not measured; two prompts are needed at least.")
        return known[label]
