"""sd1 says what diffusers' own StableDiffusionPipeline says, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import truths
from diffusers import DDPMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from PIL import Image
from torch import Tensor

from t2i import lora
from t2i.data.images import open_image, to_pixels
from t2i.families import Conditioning
from t2i.families.sd1 import SD1
from t2i.objectives.base import DiffusionBatch

PREDICTIONS = ("epsilon", "v_prediction")


@pytest.fixture(params=PREDICTIONS)
def family(request: pytest.FixtureRequest) -> SD1:
    """A frozen checkpoint of either prediction type."""
    loaded = tiny.load_sd1(request.param)
    lora.freeze(loaded)
    return loaded


def test_prediction_is_that_of_the_pipeline(family: SD1) -> None:
    truths.assert_predicts_as_the_pipeline(family)


@pytest.mark.parametrize("options", [{}, {"negative_prompt": [""] * 3}])
def test_dropped_captions_train_what_guidance_subtracts(family: SD1, options: dict[str, Any]) -> None:
    unconditional = family.encode_prompts([""] * 3)
    truths.assert_predicts_as_the_pipeline(family, guidance_scale=5.0, unconditional=unconditional, **options)


def test_noise_is_that_of_the_scheduler(family: SD1) -> None:
    truths.assert_noise_is_the_schedulers(family)


@torch.no_grad()
def test_timestep_of_each_example_is_its_own(family: SD1) -> None:
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    conditioning = family.encode_prompts(truths.SHORT[:2])
    both = family.predict(noisy, torch.tensor([10, 900]), conditioning)
    for position, timestep in enumerate((10, 900)):
        alone = family.predict(noisy, torch.tensor([timestep, timestep]), conditioning)
        assert torch.equal(both[position], alone[position])


@torch.no_grad()
@pytest.mark.parametrize("prompts", [truths.SHORT, (truths.LONG, "a cat"), (truths.LONG,)])
def test_prompts_are_encoded_as_the_pipeline_encodes_them(family: SD1, prompts: tuple[str, ...]) -> None:
    theirs, _ = family.pipeline.encode_prompt(list(prompts), "cpu", 1, do_classifier_free_guidance=False)
    ours = family.encode_prompts(prompts)
    truths.assert_same_conditioning(ours, Conditioning(theirs))
    assert ours.prompt_embeds.shape == (len(prompts), tiny.TOKENS, 32)


def test_prompts_beyond_the_limit_are_counted_and_keep_the_end_token(family: SD1) -> None:
    tokens = truths.tokens_seen(family, "text_encoder", [truths.LONG])
    assert tokens[0, -1] == family.pipeline.tokenizer.eos_token_id
    fits = " ".join(["cat"] * (tiny.TOKENS - 2))
    assert family.count_truncated([truths.LONG, "a cat", fits, fits + " cat", ""]) == {"text_encoder": 2}
    assert family.count_truncated([truths.LONG, "a cat"] * 1001) == {"text_encoder": 1001}
    assert family.count_truncated([]) == {"text_encoder": 0}


def photograph(folder: Path) -> Image.Image:
    return open_image(tiny.write_photographs(folder, count=1) / "astronaut.png").resize((32, 32))


@torch.no_grad()
def test_latents_are_those_of_the_pipeline(family: SD1, tmp_path: Path) -> None:
    image = photograph(tmp_path)
    pipeline = StableDiffusionImg2ImgPipeline(**family.pipeline.components, requires_safety_checker=False)
    pixels = pipeline.image_processor.preprocess(image)
    torch.testing.assert_close(to_pixels(image)[None], pixels, atol=1e-6, rtol=0)
    scale = pipeline.vae.config.scaling_factor
    mode = scale * retrieve_latents(pipeline.vae.encode(pixels), sample_mode="argmax")
    truths.assert_latents_are(
        family, pixels, mode=mode, sample=lambda draw: scale * retrieve_latents(pipeline.vae.encode(pixels), draw)
    )
    assert mode.shape == (1, 4, 16, 16)


@torch.no_grad()
def test_scale_costs_a_half_precision_posterior_no_bits(family: SD1) -> None:
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae: Any = family.pipeline.vae
    vae.register_to_config(scaling_factor=0.18215)
    vae.to(torch.bfloat16)
    posterior = family.encode_images(pixels)
    theirs = vae.encode(pixels.bfloat16()).latent_dist
    assert posterior.mean.dtype == posterior.std.dtype == torch.float32
    assert torch.equal(posterior.mean, theirs.mean.float() * 0.18215)
    assert torch.equal(posterior.mean.bfloat16(), theirs.mean * 0.18215)
    assert family.decode_latents(posterior.mean).dtype == torch.bfloat16


@torch.no_grad()
def test_decoding_is_that_of_the_pipeline(family: SD1) -> None:
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    vae = family.pipeline.vae
    theirs = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    assert torch.equal(family.decode_latents(latents), theirs)
    generator = [torch.Generator().manual_seed(1)]
    options = {"num_inference_steps": 2, "guidance_scale": 1.0}
    final = family.pipeline(["a cat"], generator=generator, output_type="latent", **options).images
    generator = [torch.Generator().manual_seed(1)]
    painted = family.pipeline(["a cat"], generator=generator, output_type="pt", **options).images
    assert torch.equal((family.decode_latents(final) / 2 + 0.5).clamp(0, 1), painted)


def reference(prediction_type: str, pipeline: Any) -> Callable[[Any, DiffusionBatch], Tensor]:
    """The denoising loss of diffusers parts alone."""

    def losses(unet: Any, batch: DiffusionBatch) -> Tensor:
        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        timesteps = (batch.uniform * scheduler.config.num_train_timesteps).long()
        tokens = pipeline.tokenizer(list(batch.prompts), padding="max_length", truncation=True, return_tensors="pt")
        hidden = pipeline.text_encoder(tokens.input_ids)[0].detach()
        noisy = scheduler.add_noise(batch.latents, batch.noise, timesteps)
        prediction = unet(noisy, timesteps, hidden, return_dict=False)[0]
        velocity = scheduler.get_velocity(batch.latents, batch.noise, timesteps)
        target = velocity if prediction_type == "v_prediction" else batch.noise
        return torch.nn.functional.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))

    return losses


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_loss_and_gradient_of_a_training_step_equal_an_independent_reference(prediction_type: str) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny.sd1(prediction_type), safety_checker=None)
    family = tiny.load_sd1(prediction_type)
    truths.assert_step_equals_reference(family, pipeline, reference(prediction_type, pipeline))


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_loss_falls_and_rises_uphill(prediction_type: str) -> None:
    truths.assert_loss_falls_and_rises(lambda: tiny.load_sd1(prediction_type))


def test_fresh_adapter_changes_nothing() -> None:
    truths.assert_fresh_adapter_is_silent(tiny.load_sd1)


def test_sizes_of_the_checkpoint(family: SD1) -> None:
    assert family.default_size == tiny.SIZE_PX
    # The U-Net halves the latents once.
    assert family.pixel_multiple == 2 * 2
