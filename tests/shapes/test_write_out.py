"""Prompts of the shapes world written out: what they say stays, what they leave open is filled."""

from __future__ import annotations

import pytest

from t2i.shapes import Scene, describe, parse_caption, sample_scene
from t2i.shapes.write_out import write_out


def told(text: str) -> Scene:
    scene = parse_caption(text)
    assert scene is not None
    return scene


@pytest.mark.parametrize("kind", ["short", "spatial", "dense"])
def test_what_a_prompt_says_stays_and_the_rest_is_filled(kind: str) -> None:
    for index in range(200):
        prompt = describe(sample_scene(3, index, "heldout"), kind)  # type: ignore[arg-type]
        text = write_out(prompt, seed=5)
        assert text is not None
        before, after = told(prompt), told(text)
        assert after.is_complete
        assert [(g.shape, g.colour, g.number) for g in before.groups] == [
            (g.shape, g.colour, g.number) for g in after.groups
        ]
        assert before.relation in (after.relation, None)
        if kind == "dense":
            assert text == prompt


def test_the_draw_hangs_on_seed_and_text_alone() -> None:
    prompts = [describe(sample_scene(3, index, "heldout"), "short") for index in range(30)]
    first = [write_out(prompt, 5) for prompt in prompts]
    assert [write_out(prompt, 5) for prompt in reversed(prompts)] == first[::-1]
    assert [write_out(prompt, 6) for prompt in prompts] != first


def test_attributes_are_drawn_evenly() -> None:
    sizes = [told(str(write_out("a red circle", seed))).groups[0].size for seed in range(400)]
    assert 150 < sizes.count("small") < 250  # five standard deviations


def test_like_groups_are_told_apart() -> None:
    for seed in range(50):
        first, second = told(str(write_out("a red circle and a red circle", seed))).groups
        assert first.size != second.size


def test_groups_that_the_prompt_makes_alike_stay_alike() -> None:
    text = write_out("a small red circle left of a small red circle", 1)
    assert str(text).startswith("a small red circle left of a small red circle on a ")


def test_group_without_a_number_keeps_none() -> None:
    assert told(str(write_out("red circles", 1))).groups[0].number is None


@pytest.mark.parametrize("prompt", ["", "a cat", "IMG_0001.jpg", "a red circle, please"])
def test_prompts_of_another_world_are_not_guessed_at(prompt: str) -> None:
    assert write_out(prompt, 1) is None
