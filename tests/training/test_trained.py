"""What is trained: which modules, of what shape, at what rate, over what base, for every variant of LoRA."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from diffusers import FluxPipeline, FluxTransformer2DModel, PixArtAlphaPipeline, PixArtTransformer2DModel
from peft.tuners.lora import LoraLayer
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from t2i import lora
from t2i.errors import ConfigError, MissingDependencyError, ModelError
from t2i.export.adapter import export_lora
from t2i.families.base import FamilyFacts
from t2i.families.sd1 import SD1
from t2i.objectives import Denoising
from t2i.objectives.base import DiffusionBatch
from t2i.training.diffusion import diffusion_trainable
from t2i.training.extras import check_packages
from t2i.training.optim import build_optimizer
from t2i.training.settings import LoopSettings, LoraModules, LoraSettings, OptimizerSettings, check_precision

VARIANTS = ("lora", "rslora", "dora")
RULES = (
    LoraModules(match=r"mid_block.*to_q", rank=1, alpha=2.0, learning_rate=3e-4),
    LoraModules(match=r"resnets\.0\.conv1", rank=16),
)
MID_TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "mid_block.resnets.0.conv1"

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def settings(variant: str = "lora", **fields: Any) -> LoraSettings:
    return LoraSettings.model_validate({"variant": variant, "rank": 4, "alpha": 8.0, **fields})


def fill(modules: dict[str, nn.Module]) -> None:
    """Values as after some training."""
    draw = torch.Generator().manual_seed(1)
    for module in modules.values():
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=draw)
            if ".lora_magnitude_vector." in name:
                parameter.data = parameter.data * (1 + 0.3 * torch.rand(parameter.shape, generator=draw))


def predict(family: SD1) -> Tensor:
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    return family.predict(noisy, torch.tensor([10, 900]), family.encode_prompts(["a photo of the cat", "a red cup"]))


def adapted_layers(module: nn.Module) -> dict[str, Any]:
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, LoraLayer)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_adapter_is_the_base_and_off_is_the_base_bit_for_bit(variant: str) -> None:
    family = tiny.load_sd1()
    lora.freeze(family)
    with torch.no_grad():
        base = predict(family)
        modules = lora.inject(family, settings(variant, text_encoder=True, modules=RULES), seed=3)
        assert torch.equal(predict(family), base)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = predict(family)
            with lora.adapters_off(modules):
                assert torch.equal(predict(family), rounded)
        fill(modules)
        assert not torch.allclose(predict(family), base, atol=1e-3)
        with lora.adapters_off(modules):
            assert torch.equal(predict(family), base)


@pytest.mark.parametrize("variant", VARIANTS)
def test_over_a_bfloat16_base_the_adapter_is_float32_and_still_neutral(variant: str) -> None:
    family = tiny.load_sd1()
    family.pipeline.to(torch.bfloat16)
    modules = lora.inject(family, settings(variant), seed=3)
    assert {p.dtype for p in modules["unet"].parameters() if p.requires_grad} == {torch.float32}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fresh = predict(family)
        with lora.adapters_off(modules):
            assert torch.equal(predict(family), fresh)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_part_of_the_adapter_and_nothing_else(variant: str) -> None:
    family = tiny.load_sd1()
    modules = lora.inject(family, settings(variant, text_encoder=True), seed=3)
    fill(modules)
    predict(family).square().mean().backward()
    kinds = {"lora_A", "lora_B", "lora_magnitude_vector"} if variant == "dora" else {"lora_A", "lora_B"}
    assert all(value.grad is None for value in family.pipeline.vae.parameters())
    for module in modules.values():
        touched = [name for name, value in module.named_parameters() if value.grad is not None]
        assert {name.split(".")[-3] for name in touched} == kinds
        assert set(touched) == {name for name, value in module.named_parameters() if value.requires_grad}


@pytest.mark.parametrize(("variant", "strength"), [("lora", 8 / 4), ("rslora", 8 / 4**0.5)])
def test_the_weight_change_is_strength_times_b_a(variant: str, strength: float) -> None:
    family = tiny.load_sd1()
    modules = lora.inject(family, settings(variant), seed=3)
    fill(modules)
    layer = adapted_layers(modules["unet"])[MID_TO_Q]
    weight, down, up = layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), x @ (weight + strength * up @ down).T, atol=1e-5, rtol=1e-5)
    state = lora.adapter_state(modules)
    assert torch.equal(state[f"unet.{MID_TO_Q}.lora_B.weight"], strength * up)


def test_dora_is_a_magnitude_times_the_direction_of_the_changed_weight() -> None:
    family = tiny.load_sd1()
    modules = lora.inject(family, settings("dora", modules=(LoraModules(match=CONV),)), seed=3)
    layers = adapted_layers(modules["unet"])
    norms = layers[MID_TO_Q].base_layer.weight.norm(dim=1)
    torch.testing.assert_close(layers[MID_TO_Q].lora_magnitude_vector["default"].weight, norms)
    fill(modules)
    draw = torch.Generator().manual_seed(0)
    for path in (MID_TO_Q, CONV):
        layer = layers[path]
        weight, magnitude = layer.base_layer.weight, layer.lora_magnitude_vector["default"].weight.flatten()
        change = 2 * layer.lora_B["default"].weight.flatten(1) @ layer.lora_A["default"].weight.flatten(1)
        changed = weight.flatten(1) + change
        expected = (magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True)).reshape(weight.shape)
        if path == CONV:
            x = torch.randn(2, weight.shape[1], 6, 6, generator=draw)
            torch.testing.assert_close(
                layer(x), F.conv2d(x, expected, layer.base_layer.bias, padding=1), atol=1e-4, rtol=0
            )
        else:
            x = torch.randn(5, weight.shape[1], generator=draw)
            torch.testing.assert_close(layer(x), x @ expected.T, atol=1e-5, rtol=1e-5)


def test_dora_refuses_a_layer_with_a_row_of_zeros() -> None:
    family = tiny.load_sd1()
    family.pipeline.unet.get_submodule(MID_TO_Q).weight.data[3] = 0
    with pytest.raises(ModelError, match=rf"unet\.{MID_TO_Q}: has rows of zeros"):
        lora.inject(family, settings("dora"), seed=3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_file_does_the_same_through_plain_diffusers(tmp_path: Path, variant: str) -> None:
    # rank 1 and rank 16 make rsLoRA's strength a power of two as well, so that folding it in rounds nothing.
    family = tiny.load_sd1()
    modules = lora.inject(family, settings(variant, text_encoder=True, modules=RULES), seed=3)
    fill(modules)
    lora.save(modules, tmp_path / "adapter.safetensors", {})
    fresh = tiny.load_sd1()
    lora.freeze(fresh)
    with torch.no_grad():
        base = predict(fresh)
        fresh.pipeline.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
        assert torch.equal(predict(fresh), predict(family))
        assert not torch.allclose(base, predict(fresh), atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_exported_file_arrives_whole(tmp_path: Path, variant: str) -> None:
    modules = lora.inject(tiny.load_sd1(), settings(variant), seed=3)
    fill(modules)
    lora.save(modules, tmp_path / "a.safetensors", {})
    target = tmp_path / "b.safetensors"
    options: Any = {"precision": "bf16", "metadata": {}}
    assert export_lora(tmp_path / "a.safetensors", target, tiny.load_sd1(), layout="diffusers", **options).error < 2**-7
    if variant == "dora":
        magnitudes = [key for key in load_file(target) if key.endswith(".lora_magnitude_vector.weight")]
        assert len(magnitudes) == len(adapted_layers(modules["unet"]))


def test_a_dora_that_lost_a_magnitude_is_refused(tmp_path: Path) -> None:
    modules = lora.inject(tiny.load_sd1(), settings("dora"), seed=3)
    state = lora.adapter_state(modules)
    del state[f"unet.{MID_TO_Q}.lora_magnitude_vector.weight"]
    save_file(state, tmp_path / "adapter.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"31 of 32 modules of unet have a DoRA magnitude"):
        lora.load_into(tiny.load_sd1().pipeline, tmp_path / "adapter.safetensors")


def test_strength_scales_the_effect_relative_to_the_file(tmp_path: Path) -> None:
    modules = lora.inject(tiny.load_sd1(), settings("rslora"), seed=3)
    fill(modules)
    lora.save(modules, tmp_path / "adapter.safetensors", {})
    fresh = tiny.load_sd1()
    lora.load_into(fresh.pipeline, tmp_path / "adapter.safetensors")
    lora.set_strength(fresh.pipeline, 0.5)
    halved = lora.adapter_state({"unet": fresh.pipeline.unet})
    key = f"unet.{MID_TO_Q}.lora_B.weight"
    assert torch.equal(halved[key], 0.5 * lora.adapter_state(modules)[key])


def test_rules_set_rank_alpha_and_rate_where_they_match_and_nowhere_else() -> None:
    family = tiny.load_sd1()
    chosen = settings(rank=4, alpha=8.0, targets=("to_q", "to_out.0"), modules=RULES)
    modules = lora.inject(family, chosen, seed=0)
    layers = adapted_layers(modules["unet"])
    shapes = {path: (layer.r["default"], layer.lora_alpha["default"]) for path, layer in layers.items()}
    for path, shape in shapes.items():
        if path.startswith("mid_block") and path.endswith("to_q"):
            assert shape == (1, 2.0)
        elif path.endswith("resnets.0.conv1"):
            assert shape == (16, 8.0)
        else:
            assert shape == (4, 8.0)
    assert sum(path.endswith("conv1") for path in shapes) == 5
    assert {path.split("blocks.0.")[-1].split(".", 1)[-1] for path in shapes if "conv1" not in path} == {
        "to_q",
        "to_out.0",
    }
    own_rates = lora.learning_rates(modules, family.facts, chosen)
    second = MID_TO_Q.replace("attn1", "attn2")
    assert own_rates == {f"unet.{MID_TO_Q}.": 3e-4, f"unet.{second}.": 3e-4}


class Net(nn.Module):
    """A layer at the top whose name one in the block has too, as in Flux."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_out = nn.Linear(2, 2)
        self.block = nn.ModuleDict({"proj_out": nn.Linear(2, 2), "to_q": nn.Linear(2, 2)})


