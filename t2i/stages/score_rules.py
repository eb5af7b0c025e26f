"""Filter rules by scorers: faithfulness of a caption to its image, rewards, aesthetics."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field, model_validator

from t2i.config import FrozenModel
from t2i.records import CaptionedImage
from t2i.stages.score import Scorer, reward_errors

if TYPE_CHECKING:
    from rewards import Reward
    from t2i.data.quality.sieve import Dropped
    from t2i.data.shards import Work

SHARD_SIZE = 256
ScoreKey: TypeAlias = tuple[str, str]


class ScoreRule(FrozenModel):
    """Images whose caption, or which themselves, a scorer finds wanting.

    Against invented things: `{scorer: {name: tifa, options: ...}, kind: dense, at_least: 0.9}` asks a VQA model
    whether the picture shows what the caption says. The score is kept with the caption.
    """

    scorer: Scorer
    """What scores; see `rewards list`."""
    kind: str | None = None
    """Captions that are its prompts; absent for scorers that take none."""
    at_least: float | None = None
    """Lowest score that is kept."""
    at_most: float | None = None
    """Highest score that is kept."""
    batch_size: int = Field(default=32, ge=1)
    """Images scored at once."""

    @model_validator(mode="after")
    def _has_limit(self) -> ScoreRule:
        if self.at_least is None and self.at_most is None:
            raise ValueError("give `at_least`, `at_most` or both")
        return self

    @property
    def label(self) -> str:
        """What reasons and records call the score."""
        return self.scorer.label or self.scorer.name

    def key(self, row: CaptionedImage) -> ScoreKey:
        """What the score is of: the image, and the caption that is its prompt."""
        return row.id, (row.caption(self.kind) if self.kind is not None else None) or ""

    def check(
        self, folder: Path, keep: Callable[[ScoreKey, float], None]
    ) -> Callable[[Sequence[CaptionedImage]], Dropped]:
        """The rule as a check. folder: for its shards; keep: told every score that passes, by `key`."""
        from t2i.data.shards import Shards

        def dropped(records: Sequence[CaptionedImage]) -> Dropped:
            shards = Shards(folder, records, SHARD_SIZE, ScoreTask(self))
            shards.run(1, lambda done: None)
            for place, (row, answer) in enumerate(zip(records, shards.answers(), strict=True)):
                reason = self.reason(answer)
                if reason:
                    yield place, reason
                else:
                    keep(self.key(row), answer["score"])

        return dropped

    def reason(self, answer: dict[str, Any]) -> str | None:
        """Why an image with this answer is dropped."""
        if "problem" in answer:
            return f"{self.label}: cannot be scored ({answer['problem']})"
        score = answer["score"]
        too_low = self.at_least is not None and score < self.at_least
        too_high = self.at_most is not None and score > self.at_most
        return f"{self.label}: {score:.4g}" if too_low or too_high else None


@dataclass(frozen=True)
class ScoreTask:
    """A rule's scores as work over shards."""

    rule: ScoreRule

    def load(self) -> Work[CaptionedImage]:
        """Open the scorer."""
        reward = self.rule.scorer.load()

        def work(records: Sequence[CaptionedImage]) -> Iterator[tuple[int, Any]]:
            with reward_errors():
                for start in range(0, len(records), self.rule.batch_size):
                    batch = records[start : start + self.rule.batch_size]
                    yield from enumerate(_scores(reward, batch, self.rule.kind), start)

        return work

    def identity(self, item: CaptionedImage) -> str:
        """The image and the caption that is its prompt."""
        return json.dumps([*self.rule.key(item), self.rule.model_dump(mode="json")], sort_keys=True)


def _scores(reward: Reward, batch: Sequence[CaptionedImage], kind: str | None) -> list[dict[str, Any]]:
    """Scores of a batch; one by one where it holds a caption that the scorer cannot take, so that only that falls."""
    from rewards.errors import InputError

    try:
        prompts = [row.caption(kind) or "" for row in batch] if kind is not None else None
        return [{"score": float(value)} for value in reward.score([Path(row.image) for row in batch], prompts)]
    except InputError as error:
        if len(batch) == 1:
            return [{"problem": str(error)}]
        return [answer for row in batch for answer in _scores(reward, [row], kind)]


def with_score(row: CaptionedImage, kind: str | None, label: str, score: float) -> CaptionedImage:
    """The record with a score beside its caption of that kind, or beside the image."""
    if kind is None:
        return dataclasses.replace(row, scores={**row.scores, label: score})
    first = next(number for number, caption in enumerate(row.captions) if caption.kind == kind)
    scored = dataclasses.replace(row.captions[first], scores={**row.captions[first].scores, label: score})
    return dataclasses.replace(row, captions=(*row.captions[:first], scored, *row.captions[first + 1 :]))
