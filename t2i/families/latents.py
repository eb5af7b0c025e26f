"""Images to latents and back through a diffusers AutoencoderKL, as every family does it.

latents = (posterior - shift_factor) * scaling_factor, both of the autoencoder's config; without a shift_factor it is 0.
The autoencoder runs in its own dtype, except that one whose config asks for it (`force_upcast`: SDXL's overflows in
fp16) runs in fp32 instead of fp16. What follows it is fp32: a scale must not cost the posterior its last bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from t2i.errors import ModelError
from t2i.families.base import Posterior


def check_autoencoder(vae: Any) -> None:
    """Raise ModelError for an autoencoder of another class than AutoencoderKL, or with a scale for each channel."""
    from diffusers import AutoencoderKL

    if not isinstance(vae, AutoencoderKL):
        raise ModelError(
            f"the VAE is an {type(vae).__name__}; expected an AutoencoderKL. Put the model's own VAE back into `vae`, "
            "and its class into model_index.json."
        )
    if vae.config["latents_mean"] is not None:
        raise ModelError("the VAE's latents are standardised by channel (latents_mean), which is not supported.")


def encode_images(vae: Any, pixels: Tensor) -> Posterior:
    """vae: an AutoencoderKL. pixels: [B, 3, H, W] in [-1, 1]. Returns the scaled posterior, fp32."""
    with _in_range(vae):
        posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor
    mean, std = posterior.mean.float(), (0.5 * posterior.logvar.float()).exp()
    return Posterior((mean if shift is None else mean - shift) * scale, std * scale)


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Pixels [B, 3, H, W], about [-1, 1], in the autoencoder's dtype."""
    unscaled = latents / vae.config.scaling_factor
    if vae.config.shift_factor is not None:
        unscaled = unscaled + vae.config.shift_factor
    with _in_range(vae):
        return vae.decode(unscaled.to(vae.dtype)).sample


@contextmanager
def _in_range(vae: Any) -> Iterator[None]:
    """In fp32 during the block if it is known to overflow in fp16.

    diffusers' own `to` does the same and logs a line each time.
    """
    raised = vae.dtype == torch.float16 and vae.config.force_upcast
    try:
        if raised:
            nn.Module.to(vae, torch.float32)
        yield
    finally:
        if raised:
            nn.Module.to(vae, torch.float16)
