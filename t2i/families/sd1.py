"""Stable Diffusion 1.x and 2.x: U-Net, one CLIP text encoder, DDPM noise with epsilon- or v-prediction.

Conventions (diffusers `StableDiffusionPipeline`):
  prompt        tokenizer padded to its own limit (77 in the published checkpoints), no attention mask, last hidden
                state after the final layer norm; the empty prompt is the unconditional one
  latents       AutoencoderKL posterior times `scaling_factor`; no shift
  timesteps     integers 0 .. 999, uniform in training
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from t2i.families.base import Conditioning, FamilyFacts, Posterior
from t2i.families.loading import load_pipeline
from t2i.noise import DDPM

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class SD1:
    """A loaded Stable Diffusion 1.x or 2.x checkpoint."""

    facts: ClassVar[FamilyFacts] = FamilyFacts(
        name="sd1",
        pipeline_class="StableDiffusionPipeline",
        denoiser="unet",
        text_encoders=("text_encoder",),
        lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
        # All four: a kohya text-encoder LoRA without out_proj is not recognised by diffusers.
        text_encoder_lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
        kohya_prefixes=(("unet", "lora_unet"), ("text_encoder", "lora_te")),
    )

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.noise = DDPM.from_scheduler(pipeline.scheduler)

    @classmethod
    def load(cls, folder: str, *, dtype: torch.dtype, random_seed: int | None = None) -> SD1:
        return cls(load_pipeline(folder, cls.facts, dtype=dtype, random_seed=random_seed))

    @property
    def denoiser(self) -> nn.Module:
        return self.pipeline.unet

    @property
    def pixel_multiple(self) -> int:
        # The U-Net halves the latents once per level below the first.
        return self.pipeline.vae_scale_factor * 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        tokens = self.pipeline.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.pipeline.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        encoder = self.pipeline.text_encoder
        return Conditioning(encoder(tokens.input_ids.to(encoder.device))[0])

    def count_truncated(self, prompts: Sequence[str]) -> int:
        tokenizer = self.pipeline.tokenizer
        lengths = (len(tokenizer(prompt, truncation=False, verbose=False).input_ids) for prompt in prompts)
        return sum(length > tokenizer.model_max_length for length in lengths)

    def encode_images(self, pixels: Tensor) -> Posterior:
        vae = self.pipeline.vae
        posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return Posterior(posterior.mean * scale, posterior.std * scale)

    def decode_latents(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        return vae.decode(latents / vae.config.scaling_factor).sample

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.pipeline.unet(noisy, timesteps, encoder_hidden_states=conditioning.prompt_embeds).sample
