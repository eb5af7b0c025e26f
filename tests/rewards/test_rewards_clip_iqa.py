"""CLIP-IQA against a softmax written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rewards.clip_iqa import ASPECTS, ClipIqa
from rewards.clip_score import ClipScore
from rewards.errors import InputError


@pytest.mark.parametrize("aspect", ["quality", "noisiness"])
def test_score_is_the_softmax_over_the_pair(tiny_clip: Path, images: list, aspect: str):
    clip = ClipScore(str(tiny_clip))
    logits = np.stack([clip.score(images, [prompt] * 7) for prompt in ASPECTS[aspect]])
    expected = torch.softmax(torch.from_numpy(logits).double(), dim=0)[0]
    np.testing.assert_allclose(ClipIqa(aspect, str(tiny_clip)).score(images), expected, rtol=1e-4)
    assert np.ptp(expected.numpy()) > 1e-3


def test_each_aspect_has_its_own_name():
    assert len({ClipIqa(aspect).name for aspect in ASPECTS}) == len(ASPECTS)
    with pytest.raises(InputError, match="unknown aspect 'taste'"):
        ClipIqa("taste")


def test_embeddings_of_another_encoder_are_refused(tiny_clip: Path):
    with pytest.raises(InputError, match="embeddings have 8 numbers, its encoder's have 16"):
        ClipIqa(model=str(tiny_clip)).score_embeddings(torch.ones(1, 8))
