"""Stable Diffusion XL: U-Net told sizes, two CLIP text encoders, DDPM noise with epsilon- or v-prediction.

Conventions (diffusers `StableDiffusionXLPipeline`; Podell et al. 2023, arXiv:2307.01952):
  prompt        each tokenizer padded to its own limit (77) and cut there, end token kept; no attention mask, no
                cleaning; hidden states of the layer before the last of both encoders side by side (768 + 1280), without
                the final layer norm; pooled vector of the second encoder, projected (1280)
  unconditional where the checkpoint says `force_zeros_for_empty_prompt`, as the published ones do, the empty prompt is
                zeros in every place, which is what the pipeline's guidance leads away from when no negative prompt is
                given; elsewhere it is encoded like any other. So captions dropped in training become what sampling
                without a negative prompt subtracts. A prompt of spaces is no empty prompt
  sizes         height and width of the original image, top and left of the crop in the resized image, height and
                width of the crop, in pixels (section 2.2 of the paper)
  latents       AutoencoderKL posterior times `scaling_factor` (0.13025), sampled in training (the recipe's
                `posterior`); no shift; fp16 autoencoders run in fp32 where their config says `force_upcast`
  noise         the scheduler's betas; timesteps are integers 0 .. 999, uniform in training
  LoRA          attention projections of the U-Net; those of both text encoders where the recipe asks for it
  watermark     never painted: the pipeline would if a certain package happened to be installed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from t2i.encoder_texts import EncoderPrompt, texts_for
from t2i.errors import ModelError
from t2i.families import latents as autoencoder
from t2i.families.base import Conditioning, Dtypes, FamilyFacts, Posterior
from t2i.families.clip import clip_tokens, count_longer
from t2i.families.loading import load_pipeline
from t2i.families.tokens import moved
from t2i.families.unet import check_text_to_image, latent_multiple, native_size
from t2i.noise import DDPM

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline


class SDXL:
    """A loaded Stable Diffusion XL base checkpoint."""

    facts: ClassVar[FamilyFacts] = FamilyFacts(
        name="sdxl",
        pipeline_class="StableDiffusionXLPipeline",
        denoiser="unet",
        guidance_scale=5.0,
        text_encoders=("text_encoder", "text_encoder_2"),
        encoder_names=("clip_l", "clip_g"),
        lora_targets=("to_q", "to_k", "to_v", "to_out.0"),
        text_encoder_lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
        kohya_prefixes=(("unet", "lora_unet"), ("text_encoder", "lora_te1"), ("text_encoder_2", "lora_te2")),
        comfyui_prefixes=(
            ("unet", "diffusion_model"),
            ("text_encoder", "text_encoders.clip_l.transformer"),
            ("text_encoder_2", "text_encoders.clip_g.transformer"),
        ),
        diffusers_reads=("diffusers", "kohya"),
        takes_sizes=True,
        unused_components=("feature_extractor", "image_encoder"),
    )

    def __init__(self, pipeline: StableDiffusionXLPipeline) -> None:
        check_text_to_image(pipeline)
        self.pipeline = pipeline
        self.pipeline.watermark = None
        self.noise = DDPM.from_scheduler(pipeline.scheduler)

    @classmethod
    def load(cls, folder: str, *, dtype: Dtypes, random_seed: int | None = None) -> SDXL:
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
        hidden, pooled = [], None
        for name, (encoder, tokenizer) in zip(self.facts.encoder_names, self._encoders(), strict=True):
            tokens = moved(clip_tokens(tokenizer, texts_for(prompts, name)), encoder.device)
            output = encoder(tokens, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            pooled = output[0]
        assert pooled is not None
        embeds = torch.cat(hidden, dim=-1)
        if self.pipeline.config["force_zeros_for_empty_prompt"]:
            empty = moved(torch.tensor([prompt == "" for prompt in prompts])[:, None], embeds.device)
            embeds, pooled = embeds.masked_fill(empty[:, None], 0), pooled.masked_fill(empty, 0)
        return Conditioning(embeds, pooled)

    def count_truncated(self, prompts: Sequence[EncoderPrompt]) -> dict[str, int]:
        counts = [
            count_longer(tokenizer, texts_for(prompts, name), tokenizer.model_max_length)
            for name, (_, tokenizer) in zip(self.facts.encoder_names, self._encoders(), strict=True)
        ]
        return dict(zip(self.facts.text_encoders, counts, strict=True))

    def encode_images(self, pixels: Tensor) -> Posterior:
        return autoencoder.encode_images(self.pipeline.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return autoencoder.decode_latents(self.pipeline.vae, latents)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        if conditioning.sizes is None:
            raise ModelError("sdxl: the conditioning holds no sizes; give it those of the images (`with_sizes`).")
        added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.sizes}
        embeds = conditioning.prompt_embeds
        return self.pipeline.unet(noisy, timesteps, encoder_hidden_states=embeds, added_cond_kwargs=added).sample

    def _encoders(self) -> list[tuple[Any, Any]]:
        pipeline = self.pipeline
        return [(pipeline.text_encoder, pipeline.tokenizer), (pipeline.text_encoder_2, pipeline.tokenizer_2)]
