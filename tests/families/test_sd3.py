"""sd3 says what diffusers' own StableDiffusion3Pipeline says, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import tiny_flow
import torch
import truths
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline
from torch import Tensor

from t2i import lora
from t2i.families import Conditioning, load_family
from t2i.families.sd3 import SD3
from t2i.objectives.base import DiffusionBatch
from t2i.timesteps import TimestepSettings

LONG = "cat " * 300


def load(with_t5: bool = True) -> SD3:
    family = load_family(str(tiny_flow.sd3(with_t5)), expected="sd3")
    assert isinstance(family, SD3)
    return family


@pytest.fixture(params=[True, False], ids=["t5", "no_t5"])
def family(request: pytest.FixtureRequest) -> SD3:
    """A frozen checkpoint with and without T5."""
    loaded = load(request.param)
    lora.freeze(loaded)
    return loaded


def test_prediction_is_that_of_the_pipeline(family: SD3) -> None:
    truths.assert_predicts_as_the_pipeline(family)
    truths.assert_predicts_as_the_pipeline(family, **family.sampling_options)


def test_dropped_captions_train_what_guidance_subtracts(family: SD3) -> None:
    unconditional = family.encode_prompts([""] * 3)
    truths.assert_predicts_as_the_pipeline(family, guidance_scale=5.0, unconditional=unconditional)


def test_noise_is_that_of_the_scheduler_and_levels_have_its_shift(family: SD3) -> None:
    truths.assert_noise_is_the_schedulers(family)
    assert family.noise.timesteps(torch.tensor([0.0, 0.25, 1.0])).tolist() == [0.0, 250.0, 1000.0]
    assert family.noise.default_timesteps == TimestepSettings(distribution="logit_normal", shift=3.0)
    assert family.noise.patch_size == 2


@torch.no_grad()
@pytest.mark.parametrize("prompts", [truths.SHORT, (LONG, "a cat"), (LONG,), (truths.LONG,)])
def test_prompts_are_encoded_as_the_pipeline_encodes_them(family: SD3, prompts: tuple[str, ...]) -> None:
    texts = list(prompts)
    embeds, _, pooled, _ = family.pipeline.encode_prompt(texts, texts, texts, do_classifier_free_guidance=False)
    ours = family.encode_prompts(prompts)
    truths.assert_same_conditioning(ours, Conditioning(embeds, pooled))
    assert ours.prompt_embeds.shape == (len(prompts), tiny.TOKENS + 256, 64)
    assert ours.pooled is not None
    assert ours.pooled.shape == (len(prompts), 28 + 20)


@torch.no_grad()
def test_what_an_encoder_does_not_fill_is_zeros(family: SD3) -> None:
    embeds = family.encode_prompts(["a cat"]).prompt_embeds[0]
    clip, t5 = embeds[: tiny.TOKENS], embeds[tiny.TOKENS :]
    assert (clip[:, : tiny_flow.WIDTH + 24] != 0).all()
    assert not clip[:, tiny_flow.WIDTH + 24 :].any()
    assert bool(t5.any()) == (family.pipeline.text_encoder_3 is not None)


def test_prompts_beyond_the_limit_are_counted_and_keep_the_end_token(family: SD3) -> None:
    encoders = {"text_encoder": tiny.TOKENS, "text_encoder_2": tiny.TOKENS, "text_encoder_3": 256}
    if family.pipeline.text_encoder_3 is None:
        encoders.pop("text_encoder_3")
    for encoder, limit in encoders.items():
        tokenizer = getattr(family.pipeline, encoder.replace("text_encoder", "tokenizer"))
        tokens = truths.tokens_seen(family, encoder, [LONG, "a cat"])
        assert tokens.shape == (2, limit)
        assert tokens[:, -1].tolist() == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    fits_clip, fits_t5 = "cat " * (tiny.TOKENS - 2), "cat " * 255
    prompts = [LONG, "a cat", fits_clip, fits_clip + "cat", fits_t5, fits_t5 + "cat", ""]
    counts = {"text_encoder": 4, "text_encoder_2": 4, "text_encoder_3": 2}
    assert family.count_truncated(prompts) == {encoder: counts[encoder] for encoder in encoders}
    assert family.count_truncated([]) == dict.fromkeys(encoders, 0)


@torch.no_grad()
def test_latents_are_those_of_the_pipeline(family: SD3) -> None:
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pipeline: Any = StableDiffusion3Img2ImgPipeline(**family.pipeline.components)
    # Level 0: what they prepare is the clean latents, for they noise them with the scheduler.
    pipeline.scheduler.timesteps, pipeline.scheduler.sigmas = torch.tensor([0.0]), torch.tensor([0.0])
    nothing = torch.tensor([0.0])

    def sample(generator: torch.Generator) -> Tensor:
        return pipeline.prepare_latents(pixels, nothing, 2, 1, torch.float32, "cpu", generator)

    mode = (pipeline.vae.encode(pixels).latent_dist.mode() - 0.0609) * 1.5305
    truths.assert_latents_are(family, pixels, mode=mode, sample=sample)
    assert mode.shape == (2, 16, 16, 16)


@torch.no_grad()
def test_decoding_is_that_of_the_pipeline(family: SD3) -> None:
    options = {"num_inference_steps": 2, "guidance_scale": 1.0}
    final = family.pipeline("a cat", generator=torch.Generator().manual_seed(1), output_type="latent", **options)
    painted = family.pipeline("a cat", generator=torch.Generator().manual_seed(1), output_type="pt", **options)
    assert torch.equal((family.decode_latents(final.images) / 2 + 0.5).clamp(0, 1), painted.images)


@pytest.mark.parametrize("with_t5", [True, False])
def test_loss_and_gradient_of_a_training_step_equal_an_independent_reference(with_t5: bool) -> None:
    absent: dict[str, Any] = {} if with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(tiny_flow.sd3(with_t5), **absent)

    def reference(transformer: Any, batch: DiffusionBatch) -> Tensor:
        prompts = list(batch.prompts)
        with torch.no_grad():
            embeds, _, pooled, _ = pipeline.encode_prompt(prompts, prompts, prompts)
        normal = torch.distributions.Normal(0.0, 1.0).icdf(batch.uniform).sigmoid()
        levels = 3 * normal / (1 + 2 * normal)
        sigma = levels[:, None, None, None]
        noisy = (1 - sigma) * batch.latents + sigma * batch.noise
        prediction = transformer(noisy, embeds, pooled, 1000 * levels, return_dict=False)[0]
        return (prediction - (batch.noise - batch.latents)).square().mean(dim=(1, 2, 3))

    truths.assert_step_equals_reference(load(with_t5), pipeline, reference)


@pytest.mark.parametrize("with_t5", [True, False])
def test_loss_falls_and_rises_uphill(with_t5: bool) -> None:
    truths.assert_loss_falls_and_rises(lambda: load(with_t5))


def test_fresh_adapter_changes_nothing() -> None:
    truths.assert_fresh_adapter_is_silent(load)


def test_adapter_is_on_the_attention_of_both_streams_and_nowhere_else() -> None:
    image, text = {"to_q", "to_k", "to_v", "to_out.0"}, {"add_q_proj", "add_k_proj", "add_v_proj"}
    # The first block has a second attention, on the image alone; the last one drops its text.
    expected = {f"0.attn.{name}" for name in image | text | {"to_add_out"}} | {f"0.attn2.{name}" for name in image}
    expected |= {f"1.attn.{name}" for name in image | text}
    trained = [name for name, value in truths.adapted(load())["transformer"].named_parameters() if value.requires_grad]
    found = {name.partition(".lora_")[0].removeprefix("transformer_blocks.") for name in trained}
    assert found == expected


def test_sizes_of_the_checkpoint(family: SD3) -> None:
    assert family.default_size == tiny.SIZE_PX
    # The autoencoder halves the sides, then the transformer takes patches of 2 x 2.
    assert family.pixel_multiple == 2 * 2