def test_a_layer_at_the_top_does_not_drag_in_its_namesakes_below() -> None:
    net = Net()
    family: Any = SimpleNamespace(
        pipeline=SimpleNamespace(components={"net": net}, net=net),
        denoiser=net,
        facts=FamilyFacts("net", "", "net", 1.0, (), ("to_q",), (), ()),
    )
    lora.inject(family, settings(modules=({"match": "^proj_out", "rank": 1},)), seed=0)
    assert {path: layer.r["default"] for path, layer in adapted_layers(net).items()} == {"proj_out": 1, "block.to_q": 4}


def test_text_encoders_have_rank_alpha_and_rate_of_their_own() -> None:
    family = tiny.load_sd1()
    own = {"text_encoder_rank": 2, "text_encoder_alpha": 1.0, "text_encoder_learning_rate": 5e-5}
    chosen = settings(text_encoder=True, **own)
    modules = lora.inject(family, chosen, seed=0)
    ranks = {
        name: {layer.r["default"] for layer in adapted_layers(module).values()} for name, module in modules.items()
    }
    assert ranks == {"unet": {4}, "text_encoder": {2}}
    assert {layer.scaling["default"] for layer in adapted_layers(modules["text_encoder"]).values()} == {0.5}
    assert lora.learning_rates(modules, family.facts, chosen) == {"text_encoder.": 5e-5}


