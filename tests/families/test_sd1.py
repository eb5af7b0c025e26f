"""sd1 says what diffusers' own StableDiffusionPipeline says, to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import DDPMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from PIL import Image
from torch import Tensor

from t2i import lora
from t2i.data.images import open_image, to_pixels
from t2i.errors import ModelError
from t2i.families import load_family
from t2i.families.sd1 import SD1
from t2i.objectives import Denoising
from t2i.objectives.base import DiffusionBatch
from t2i.training.diffusion import DiffusionModule
from t2i.training.settings import LoraSettings

SHORT = ("a cat", "", "a photo of the moon")
LONG = "a red cup of coffee on the moon, " * 3 + "and a rocket"
PREDICTIONS = ("epsilon", "v_prediction")


@pytest.fixture(params=PREDICTIONS)
def family(request: pytest.FixtureRequest) -> SD1:
    """A frozen checkpoint of either prediction type."""
    loaded = tiny.load_sd1(request.param)
    lora.freeze(loaded)
    return loaded


class Recorded:
    """Every call of a module during a block: its inputs and its output."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
        module.register_forward_hook(self._record, with_kwargs=True)

    def _record(self, module: object, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.calls.append((args, kwargs, output))


@torch.no_grad()
def test_prediction_is_that_of_the_pipeline(family: SD1) -> None:
    recorded = Recorded(family.denoiser)
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    family.pipeline(list(SHORT), guidance_scale=1.0, num_inference_steps=4, generator=generators, output_type="latent")
    calls = list(recorded.calls)
    assert len(calls) == 4
    conditioning = family.encode_prompts(SHORT)
    for (noisy, timestep), _, (output,) in calls:
        timesteps = torch.full((3,), int(timestep))
        assert torch.equal(family.predict(noisy, timesteps, conditioning), output)


@torch.no_grad()
def test_timestep_of_each_example_is_its_own(family: SD1) -> None:
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    conditioning = family.encode_prompts(SHORT[:2])
    both = family.predict(noisy, torch.tensor([10, 900]), conditioning)
    for position, timestep in enumerate((10, 900)):
        alone = family.predict(noisy, torch.tensor([timestep, timestep]), conditioning)
        assert torch.equal(both[position], alone[position])


@torch.no_grad()
@pytest.mark.parametrize("prompts", [SHORT, (LONG, "a cat"), (LONG,)])
def test_prompts_are_encoded_as_the_pipeline_encodes_them(family: SD1, prompts: tuple[str, ...]) -> None:
    ours = family.encode_prompts(prompts).prompt_embeds
    theirs, _ = family.pipeline.encode_prompt(list(prompts), "cpu", 1, do_classifier_free_guidance=False)
    assert ours.shape == (len(prompts), tiny.TOKENS, 32)
    assert torch.equal(ours, theirs)


@torch.no_grad()
def test_empty_prompt_is_the_unconditional_one_of_the_pipeline(family: SD1) -> None:
    _, unconditional = family.pipeline.encode_prompt(["a cat"], "cpu", 1, do_classifier_free_guidance=True)
    assert torch.equal(family.encode_prompts([""]).prompt_embeds, unconditional)


def test_prompts_beyond_the_limit_are_counted_and_keep_the_end_token(family: SD1) -> None:
    recorded = Recorded(family.pipeline.text_encoder)
    family.encode_prompts([LONG])
    [((tokens,), _, _)] = recorded.calls
    assert tokens[0, -1] == family.pipeline.tokenizer.eos_token_id
    fits = " ".join(["cat"] * (tiny.TOKENS - 2))
    assert family.count_truncated([LONG, "a cat", fits, fits + " cat", ""]) == 2


def photograph(folder: Path) -> Image.Image:
    return open_image(tiny.write_photographs(folder, count=1) / "astronaut.png").resize((32, 32))


@torch.no_grad()
def test_latents_are_those_of_the_pipeline(family: SD1, tmp_path: Path) -> None:
    image = photograph(tmp_path)
    pipeline = StableDiffusionImg2ImgPipeline(**family.pipeline.components, requires_safety_checker=False)
    pixels = pipeline.image_processor.preprocess(image)
    ours = to_pixels(image)[None]
    torch.testing.assert_close(ours, pixels, atol=1e-6, rtol=0)
    posterior = family.encode_images(pixels)
    scale = pipeline.vae.config.scaling_factor
    mode = scale * retrieve_latents(pipeline.vae.encode(pixels), sample_mode="argmax")
    assert torch.equal(posterior.mean, mode)
    sample = scale * retrieve_latents(pipeline.vae.encode(pixels), torch.Generator().manual_seed(3))
    noise = torch.randn(mode.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(posterior.mean + posterior.std * noise, sample)
    assert posterior.mean.shape == (1, 4, 16, 16)


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


@torch.no_grad()
def test_scale_of_the_latents_cancels_between_encoding_and_decoding(family: SD1) -> None:
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = family.pipeline.vae
    through = family.decode_latents(family.encode_images(pixels).mean)
    torch.testing.assert_close(through, vae.decode(vae.encode(pixels).latent_dist.mean).sample)


def reference_step(prediction_type: str, state: dict[str, Tensor], batch: DiffusionBatch) -> tuple[Tensor, Any]:
    """One denoising step from diffusers parts alone: per-example losses and the U-Net that holds the gradient."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny.sd1(prediction_type), safety_checker=None)
    for component in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        component.requires_grad_(False)
    pipeline.load_lora_weights(dict(state))
    for name, parameter in pipeline.unet.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    timesteps = (batch.uniform * scheduler.config.num_train_timesteps).long()
    tokens = pipeline.tokenizer(list(batch.prompts), padding="max_length", truncation=True, return_tensors="pt")
    hidden = pipeline.text_encoder(tokens.input_ids)[0]
    noisy = scheduler.add_noise(batch.latents, batch.noise, timesteps)
    prediction = pipeline.unet(noisy, timesteps, hidden, return_dict=False)[0]
    velocity = scheduler.get_velocity(batch.latents, batch.noise, timesteps)
    target = velocity if prediction_type == "v_prediction" else batch.noise
    losses = torch.nn.functional.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))
    losses.mean().backward()
    return losses.detach(), pipeline.unet


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_loss_and_gradient_of_a_training_step_equal_an_independent_reference(prediction_type: str) -> None:
    family = tiny.load_sd1(prediction_type)
    modules = lora.inject(family, LoraSettings(rank=4), seed=0)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in modules["unet"].named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    latents, noise = torch.randn(2, 3, 4, 16, 16, generator=draw)
    batch = DiffusionBatch(latents, noise, torch.tensor([0.0, 0.5, 0.999]), SHORT)
    losses = DiffusionModule(family, Denoising(), modules, modules)(batch).loss
    losses.mean().backward()
    expected, reference = reference_step(prediction_type, lora.adapter_state(modules), batch)
    torch.testing.assert_close(losses.detach(), expected, atol=1e-5, rtol=1e-5)
    theirs = {name.replace("default_0", "default"): p.grad for name, p in reference.named_parameters()}
    for name, parameter in modules["unet"].named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, theirs[name], atol=1e-5, rtol=1e-5)


def test_sizes_must_be_multiples_of_what_the_unet_can_halve(family: SD1) -> None:
    assert family.pixel_multiple == 2 * 2


def copied(tmp_path: Path, name: str = "model") -> Path:
    return Path(shutil.copytree(tiny.sd1(), tmp_path / name))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_family_is_read_from_the_checkpoint_not_from_its_name(tmp_path: Path) -> None:
    assert isinstance(load_family(str(copied(tmp_path, "flux-dev-sdxl"))), SD1)


def test_checkpoint_of_another_family_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path, "stable-diffusion-v1-5")
    change(folder / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(ModelError, match="'FluxPipeline' is not supported; supported: StableDiffusionPipeline"):
        load_family(str(folder))


def test_absent_checkpoint_is_refused(tmp_path: Path) -> None:
    for model in (str(tmp_path / "none"), "./none", "none"):
        with pytest.raises(ModelError, match="no such folder"):
            load_family(model)


def test_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model_index\.json"):
        load_family(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match=r"model_index\.json: not JSON"):
        load_family(str(tmp_path))


def test_hub_model_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ModelError, match="'nobody/nothing': neither a local folder nor to be had from the hub"):
        load_family("nobody/nothing")


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def truncated_weights(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:5000])


def pickled_weights(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / WEIGHTS), folder / "unet/diffusion_pytorch_model.bin")
    without_weights(folder)


def pickled_text_encoder(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "text_encoder/model.safetensors"), folder / "text_encoder/pytorch_model.bin")
    (folder / "text_encoder/model.safetensors").unlink()


def other_width(folder: Path) -> None:
    change(folder / "unet/config.json", block_out_channels=[16, 64])


def without_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def without_vocabulary(folder: Path) -> None:
    (folder / "tokenizer/tokenizer.json").unlink()


def without_token_limit(folder: Path) -> None:
    (folder / "tokenizer/tokenizer_config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "unet/config.json").write_text("{")


def other_prediction(folder: Path) -> None:
    change(folder / "scheduler/scheduler_config.json", prediction_type="sample")


BREAKS = (
    without_weights,
    truncated_weights,
    pickled_weights,
    pickled_text_encoder,
    other_width,
    without_tokenizer,
    without_vocabulary,
    without_token_limit,
    broken_config,
    other_prediction,
)


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda function: function.__name__)
def test_broken_checkpoint_is_refused(tmp_path: Path, break_it: Any) -> None:
    folder = copied(tmp_path)
    break_it(folder)
    with pytest.raises(ModelError) as caught:
        load_family(str(folder))
    assert "\n" not in str(caught.value)


def all_weights(family: Any) -> dict[str, Tensor]:
    parts = ("unet", "vae", "text_encoder")
    return {f"{part}.{key}": v for part in parts for key, v in getattr(family.pipeline, part).state_dict().items()}


def test_random_weights_need_configs_alone_and_are_a_function_of_the_seed(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    torch.manual_seed(0)
    families = [load_family(str(folder), random_seed=seed) for seed in (1, 1, 2)]
    expected = torch.rand(1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(1), expected)
    states = [all_weights(family) for family in families]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    drawn = [key for key, value in states[0].items() if value.is_floating_point() and value.std() > 0]
    assert len(drawn) > 50
    assert not any(torch.equal(states[0][key], states[2][key]) for key in drawn)


def test_precision_is_that_asked_for() -> None:
    family = load_family(str(tiny.sd1()), dtype=torch.bfloat16)
    for component in (family.pipeline.unet, family.pipeline.vae, family.pipeline.text_encoder):
        assert {parameter.dtype for parameter in component.parameters()} == {torch.bfloat16}
