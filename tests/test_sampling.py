"""The sampler paints what plain diffusers paints from the same files and seeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import tiny_flow
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from t2i.errors import ConfigError, ModelError, RunError
from t2i.families import load_family
from t2i.objectives import Denoising
from t2i.sampling import SCHEDULERS, Sampler, SamplingSettings, _place

PROMPTS = ("a cat", "a photo of the moon", "a red cup")
SEEDS = (5, 2**31 - 1, 5)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_adapter(tmp_path_factory.mktemp("adapter") / "lora.safetensors")


def settings(**fields: object) -> SamplingSettings:
    return tiny.from_recipe(SamplingSettings, {"steps": 3, **fields})


def painted(fields: SamplingSettings, adapter: Path | None = None) -> list[Image.Image]:
    return Sampler.load(str(tiny.sd1()), fields, adapter=adapter).generate(PROMPTS, SEEDS)


def plain(
    adapter: Path | None = None,
    *,
    scheduler: str | None = None,
    scale: float | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """What a user of diffusers would write, from the recorded settings."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny.sd1(), safety_checker=None, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    if adapter is not None:
        pipeline.load_lora_weights(str(adapter.parent), weight_name=adapter.name, adapter_name="mine")
        if scale is not None:
            pipeline.set_adapters(["mine"], [scale])
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    return pipeline(list(PROMPTS), generator=generators, num_inference_steps=3, **options).images


def same(a: list[Image.Image], b: list[Image.Image]) -> bool:
    return all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(a, b, strict=True))


def test_base_paints_the_pixels_of_plain_diffusers() -> None:
    assert same(painted(settings()), plain())


def test_adapter_paints_the_pixels_of_plain_diffusers(adapter: Path) -> None:
    tuned = painted(settings(), adapter)
    assert same(tuned, plain(adapter))
    assert not same(tuned, plain())


def test_bf16_paints_the_pixels_of_plain_diffusers_in_bf16(adapter: Path) -> None:
    half = painted(settings(precision="bf16"), adapter)
    assert same(half, plain(adapter, dtype=torch.bfloat16))
    assert not same(half, painted(settings(), adapter))


def test_offload_asks_diffusers_for_its_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    pipeline = Sampler.load(str(tiny.sd1()), settings()).pipeline
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload", "to"):
        monkeypatch.setattr(type(pipeline), name, lambda *given, name=name: asked.append(name))
    for way in ("model", "layers", "none"):
        _place(pipeline, way)
    assert asked == ["enable_model_cpu_offload", "enable_sequential_cpu_offload", "to"]


def test_guidance_negative_prompt_and_size_arrive(adapter: Path) -> None:
    fields = {"guidance_scale": 3.0, "negative_prompt": "a rocket", "width": 48, "height": 24}
    options = {**fields, "negative_prompt": ["a rocket"] * 3}
    images = painted(settings(**fields), adapter)
    assert {image.size for image in images} == {(48, 24)}
    assert same(images, plain(adapter, **options))


def test_guidance_of_one_is_none_and_refuses_a_negative_prompt() -> None:
    assert same(painted(settings(guidance_scale=1.0)), plain(guidance_scale=1.0))
    with pytest.raises(ConfigError, match="guidance_scale 1 switches guidance off"):
        painted(settings(guidance_scale=1.0, negative_prompt="a rocket"))


@pytest.mark.parametrize("build", [tiny_flow.sd3, tiny_flow.flux, tiny_flow.pixart])
def test_sizes_that_are_no_whole_patches_are_refused(
    build: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flux' pipeline would paint another size and only log it. The published models need 16, the tiny ones 4."""
    monkeypatch.setattr(type(load_family(str(build()))), "pixel_multiple", 16)
    Sampler.load(str(build()), settings(width=32, height=48))
    with pytest.raises(ConfigError, match=r"sampling\.height: 40 is not a multiple of 16"):
        Sampler.load(str(build()), settings(width=32, height=40))


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_strength_of_the_adapter_arrives(adapter: Path, scale: float) -> None:
    images = painted(settings(lora_scale=scale), adapter)
    assert same(images, plain(adapter, scale=scale))
    assert same(images, plain()) == (scale == 0.0)


def test_strength_of_an_adapter_is_refused_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match=r"sampling\.lora_scale: 0\.5 scales an adapter, and there is none here"):
        painted(settings(lora_scale=0.5))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_is_that_of_diffusers_with_the_noise_of_the_checkpoint(name: str) -> None:
    assert same(painted(settings(scheduler=name)), plain(scheduler=SCHEDULERS[name]))


