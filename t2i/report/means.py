"""What each scorer says of each arm by itself: the mean over prompts with its interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rewards.statistics import bootstrap_interval
from t2i.records import ScoredImage
from t2i.report.model import ScoreRow

Key = tuple[str, int, int]


def score_rows(arms: Mapping[str, Mapping[Key, ScoredImage]], scorers: Sequence[str]) -> list[ScoreRow]:
    """One row per scorer and arm. arms: arm -> its scored images; a prompt counts once, however many images it has.

    An arm without a score has no mean, and one with a single prompt no interval.
    """
    return [_row(scorer, arm, list(images.values())) for scorer in scorers for arm, images in arms.items()]


def _row(scorer: str, arm: str, images: Sequence[ScoredImage]) -> ScoreRow:
    scored = [image for image in images if scorer in image.scores]
    by_prompt = _by_prompt((image.prompt_id, image.scores[scorer]) for image in scored)
    mean, low, high = _mean(by_prompt)
    values = tuple(image.scores[scorer] for image in scored)
    return ScoreRow(
        scorer=scorer,
        arm=arm,
        mean=mean,
        low=low,
        high=high,
        images=len(scored),
        missing=len(images) - len(scored),
        values=values,
    )


def _by_prompt(scores: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for prompt, score in scores:
        found.setdefault(prompt, []).append(score)
    return found


def _mean(by_prompt: Mapping[str, Sequence[float]]) -> tuple[float | None, float | None, float | None]:
    if len(by_prompt) > 1:
        interval = bootstrap_interval(by_prompt)
        return interval.value, interval.low, interval.high
    only = next(iter(by_prompt.values()), None)
    return (None if only is None else sum(only) / len(only)), None, None
