"""sdxl says what diffusers' own StableDiffusionXLPipeline says, to the last bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import truths
from diffusers import DDPMScheduler, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from torch import Tensor

from t2i import lora
from t2i.errors import ModelError
from t2i.families import Conditioning, load_family
from t2i.families.sdxl import SDXL
from t2i.objectives.base import DiffusionBatch

PROMPTS = ("a cat", "the red moon", "a photo of the moon")
PREDICTIONS = ("epsilon", "v_prediction")
SIZE = float(tiny.SIZE_PX)


def load(prediction_type: str = "epsilon") -> SDXL:
    family = load_family(str(tiny.sdxl(prediction_type)), expected="sdxl")
    assert isinstance(family, SDXL)
    return family


@pytest.fixture(params=PREDICTIONS)
def family(request: pytest.FixtureRequest) -> SDXL:
    """A frozen checkpoint of either prediction type."""
    loaded = load(request.param)
    lora.freeze(loaded)
    return loaded


@pytest.fixture
def encodes_empty_prompts(tmp_path: Path) -> SDXL:
    """A checkpoint that does not force zeros."""
    folder = shutil.copytree(tiny.sdxl(), tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["force_zeros_for_empty_prompt"] is True
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    return load_family(str(folder))  # pyright: ignore[reportReturnType]


def sizes_of(*sizes: float) -> Tensor:
    return torch.tensor([sizes]).expand(len(PROMPTS), 6)


def test_prediction_is_that_of_the_pipeline(family: SDXL) -> None:
    own = sizes_of(SIZE, SIZE, 0, 0, SIZE, SIZE)
    truths.assert_predicts_as_the_pipeline(family, PROMPTS, sizes=own)


def test_sizes_are_those_that_the_pipeline_is_told(family: SDXL) -> None:
    told = {"original_size": (70, 50), "crops_coords_top_left": (3, 5), "target_size": (40, 32)}
    truths.assert_predicts_as_the_pipeline(family, PROMPTS, sizes=sizes_of(70, 50, 3, 5, 40, 32), **told)
    with pytest.raises(AssertionError):
        truths.assert_predicts_as_the_pipeline(family, PROMPTS, sizes=sizes_of(50, 70, 3, 5, 40, 32), **told)


def test_dropped_captions_train_what_guidance_subtracts_without_a_negative_prompt(family: SDXL) -> None:
    own = sizes_of(SIZE, SIZE, 0, 0, SIZE, SIZE)
    unconditional = family.encode_prompts([""] * len(PROMPTS))
    assert unconditional.pooled is not None
    assert not unconditional.prompt_embeds.any()
    assert not unconditional.pooled.any()
    truths.assert_predicts_as_the_pipeline(family, PROMPTS, sizes=own, guidance_scale=5.0, unconditional=unconditional)
    with pytest.raises(AssertionError):
        truths.assert_predicts_as_the_pipeline(
            family, PROMPTS, sizes=own, guidance_scale=5.0, unconditional=unconditional, negative_prompt=[""] * 3
        )


def test_empty_prompt_is_encoded_where_the_checkpoint_forces_no_zeros(encodes_empty_prompts: SDXL) -> None:
    lora.freeze(encodes_empty_prompts)
    unconditional = encodes_empty_prompts.encode_prompts([""] * len(PROMPTS))
    assert unconditional.prompt_embeds.any()
    truths.assert_predicts_as_the_pipeline(
        encodes_empty_prompts,
        PROMPTS,
        sizes=sizes_of(SIZE, SIZE, 0, 0, SIZE, SIZE),
        guidance_scale=5.0,
        unconditional=unconditional,
    )


def test_prediction_without_sizes_is_refused(family: SDXL) -> None:
    with pytest.raises(ModelError, match="holds no sizes"):
        family.predict(torch.zeros(1, 4, 16, 16), torch.tensor([5]), family.encode_prompts(["a cat"]))


def test_noise_is_that_of_the_scheduler(family: SDXL) -> None:
    truths.assert_noise_is_the_schedulers(family)


@torch.no_grad()
@pytest.mark.parametrize("prompts", [PROMPTS, (truths.LONG, "a cat"), (truths.LONG,), (" ",)])
def test_prompts_are_encoded_as_the_pipeline_encodes_them(family: SDXL, prompts: tuple[str, ...]) -> None:
    embeds, _, pooled, _ = family.pipeline.encode_prompt(list(prompts), device=torch.device("cpu"))
    ours = family.encode_prompts(prompts)
    truths.assert_same_conditioning(ours, Conditioning(embeds, pooled))
    assert ours.prompt_embeds.shape == (len(prompts), tiny.TOKENS, 32 + 24)
    assert ours.pooled is not None
    assert ours.pooled.shape == (len(prompts), 20)


def test_empty_prompts_are_zeros_at_their_own_places_only(family: SDXL) -> None:
    mixed, alone = family.encode_prompts(["a cat", "", "the moon"]), family.encode_prompts(["a cat", "the moon"])
    kept = mixed.map(lambda tensor: tensor[[0, 2]])
    torch.testing.assert_close(kept.prompt_embeds, alone.prompt_embeds)
    torch.testing.assert_close(kept.pooled, alone.pooled)
    assert not mixed.prompt_embeds[1].any()


def test_prompts_beyond_the_limit_are_counted_and_keep_the_end_token(family: SDXL) -> None:
    for encoder, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        tokens = truths.tokens_seen(family, encoder, [truths.LONG, "a cat"])
        assert tokens[0, -1] == getattr(family.pipeline, tokenizer).eos_token_id
        assert tokens[1, -1] == getattr(family.pipeline, tokenizer).pad_token_id
    fits = " ".join(["cat"] * (tiny.TOKENS - 2))
    prompts = [truths.LONG, "a cat", fits, fits + " cat", ""]
    assert family.count_truncated(prompts) == {"text_encoder": 2, "text_encoder_2": 2}
    assert family.count_truncated([]) == {"text_encoder": 0, "text_encoder_2": 0}


def as_image_to_image(family: SDXL) -> Any:
    return StableDiffusionXLImg2ImgPipeline(**family.pipeline.components, add_watermarker=False)


@torch.no_grad()
def test_latents_are_those_of_the_pipeline(family: SDXL) -> None:
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pipeline = as_image_to_image(family)
    assert pipeline.vae.config.scaling_factor == 0.13025

    def sample(generator: torch.Generator) -> Tensor:
        options = {"device": "cpu", "generator": generator, "add_noise": False}
        return pipeline.prepare_latents(pixels, None, 2, 1, torch.float32, **options)

    mode = 0.13025 * pipeline.vae.encode(pixels).latent_dist.mode()
    truths.assert_latents_are(family, pixels, mode=mode, sample=sample)


@torch.no_grad()
def test_decoding_is_that_of_the_pipeline(family: SDXL) -> None:
    options = {"num_inference_steps": 2, "guidance_scale": 1.0}
    final = family.pipeline(["a cat"], generator=seeded(), output_type="latent", **options).images
    painted = family.pipeline(["a cat"], generator=seeded(), output_type="pt", **options).images
    assert torch.equal((family.decode_latents(final) / 2 + 0.5).clamp(0, 1), painted)


def seeded() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1)]


@torch.no_grad()
def test_autoencoder_that_overflows_in_half_precision_runs_in_single(family: SDXL) -> None:
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae: Any = family.pipeline.vae
    vae.to(torch.float16)
    posterior = family.encode_images(pixels)
    decoded = family.decode_latents(posterior.mean)
    assert vae.dtype == torch.float16
    vae.to(torch.float32)
    assert torch.equal(posterior.mean, family.encode_images(pixels).mean)
    assert torch.equal(decoded, family.decode_latents(posterior.mean))


def reference(prediction_type: str, pipeline: Any) -> Callable[[Any, DiffusionBatch], Tensor]:
    """The denoising loss of diffusers parts alone."""

    def losses(unet: Any, batch: DiffusionBatch) -> Tensor:
        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        timesteps = (batch.uniform * scheduler.config.num_train_timesteps).long()
        embeds, zeros, pooled, zero_pooled = pipeline.encode_prompt(
            list(batch.prompts), do_classifier_free_guidance=True, device=torch.device("cpu")
        )
        # The second of the prompts is the dropped one.
        rows = [embeds[0], zeros[1], embeds[2]], [pooled[0], zero_pooled[1], pooled[2]]
        added = {"text_embeds": torch.stack(rows[1]), "time_ids": batch.sizes}
        noisy = scheduler.add_noise(batch.latents, batch.noise, timesteps)
        prediction = unet(noisy, timesteps, torch.stack(rows[0]), added_cond_kwargs=added, return_dict=False)[0]
        velocity = scheduler.get_velocity(batch.latents, batch.noise, timesteps)
        target = velocity if prediction_type == "v_prediction" else batch.noise
        return (prediction - target).square().mean(dim=(1, 2, 3))

    return losses


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_loss_and_gradient_of_a_training_step_equal_an_independent_reference(prediction_type: str) -> None:
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(tiny.sdxl(prediction_type), add_watermarker=False)
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):
        part.requires_grad_(False)
    truths.assert_step_equals_reference(load(prediction_type), pipeline, reference(prediction_type, pipeline))


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_loss_falls_and_rises_uphill(prediction_type: str) -> None:
    truths.assert_loss_falls_and_rises(lambda: load(prediction_type))


def test_fresh_adapter_changes_nothing() -> None:
    truths.assert_fresh_adapter_is_silent(load)


def test_pictures_carry_no_watermark(family: SDXL) -> None:
    assert family.pipeline.watermark is None


def test_sizes_of_the_checkpoint(family: SDXL) -> None:
    assert family.default_size == tiny.SIZE_PX
    assert family.pixel_multiple == 2 * 2
