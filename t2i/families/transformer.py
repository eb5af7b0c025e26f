"""What diffusion transformers have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2i.errors import ModelError
from t2i.families.latents import check_autoencoder

if TYPE_CHECKING:
    from diffusers import FluxPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline, StableDiffusion3Pipeline


def check_text_to_image(
    pipeline: FluxPipeline | PixArtAlphaPipeline | PixArtSigmaPipeline | StableDiffusion3Pipeline, packed: int = 1
) -> None:
    """Raise ModelError for a transformer that is shown more than noisy latents, or latents of another scaling.

    packed: how many latent positions make one input of the transformer, their channels joined.
    """
    check_autoencoder(pipeline.vae)
    channels, latents = pipeline.transformer.config["in_channels"], pipeline.vae.config["latent_channels"]
    if channels != latents * packed:
        raise ModelError(
            f"the transformer takes {channels} channels, the latents have {latents * packed}: a checkpoint for "
            "inpainting, control or editing; expected a text-to-image checkpoint."
        )
