"""Scorers by the judge and the second reader: the right picture earns all, a wrong one little, each on its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rewards.base import Fingerprinted, Reward
from rewards.errors import InputError, ModelError
from rewards.registry import load
from t2i.resources import resolve_path
from t2i.shapes import Group, Scene, describe, render, sample_scene, write_caption
from t2i.shapes.scorers import DEFAULT_READER, JudgeFaithfulness, ReaderFaithfulness, RecognisedRegions

SCENES = [sample_scene(13, index, "heldout") for index in range(200)]
PICTURES = [render(scene) for scene in SCENES]
PROMPTS = [write_caption(scene, "dense", 0, index) for index, scene in enumerate(SCENES)]
BLANK = Image.new("RGB", (64, 64), (15, 15, 18))


@pytest.fixture(params=["judge", "reader"])
def scorer(request: pytest.FixtureRequest) -> Reward:
    if request.param == "judge":
        return JudgeFaithfulness()
    if not resolve_path(DEFAULT_READER).is_dir():
        pytest.skip(f"no {DEFAULT_READER}: train it with recipes/tiny_pretrain.yaml")
    return ReaderFaithfulness()


def test_scorers_keep_the_promises_of_a_reward() -> None:
    for name in ("JudgeFaithfulness", "ReaderFaithfulness", "RecognisedRegions"):
        loaded = load(f"t2i.shapes.scorers:{name}")
        assert isinstance(loaded, Fingerprinted)
        assert not loaded.differentiable
        assert loaded.higher_is_better


def test_the_judge_gives_right_pictures_full_marks() -> None:
    scores = JudgeFaithfulness().score(PICTURES, PROMPTS)
    assert scores.dtype == np.float32
    assert scores.mean() >= 0.995
    assert np.mean(scores == 1.0) >= 0.98


def test_both_readers_give_right_pictures_high_marks(scorer: Reward) -> None:
    assert scorer.score(PICTURES, PROMPTS).mean() >= 0.98


def test_wrong_and_blank_pictures_score_low(scorer: Reward) -> None:
    wrong = scorer.score(PICTURES[1:] + PICTURES[:1], PROMPTS)
    assert wrong.mean() < 0.4
    assert scorer.score([BLANK], PROMPTS[:1]).tolist() == [0.0]


def test_scores_follow_their_images_through_any_permutation_and_batch(scorer: Reward) -> None:
    # Some right, some wrong, so that scores differ.
    pictures, prompts = PICTURES[:16] + PICTURES[16:32][::-1], PROMPTS[:32]
    together = scorer.score(pictures, prompts)
    assert len(set(together.tolist())) > 4
    order = np.random.default_rng(0).permutation(32)
    assert np.array_equal(scorer.score([pictures[i] for i in order], [prompts[i] for i in order]), together[order])
    alone = [scorer.score([picture], [prompt])[0] for picture, prompt in zip(pictures, prompts, strict=True)]
    assert np.array_equal(np.array(alone), together)


def test_a_partial_prompt_asks_only_what_it_says(scorer: Reward) -> None:
    prompts = [write_caption(scene, "short", 0, index) for index, scene in enumerate(SCENES[:50])]
    assert scorer.score(PICTURES[:50], prompts).mean() >= 0.98


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a photo of a dog"], "no caption of the shapes world"),
        (["objects"], "too vague"),
        (None, "give one prompt per image"),
        (["a red circle"] * 2, "2 prompts for 1 images"),
    ],
)
def test_a_prompt_that_cannot_be_scored_is_one_readable_error(prompts: list[str] | None, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        JudgeFaithfulness().score(PICTURES[:1], prompts)
    assert "\n" not in str(error.value)


def test_a_missing_reader_is_an_error_of_the_scorer() -> None:
    missing = ReaderFaithfulness(model="/nowhere/reader")
    with pytest.raises(ModelError, match="no scene reader"):
        missing.score(PICTURES[:1], PROMPTS[:1])
    with pytest.raises(ModelError):
        missing.fingerprint()


def test_recognised_regions_counts_objects_and_nothing_else() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    scores = RecognisedRegions().score([*PICTURES[:50], BLANK, noise])
    assert scores[:50].mean() >= 0.99
    assert scores[50:].tolist() == [0.0, 0.0]


def test_one_category_of_questions_is_asked_alone() -> None:
    right = Scene((Group("star", "red", "small", 1), Group("circle", "blue", "large", 1)), "left of", "black",
                  (((16.0, 32.0),), ((48.0, 32.0),)))  # fmt: skip
    swapped = replace(right, positions=(((48.0, 32.0),), ((16.0, 32.0),)))
    prompt, pictures = describe(right, "dense"), [render(right), render(swapped)]
    scores = {
        name: load({"name": "t2i.shapes.scorers:JudgeFaithfulness", "category": name}).score(pictures, [prompt] * 2)
        for name in ("colour", "counting", "spatial")
    }
    assert {name: list(values) for name, values in scores.items()} == {
        "colour": [1, 1],
        "counting": [1, 1],
        "spatial": [1, 0],
    }


def test_a_category_is_part_of_what_a_scorer_is() -> None:
    assert JudgeFaithfulness("colour").fingerprint() == {**JudgeFaithfulness().fingerprint(), "category": "colour"}
    with pytest.raises(InputError, match="judge: category 'color'; expected one of object, shape, colour"):
        JudgeFaithfulness("color")
    one = "a small red star on a black background"
    with pytest.raises(InputError, match="gives no question of category spatial"):
        JudgeFaithfulness("spatial").score([BLANK], [one])
