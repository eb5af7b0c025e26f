"""The shapes world as question source and VQA backend: exact questions, a judge's eyes, no model."""

from __future__ import annotations

import pytest

import rewards
from rewards.errors import InputError
from t2i.shapes import faithfulness, read_scene, render, sample_scene, write_caption
from t2i.shapes.vqa import JudgeVqa, ShapesQuestions, parse_question

SPEC = {
    "name": "tifa",
    "questions": "t2i.shapes.vqa:ShapesQuestions",
    "vqa": "t2i.shapes.vqa:JudgeVqa",
    "nearest": "none",
}
SCENES = [sample_scene(0, number, "train") for number in range(40)]
CAPTIONS = [write_caption(scene, "dense", 0, number) for number, scene in enumerate(SCENES)]


def test_tifa_over_the_world_is_its_judges_faithfulness() -> None:
    # Each caption against the picture of its own scene, then against that of the next.
    images = [render(scene) for scene in (*SCENES, *SCENES[1:], SCENES[0])]
    found = rewards.load(SPEC).score(images, CAPTIONS * 2)
    expected = [faithfulness(scene, read_scene(image).scene) for scene, image in zip(SCENES * 2, images, strict=True)]
    assert found.tolist() == pytest.approx(expected)
    assert found[:40].mean() > 0.95
    assert found[40:].mean() < 0.6


def test_every_question_of_the_world_is_understood() -> None:
    for item in ShapesQuestions().ask(CAPTIONS).items:
        for question in item.questions:
            assert parse_question(question.text).choices == question.choices


def test_questions_and_prompts_of_another_world_are_refused() -> None:
    image = render(SCENES[0])
    with pytest.raises(InputError, match="no question of the shapes world"):
        JudgeVqa().answer([image], ["is it art?"])
    with pytest.raises(InputError, match="no caption of the shapes world"):
        rewards.load(SPEC).score([image], ["a photo of a cat"])
