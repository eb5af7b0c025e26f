"""Adapters: neutral at first, alone in being trained, and the same in a file as in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from t2i import lora
from t2i.errors import ConfigError, ModelError
from t2i.export.adapter import export_lora
from t2i.families.sd1 import SD1
from t2i.objectives import Denoising
from t2i.objectives.base import DiffusionBatch
from t2i.training.diffusion import DiffusionModule
from t2i.training.settings import LoraSettings

PROMPTS = ("a photo of the cat", "a red cup")


def adapted(
    family: SD1, *, text_encoder: bool = True, rank: int = 4, alpha: float | None = None
) -> dict[str, nn.Module]:
    settings = LoraSettings(rank=rank, alpha=alpha, text_encoder=text_encoder)
    return lora.inject(family, settings, seed=3)


def fill(modules: dict[str, nn.Module], scale: float = 0.2) -> None:
    """Give every B some values, as training would."""
    draw = torch.Generator().manual_seed(1)
    for module in modules.values():
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                parameter.data = scale * torch.randn(parameter.shape, generator=draw)


def predict(family: SD1, prompts: tuple[str, ...] = PROMPTS) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    noisy = torch.randn(len(prompts), 4, 16, 16, generator=draw)
    return family.predict(noisy, torch.tensor([10, 900])[: len(prompts)], family.encode_prompts(prompts))


def paint(pipeline: StableDiffusionPipeline) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(list(PROMPTS), num_inference_steps=3, generator=generators, output_type="pt").images
    return images  # pyright: ignore[reportReturnType]


def plain_pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(tiny.sd1(), safety_checker=None)


def test_fresh_adapter_changes_nothing_bit_for_bit() -> None:
    family = tiny.load_sd1()
    lora.freeze(family)
    with torch.no_grad():
        before = predict(family)
        adapted(family)
        assert torch.equal(predict(family), before)


def test_same_seed_gives_the_same_fresh_adapter_and_another_seed_another() -> None:
    states = []
    for seed in (3, 3, 4):
        family = tiny.load_sd1()
        modules = lora.inject(family, LoraSettings(rank=2, text_encoder=True), seed)
        states.append(lora.adapter_state(modules))
    first, same, other = states
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if ".lora_A." in key)


def test_injecting_leaves_the_global_generator_alone() -> None:
    family = tiny.load_sd1()
    torch.manual_seed(0)
    adapted(family)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("text_encoder", [False, True])
def test_gradient_reaches_the_adapter_and_nothing_else(text_encoder: bool) -> None:
    family = tiny.load_sd1()
    fill(adapted(family, text_encoder=text_encoder))
    predict(family).square().mean().backward()
    parts = {"unet": family.pipeline.unet, "text_encoder": family.pipeline.text_encoder, "vae": family.pipeline.vae}
    touched = {name: [key for key, p in part.named_parameters() if p.grad is not None] for name, part in parts.items()}
    assert all(".lora_" in key for keys in touched.values() for key in keys)
    assert len(touched["unet"]) == 2 * 4 * 2 * 4  # A and B of q, k, v, out, in self- and cross-attention of 4 blocks
    assert len(touched["text_encoder"]) == (2 * 4 * 2 if text_encoder else 0)
    assert touched["vae"] == []


def adapter_layers(modules: dict[str, nn.Module]) -> list[BaseTunerLayer]:
    return [layer for module in modules.values() for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


def wanting_gradient(modules: dict[str, nn.Module]) -> list[str]:
    return [name for module in modules.values() for name, p in module.named_parameters() if p.requires_grad]


def test_adapters_off_gives_the_base_and_puts_everything_back() -> None:
    family = tiny.load_sd1()
    lora.freeze(family)
    with torch.no_grad():
        base = predict(family)
        modules = adapted(family)
        fill(modules)
        tuned, trained = predict(family), wanting_gradient(modules)
        with lora.adapters_off(modules):
            assert torch.equal(predict(family), base)
        assert torch.equal(predict(family), tuned)
    assert not torch.equal(tuned, base)
    assert wanting_gradient(modules) == trained
    assert len(trained) > 0


def test_adapters_off_keeps_frozen_parts_of_an_adapter_frozen() -> None:
    family = tiny.load_sd1()
    modules = adapted(family)
    modules["text_encoder"].requires_grad_(False)
    trained = wanting_gradient(modules)
    with lora.adapters_off(modules):
        pass
    assert wanting_gradient(modules) == trained


def test_adapters_off_puts_everything_back_after_an_error() -> None:
    family = tiny.load_sd1()
    modules = adapted(family)
    fill(modules)
    trained = wanting_gradient(modules)
    with torch.no_grad():
        tuned = predict(family)
        with pytest.raises(KeyError), lora.adapters_off(modules):
            raise KeyError
        assert torch.equal(predict(family), tuned)
    assert wanting_gradient(modules) == trained


def test_adapters_off_inside_adapters_off_leaves_them_off() -> None:
    family = tiny.load_sd1()
    modules = adapted(family)
    with lora.adapters_off(modules):
        with lora.adapters_off(modules):
            pass
        assert all(layer.disable_adapters for layer in adapter_layers(modules))
    assert not any(layer.disable_adapters for layer in adapter_layers(modules))


def test_gradient_is_the_same_with_a_reference_block_between_forward_and_backward() -> None:
    gradients = []
    for with_reference in (False, True):
        family = tiny.load_sd1()
        modules = adapted(family)
        fill(modules)
        module = DiffusionModule(family, Denoising(), modules, modules)
        draw = torch.Generator().manual_seed(2)
        latents, noise = torch.randn(2, 2, 4, 16, 16, generator=draw)
        batch = DiffusionBatch(latents, noise, torch.tensor([0.2, 0.7]), PROMPTS)
        loss = module(batch).loss.sum()
        if with_reference:
            with module.denoiser.reference():
                reference = module(batch).loss
            assert not reference.requires_grad
            assert not torch.equal(reference.sum(), loss)
        loss.backward()
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.requires_grad})
    without, with_block = gradients
    assert all(value is not None and torch.equal(value, with_block[name]) for name, value in without.items())


@pytest.mark.parametrize(("rank", "alpha"), [(4, None), (4, 8.0), (4, 1.0)])
def test_saved_file_paints_the_same_through_plain_diffusers(tmp_path: Path, rank: int, alpha: float | None) -> None:
    family = tiny.load_sd1()
    modules = adapted(family, rank=rank, alpha=alpha)
    fill(modules)
    lora.save(modules, tmp_path / "adapter.safetensors", {"t2i": "test"})
    tuned = paint(family.pipeline)
    pipeline = plain_pipeline()
    base = paint(pipeline)
    pipeline.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    # The strength is a power of two, so folding it into B rounds nothing.
    assert torch.equal(paint(pipeline), tuned)
    assert not torch.allclose(base, tuned, atol=1e-3)


def test_strength_that_is_no_power_of_two_arrives_to_rounding(tmp_path: Path) -> None:
    family = tiny.load_sd1()
    modules = adapted(family, rank=3, alpha=7.0)
    fill(modules)
    lora.save(modules, tmp_path / "adapter.safetensors", {})
    pipeline = plain_pipeline()
    pipeline.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    torch.testing.assert_close(paint(pipeline), paint(family.pipeline), atol=1e-4, rtol=0)


def test_file_holds_b_times_alpha_over_rank() -> None:
    family = tiny.load_sd1()
    modules = adapted(family, rank=4, alpha=6.0)
    fill(modules)
    state = lora.adapter_state(modules)
    in_memory = dict(modules["unet"].named_parameters())
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    assert torch.equal(state[f"unet.{path}.lora_A.weight"], in_memory[f"{path}.lora_A.default.weight"])
    assert torch.equal(state[f"unet.{path}.lora_B.weight"], 1.5 * in_memory[f"{path}.lora_B.default.weight"])


def test_text_encoder_keys_carry_the_prefix_that_every_reader_expects() -> None:
    keys = [key for key in lora.adapter_state(adapted(tiny.load_sd1())) if key.startswith("text_encoder.")]
    assert len(keys) == 2 * 4 * 2
    assert all(key.startswith("text_encoder.text_model.encoder.layers.") for key in keys)


def test_load_into_is_what_plain_diffusers_does(tmp_path: Path) -> None:
    family = tiny.load_sd1()
    modules = adapted(family)
    fill(modules)
    lora.save(modules, tmp_path / "adapter.safetensors", {})
    fresh = tiny.load_sd1().pipeline
    lora.load_into(fresh, tmp_path / "adapter.safetensors")
    assert torch.equal(paint(fresh), paint(family.pipeline))


def test_a_dora_has_no_strength_but_one() -> None:
    family = tiny.load_sd1()
    lora.inject(family, LoraSettings(rank=2, variant="dora"), seed=3)
    lora.set_strength(family.pipeline, 1.0)
    with pytest.raises(ConfigError, match=r"sampling\.lora_scale: 0\.5 does not scale a DoRA"):
        lora.set_strength(family.pipeline, 0.5)


def saved_state(folder: Path) -> dict[str, Tensor]:
    modules = adapted(tiny.load_sd1())
    fill(modules)
    lora.save(modules, folder / "good.safetensors", {})
    return load_file(folder / "good.safetensors")


def refused(folder: Path, state: dict[str, Tensor]) -> str:
    """The message with which a file is refused."""
    save_file(state, folder / "bad.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        lora.load_into(tiny.load_sd1().pipeline, folder / "bad.safetensors")
    assert "bad.safetensors" in str(caught.value)
    return str(caught.value)


def test_layout_that_diffusers_ignores_is_loaded_or_refused(tmp_path: Path) -> None:
    state = saved_state(tmp_path)
    for prefix in ("diffusion_model.", "strange."):
        renamed = {key.replace("unet.", prefix, 1): value for key, value in state.items() if "unet" in key}
        if prefix == "strange.":
            refused(tmp_path, renamed)
            continue
        save_file(renamed, tmp_path / "renamed.safetensors")
        pipeline = tiny.load_sd1().pipeline
        lora.load_into(pipeline, tmp_path / "renamed.safetensors")
        arrived = lora.adapter_state({"unet": pipeline.unet})
        assert all(torch.equal(value, state[key]) for key, value in arrived.items())
        assert len(arrived) == len(renamed)


def test_file_without_a_lora_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, {"weight": torch.zeros(3)})


def test_file_with_a_module_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    state = saved_state(tmp_path)
    path = "unet.down_blocks.7.attentions.0.transformer_blocks.0.attn1.to_q"
    extra = {f"{path}.lora_A.weight": torch.ones(4, 32), f"{path}.lora_B.weight": torch.ones(32, 4)}
    refused(tmp_path, {**state, **extra})


def test_file_for_a_model_of_another_width_is_refused(tmp_path: Path) -> None:
    state = saved_state(tmp_path)
    refused(tmp_path, {key: torch.cat([value, value], -1) if "_A" in key else value for key, value in state.items()})


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    saved_state(tmp_path)
    whole = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"torn\.safetensors"):
        lora.load_into(tiny.load_sd1().pipeline, tmp_path / "torn.safetensors")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such LoRA file"):
        lora.load_into(tiny.load_sd1().pipeline, tmp_path / "none.safetensors")


def test_kohya_file_can_be_loaded(tmp_path: Path) -> None:
    saved_state(tmp_path)
    options: Any = {"layout": "kohya", "precision": "fp32", "metadata": {}}
    export_lora(tmp_path / "good.safetensors", tmp_path / "kohya.safetensors", tiny.load_sd1(), **options)
    pipelines = [tiny.load_sd1().pipeline for _ in range(2)]
    lora.load_into(pipelines[0], tmp_path / "good.safetensors")
    lora.load_into(pipelines[1], tmp_path / "kohya.safetensors")
    assert torch.equal(paint(pipelines[0]), paint(pipelines[1]))


@pytest.mark.parametrize("target", ["to_qq", "attentions", "norm1"])
def test_target_that_is_no_layer_to_adapt_is_refused_with_the_known_names(target: str) -> None:
    with pytest.raises(ConfigError, match=rf"{target}.*nearest: \w.*known.*to_k.*to_out\.0.*to_q"):
        lora.inject(tiny.load_sd1(), LoraSettings(targets=("to_q", target)), seed=0)


def test_targets_choose_what_is_adapted() -> None:
    modules = lora.inject(tiny.load_sd1(), LoraSettings(targets=("attn2.to_k", "to_out.0")), seed=0)
    adapted_paths = {key.split(".lora_")[0] for key in lora.adapter_state(modules)}
    assert all(path.endswith(("attn2.to_k", "to_out.0")) for path in adapted_paths)
    assert len(adapted_paths) == 4 * 3
