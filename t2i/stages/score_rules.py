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
ScoreKey: TypeAlias = tuple[str, tuple[str, ...]]


class ScoreRule(FrozenModel):
    """Images whose caption, or which themselves, a scorer finds wanting.

    Against invented things: `{scorer: {name: tifa, options: ...}, kind: dense, at_least: 0.9}` asks a VQA model
    whether the picture shows what the caption says. The score is kept with the caption.
    """

    scorer: Scorer | None = None
    """What scores; see `rewards list`."""
    recorded: str | None = Field(default=None, min_length=1)
    """In place of a scorer: the label of scores that the captions, or the images, have already."""
    kind: str | None = None
    """Captions that are its prompts, of which each must pass; absent for scorers that take none."""
    at_least: float | None = None
    """Lowest score that is kept."""
    at_most: float | None = None
    """Highest score that is kept."""
    batch_size: int = Field(default=32, ge=1)
    """Images scored at once."""

    @model_validator(mode="after")
    def _has_limit(self) -> ScoreRule:
        if (self.scorer is None) == (self.recorded is None):
            raise ValueError("give `scorer`, or the label of scores that are there already in `recorded`")
        if self.at_least is None and self.at_most is None:
            raise ValueError("give `at_least`, `at_most` or both")
        return self

    @property
    def label(self) -> str:
        """What reasons and records call the score."""
        return self.recorded or (self.scorer.label or self.scorer.name if self.scorer else "")

    def check_scorer(self) -> None:
        """Raise for options that the scorer does not take, and for a scorer of prompts that is given none."""
        from t2i.errors import ConfigError

        if self.scorer is not None and self.scorer.load().needs_prompt and self.kind is None:
            raise ConfigError(f"scores: {self.label} scores images against prompts; say in `kind` which captions.")

    def key(self, row: CaptionedImage) -> ScoreKey:
        """What the scores are of: the image, and the captions that are its prompts."""
        return row.id, prompts_of(row, self.kind)

    def check(
        self, folder: Path, keep: Callable[[ScoreKey, list[float]], None]
    ) -> Callable[[Sequence[CaptionedImage]], Dropped]:
        """The rule as a check. folder: for its shards; keep: told the scores of what passes, by `key`."""

        def dropped(records: Sequence[CaptionedImage]) -> Dropped:
            for place, (row, answer) in enumerate(zip(records, self._answers(folder, records), strict=True)):
                reason = self.reason(answer)
                if reason:
                    yield place, reason
                else:
                    keep(self.key(row), answer["scores"])

        return dropped

    def _answers(self, folder: Path, records: Sequence[CaptionedImage]) -> Iterator[dict[str, Any]]:
        """Scores of each record, or what the problem is."""
        from t2i.data.shards import Shards

        if self.scorer is None:
            yield from map(self._recorded, records)
            return
        shards = Shards(folder, records, SHARD_SIZE, ScoreTask(self))
        shards.run(1, lambda done: None)
        yield from shards.answers()

    def _recorded(self, row: CaptionedImage) -> dict[str, Any]:
        captions = [caption.scores for caption in row.captions if caption.kind == self.kind]
        found = [scores.get(self.label) for scores in (captions if self.kind is not None else [row.scores])]
        if not found or None in found:
            return {"problem": "no such score is recorded"}
        return {"scores": found}

    def reason(self, answer: dict[str, Any]) -> str | None:
        """Why an image with this answer is dropped."""
        if "problem" in answer:
            return f"{self.label}: cannot be scored ({answer['problem']})"
        low, high = min(answer["scores"]), max(answer["scores"])
        if self.at_least is not None and low < self.at_least:
            return f"{self.label}: {low:.4g}"
        return f"{self.label}: {high:.4g}" if self.at_most is not None and high > self.at_most else None


def id_of(scorer: Scorer) -> str:
    """Id of a scorer with its weights, as score stages write it: later stages know by it what chose the images."""
    from rewards.score_files import scorer_id
    from rewards.scoring import describe

    with reward_errors():
        return scorer_id(describe(scorer.load()))


@dataclass(frozen=True)
class ScoreTask:
    """A rule's scores as work over shards."""

    rule: ScoreRule

    def load(self) -> Work[CaptionedImage]:
        """Open the scorer."""
        from t2i.errors import ConfigError

        if self.rule.scorer is None:
            raise ConfigError(f"scores: {self.rule.label} is recorded; there is no scorer to open.")
        reward = self.rule.scorer.load()

        def work(records: Sequence[CaptionedImage]) -> Iterator[tuple[int, Any]]:
            with reward_errors():
                for start in range(0, len(records), self.rule.batch_size):
                    batch = records[start : start + self.rule.batch_size]
                    yield from enumerate(_scores(reward, batch, self.rule.kind), start)

        return work

    def identity(self, item: CaptionedImage) -> str:
        """The image and the captions that are its prompts."""
        return json.dumps([*self.rule.key(item), self.rule.model_dump(mode="json")], sort_keys=True)


def prompts_of(row: CaptionedImage, kind: str | None) -> tuple[str, ...]:
    """The captions of a kind; for no kind, and for an image without such a caption, one empty text."""
    return (row.texts(kind) if kind is not None else ()) or ("",)


def _scores(reward: Reward, batch: Sequence[CaptionedImage], kind: str | None) -> list[dict[str, Any]]:
    """Scores of a batch; one by one where it holds a caption that the scorer cannot take, so that only that falls."""
    from rewards.base import check_scores
    from rewards.errors import InputError

    asked = [(number, text) for number, row in enumerate(batch) for text in prompts_of(row, kind)]
    images, prompts = [Path(batch[number].image) for number, _ in asked], [text for _, text in asked]
    try:
        values = check_scores(reward.name, reward.score(images, prompts if kind is not None else None), len(images))
    except InputError as error:
        if len(batch) == 1:
            return [{"problem": str(error)}]
        return [answer for row in batch for answer in _scores(reward, [row], kind)]
    answers: list[dict[str, Any]] = [{"scores": []} for _ in batch]
    for (number, _), value in zip(asked, values, strict=True):
        answers[number]["scores"].append(float(value))
    return answers


def with_score(row: CaptionedImage, kind: str | None, label: str, scores: Sequence[float]) -> CaptionedImage:
    """The record with a score beside each of its captions of that kind, or beside the image."""
    if kind is None:
        return dataclasses.replace(row, scores={**row.scores, label: scores[0]})
    left = iter(scores)
    scored = (
        dataclasses.replace(caption, scores={**caption.scores, label: next(left)}) if caption.kind == kind else caption
        for caption in row.captions
    )
    return dataclasses.replace(row, captions=tuple(scored))
