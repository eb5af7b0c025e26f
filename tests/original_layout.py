"""Diffusers pipelines written in the layout of the models' authors: the inverse of what diffusers reads.

U-Nets and autoencoders are numbered from their blocks, OpenCLIP keeps query, key and value in one matrix.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)
_UNET_ENDS = (
    ("conv_in", "input_blocks.0.0"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
)
_VAE_WORDS = (
    (".mid_block.resnets.0.", ".mid.block_1."),
    (".mid_block.resnets.1.", ".mid.block_2."),
    (".mid_block.attentions.0.", ".mid.attn_1."),
    (".conv_norm_out.", ".norm_out."),
    (".conv_shortcut.", ".nin_shortcut."),
    (".group_norm.", ".norm."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".proj_out."),
)
_OPEN_CLIP_WORDS = (
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
)


def write_sd1(pipeline: Any, path: Path, **extra: Tensor) -> Path:
    """The layout of Stable Diffusion 1.x. extra: further tensors."""
    text = text_model(pipeline.text_encoder)
    state = {f"cond_stage_model.transformer.text_model.{key}": value for key, value in text.items()}
    return _write(pipeline, state | extra, path)


def write_sdxl(pipeline: Any, path: Path, **extra: Tensor) -> Path:
    """The layout of Stable Diffusion XL. extra: further tensors."""
    first, prefix = text_model(pipeline.text_encoder), "conditioner.embedders.0.transformer.text_model."
    state = {prefix + key: value for key, value in first.items()}
    second = open_clip(text_model(pipeline.text_encoder_2.text_model))
    second["text_projection"] = pipeline.text_encoder_2.text_projection.weight.T
    state |= {f"conditioner.embedders.1.model.{key}": value for key, value in second.items()}
    return _write(pipeline, state | extra, path)


def _write(pipeline: Any, state: dict[str, Tensor], path: Path) -> Path:
    state |= {f"model.diffusion_model.{key}": value for key, value in unet(pipeline.unet).items()}
    state |= {f"first_stage_model.{key}": value for key, value in vae(pipeline.vae).items()}
    save_file({key: value.detach().clone().contiguous() for key, value in state.items()}, path)
    return path


def text_model(encoder: Any) -> dict[str, Tensor]:
    """State of a CLIP text encoder without the prefix that some versions of transformers give it."""
    return {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}


def open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same as OpenCLIP names it."""
    renamed = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
    }
    for key, value in state.items():
        found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)
        if found is None or "k_proj" in key or "v_proj" in key:
            continue
        layer, module, kind = found.groups()
        if module == "self_attn.q_proj":
            parts = [state[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            renamed[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
        else:
            module = dict(_OPEN_CLIP_WORDS)[module]
            renamed[f"transformer.resblocks.{layer}.{module}.{kind}"] = value
    return renamed


def unet(module: Any) -> dict[str, Tensor]:
    """State of a U-Net in numbered blocks."""
    places = list(_UNET_ENDS)
    number = 1
    for level, block in enumerate(module.down_blocks):
        for layer in range(len(block.resnets)):
            places += _layer(f"down_blocks.{level}", layer, f"input_blocks.{number}")
            number += 1
        if block.downsamplers:
            places.append((f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{number}.0.op"))
            number += 1
    number = 0
    for level, block in enumerate(module.up_blocks):
        for layer in range(len(block.resnets)):
            places += _layer(f"up_blocks.{level}", layer, f"output_blocks.{number}")
            number += 1
        if block.upsamplers:
            place = 2 if hasattr(block, "attentions") else 1
            places.append((f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{number - 1}.{place}.conv"))
    return {_unet_key(key, places): value for key, value in module.state_dict().items()}


def _layer(block: str, layer: int, place: str) -> list[tuple[str, str]]:
    return [(f"{block}.resnets.{layer}", f"{place}.0"), (f"{block}.attentions.{layer}", f"{place}.1")]


def _unet_key(key: str, places: list[tuple[str, str]]) -> str:
    [(inside, outside)] = [place for place in places if key.startswith(f"{place[0]}.")]
    rest = key.removeprefix(f"{inside}.")
    if "resnets" in inside:
        for word, original in _RESNET:
            rest = re.sub(rf"^{word}\.", f"{original}.", rest)
    return f"{outside}.{rest}"


def vae(module: Any) -> dict[str, Tensor]:
    """State of an autoencoder; the decoder's levels are numbered from the other end, attention is of 1x1 kernels."""
    last = len(module.decoder.up_blocks) - 1
    state: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        name = re.sub(r"\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r".down.\1.block.\2.", key)
        name = re.sub(r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample.", name)
        name = re.sub(r"\.up_blocks\.(\d+)\.resnets\.(\d+)\.", lambda m: f".up.{last - int(m[1])}.block.{m[2]}.", name)
        name = re.sub(r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f".up.{last - int(m[1])}.upsample.", name)
        for word, original in _VAE_WORDS:
            name = name.replace(word, original)
        is_kernel = ".mid.attn_1." in name and value.ndim == 2
        state[name] = value[:, :, None, None] if is_kernel else value
    return state
