"""Noise beyond the noise process: on the mean of the noise, and on the prompts' embeddings.

The draws are keyed by the examples' keys, not by the batch, so an example gets the same ones in any micro-batch or
process. They are made on the CPU, at about 15 ns a value: 1 ms for the embeddings of one prompt by CLIP, 30 ms for 512
tokens of T5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from t2i.errors import DataError
from t2i.objectives.base import DiffusionBatch
from t2i.randomness import generator

if TYPE_CHECKING:
    from torch import Tensor


def offset_noise(noise: Tensor, draws: Tensor, strength: float) -> Tensor:
    """noise + strength * draws, the same at every position of a channel.

    It teaches brightness that DDPM's noise never quite hides; the training target is that of the sum. noise:
    [B, C, ...], standard normal; draws: [B, C], standard normal. Source: N. Guttenberg, Diffusion with Offset Noise,
    2023.
    """
    return (noise + strength * draws.reshape(*draws.shape, *[1] * (noise.ndim - 2))).to(noise.dtype)


def perturb_embeddings(embeddings: Tensor, draws: Tensor, gamma: float) -> Tensor:
    """embeddings + gamma / sqrt(d) * draws (CEP; Chen et al. 2024, arXiv:2405.20494, with normal noise).

    embeddings, draws: [B, ..., d]; draws standard normal, so a vector moves by about gamma whatever its width d.
    """
    return (embeddings + gamma / embeddings.shape[-1] ** 0.5 * draws).to(embeddings.dtype)


def perturb_conditioning(conditioning: Any, keys: Sequence[int], gamma: float) -> Any:
    """The same with noise on `prompt_embeds` and, where there is one, on `pooled`.

    conditioning: a frozen dataclass with these two fields, [B, tokens, d] and [B, d'] or None. An example's noise
    depends on its key alone, not on how many tokens the batch is padded to.
    """
    changed = {
        name: perturb_embeddings(value, _draws(keys, f"cep {name}", value), gamma)
        for name, value in (("prompt_embeds", conditioning.prompt_embeds), ("pooled", conditioning.pooled))
        if value is not None
    }
    return replace(conditioning, **changed)


def channel_draws(keys: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal [B, C] for `offset_noise`, float32, on the device of `like`, [B, C, ...]."""
    return _draws(keys, "noise offset", like.flatten(2)[..., 0])


def example_keys(batch: DiffusionBatch, wanted_by: str) -> tuple[int, ...]:
    """The batch's keys. Raises DataError where it has none."""
    if batch.keys is None:
        raise DataError(f"{wanted_by}: the batch holds no keys to draw from; its data source must give one an example.")
    return batch.keys


def _draws(keys: Sequence[int], purpose: str, like: Tensor) -> Tensor:
    """Standard normal, float32, of the shape and on the device of `like`; row i is drawn from keys[i]."""
    import numpy as np
    import torch

    rows = [generator(key, purpose).standard_normal(tuple(like.shape[1:]), dtype=np.float32) for key in keys]
    return torch.from_numpy(np.stack(rows)).to(like.device, non_blocking=True)
