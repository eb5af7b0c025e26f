"""PickScore against an independent calculation with the model's own logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from rewards.clip_score import ClipScore
from rewards.pickscore import PickScore


def test_score_is_the_models_own_logit(tiny_clip: Path, images: list, prompts: list[str]):
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    tokenizer = CLIPTokenizer.from_pretrained(tiny_clip)
    processor = CLIPImageProcessorPil.from_pretrained(tiny_clip)
    expected = []
    for image, prompt in zip(images, prompts, strict=True):
        inputs = tokenizer([prompt], truncation=True, max_length=16, return_tensors="pt")
        pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected.append(model(**inputs, pixel_values=pixels).logits_per_image.item())
    scorer = PickScore(str(tiny_clip))
    np.testing.assert_allclose(scorer.score(images, prompts), expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(expected) > 0.05 * np.abs(expected).max()


def test_it_is_the_cosine_times_the_learned_factor(tiny_clip: Path, images: list, prompts: list[str]):
    factor = CLIPModel.from_pretrained(tiny_clip).logit_scale.exp().item()
    cosine = ClipScore(str(tiny_clip), scale="cosine").score(images, prompts)
    np.testing.assert_allclose(PickScore(str(tiny_clip)).score(images, prompts), factor * cosine, rtol=1e-5)
    logit = ClipScore(str(tiny_clip), scale="logit").score(images, prompts)
    np.testing.assert_allclose(logit, factor * cosine, rtol=1e-5)