def test_ddim_clips_no_latents_where_the_checkpoint_does_not_say() -> None:
    assert "clip_sample" not in diffusers.DPMSolverMultistepScheduler.load_config(
        tiny_flow.pixart(), subfolder="scheduler"
    )
    sampler = Sampler.load(str(tiny_flow.pixart()), settings(scheduler="ddim"))
    assert sampler.pipeline.scheduler.config.clip_sample is False


def test_an_end_in_nothing_but_noise_is_where_training_ends_and_sampling_begins(tmp_path: Path) -> None:
    shutil.copytree(tiny.sd1(), tmp_path / "model")
    path = tmp_path / "model/scheduler/scheduler_config.json"
    config = json.loads(path.read_text()) | {"prediction_type": "v_prediction"}
    path.write_text(json.dumps(config))
    family = load_family(str(tmp_path / "model"))
    trained = Denoising(zero_terminal_snr=True).process(family.noise)
    fields = settings(scheduler="ddim", zero_terminal_snr=True)
    scheduler = Sampler.load(str(tmp_path / "model"), fields).pipeline.scheduler
    torch.testing.assert_close(scheduler.alphas_cumprod, trained.alphas_cumprod, rtol=1e-4, atol=1e-7)  # pyright: ignore[reportAttributeAccessIssue]
    scheduler.set_timesteps(3)
    assert int(scheduler.timesteps[0]) == len(scheduler.alphas_cumprod) - 1
    assert float(scheduler.alphas_cumprod[-1]) < 1e-7
    with pytest.raises(ConfigError, match="predicts epsilon, which is undefined in pure noise"):
        Sampler.load(str(tiny.sd1()), settings(zero_terminal_snr=True))
    with pytest.raises(ConfigError, match="ends in pure noise already"):
        Sampler.load(str(tiny_flow.sd3()), settings(zero_terminal_snr=True))


