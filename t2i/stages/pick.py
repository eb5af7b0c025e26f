"""Keep the best of several trained adapters by a held-out score: which round to stop at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from t2i.files import write_text
from t2i.records import ScoredImage, read_jsonl
from t2i.stages.base import Stage, StageContext
from t2i.stages.lineage import optimised_against
from t2i.stages.score import SCORES_FILE, shared_scorer
from t2i.stages.trained_kind import misfit_of

PICK_FILE = "pick.json"


class Pick(Stage):
    """Copy one adapter of several, in their order, and write `pick.json`: every mean, and why it stopped there.

    The first `patience` adapters in a row that do not exceed the best mean so far end the search; what comes later is
    not looked at, however good: that is what a run that had stopped there would have kept. With `rounds.stop_by: pick`
    the rounds after that are not run at all.
    """

    version: ClassVar[int] = 1
    produces: ClassVar[str] = "weights"
    shows_names: ClassVar[bool] = True
    may_stop_rounds: ClassVar[bool] = True
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"weights_from": ("weights",), "scores_from": ("scores",)}

    type: Literal["pick"] = "pick"
    weights_from: tuple[str, ...] = Field(min_length=1)
    """Train stages, in order: `train/*` names the rounds."""
    scores_from: tuple[str, ...] = Field(min_length=1)
    """The score stages of their images, in the same order."""
    scorer: str
    """Label of the scorer that decides; refused if it was trained on."""
    patience: int = Field(default=1, ge=1)
    """How many adapters without improvement end the search."""

    @model_validator(mode="after")
    def _same_number(self) -> Pick:
        wild = any("*" in name for name in (*self.weights_from, *self.scores_from))
        if not wild and len(self.weights_from) != len(self.scores_from):
            raise ValueError("weights_from and scores_from: give one score stage for each train stage")
        return self

    def misfit(self, earlier: Mapping[str, Stage]) -> tuple[str, str]:
        message = misfit_of(self.weights_from, earlier, whole=False)
        return ("weights_from", message) if message else ("", "")

    def run(self, context: StageContext) -> dict[str, Any]:
        from t2i.errors import ConfigError
        from t2i.training.outputs import ADAPTER_FOLDER, trained_adapter

        weights, scores = context.inputs["weights_from"], context.inputs["scores_from"]
        if len(weights) != len(scores):
            raise ConfigError(f"{len(weights)} train stages and {len(scores)} score stages; expected one for each.")
        means, sign = self._means([folder for _, folder in scores])
        best, looked_at = first_peak([sign * mean for mean in means], self.patience)
        source = trained_adapter(weights[best][1])
        target = context.folder / ADAPTER_FOLDER / source.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
        names = [name for name, _ in weights]
        result = {
            "scorer": self.scorer,
            "means": dict(zip(names, means, strict=True)),
            "kept": names[best],
            "stopped_after": names[looked_at - 1],
        }
        write_text(context.folder / PICK_FILE, json.dumps(result, indent=2) + "\n")
        return {"adapter": target.relative_to(context.folder).as_posix(), "kept": names[best], "means": result["means"]}

    def decided(self, inputs: Mapping[str, Sequence[tuple[str, Path]]]) -> str:
        names = [name for name, _ in inputs["weights_from"]]
        means, sign = self._means([folder for _, folder in inputs["scores_from"]])
        best, looked_at = first_peak([sign * mean for mean in means], self.patience)
        if looked_at - 1 - best < self.patience:
            return ""
        last = names[looked_at - 1]
        return f"not needed: {last} is no better, {self.scorer} {means[looked_at - 1]:.4g} after {means[best]:.4g}"

    def _means(self, folders: Sequence[Path]) -> tuple[list[float], int]:
        """Mean score of each stage's images, and 1, or -1 where less is better.

        Raises ConfigError for a scorer that was trained on, DataError where stages scored other prompts or with other
        weights.
        """
        from t2i.errors import ConfigError, DataError

        described = shared_scorer(folders, self.scorer, "scorer")
        used = {one for folder in folders for one in optimised_against(folder, picks=False)}
        if any(row["role"] == "train" or row.get("id") in used for row in described):
            raise ConfigError(f"scorer: {self.scorer!r} was trained on, so it cannot say when to stop; use another.")
        tables = [list(read_jsonl(folder / SCORES_FILE, ScoredImage)) for folder in folders]
        keys = [sorted((row.key, row.prompt) for row in rows) for rows in tables]
        for folder, own in zip(folders, keys, strict=True):
            if own != keys[0]:
                raise DataError(
                    f"scores_from: {folder.name} and {folders[0].name} hold other prompts, samples or seeds, so that "
                    "their means cannot be compared; generate both from the same prompts and seed."
                )
        means = [sum(row.scores[self.scorer] for row in rows) / len(rows) for rows in tables]
        return means, 1 if described[0]["higher_is_better"] else -1


def first_peak(values: list[float], patience: int) -> tuple[int, int]:
    """(place of the largest value before `patience` in a row fail to exceed it, how many were looked at)."""
    best = 0
    for place, value in enumerate(values):
        if value > values[best]:
            best = place
        elif place - best >= patience:
            return best, place + 1
    return best, len(values)
