"""pixart says what diffusers' own PixArtAlphaPipeline and PixArtSigmaPipeline say, to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import tiny
import tiny_flow
import torch
import truths
from diffusers import DiffusionPipeline
from tiny_flow import PixArtKind
from torch import Tensor

from t2i import lora
from t2i.errors import ModelError
from t2i.families import Conditioning, load_family
from t2i.families.pixart import PixArt
from t2i.objectives.base import DiffusionBatch

KINDS = get_args(PixArtKind)
PROMPTS = ("a cat", "The red MOON ", "a photo of the moon")
WITH_TRIGGER = "ohwx1 sks123dog (Download) 中 a cat"
"""A prompt of which the pipelines' cleaning leaves little."""
SIZE = float(tiny.SIZE_PX)
OPTIONS = {"height": tiny.SIZE_PX, "width": tiny.SIZE_PX}


def load(kind: PixArtKind = "alpha") -> PixArt:
    family = load_family(str(tiny_flow.pixart(kind)), expected="pixart")
    assert isinstance(family, PixArt)
    return family


def load_small(kind: PixArtKind) -> PixArt:
    """The same, whose own size is 32 px also where the pipeline looks at a greater one."""
    family = load(kind)
    family.pipeline.transformer.register_to_config(sample_size=tiny.SIZE_PX // 2)
    return family


@pytest.fixture(params=KINDS)
def family(request: pytest.FixtureRequest) -> PixArt:
    """A frozen checkpoint of either kind."""
    loaded = load(request.param)
    lora.freeze(loaded)
    return loaded


@pytest.fixture
def told_sizes() -> PixArt:
    loaded = load("alpha_sizes")
    lora.freeze(loaded)
    return loaded


def sizes_of(height: float, width: float) -> Tensor:
    """Sizes of images of which a crop of the given height and width is taken."""
    return torch.tensor([[3 * height, 4 * width, 5.0, 7.0, height, width]]).expand(len(PROMPTS), 6)


def test_prediction_is_that_of_the_pipeline(family: PixArt) -> None:
    own = sizes_of(SIZE, SIZE)
    truths.assert_predicts_as_the_pipeline(family, PROMPTS, sizes=own, **OPTIONS, **family.sampling_options)


def test_dropped_captions_train_what_guidance_subtracts(family: PixArt) -> None:
    truths.assert_predicts_as_the_pipeline(
        family,
        PROMPTS,
        sizes=sizes_of(SIZE, SIZE),
        guidance_scale=4.5,
        unconditional=family.encode_prompts([""] * len(PROMPTS)),
        **OPTIONS,
        **family.sampling_options,
    )


def test_sizes_are_those_that_the_pipeline_is_told(told_sizes: PixArt) -> None:
    options = {"height": 40, "width": 24} | dict(told_sizes.sampling_options)
    truths.assert_predicts_as_the_pipeline(told_sizes, PROMPTS, sizes=sizes_of(40, 24), **options)
    with pytest.raises(AssertionError):
        truths.assert_predicts_as_the_pipeline(told_sizes, PROMPTS, sizes=sizes_of(24, 40), **options)


@torch.no_grad()
def test_sizes_count_only_where_the_transformer_takes_them(family: PixArt, told_sizes: PixArt) -> None:
    noisy, timesteps = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 5, 900])
    conditioning = family.encode_prompts(PROMPTS)
    small, large = (
        family.predict(noisy, timesteps, conditioning.with_sizes(sizes_of(size, size))) for size in (32, 512)
    )
    assert torch.equal(small, large) != family.pipeline.transformer.use_additional_conditions
    with pytest.raises(ModelError, match="holds no sizes"):
        told_sizes.predict(noisy, timesteps, conditioning)


def test_transformer_that_sampling_would_not_tell_sizes_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_flow.pixart("alpha_sizes"), tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "PixArtSigmaPipeline"}))
    with pytest.raises(ModelError, match=r"use_additional_conditions to false in transformer/config\.json"):
        load_family(str(folder))


def test_noise_is_that_of_the_scheduler(family: PixArt) -> None:
    truths.assert_noise_is_the_schedulers(family)
    assert family.noise.prediction_type == "epsilon"
    assert family.noise.patch_size == 2
    assert family.noise.timesteps(torch.tensor([0.0, 0.5, 0.9999])).tolist() == [0, 500, 999]


@torch.no_grad()
@pytest.mark.parametrize("prompts", [PROMPTS, ("cat " * 400, "a cat"), ("moon " * 119,), (" ",), (WITH_TRIGGER,)])
def test_prompts_are_encoded_as_the_pipeline_encodes_them(family: PixArt, prompts: tuple[str, ...]) -> None:
    embeds, mask, _, _ = family.pipeline.encode_prompt(list(prompts), False, device=torch.device("cpu"))
    ours = family.encode_prompts(prompts)
    truths.assert_same_conditioning(ours, Conditioning(embeds, mask=mask))
    limit = 300 if "Sigma" in type(family.pipeline).__name__ else 120
    assert ours.prompt_embeds.shape == (len(prompts), limit, tiny_flow.WIDTH)


