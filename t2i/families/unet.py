"""What Stable Diffusion's U-Nets, 1.x to XL, have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t2i.errors import ModelError
from t2i.families.latents import check_autoencoder

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline


def check_text_to_image(pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline) -> None:
    """Raise ModelError for a U-Net that is told more than text, another VAE, or noise that is not that of DDPM."""
    check_autoencoder(pipeline.vae)
    unet, vae, scheduler = pipeline.unet.config, pipeline.vae.config, type(pipeline.scheduler).__name__
    if unet["in_channels"] != vae["latent_channels"]:
        raise ModelError(
            f"the U-Net takes {unet['in_channels']} channels, the latents have {vae['latent_channels']}: a checkpoint "
            "for inpainting or editing; expected a text-to-image checkpoint."
        )
    if unet["time_cond_proj_dim"] is not None:
        raise ModelError("the U-Net takes the guidance scale as an input (a distilled model); it cannot be trained.")
    if getattr(pipeline.scheduler, "alphas_cumprod", None) is None:
        raise ModelError(f"{scheduler} holds no noise of DDPM; expected a scheduler for epsilon or v_prediction.")


def latent_multiple(pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline) -> int:
    """Pixels per latent, times how often the U-Net halves the latents: once per level below the first."""
    return pipeline.vae_scale_factor * 2 ** (len(pipeline.unet.config["block_out_channels"]) - 1)


def native_size(pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline) -> int:
    """Side in pixels of the images that the U-Net was trained on."""
    return pipeline.unet.config["sample_size"] * pipeline.vae_scale_factor
