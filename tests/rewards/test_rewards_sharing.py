"""Heads of one encoder share its embeddings: each image is encoded once, and no score changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import rewards
from rewards.base import EmbeddingReward
from rewards.errors import InputError
from rewards.scoring import load_all
from rewards.sharing import SharedEncodings

NAMES = ("aesthetic", "aesthetic_v1", "clip_iqa", "clip_score", "pickscore", "hpsv2")


@pytest.fixture
def scorers(scorer_options: dict) -> list:
    return load_all([{"name": name} | scorer_options[name] for name in NAMES])


def test_equal_encoders_become_one_and_others_stay_apart(scorers: list, tiny_clip: Path, tmp_path: Path):
    assert all(isinstance(scorer, EmbeddingReward) for scorer in scorers)
    assert len({id(scorer.encoder) for scorer in scorers[:5]}) == 1
    assert scorers[5].encoder is not scorers[0].encoder
    shutil.copytree(tiny_clip, tmp_path / "copy")
    other = rewards.load({"name": "clip_score", "model": str(tmp_path / "copy")})
    with pytest.raises(InputError, match="is not its encoder"):
        other.use_encoder(scorers[0].encoder)  # pyright: ignore[reportAttributeAccessIssue]


def test_shared_scores_are_the_scores_and_each_image_is_encoded_once(
    scorers: list, scorer_options: dict, images: list, prompts: list[str], monkeypatch: pytest.MonkeyPatch
):
    encoder = scorers[0].encoder
    encoded: list[int] = []
    real = encoder.encode_images
    monkeypatch.setattr(encoder, "encode_images", lambda given: encoded.append(len(given)) or real(given))
    found = rewards.score(images, prompts, scorers)
    assert sum(encoded) == 7
    for name in NAMES:
        alone = rewards.load({"name": name} | scorer_options[name]).score(images, prompts)
        np.testing.assert_allclose(found[name], alone, rtol=1e-5, atol=1e-5 * np.abs(alone).max())


def test_only_images_that_are_new_to_the_encoder_are_encoded(
    scorers: list, images: list, monkeypatch: pytest.MonkeyPatch
):
    encodings, encoder = SharedEncodings(), scorers[0].encoder
    encoded: list[int] = []
    real = encoder.encode_images
    monkeypatch.setattr(encoder, "encode_images", lambda given: encoded.append(len(given)) or real(given))
    first = encodings.score(scorers[0], images[:3], None)
    later = encodings.score(scorers[0], images[1:5], None)
    assert encoded == [3, 2]
    # The head sees batches of 3 and of 4, which may round differently.
    np.testing.assert_allclose(first[1:], later[:2], rtol=1e-5)
    np.testing.assert_allclose(later, scorers[0].score(images[1:5]), rtol=1e-5)
    assert encodings.score(scorers[3], [], []).shape == (0,)
