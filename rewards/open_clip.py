"""Names of open_clip's weights in transformers' CLIPModel.

Checked on a CLIP of open_clip 3.3.0 with random weights: both give the same embeddings to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rewards.errors import ModelError

if TYPE_CHECKING:
    import torch

_WHOLE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    # The missing n is transformers' own.
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
"""open_clip multiplies by these from the right, a Linear layer by its transpose."""

_BLOCKS = {"visual.transformer.resblocks.": "vision_model", "transformer.resblocks.": "text_model"}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BUFFERS = frozenset({"attn_mask"})
"""Not weights: made anew by the model."""


def clip_weights(state: Mapping[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """open_clip's weights of a CLIP with two transformers (ViT-B, L, H, g, G) under transformers' names, float32.

    A prefix "module." (saved by a parallel wrapper) is taken off. Raises ModelError for a name that is not known.
    """
    named: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix("module.")
        if name not in _BUFFERS:
            named.update(_translated(name, value.float(), source))
    return named


def _translated(name: str, value: torch.Tensor, source: str) -> dict[str, torch.Tensor]:
    if name in _WHOLE:
        return {_WHOLE[name]: value}
    if name in _TRANSPOSED:
        return {_TRANSPOSED[name]: value.T.contiguous()}
    for prefix, tower in _BLOCKS.items():
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            layer = f"{tower}.encoder.layers.{number}"
            if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
                kind = rest.removeprefix("attn.in_proj_")
                parts = zip("qkv", value.chunk(3), strict=True)
                return {f"{layer}.self_attn.{letter}_proj.{kind}": part.contiguous() for letter, part in parts}
            part, _, kind = rest.rpartition(".")
            if part in _IN_BLOCK:
                return {f"{layer}.{_IN_BLOCK[part]}.{kind}": value}
    raise ModelError(f"{source}: {name!r} is no weight of an open_clip CLIP with two transformers.")