def test_only_the_text_encoder_can_be_trained() -> None:
    modules = lora.inject(tiny.load_sd1(), settings(targets=(), text_encoder=True), seed=0)
    assert list(modules) == ["text_encoder"]


def test_every_rate_reaches_its_group() -> None:
    family = tiny.load_sd1()
    chosen = settings(
        "dora", modules=RULES, text_encoder=True, text_encoder_learning_rate=1e-5, b_learning_rate_ratio=16
    )
    trainable, _ = diffusion_trainable(family, Denoising(), chosen, seed=0)
    optimizer, names = build_optimizer(
        trainable.parameters(),
        trainable.learning_rates,
        OptimizerSettings(learning_rate=1e-4, weight_decay=0.1),
        ratios=trainable.learning_rate_ratios,
    )
    parameters = [(group, value) for group in optimizer.param_groups for value in group["params"]]
    assert [trainable.parameters()[name] is value for name, (_, value) in zip(names, parameters, strict=True)]
    found = {name: (group["lr"], group["weight_decay"]) for name, (group, _) in zip(names, parameters, strict=True)}
    plain = MID_TO_Q.replace("to_q", "to_k")
    layer = "components.text_encoder.encoder.layers.0.self_attn.q_proj"
    assert found[f"components.unet.{MID_TO_Q}.lora_A.default.weight"] == (3e-4, 0.1)
    assert found[f"components.unet.{MID_TO_Q}.lora_B.default.weight"] == (16 * 3e-4, 0.1)
    assert found[f"components.unet.{MID_TO_Q}.lora_magnitude_vector.default.weight"] == (3e-4, 0.0)
    assert found[f"components.unet.{plain}.lora_A.default.weight"] == (1e-4, 0.1)
    assert found[f"components.unet.{plain}.lora_B.default.weight"] == (16 * 1e-4, 0.1)
    assert found[f"{layer}.lora_A.default.weight"] == (1e-5, 0.1)
    assert found[f"{layer}.lora_B.default.weight"] == (16 * 1e-5, 0.1)


