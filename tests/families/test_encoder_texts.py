"""A text for each text encoder: what the pipelines make of `prompt`, `prompt_2` and `prompt_3`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_flow
import torch
import truths

from t2i.encoder_texts import EncoderTexts, route_problem
from t2i.families import Conditioning, load_family

SHORT, DENSE, OTHER = "a cat", "a photo of the red moon and a rocket", "a cup of coffee"
SD3_NAMES = ("clip_l", "clip_g", "t5")


def loaded(checkpoint: Callable[[], Path]) -> Any:
    return load_family(str(checkpoint()))


def test_an_encoder_answers_to_its_own_name_before_that_of_its_kind() -> None:
    texts = EncoderTexts("rest", (("clip", SHORT), ("clip_g", OTHER)))
    assert [texts.of(name) for name in SD3_NAMES] == [SHORT, OTHER, "rest"]
    assert EncoderTexts("rest", (("t5", DENSE),)).of("clip") == "rest"


@torch.no_grad()
@pytest.mark.parametrize("dense", [DENSE, truths.LONG])
def test_sd3_takes_a_text_for_each_encoder_as_its_pipeline(dense: str) -> None:
    family = loaded(tiny_flow.sd3)
    asked = [[SHORT, OTHER], [OTHER, SHORT], [dense, SHORT]]
    embeds, _, pooled, _ = family.pipeline.encode_prompt(*asked, do_classifier_free_guidance=False)
    prompts = [EncoderTexts("", tuple(zip(SD3_NAMES, texts, strict=True))) for texts in zip(*asked, strict=True)]
    ours = family.encode_prompts(prompts)
    truths.assert_same_conditioning(ours, Conditioning(embeds, pooled))
    assert not torch.equal(ours.prompt_embeds, family.encode_prompts([SHORT, OTHER]).prompt_embeds)


@torch.no_grad()
def test_sd3_gives_both_clips_the_short_caption_and_t5_the_dense_one() -> None:
    family = loaded(tiny_flow.sd3)
    embeds, _, pooled, _ = family.pipeline.encode_prompt(SHORT, SHORT, DENSE, do_classifier_free_guidance=False)
    for prompt in (EncoderTexts("", (("clip", SHORT), ("t5", DENSE))), EncoderTexts(DENSE, (("clip", SHORT),))):
        truths.assert_same_conditioning(family.encode_prompts([prompt]), Conditioning(embeds, pooled))


@torch.no_grad()
def test_flux_gives_the_short_caption_to_clip_and_the_dense_one_to_t5() -> None:
    family = loaded(tiny_flow.flux)
    embeds, pooled, _ = family.pipeline.encode_prompt([SHORT], [DENSE], **family.sampling_options)
    ours = family.encode_prompts([EncoderTexts("", (("clip", SHORT), ("t5", DENSE)))])
    truths.assert_same_conditioning(ours, Conditioning(embeds, pooled))


@torch.no_grad()
def test_sdxl_takes_a_text_for_either_clip_as_its_pipeline() -> None:
    family = loaded(tiny.sdxl)
    first, second = [SHORT, OTHER], [DENSE, truths.LONG]
    embeds, _, pooled, _ = family.pipeline.encode_prompt(first, second, device=torch.device("cpu"))
    pairs = zip(first, second, strict=True)
    ours = family.encode_prompts([EncoderTexts("", (("clip_l", one), ("clip_g", two))) for one, two in pairs])
    truths.assert_same_conditioning(ours, Conditioning(embeds, pooled))


def test_each_encoder_counts_what_is_said_to_it() -> None:
    family = loaded(tiny_flow.sd3)
    prompts = [EncoderTexts(truths.LONG, (("clip_l", SHORT),))]
    assert family.count_truncated(prompts) == {"text_encoder": 0, "text_encoder_2": 1, "text_encoder_3": 0}


@pytest.mark.parametrize(
    ("routed", "encoders", "has_rest", "problem"),
    [
        (("clip", "t5"), SD3_NAMES, False, ""),
        (("clip",), SD3_NAMES, True, ""),
        (("clip_l", "clip"), SD3_NAMES, True, ""),
        (("clip",), ("clip",), True, "has one text encoder"),
        (("t6",), SD3_NAMES, True, "no text encoder 't6'; it has clip_l, clip, clip_g, t5"),
        (("t5",), ("clip_l", "clip_g"), True, "no text encoder 't5'; it has clip_l, clip, clip_g$"),
        (("clip",), SD3_NAMES, False, "nothing is said to t5"),
        (("clip", "t5"), SD3_NAMES, True, "`captions` would be drawn for none"),
        (("clip", "clip_l", "clip_g"), SD3_NAMES, True, "'clip' means no encoder"),
    ],
)
def test_names_must_be_those_of_the_model_and_all_must_be_told_something(
    routed: tuple[str, ...], encoders: tuple[str, ...], has_rest: bool, problem: str
) -> None:
    found = route_problem(routed, encoders, has_rest=has_rest)
    assert (found is None) if not problem else re.search(problem, found or "")