def test_a_model_that_says_where_its_noise_ends_is_not_sampled_by_what_cannot_begin_there(tmp_path: Path) -> None:
    """Such as Stable Diffusion 1.5, which comes with a PNDM scheduler, once it was trained whole."""
    shutil.copytree(tiny.sd1("v_prediction"), tmp_path / "model")
    for name, told in (("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}), ("model_index.json", {})):
        config = json.loads((tmp_path / "model" / name).read_text())
        given = {"_class_name": "PNDMScheduler"} if told else {"scheduler": ["diffusers", "PNDMScheduler"]}
        (tmp_path / "model" / name).write_text(json.dumps(config | told | given))
    with pytest.raises(ConfigError, match="PNDMScheduler cannot begin in nothing but noise, where training ended"):
        Sampler.load(str(tmp_path / "model"), settings())
    scheduler = Sampler.load(str(tmp_path / "model"), settings(scheduler="ddim")).pipeline.scheduler
    assert float(scheduler.alphas_cumprod[-1]) < 1e-7


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("build", [tiny_flow.sd3, tiny_flow.flux])
def test_schedulers_of_ddpm_are_refused_for_models_of_flow(build: Callable[[], Path], name: str) -> None:
    with pytest.raises(ConfigError, match="is a model of flow; set checkpoint"):
        Sampler.load(str(build()), settings(scheduler=name))


def test_one_step_is_refused_where_the_pipeline_takes_it_for_that_of_a_distilled_model() -> None:
    one = SamplingSettings(steps=1, width=32, height=32)
    for settings in (one, one.model_copy(update={"scheduler": "dpmsolver++"})):
        with pytest.raises(ConfigError, match=r"^sampling.steps: PixArt alpha is sampled in 1 step only where"):
            Sampler.load(str(tiny_flow.pixart()), settings)
    for folder in (tiny_flow.pixart("sigma"), tiny.sd1()):
        assert len(Sampler.load(str(folder), one).generate(["a cat"], [1])) == 1


def test_negative_prompt_is_refused_where_nothing_leads_away_from_it() -> None:
    with pytest.raises(ConfigError, match="flux is sampled without classifier-free guidance"):
        Sampler.load(str(tiny_flow.flux()), settings(negative_prompt="a dog"))
    Sampler.load(str(tiny_flow.sd3()), settings(negative_prompt="a dog"))


def test_each_image_has_its_own_generator() -> None:
    sampler = Sampler.load(str(tiny.sd1()), settings())
    first, second, third = sampler.generate(["a cat"] * 3, [1, 2, 1])
    assert same([first], [third])
    assert not same([first], [second])
    # Another batch is other arithmetic: equal to rounding, not to the bit.
    [alone] = sampler.generate(["a cat"], [1])
    assert np.abs(np.asarray(alone).astype(int) - np.asarray(first)).max() <= 1


def test_sampling_twice_gives_the_same_pixels_whatever_was_drawn_before(adapter: Path) -> None:
    sampler = Sampler.load(str(tiny.sd1()), settings(), adapter=adapter)
    first = sampler.generate(PROMPTS, SEEDS)
    torch.manual_seed(99)
    sampler.generate(["a dog"], [1])
    assert same(sampler.generate(PROMPTS, SEEDS), first)


def test_image_that_is_not_finite_is_an_error_that_names_its_seed(adapter: Path, tmp_path: Path) -> None:
    huge = {key: value * 1e30 for key, value in load_file(adapter).items()}
    save_file(huge, tmp_path / "huge.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"images of seeds \[5, 2147483647, 5\] hold values that are not finite"):
        painted(settings(), tmp_path / "huge.safetensors")


def test_missing_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such LoRA file"):
        painted(settings(), tmp_path / "none.safetensors")


UNCLEANED = {"clean_caption": False, "use_resolution_binning": False, "max_sequence_length": 300}
FAMILY_CALLS: dict[str, tuple[Callable[[], Path], dict[str, Any]]] = {
    "sdxl": (tiny.sdxl, {}),
    "pixart": (lambda: tiny_flow.pixart("sigma"), UNCLEANED),
    "sd3": (tiny_flow.sd3, {"max_sequence_length": 256}),
    "flux": (tiny_flow.flux, {"max_sequence_length": 512}),
}
"""Family -> its tiny checkpoint, and what plain diffusers must be told to treat prompts as training does."""
GUIDANCE = {"sd1": 7.5, "sdxl": 5.0, "pixart": 4.5, "sd3": 7.0, "flux": 3.5}
"""Family -> what its pipeline is guided with if nothing is said."""


@pytest.mark.parametrize("family", FAMILY_CALLS)
def test_every_family_paints_the_pixels_of_plain_diffusers_without_a_negative_prompt(family: str) -> None:
    build, options = FAMILY_CALLS[family]
    size = {"guidance_scale": 3.0, "width": 32, "height": 32}
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(build())
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    theirs = pipeline(list(PROMPTS), generator=generators, num_inference_steps=3, **size, **options).images
    assert same(Sampler.load(str(build()), settings(**size)).generate(PROMPTS, SEEDS), theirs)


@pytest.mark.parametrize("family", ["sd1", *FAMILY_CALLS])
def test_guidance_that_is_left_out_is_that_of_plain_diffusers(family: str) -> None:
    build, options = {"sd1": (tiny.sd1, {}), **FAMILY_CALLS}[family]
    size = {"width": 32, "height": 32}
    pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(build())
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    theirs = pipeline(list(PROMPTS), generator=generators, num_inference_steps=3, **size, **options).images
    sampler = Sampler.load(str(build()), settings(**size))
    assert same(sampler.generate(PROMPTS, SEEDS), theirs)
    assert sampler.settings.guidance_scale == GUIDANCE[family]


def test_without_a_negative_prompt_sdxl_leads_away_from_zeros_as_dropped_captions_trained_it() -> None:
    sampler = Sampler.load(str(tiny.sdxl()), settings(guidance_scale=3.0))
    images = sampler.generate(PROMPTS, SEEDS)
    pipeline = sampler.pipeline
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    embeds, _, pooled, _ = pipeline.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
    given = {
        "prompt_embeds": embeds,
        "pooled_prompt_embeds": pooled,
        "negative_prompt_embeds": torch.zeros_like(embeds),
        "negative_pooled_prompt_embeds": torch.zeros_like(pooled),
    }
    assert same(images, pipeline(**given, generator=generators, num_inference_steps=3, guidance_scale=3.0).images)