def test_pattern_that_matches_nothing_is_refused_with_near_paths() -> None:
    with pytest.raises(ConfigError, match=r"'mid_blok\..*attn1\.to_q' matches no layer of unet; nearest: mid_block\."):
        lora.inject(tiny.load_sd1(), settings(modules=({"match": r"mid_blok.attentions.0.*.attn1.to_q"},)), seed=0)


def test_two_patterns_over_one_layer_are_refused() -> None:
    rules = ({"match": "attn1.to_q"}, {"match": "mid_block.*"})
    with pytest.raises(ConfigError, match=rf"'attn1.to_q' and 'mid_block\.\*' both match {MID_TO_Q}"):
        lora.inject(tiny.load_sd1(), settings(modules=rules), seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "greater than or equal to 1"),
        ({"alpha": 0.0}, "greater than 0"),
        ({"alpha": -1.0}, "greater than 0"),
        ({"modules": ({"match": "to_q", "rank": 0},)}, "greater than or equal to 1"),
        ({"modules": ({"match": "to_q("},)}, "not a regular expression"),
        ({"variant": "rslora", "alpha": None}, "rslora needs one"),
        ({"variant": "dora", "base_bits": 4}, "norms of the exact weights"),
        ({"targets": ()}, "nothing to adapt"),
        ({"text_encoder_rank": 2}, "no effect without text_encoder"),
        ({"b_learning_rate_ratio": 0.5}, "greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**fields)


def pixart() -> PixArtAlphaPipeline:
    """A pipeline without `load_lora_weights`: its transformer alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            cross_attention_dim=16,
            caption_channels=12,
            sample_size=8,
            use_additional_conditions=False,
        )
    nothing: Any = None
    return PixArtAlphaPipeline(nothing, nothing, nothing, transformer.requires_grad_(False).eval(), nothing)


class PixArtLike:
    """As much of a family as adapters need."""

    def __init__(self) -> None:
        self.pipeline = pixart()
        self.denoiser: Any = self.pipeline.transformer
        targets = ("to_q", "to_k", "to_v", "to_out.0")
        self.facts = FamilyFacts("like", "", "transformer", 1.0, (), targets, (), (), loads_lora_files=False)

    def predict(self) -> Tensor:
        draw = torch.Generator().manual_seed(3)
        noisy, embeds = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 5, 12, generator=draw)
        mask, added = torch.ones(2, 5), {"resolution": None, "aspect_ratio": None}
        with torch.no_grad():
            output = self.denoiser(noisy, embeds, torch.tensor([10, 900]), added, encoder_attention_mask=mask)
        return output.sample


@pytest.mark.parametrize("variant", VARIANTS)
def test_pipelines_that_load_no_lora_files_do_so_through_peft(tmp_path: Path, variant: str) -> None:
    trained, fresh = (PixArtLike() for _ in range(2))
    modules = lora.inject(trained, settings(variant, modules=({"match": "ff.net.2", "rank": 1},)), seed=3)
    base = fresh.predict()
    assert torch.equal(trained.predict(), base)
    fill(modules)
    path = tmp_path / "adapter.safetensors"
    lora.save(modules, path, {})
    keys = set(load_file(path))
    assert "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight" in keys
    lora.load_into(fresh.pipeline, path)
    assert torch.equal(fresh.predict(), trained.predict())
    assert not torch.allclose(fresh.predict(), base, atol=1e-3)
    assert not any(value.requires_grad for value in fresh.denoiser.parameters())
    lora.unload(fresh.pipeline)
    assert torch.equal(fresh.predict(), base)
    options: Any = {"layout": "diffusers", "precision": "fp32", "metadata": {}}
    assert export_lora(path, tmp_path / "out.safetensors", fresh, **options).error == 0
    assert torch.equal(fresh.predict(), base)


@pytest.mark.parametrize("change", ["module", "width", "pair", "prefix", "metadata"])
def test_files_that_do_not_fit_are_refused_there_too(tmp_path: Path, change: str) -> None:
    family = PixArtLike()
    state = lora.adapter_state(lora.inject(family, settings(), seed=3))
    down = "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight"
    metadata = {"lora_adapter_metadata": "{}"} if change == "metadata" else {}
    if change == "module":
        state = {key.replace("blocks.1", "blocks.9"): value for key, value in state.items()}
    elif change == "width":
        state[down] = torch.cat([state[down]] * 2, dim=1)
    elif change == "pair":
        del state[down.replace("lora_A", "lora_B")]
    elif change == "prefix":
        state = {f"base_model.{key}": value for key, value in state.items()}
    path = tmp_path / "bad.safetensors"
    save_file(state, path, metadata)
    with pytest.raises(ModelError, match=r"bad\.safetensors"):
        lora.load_into(PixArtLike().pipeline, path)


def flux() -> Any:
    """As much of a Flux family as adapters need: a pipeline of a transformer alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        )
    nothing: Any = None
    pipeline = FluxPipeline(*[nothing] * 6, transformer.requires_grad_(False).eval())
    facts = FamilyFacts("flux", "", "transformer", 3.5, (), ("to_q", "to_k", "to_v", "to_out.0"), (), ())
    return SimpleNamespace(pipeline=pipeline, denoiser=transformer, facts=facts)


