"""Stable Diffusion 1.x and 2.x: U-Net, one CLIP text encoder, DDPM noise with epsilon- or v-prediction.

Conventions (diffusers `StableDiffusionPipeline`):
  prompt        tokenizer padded to its own limit (77 in the published checkpoints) and cut there, end token kept; no
                attention mask, no cleaning; last hidden state after the final layer norm
  unconditional the empty prompt
  sizes         the denoiser is not told any
  latents       AutoencoderKL posterior times `scaling_factor`, sampled in training (the recipe's `posterior`); no shift
  noise         the scheduler's betas; timesteps are integers 0 .. 999, uniform in training
  LoRA          attention projections of the U-Net; those of the text encoder where the recipe asks for it
  safety        the safety checker is never loaded: it would paint samples black without a word
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from t2i.encoder_texts import EncoderPrompt, texts_for
from t2i.families import latents as autoencoder
from t2i.families.base import Conditioning, Dtypes, FamilyFacts, Posterior
from t2i.families.clip import clip_tokens, count_longer
from t2i.families.loading import load_pipeline
from t2i.families.tokens import moved
from t2i.families.unet import check_text_to_image, latent_multiple, native_size
from t2i.noise import DDPM

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


class SD1:
    """A loaded Stable Diffusion 1.x or 2.x checkpoint."""

    facts: ClassVar[FamilyFacts] = FamilyFacts(
        name="sd1",
        pipeline_class="StableDiffusionPipeline",
        denoiser="unet",
        guidance_scale=7.5,
        text_encoders=("text_encoder",),
        encoder_names=("clip",),
        lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
        # All four: a kohya text-encoder LoRA without out_proj is not recognised by diffusers.
        text_encoder_lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
        kohya_prefixes=(("unet", "lora_unet"), ("text_encoder", "lora_te")),
        comfyui_prefixes=(("unet", "diffusion_model"), ("text_encoder", "text_encoders.clip_l.transformer")),
        kohya_names="diffusers",
        diffusers_reads=("diffusers", "kohya"),
        unused_components=("safety_checker", "feature_extractor", "image_encoder"),
    )

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        check_text_to_image(pipeline)
        self.pipeline = pipeline
        self.noise = DDPM.from_scheduler(pipeline.scheduler)

    @classmethod
    def load(cls, folder: str, *, dtype: Dtypes, random_seed: int | None = None) -> SD1:
        return cls(load_pipeline(folder, cls.facts, dtype=dtype, random_seed=random_seed))

    @property
    def denoiser(self) -> nn.Module:
        return self.pipeline.unet

    @property
    def pixel_multiple(self) -> int:
        return latent_multiple(self.pipeline)

    @property
    def default_size(self) -> int:
        return native_size(self.pipeline)

    @property
    def sampling_options(self) -> Mapping[str, object]:
        """None: the pipeline treats prompts as training does."""
        return {}

    def encode_prompts(self, prompts: Sequence[EncoderPrompt]) -> Conditioning:
        encoder = self.pipeline.text_encoder
        tokens = clip_tokens(self.pipeline.tokenizer, texts_for(prompts, "clip"))
        return Conditioning(encoder(moved(tokens, encoder.device))[0])

    def count_truncated(self, prompts: Sequence[EncoderPrompt]) -> dict[str, int]:
        tokenizer = self.pipeline.tokenizer
        return {"text_encoder": count_longer(tokenizer, texts_for(prompts, "clip"), tokenizer.model_max_length)}

    def encode_images(self, pixels: Tensor) -> Posterior:
        return autoencoder.encode_images(self.pipeline.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return autoencoder.decode_latents(self.pipeline.vae, latents)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.pipeline.unet(noisy, timesteps, encoder_hidden_states=conditioning.prompt_embeds).sample
