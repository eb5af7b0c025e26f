"""What diffusion transformers have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2i.errors import ModelError

if TYPE_CHECKING:
    from diffusers import FluxPipeline, PixArtAlphaPipeline, PixArtSigmaPipeline, StableDiffusion3Pipeline


def check_text_to_image(
    pipeline: FluxPipeline | PixArtAlphaPipeline | PixArtSigmaPipeline | StableDiffusion3Pipeline, packed: int = 1
) -> None:
    """Raise ModelError for a transformer that is shown more than noisy latents, or latents of another scaling.

    packed: how many latent positions make one input of the transformer, their channels joined.
    """
    channels, latents = pipeline.transformer.config["in_channels"], pipeline.vae.config["latent_channels"]
    if channels != latents * packed:
        raise ModelError(
            f"the transformer takes {channels} channels, the latents have {latents * packed}: a checkpoint for "
            "inpainting, control or editing; expected a text-to-image checkpoint."
        )
    if pipeline.vae.config["latents_mean"] is not None:
        raise ModelError("the VAE's latents are standardised by channel (latents_mean), which is not supported.")
