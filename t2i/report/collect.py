"""Gather a report from the folders of finished stages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i.records import ScoredImage, read_jsonl
from t2i.report.means import score_rows
from t2i.report.model import (
    ArmImages,
    CategoryRow,
    Cell,
    ComparisonRow,
    Curve,
    EstimateRow,
    Note,
    PromptPanel,
    Report,
    StageSummary,
)
from t2i.report.numbers import NOT_AVAILABLE, byte_size

_ROLES = {"held_out": "held out", "train": "trained on", "control": "control"}
_SIZES = {
    "memory_bytes": "memory of a step",
    "cache_bytes": "encoded images and captions on disk",
    "checkpoint_bytes": "checkpoints on disk, at most",
}
_CURVES = {"loss": "loss", "grad_norm": "gradient norm", "learning_rate": "learning rate"}
Key = tuple[str, int, int]


@dataclass(frozen=True)
class Sources:
    """Finished folders: comparisons, score stages and train stages with their names (baseline first)."""

    comparisons: tuple[Path, ...]
    scores: tuple[tuple[str, Path], ...]
    trainings: tuple[tuple[str, Path], ...]


def collect_report(sources: Sources, *, title: str, recipe_name: str, panels: int, extremes: int) -> Report:
    """Read everything that a report shows. Panels are the first prompts; extremes go by the first scorer."""
    rows = {name: {row.key: row for row in _scored(folder)} for name, folder in sources.scores}
    scorers = _read(sources.scores[0][1] / "scorers.json")
    comparisons = [_read(folder / "comparison.json") for folder in sources.comparisons]
    chosen = _Panels(sources, rows, scorers)
    everything = chosen.all()
    first, worst, changed = (
        _by_prompt(found)
        for found in (
            everything,
            sorted(everything, key=chosen.last_score),
            sorted(everything, key=lambda panel: -abs(panel.change or 0.0)),
        )
    )
    return Report(
        title=title,
        recipe_name=recipe_name,
        created=_newest(sources),
        arms=tuple(ArmImages(name, tuple(_images(folder))) for name, folder in sources.scores),
        scores=tuple(score_rows(rows, [scorer["label"] for scorer in scorers])),
        comparisons=tuple(_comparison_row(result, row) for result in comparisons for row in result["overall"]),
        categories=tuple(_category_row(result, row) for result in comparisons for row in result["categories"]),
        panels=tuple(first[:panels]),
        panels_chosen=f"the first {min(panels, len(first))} prompts, not the best{_of_each(everything, first)}",
        worst_panels=tuple(worst[:extremes]),
        most_changed_panels=tuple(changed[:extremes]),
        curves=tuple(curve for name, folder in sources.trainings for curve in _curves(name, folder)),
        estimates=tuple(row for name, folder in sources.trainings for row in _estimates(name, folder)),
        notes=tuple(_notes(sources, scorers)),
        stages=tuple(_stages(sources)),
        provenance=tuple(_provenance(sources.scores[-1][1])),
    )


def _by_prompt(panels: Sequence[PromptPanel]) -> list[PromptPanel]:
    """The first panel of each prompt."""
    found: dict[str, PromptPanel] = {}
    for panel in panels:
        found.setdefault(panel.prompt_id, panel)
    return list(found.values())


def _of_each(everything: Sequence[PromptPanel], first: Sequence[PromptPanel]) -> str:
    return "" if len(everything) == len(first) else "; of each the first image"


class _Panels:
    """The images of all arms, prompt by prompt."""

    def __init__(
        self, sources: Sources, rows: dict[str, dict[Key, ScoredImage]], scorers: list[dict[str, Any]]
    ) -> None:
        self.rows = rows
        self.folders = dict(sources.scores)
        self.labels = [scorer["label"] for scorer in scorers]
        self.sign = 1.0 if scorers[0]["higher_is_better"] else -1.0

    def all(self) -> list[PromptPanel]:
        """One panel per image of the first arm, in its order."""
        first = next(iter(self.rows.values()))
        return [self._panel(row) for row in first.values()]

    def _panel(self, row: ScoredImage) -> PromptPanel:
        cells = tuple(self._cell(arm, rows.get(row.key)) for arm, rows in self.rows.items())
        ends = [dict(cell.scores).get(self.labels[0]) for cell in (cells[0], cells[-1])]
        change = None if None in ends else ends[1] - ends[0]  # type: ignore[operator]
        return PromptPanel(row.prompt_id, row.prompt, row.seed, cells, change)

    def _cell(self, arm: str, row: ScoredImage | None) -> Cell:
        if row is None:
            return Cell(arm, None)
        scores = tuple((label, row.scores.get(label)) for label in self.labels)
        path = self.folders[arm] / row.image
        return Cell(arm, path if path.is_file() else None, scores, row.expanded)

    def last_score(self, panel: PromptPanel) -> float:
        """Sort key: the last arm's score by the first scorer, worst first; images without one come last."""
        value = dict(panel.cells[-1].scores).get(self.labels[0])
        return float("inf") if value is None else self.sign * value