def predict_flux(family: Any) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    shapes = ((1, 16, 16), (1, 5, 32), (1, 32))
    inputs = [torch.randn(shape, generator=draw) for shape in shapes]
    with torch.no_grad():
        return family.denoiser(*inputs, torch.tensor([0.5]), torch.zeros(16, 3), torch.zeros(5, 3)).sample


@pytest.mark.parametrize("variant", VARIANTS)
def test_flux_takes_back_what_was_saved_its_top_layer_included(tmp_path: Path, variant: str) -> None:
    trained, fresh = flux(), flux()
    base = predict_flux(fresh)
    rule = {"match": r"^proj_out|single_transformer_blocks\.1\.proj_(out|mlp)", "rank": 1}
    modules = lora.inject(trained, settings(variant, modules=(rule,)), seed=3)
    assert len(adapted_layers(trained.denoiser)) == 4 + 2 * 3 + 3
    assert torch.equal(predict_flux(trained), base)
    fill(modules)
    lora.save(modules, tmp_path / "adapter.safetensors", {})
    lora.load_into(fresh.pipeline, tmp_path / "adapter.safetensors")
    sent, arrived = (lora.adapter_state({"transformer": family.denoiser}) for family in (trained, fresh))
    assert sent.keys() == arrived.keys()
    assert all(torch.equal(value, arrived[key]) for key, value in sent.items())
    # Another place in memory may round another way.
    torch.testing.assert_close(predict_flux(fresh), predict_flux(trained), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(predict_flux(fresh), base, atol=1e-2)


def test_a_family_without_adaptable_text_encoders_says_so() -> None:
    with pytest.raises(ConfigError, match="no text encoder of this like model can carry a LoRA"):
        lora.inject(PixArtLike(), settings(text_encoder=True), seed=0)


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "closeness"), [(8, 0.05), (4, 0.5)])
@pytest.mark.parametrize("variant", ["lora", "rslora"])
def test_a_quantized_base_is_near_the_model_and_trains_only_the_adapter(
    bits: int, closeness: float, variant: str
) -> None:
    family = tiny.load_sd1()
    with torch.no_grad():
        exact = predict(family)
    chosen = settings(variant, base_bits=bits)
    trainable, modules = diffusion_trainable(family, Denoising(), chosen, seed=3)
    with torch.no_grad():
        fresh = predict(family)
        with lora.adapters_off(modules):
            assert torch.equal(predict(family), fresh)
    assert 0 < (fresh - exact).norm() / exact.norm() < closeness
    weights = {layer.base_layer.weight.dtype for layer in adapted_layers(modules["unet"]).values()}
    assert weights == {torch.int8 if bits == 8 else torch.uint8}
    latents, noise = torch.randn(2, 2, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    batch = DiffusionBatch(latents, noise, torch.tensor([0.2, 0.7]), ("a cat", "the moon"))
    optimizer, _ = build_optimizer(trainable.parameters(), {}, OptimizerSettings(learning_rate=3e-2))
    losses = []
    for _ in range(25):
        loss = trainable.module(batch).loss.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(".lora_" in name for name in trainable.parameters())


def test_a_base_of_16_bits_is_the_bf16_model_with_adapters_in_fp32() -> None:
    expected = tiny.load_sd1()
    nn.Module.to(expected.pipeline.unet, torch.bfloat16)
    family = tiny.load_sd1()
    modules = lora.inject(family, settings(base_bits=16, text_encoder=True), seed=3)
    parameters = [(name, *entry) for name, module in modules.items() for entry in module.named_parameters()]
    assert {value.dtype for _, key, value in parameters if ".lora_" in key} == {torch.float32}
    assert {(name, value.dtype) for name, key, value in parameters if ".lora_" not in key} == {
        ("unet", torch.bfloat16),
        ("text_encoder", torch.float32),
    }
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(predict(family), predict(expected))


def test_a_base_of_16_bits_needs_arithmetic_in_bf16() -> None:
    with pytest.raises(ValueError, match=r"loop\.precision: bf16"):
        check_precision(settings(base_bits=16), LoopSettings(steps=1, batch_size=1))
    check_precision(settings(base_bits=16), LoopSettings(steps=1, batch_size=1, precision="bf16"))


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    adamw = OptimizerSettings(learning_rate=1e-4)
    check_packages(settings(), adamw)
    with pytest.raises(MissingDependencyError, match=r"trained\.base_bits.*pip install 't2i-toolkit\[bitsandbytes\]'"):
        check_packages(settings(base_bits=8), adamw)
    with pytest.raises(MissingDependencyError, match=r"optimizer\.type: prodigy.*pip install 't2i-toolkit\[prodigy\]'"):
        check_packages(settings(), OptimizerSettings(type="prodigy", learning_rate=1.0))
    with pytest.raises(MissingDependencyError, match=r"trained\.base_bits"):
        lora.inject(tiny.load_sd1(), settings(base_bits=4), seed=0)
