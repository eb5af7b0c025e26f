"""Names and fusing of the authors' layouts, against readers that others wrote."""

from __future__ import annotations

from typing import Any

import original_layout
import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders import lora_conversion_utils, single_file_utils
from tiny_adapters import adapter, family, layers
from torch import Tensor

from t2i.export.factors import Adapter, Factors
from t2i.export.layouts import Layout, ModelLayers, to_layout, to_tensors
from t2i.export.names import adaptable_layers, component_layers, unet_names
from t2i.families.flux import Flux
from t2i.families.sd3 import SD3


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_unet_names_are_those_of_the_original_checkpoints(name: str) -> None:
    unet = family(name).pipeline.unet
    original = {value.data_ptr(): key for key, value in original_layout.unet(unet).items()}
    expected = {
        path: original[layer.weight.data_ptr()].removesuffix(".weight")
        for path, layer in adaptable_layers(unet).items()
    }
    assert unet_names(expected) == expected
    assert len(expected) > 50


@pytest.mark.parametrize(
    ("path", "original"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "4.1.transformer_blocks.0.attn1.to_q"),
        ("down_blocks.2.attentions.1.proj_in", "8.1.proj_in"),
        ("down_blocks.0.downsamplers.0.conv", "3.0.op"),
        ("down_blocks.2.resnets.0.conv1", "7.0.in_layers.2"),
    ],
)
def test_blocks_of_the_published_sdxl_have_the_numbers_that_kohya_and_comfyui_know(path: str, original: str) -> None:
    paths = [f"down_blocks.0.resnets.{number}.conv1" for number in (0, 1)]
    assert unet_names([*paths, path])[path] == f"input_blocks.{original}"


def thin_adapter(layers: ModelLayers, component: str = "transformer") -> Adapter:
    """An adapter of rank 2 on every layer, as if each had a single input: names and outputs are what is tested."""
    draw = torch.Generator().manual_seed(0)
    return {
        f"{component}.{path}": Factors(torch.randn(2, 1, generator=draw), torch.randn(rows, 2, generator=draw), 3.0)
        for path, rows in layers.components[component].items()
    }


def native_changes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a reader of generic files adds to the weights of the authors' model: alpha / rank * up down."""
    names = [key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")]
    changes = {}
    for name in names:
        up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
        strength = float(tensors[f"{name}.alpha"]) / down.shape[0]
        changes[name.removeprefix("diffusion_model.")] = strength * up.double() @ down.double()
    return changes


class WeightsOfChanges(dict[str, Any]):
    """A checkpoint in which every weight is the change made to it, and all else is zero."""

    def __init__(self, changes: dict[str, Tensor]) -> None:
        super().__init__({f"{name}.weight": change for name, change in changes.items()})
        self.rows = {name: len(change) for name, change in changes.items()}

    def pop(self, key: str, *default: Any) -> Any:
        if key in self or default:
            return super().pop(key, *default)
        return torch.zeros(self.rows.get(key.removesuffix(".bias"), 1))


def flux_layers() -> ModelLayers:
    """Of the published Flux: diffusers' converters have its widths built in."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, attention_head_dim=128, num_attention_heads=24, guidance_embeds=True
        )
    return ModelLayers(Flux.facts, {"transformer": component_layers("transformer", transformer)})


def sd3_layers() -> ModelLayers:
    return ModelLayers(SD3.facts, {"transformer": layers("sd3").components["transformer"]})


def assert_same_changes(sent: Adapter, converted: dict[str, Tensor], component: str = "transformer") -> None:
    for name, factors in sent.items():
        arrived = converted[f"{name.removeprefix(f'{component}.')}.weight"]
        torch.testing.assert_close(arrived.double(), factors.delta(), atol=1e-6, rtol=1e-5)


def test_flux_names_mean_what_diffusers_reads_in_the_original_checkpoint() -> None:
    model = flux_layers()
    sent = thin_adapter(model)
    changes = native_changes(to_tensors(to_layout(sent, "comfyui", model), "comfyui"))
    state = WeightsOfChanges(changes)
    assert_same_changes(sent, single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(state))


def test_sd3_names_mean_what_diffusers_reads_in_the_original_checkpoint() -> None:
    model = sd3_layers()
    sent = thin_adapter(model)
    changes = native_changes(to_tensors(to_layout(sent, "comfyui", model), "comfyui"))
    state = WeightsOfChanges(changes)
    assert_same_changes(sent, single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(state))


@pytest.mark.parametrize("layout", ["kohya", "comfyui"])
def test_diffusers_reads_flux_files_with_all_fused_layers(layout: Layout) -> None:
    model = flux_layers()
    sent = {name: value for name, value in thin_adapter(model).items() if "transformer_blocks." in name}
    tensors = to_tensors(to_layout(sent, layout, model), layout)
    read = lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(tensors)
    assert {key.rpartition(".lora_")[0] for key in read} == sent.keys()
    for name, factors in sent.items():
        up, down = read[f"{name}.lora_B.weight"], read[f"{name}.lora_A.weight"]
        torch.testing.assert_close(up.double() @ down.double(), factors.delta(), atol=1e-6, rtol=1e-5)
        assert down.shape[0] == factors.rank


PIXART = {
    "attn1.to_q": ("attn.qkv", 0),
    "attn1.to_k": ("attn.qkv", 1),
    "attn1.to_v": ("attn.qkv", 2),
    "attn1.to_out.0": ("attn.proj", 0),
    "attn2.to_q": ("cross_attn.q_linear", 0),
    "attn2.to_k": ("cross_attn.kv_linear", 0),
    "attn2.to_v": ("cross_attn.kv_linear", 1),
    "attn2.to_out.0": ("cross_attn.proj", 0),
}
"""Layer of diffusers -> layer of the authors' PixArt, and which of its thirds or halves."""


def test_pixart_names_are_those_of_the_authors() -> None:
    sent = adapter("pixart")
    changes = native_changes(to_tensors(to_layout(sent, "comfyui", layers("pixart")), "comfyui"))
    assert len(changes) == 2 * 5
    for block in range(2):
        for path, (original, part) in PIXART.items():
            factors = sent[f"transformer.transformer_blocks.{block}.{path}"]
            change = changes[f"blocks.{block}.{original}"]
            rows = factors.up.shape[0]
            torch.testing.assert_close(change[part * rows : (part + 1) * rows], factors.delta(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("name", "parts"), [("flux", 3), ("sd3", 3), ("pixart", 3)])
def test_fusing_keeps_the_strength_by_growing_alpha_with_the_rank(name: str, parts: int) -> None:
    named = to_layout(adapter(name), "comfyui", layers(name))
    fused = next(factors for key, factors in named.items() if key.endswith(".qkv"))
    assert (fused.rank, fused.alpha) == (parts * 4, parts * 3.0)


def test_kohya_prefixes_of_text_encoders() -> None:
    expected = {
        "sd1": {"lora_te"},
        "sdxl": {"lora_te1", "lora_te2"},
        "sd3": {"lora_te1", "lora_te2"},
        "flux": {"lora_te1"},
    }
    for name, prefixes in expected.items():
        keys = to_layout(adapter(name), "kohya", layers(name))
        text = [key for key in keys if not key.startswith("lora_unet_")]
        assert {key.partition("_text_model_encoder_layers_")[0] for key in text} == prefixes