def _scored(folder: Path) -> list[ScoredImage]:
    return list(read_jsonl(folder / "scores.jsonl", ScoredImage))


def _images(folder: Path) -> list[tuple[Key, Path]]:
    return [(row.key, folder / row.image) for row in _scored(folder)]


def _comparison_row(result: dict[str, Any], row: dict[str, Any]) -> ComparisonRow:
    numbers = ("mean_a", "mean_b", "difference", "low", "high", "win_rate", "win_low", "win_high")
    counts = ("wins", "ties", "losses")
    return ComparisonRow(
        scorer=row["label"],
        arm_a=result["a"],
        arm_b=result["b"],
        **{name: row.get(name) for name in numbers},
        **{name: row.get(name, 0) for name in counts},
        prompts=row["prompts"],
        images=row["images"],
        verdict=row["verdict"],
        role=_ROLES[row["role"]],
        level=result["level"],
    )


def _category_row(result: dict[str, Any], row: dict[str, Any]) -> CategoryRow:
    return CategoryRow(
        scorer=row["label"],
        category=row["category"],
        arm_a=result["a"],
        arm_b=result["b"],
        **{name: row.get(name) for name in ("mean_a", "mean_b", "difference", "low", "high")},
        prompts=row["prompts"],
        level=result["level"],
    )


def _curves(stage: str, folder: Path) -> list[Curve]:
    from t2i.training.log import read_metrics

    lines = read_metrics(folder / "metrics.jsonl")
    curves = []
    for name, title in _CURVES.items():
        points = [(float(line["step"]), float(line[name])) for line in lines if name in line]
        if points:
            steps, values = zip(*points, strict=True)
            curves.append(Curve(f"{stage}: {title}", steps, values, log_y=name == "loss"))
    return curves


def _estimates(stage: str, folder: Path) -> list[EstimateRow]:
    """What a train stage said before it began, beside what it took."""
    facts = _read(folder / "done.json")["facts"]
    estimated, measured = facts.get("estimated"), facts.get("measured")
    if estimated is None or measured is None:
        return []
    seconds = [f"{value:.3g} s" if value is not None else NOT_AVAILABLE for value in (
        estimated["seconds_per_step"], measured["seconds_per_step"])]  # fmt: skip
    return [
        *(
            EstimateRow(stage, quantity, byte_size(estimated[name]), byte_size(measured[name]))
            for name, quantity in _SIZES.items()
        ),
        EstimateRow(stage, "a step, at least", *seconds),
    ]


def _notes(sources: Sources, scorers: list[dict[str, Any]]) -> list[Note]:
    notes = []
    for scorer in scorers:
        if scorer["truncated_prompts"] is not None:
            label = f"prompts longer than {scorer['label']} reads"
            notes.append(Note(label, scorer["truncated_prompts"], "they were cut at its token limit"))
    for name, folder in sources.scores:
        missing = sum(not path.is_file() for _, path in _images(folder))
        notes.append(Note(f"images missing from {name}", missing))
    return notes


def _stages(sources: Sources) -> list[StageSummary]:
    """The stages shown and all that they were made from, in the order in which they finished.

    Not whatever else lies in the run's folder: it may hold the same stages with other settings.
    """
    todo = [*sources.comparisons, *(folder for _, folder in (*sources.scores, *sources.trainings))]
    found: dict[Path, tuple[str, StageSummary]] = {}
    while todo:
        folder = todo.pop()
        if folder in found:
            continue
        done, config, provenance = (_read(folder / f"{name}.json") for name in ("done", "config", "provenance"))
        shown = {name: value for name, value in done["facts"].items() if name not in ("estimated", "measured")}
        facts = tuple((name, str(value)) for name, value in shown.items())
        summary = StageSummary(config["stage"], config["identity"]["type"], provenance["wall_seconds"], facts)
        found[folder] = done["finished"], summary
        todo += [folder.parent / name for name in provenance["inputs"].values()]
    return [summary for _, summary in sorted(found.values(), key=lambda item: (item[0], item[1].name))]


def _provenance(folder: Path) -> list[tuple[str, str]]:
    path = folder / "provenance.json"
    return list(_flat("", _read(path))) if path.is_file() else []


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for name, item in value.items() for pair in _flat(f"{prefix}.{name}" if prefix else name, item)]
    return [(prefix, str(value))]


def _newest(sources: Sources) -> str:
    """When the newest of the shown stages finished: a report made again says the same."""
    folders = [*sources.comparisons, *(folder for _, folder in sources.scores)]
    return max((str(_read(folder / "done.json")["finished"]) for folder in folders), default="")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
