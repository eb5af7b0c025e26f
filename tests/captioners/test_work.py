"""What a written record tells of the answer that its image got."""

from __future__ import annotations

import dataclasses

import pytest
import tiny

from t2i.captioners import FuseCaptioner
from t2i.captioners.work import CaptionTask, answer_values, with_answer
from t2i.records import Caption, CaptionedImage, Origin

ALT, DENSE = Caption("alt", "Rome in 1904"), Caption("dense", "a street with a tram")
RECORD = CaptionedImage("1", "/images/a.png", 8, 8, (ALT, DENSE), {"column": 1})
MADE = Origin("m", decoding={"temperature": 0.0}, parents=(ALT.id, DENSE.id))
ANSWER = (Caption("dense", "Rome, with a tram.", "m", MADE), Caption("dense", "A tram in Rome.", "m", MADE))


@pytest.fixture
def task() -> CaptionTask:
    """Of a captioner whose kind the images have already."""
    model = {"type": "endpoint", "url": "http://localhost:1/v1", "model": "m"}
    return CaptionTask(tiny.from_recipe(FuseCaptioner, {"type": "fuse", "kind": "dense", "model": model}))


def test_all_captions_of_the_answer_are_found(task: CaptionTask) -> None:
    written = dataclasses.replace(with_answer(RECORD, ANSWER), image="/elsewhere/a.png")
    assert task.answer_in(written, RECORD) == answer_values(ANSWER)


def test_what_an_image_came_with_is_no_answer(task: CaptionTask) -> None:
    assert task.answer_in(RECORD, RECORD) is None


@pytest.mark.parametrize(
    "change",
    [
        {"id": "2"},
        {"image": "/images/b.png"},
        {"extra": {}},
        {"captions": (Caption("alt", "Oslo"), DENSE)},
        {"captions": (ALT, Caption("dense", "a tram"))},
    ],
)
def test_the_answer_to_another_record_is_none(task: CaptionTask, change: dict[str, object]) -> None:
    assert task.answer_in(with_answer(RECORD, ANSWER), dataclasses.replace(RECORD, **change)) is None