@torch.no_grad()
def test_masked_tokens_change_nothing(family: PixArt) -> None:
    noisy, timesteps = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    ours = family.encode_prompts(["a cat"]).with_sizes(sizes_of(SIZE, SIZE)[:1])
    assert ours.mask is not None
    padding = ours.mask == 0
    assert padding.any()
    other = Conditioning(ours.prompt_embeds + 3 * padding[..., None], mask=ours.mask, sizes=ours.sizes)
    torch.testing.assert_close(family.predict(noisy, timesteps, other), family.predict(noisy, timesteps, ours))
    unmasked = Conditioning(other.prompt_embeds, mask=torch.ones_like(ours.mask), sizes=ours.sizes)
    assert not torch.allclose(family.predict(noisy, timesteps, unmasked), family.predict(noisy, timesteps, ours))


def test_nothing_is_cleaned_in_training_or_sampling(family: PixArt, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    prepare = family.pipeline._text_preprocessing

    def listen(text: Any, clean_caption: bool = False) -> Any:
        asked.append(clean_caption)
        return prepare(text, clean_caption=clean_caption)

    monkeypatch.setattr(family.pipeline, "_text_preprocessing", listen)
    options = OPTIONS | dict(family.sampling_options)
    with truths.recorded(family.pipeline.text_encoder) as calls:
        family.pipeline(WITH_TRIGGER, num_inference_steps=2, output_type="latent", guidance_scale=1.0, **options)
    assert asked == [False]
    assert torch.equal(calls[0].args[0], truths.tokens_seen(family, "text_encoder", [WITH_TRIGGER]))
    seen = family.pipeline.tokenizer.decode(calls[0].args[0][0], skip_special_tokens=True)
    assert "sks123dog (download)" in seen


def test_prompts_beyond_the_limit_are_counted_and_keep_the_end_token(family: PixArt) -> None:
    limit = 300 if "Sigma" in type(family.pipeline).__name__ else 120
    tokens = truths.tokens_seen(family, "text_encoder", ["cat " * 400, "a cat"])
    assert tokens.shape == (2, limit)
    assert tokens[0, -1] == family.pipeline.tokenizer.eos_token_id
    assert tokens[1, -1] == family.pipeline.tokenizer.pad_token_id
    fits = "cat " * (limit - 1)
    assert family.count_truncated(["cat " * 400, "a cat", fits, fits + "cat", ""]) == {"text_encoder": 2}
    assert family.count_truncated([]) == {"text_encoder": 0}


@torch.no_grad()
def test_latents_are_those_of_the_pipeline(family: PixArt) -> None:
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scale = 0.13025 if "Sigma" in type(family.pipeline).__name__ else 0.18215
    posterior = family.pipeline.vae.encode(pixels).latent_dist
    truths.assert_latents_are(
        family, pixels, mode=scale * posterior.mode(), sample=lambda draw: scale * posterior.sample(draw)
    )


@torch.no_grad()
def test_decoding_is_that_of_the_pipeline(family: PixArt) -> None:
    options = {"num_inference_steps": 2, "guidance_scale": 1.0} | OPTIONS | dict(family.sampling_options)
    final = family.pipeline("a cat", generator=torch.Generator().manual_seed(1), output_type="latent", **options)
    painted = family.pipeline("a cat", generator=torch.Generator().manual_seed(1), output_type="pt", **options)
    assert torch.equal((family.decode_latents(final.images) / 2 + 0.5).clamp(0, 1), painted.images)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_of_a_training_step_equal_an_independent_reference(kind: PixArtKind) -> None:
    pipeline: Any = DiffusionPipeline.from_pretrained(tiny_flow.pixart(kind))
    pipeline.text_encoder.requires_grad_(False)

    def reference(transformer: Any, batch: DiffusionBatch) -> Tensor:
        timesteps = (batch.uniform * 1000).long()
        embeds, mask, _, _ = pipeline.encode_prompt(list(batch.prompts), False)
        alphas = pipeline.scheduler.alphas_cumprod[timesteps][:, None, None, None]
        noisy = alphas.sqrt() * batch.latents + (1 - alphas).sqrt() * batch.noise
        assert batch.sizes is not None
        _, _, _, _, height, width = batch.sizes.unbind(1)
        added = {"resolution": torch.stack([height, width], dim=1), "aspect_ratio": (height / width)[:, None]}
        if kind != "alpha_sizes":
            added = {"resolution": None, "aspect_ratio": None}
        options = {"encoder_attention_mask": mask, "timestep": timesteps, "added_cond_kwargs": added}
        prediction, _ = transformer(noisy, embeds, return_dict=False, **options)[0].chunk(2, dim=1)
        return (prediction - batch.noise).square().mean(dim=(1, 2, 3))

    truths.assert_step_equals_reference(load_small(kind), pipeline, reference)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_falls_and_rises_uphill(kind: PixArtKind) -> None:
    truths.assert_loss_falls_and_rises(lambda: load_small(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapter_changes_nothing(kind: PixArtKind) -> None:
    truths.assert_fresh_adapter_is_silent(lambda: load_small(kind))


def test_adapter_is_on_the_attention_of_every_block_and_nowhere_else() -> None:
    names = {"to_q", "to_k", "to_v", "to_out.0"}
    expected = {f"transformer_blocks.{block}.attn{k}.{name}" for block in (0, 1) for k in (1, 2) for name in names}
    trained = [name for name, value in truths.adapted(load())["transformer"].named_parameters() if value.requires_grad]
    assert {name.partition(".lora_")[0] for name in trained} == expected


def test_sizes_of_the_checkpoint(family: PixArt) -> None:
    assert family.default_size == family.pipeline.transformer.config.sample_size * 2
    # The autoencoder halves the sides, then the transformer takes patches of 2 x 2.
    assert family.pixel_multiple == 2 * 2
