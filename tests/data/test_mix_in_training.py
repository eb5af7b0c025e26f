"""Schedules of captions in a train stage: what the run record says was seen, whatever interrupted it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from pydantic import ValidationError

from t2i.stages.train import Train

FIELDS = {
    "data": {"type": "shapes", "count": 6, "captions": ["alt", "dense", "short"]},
    "captions": {"alt": 1},
    "caption_schedule": [{"from_step": 2, "captions": {"dense": 3, "short": 1}}],
    "caption_dropout": 0.2,
    "resolution": 32,
    "optimizer": {"learning_rate": 1e-3},
    "loop": {"steps": 4, "batch_size": 4},
}


def test_exposures_follow_the_schedule_and_add_up(tmp_path: Path) -> None:
    facts = []
    for name, workers in (("one", 0), ("two", 1)):
        fields = {**FIELDS, "model": str(tiny.sd1()), "loop": {"steps": 4, "batch_size": 4, "workers": workers}}
        facts.append(tiny.run_stage(Train, tmp_path / name, fields)["exposures"])
    assert facts[0] == facts[1]
    [counts] = facts[0]
    assert sum(counts.values()) == 16
    assert counts.keys() <= {"alt", "dense", "short", "dropped"}
    # Two steps of four examples each: alt alone before step 2, never from there on.
    assert counts["alt"] + counts["dense"] + counts.get("short", 0) + counts.get("dropped", 0) == 16
    assert counts["alt"] <= 8
    assert counts["dense"] + counts.get("short", 0) <= 8


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"caption_schedule": [{"from_step": 5, "captions": {"alt": 1}}] * 2}, "begin after the one before"),
        ({"caption_schedule": [{"from_step": 5, "captions": {"alt": 0}}]}, "every weight must be above 0"),
        ({"caption_schedule": [{"from_step": 0, "captions": {"alt": 1}}]}, "greater than 0"),
        ({"caption_parts": "one_sentence", "cache": {"text": True}}, "parts of captions are drawn anew"),
        ({"captions": {}, "datasets": [{"captions": {"alt": 1}}]}, "what holds before its first phase"),
    ],
)
def test_schedules_that_cannot_be_meant_are_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        tiny.from_recipe(Train, {**FIELDS, "model": "x", **fields})
