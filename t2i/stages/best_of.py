"""The best of several images of each prompt by one scorer: what sampling more, instead of training, would give."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from t2i.data.generated import CHOSEN_FILE
from t2i.files import write_text
from t2i.records import ScoredImage, read_jsonl, write_jsonl
from t2i.stages.base import Stage, StageContext
from t2i.stages.generate import SAMPLING_FILE
from t2i.stages.score import SCORERS_FILE, SCORES_FILE


class BestOf(Stage):
    """Write `scores.jsonl` with one row for each prompt: the image of its first `count` that the scorer likes best.

    The row has the sample and seed of the prompt's first image, so that it is compared with what one draw gives. In
    `chosen.jsonl` it has its own.
    """

    version: ClassVar[int] = 2
    produces: ClassVar[str] = "scores"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"scores_from": ("scores",)}

    type: Literal["best_of"] = "best_of"
    scores_from: str
    """A score stage with several images of each prompt."""
    scorer: str
    """Label of the scorer that chooses. Its own column then says nothing about quality: it was optimised."""
    count: int = Field(ge=1)
    """Images of a prompt that are chosen from; with 1, the first."""

    def run(self, context: StageContext) -> dict[str, Any]:
        source = context.input("scores_from")
        scorers = json.loads((source / SCORERS_FILE).read_text())
        sign = self._sign(scorers)
        prompts: dict[str, list[ScoredImage]] = {}
        for row in read_jsonl(source / SCORES_FILE, ScoredImage):
            prompts.setdefault(row.prompt_id, []).append(row)
        chosen = [self._best(rows, sign, source, context.folder) for rows in prompts.values()]
        described = [row | ({"role": "train"} if row["label"] == self.scorer else {}) for row in scorers]
        write_text(context.folder / SCORERS_FILE, json.dumps(described, indent=2, sort_keys=True) + "\n")
        if (source / SAMPLING_FILE).is_file():
            record = json.loads((source / SAMPLING_FILE).read_text()) | {"images_per_prompt": 1}
            write_text(context.folder / SAMPLING_FILE, json.dumps(record, indent=2, sort_keys=True) + "\n")
        write_jsonl(context.folder / CHOSEN_FILE, chosen)
        write_jsonl(context.folder / SCORES_FILE, map(_as_the_first, chosen, prompts.values()))
        means = {row["label"]: sum(r.scores[row["label"]] for r in chosen) / len(chosen) for row in scorers}
        return {"images": len(chosen), "chosen_from": self.count, "means": means}

    def _sign(self, scorers: list[dict[str, Any]]) -> int:
        from t2i.errors import ConfigError
        from t2i.suggestions import did_you_mean

        known = {row["label"]: row for row in scorers}
        if self.scorer not in known:
            hint = did_you_mean(self.scorer, known)
            raise ConfigError(f"scorer: {self.scores_from} has no scorer {self.scorer!r}{hint}")
        return 1 if known[self.scorer]["higher_is_better"] else -1

    def _best(self, rows: list[ScoredImage], sign: int, source: Path, folder: Path) -> ScoredImage:
        from t2i.errors import DataError

        rows = sorted(rows, key=lambda row: row.sample)
        if len(rows) < self.count:
            raise DataError(
                f"{source / SCORES_FILE}: prompt {rows[0].prompt_id} has {len(rows)} images, count asks for "
                f"{self.count}; raise images_per_prompt."
            )
        best = max(rows[: self.count], key=lambda row: sign * row.scores[self.scorer])
        return dataclasses.replace(best, image=os.path.relpath(source / best.image, folder))


def _as_the_first(row: ScoredImage, rows: list[ScoredImage]) -> ScoredImage:
    """The chosen row with the sample and seed of the first of its prompt."""
    first = min(rows, key=lambda other: other.sample)
    return dataclasses.replace(row, sample=first.sample, seed=first.seed)
