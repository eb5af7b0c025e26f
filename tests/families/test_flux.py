"""flux says what diffusers' own FluxPipeline says, to the last bit."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_flow
import torch
import truths
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from torch import Tensor

from t2i import lora
from t2i.errors import ModelError
from t2i.families import Conditioning, load_family
from t2i.families.flux import Flux, image_ids, pack, unpack
from t2i.objectives.base import DiffusionBatch
from t2i.timesteps import TimestepSettings

LONG = "cat " * 600
ROWS = tiny.SIZE_PX // 4
"""Rows of tokens in a square image of the tiny size: the autoencoder halves it, packing halves it again."""


def load(guidance: bool = True) -> Flux:
    family = load_family(str(tiny_flow.flux(guidance)), expected="flux")
    assert isinstance(family, Flux)
    # The size is the pipeline's alone, and a thousand pixels for every checkpoint.
    assert family.default_size == 128 * 2
    family.pipeline.default_sample_size = tiny.SIZE_PX // 2
    return family


@pytest.fixture(params=[True, False], ids=["dev", "schnell"])
def family(request: pytest.FixtureRequest) -> Flux:
    """A frozen checkpoint with and without a guidance embedding."""
    loaded = load(request.param)
    lora.freeze(loaded)
    return loaded


def unpacked(tokens: Tensor) -> Tensor:
    return FluxPipeline._unpack_latents(tokens, tiny.SIZE_PX, tiny.SIZE_PX, 2)


def is_dev(family: Flux) -> bool:
    return family.pipeline.transformer.config.guidance_embeds


def test_prediction_is_that_of_the_pipeline_at_the_guidance_of_training(family: Flux) -> None:
    assert family.guidance == 1.0
    truths.assert_predicts_as_the_pipeline(family, unpack=unpacked, **family.sampling_options)


def test_guidance_can_be_set_to_that_of_sampling(family: Flux) -> None:
    options = dict(family.sampling_options)
    family.guidance = 3.5
    truths.assert_predicts_as_the_pipeline(family, guidance_scale=3.5, unpack=unpacked, **options)
    family.guidance = 1.0
    if is_dev(family):
        with pytest.raises(AssertionError):
            truths.assert_predicts_as_the_pipeline(family, guidance_scale=3.5, unpack=unpacked, **options)
    else:
        truths.assert_predicts_as_the_pipeline(family, guidance_scale=3.5, unpack=unpacked, **options)


def test_images_need_not_be_square(family: Flux) -> None:
    def unpack_wide(tokens: Tensor) -> Tensor:
        return FluxPipeline._unpack_latents(tokens, 24, 40, 2)

    options = {"height": 24, "width": 40} | dict(family.sampling_options)
    truths.assert_predicts_as_the_pipeline(family, unpack=unpack_wide, **options)


@torch.no_grad()
def test_prediction_in_half_precision_is_that_of_the_pipeline() -> None:
    family = load_family(str(tiny_flow.flux()), dtype=torch.bfloat16)
    assert isinstance(family, Flux)
    family.pipeline.default_sample_size = tiny.SIZE_PX // 2
    lora.freeze(family)
    truths.assert_predicts_as_the_pipeline(family, unpack=unpacked)


def test_packing_and_position_ids_are_those_of_the_pipeline() -> None:
    latents = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    packed = pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 3, 4, 6))
    # The first token: rows 0 and 1, columns 0 and 1 of each channel in turn.
    assert packed[0, 0].tolist() == [0, 1, 6, 7, 24, 25, 30, 31, 48, 49, 54, 55]
    assert torch.equal(unpack(packed, 2, 3), latents)
    ids = image_ids(2, 3, torch.device("cpu"))
    assert ids.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    assert torch.equal(ids, FluxPipeline._prepare_latent_image_ids(1, 2, 3, "cpu", torch.float32))


def test_noise_is_that_of_the_scheduler(family: Flux) -> None:
    truths.assert_noise_is_the_schedulers(family)
    assert family.noise.timesteps(torch.tensor([0.0, 0.25, 1.0])).tolist() == [0.0, 250.0, 1000.0]
    assert family.noise.patch_size == 2


def test_training_levels_are_shifted_as_sampling_is(family: Flux) -> None:
    numbers = {"base_tokens": 256, "max_tokens": 4096, "base_shift": 0.5, "max_shift": 1.15}
    dev = TimestepSettings(distribution="logit_normal", shift="resolution", **numbers)
    schnell = TimestepSettings(distribution="logit_normal", shift=1.0)
    assert family.noise.default_timesteps == (dev if is_dev(family) else schnell)


@torch.no_grad()
@pytest.mark.parametrize("prompts", [truths.SHORT, (LONG, "a cat"), (LONG,), (truths.LONG,)])
def test_prompts_are_encoded_as_the_pipeline_encodes_them(family: Flux, prompts: tuple[str, ...]) -> None:
    limit = 512 if is_dev(family) else 256
    assert family.sampling_options == {"max_sequence_length": limit}
    embeds, pooled, _ = family.pipeline.encode_prompt(list(prompts), max_sequence_length=limit)
    ours = family.encode_prompts(prompts)
    truths.assert_same_conditioning(ours, Conditioning(embeds, pooled))
    assert ours.prompt_embeds.shape == (len(prompts), limit, 24)


def test_prompts_beyond_the_limit_are_counted_and_keep_the_end_token(family: Flux) -> None:
    limit = 512 if is_dev(family) else 256
    for encoder, tokens_read in (("text_encoder", tiny.TOKENS), ("text_encoder_2", limit)):
        tokenizer = getattr(family.pipeline, encoder.replace("text_encoder", "tokenizer"))
        tokens = truths.tokens_seen(family, encoder, [LONG, "a cat"])
        assert tokens.shape == (2, tokens_read)
        assert tokens[:, -1].tolist() == [tokenizer.eos_token_id, tokenizer.pad_token_id]
    fits_clip, fits_t5 = "cat " * (tiny.TOKENS - 2), "cat " * (limit - 1)
    prompts = [LONG, "a cat", fits_clip, fits_clip + "cat", fits_t5, fits_t5 + "cat", ""]
    assert family.count_truncated(prompts) == {"text_encoder": 4, "text_encoder_2": 2}
    assert family.count_truncated([]) == {"text_encoder": 0, "text_encoder_2": 0}


@torch.no_grad()
def test_latents_are_those_of_the_pipeline(family: Flux) -> None:
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pipeline: Any = FluxImg2ImgPipeline(**family.pipeline.components)
    mode = (pipeline.vae.encode(pixels).latent_dist.mode() - 0.1159) * 0.3611
    truths.assert_latents_are(family, pixels, mode=mode, sample=lambda draw: pipeline._encode_vae_image(pixels, draw))
    assert mode.shape == (2, 4, 16, 16)


@torch.no_grad()
def test_decoding_is_that_of_the_pipeline(family: Flux) -> None:
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.0}
    final = family.pipeline("a cat", generator=torch.Generator().manual_seed(1), output_type="latent", **options)
    painted = family.pipeline("a cat", generator=torch.Generator().manual_seed(1), output_type="pt", **options)
    assert torch.equal((family.decode_latents(unpacked(final.images)) / 2 + 0.5).clamp(0, 1), painted.images)


@pytest.mark.parametrize("guidance", [True, False])
def test_loss_and_gradient_of_a_training_step_equal_an_independent_reference(guidance: bool) -> None:
    pipeline: Any = FluxPipeline.from_pretrained(tiny_flow.flux(guidance))

    def reference(transformer: Any, batch: DiffusionBatch) -> Tensor:
        with torch.no_grad():
            embeds, pooled, text_ids = pipeline.encode_prompt(
                list(batch.prompts), max_sequence_length=512 if guidance else 256
            )
        levels = torch.distributions.Normal(0.0, 1.0).icdf(batch.uniform).sigmoid()
        if guidance:
            # 64 tokens, on the line through (256, 0.5) and (4096, 1.15).
            shift = math.exp(0.5 + (1.15 - 0.5) / (4096 - 256) * (ROWS**2 - 256))
            levels = shift / (shift + 1 / levels - 1)
        sigma = levels[:, None, None, None]
        noisy = (1 - sigma) * batch.latents + sigma * batch.noise
        prediction = transformer(
            hidden_states=pipeline._pack_latents(noisy, 3, 4, 2 * ROWS, 2 * ROWS),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            timestep=levels,
            img_ids=pipeline._prepare_latent_image_ids(1, ROWS, ROWS, "cpu", torch.float32),
            txt_ids=text_ids,
            guidance=torch.ones(3) if guidance else None,
        ).sample
        return (unpacked(prediction) - (batch.noise - batch.latents)).square().mean(dim=(1, 2, 3))

    truths.assert_step_equals_reference(load(guidance), pipeline, reference)


@pytest.mark.parametrize("guidance", [True, False])
def test_loss_falls_and_rises_uphill(guidance: bool) -> None:
    truths.assert_loss_falls_and_rises(lambda: load(guidance))


@pytest.mark.parametrize("guidance", [True, False])
def test_fresh_adapter_changes_nothing(guidance: bool) -> None:
    truths.assert_fresh_adapter_is_silent(lambda: load(guidance))


def test_adapter_is_on_the_attention_of_both_streams_and_nowhere_else() -> None:
    both = {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
    expected = {f"transformer_blocks.0.attn.{name}" for name in both}
    # A single block joins its output projection with that of its MLP.
    expected |= {f"single_transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")}
    trained = [name for name, value in truths.adapted(load())["transformer"].named_parameters() if value.requires_grad]
    assert {name.partition(".lora_")[0] for name in trained} == expected


def test_transformer_that_is_shown_more_than_noise_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_flow.flux(), tmp_path / "model")
    config = json.loads((folder / "transformer/config.json").read_text())
    (folder / "transformer/config.json").write_text(json.dumps(config | {"in_channels": 32}))
    with pytest.raises(ModelError, match=r"takes 32 channels, the latents have 16: .* inpainting"):
        load_family(str(folder), random_seed=0)


def test_weights_of_dev_with_the_configs_of_schnell_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_flow.flux(guidance=True), tmp_path / "model")
    config = json.loads((folder / "transformer/config.json").read_text())
    (folder / "transformer/config.json").write_text(json.dumps(config | {"guidance_embeds": False}))
    with pytest.raises(ModelError, match=r"holds the guidance embedder of Flux\.1 dev"):
        load_family(str(folder))


def test_pixel_multiple_is_that_of_the_packed_latents(family: Flux) -> None:
    assert family.pixel_multiple == 2 * 2
