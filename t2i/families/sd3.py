"""Stable Diffusion 3 and 3.5: transformer, two CLIP encoders and a T5 that may be absent, rectified flow.

Conventions (diffusers `StableDiffusion3Pipeline`; Esser et al. 2024, arXiv:2403.03206):
  prompt        CLIP: both padded to the first tokenizer's limit (77) and cut there, hidden states of the layer before
                the last side by side (768 + 1280), zeros behind them up to T5's width (4096); T5: padded to 256 tokens
                and cut there, last hidden state, no attention mask; all 77 + 256 tokens in one row. End tokens are
                kept, nothing is cleaned. Pooled: projections of both CLIPs side by side (2048)
  without T5    256 tokens of zeros in its place, as the pipeline does
  unconditional the empty prompt through every encoder
  sizes         the denoiser is not told any
  latents       (AutoencoderKL posterior - `shift_factor`) * `scaling_factor` (0.0609, 1.5305), sampled in training (the
                recipe's `posterior`)
  noise         rectified flow; timesteps are 1000 times the level, not rounded. Training levels are logit-normal (0, 1)
                with the shift that the scheduler samples with (3 in the published checkpoints; sections 3.1 and 5.3.2)
  LoRA          attention projections of both streams, the second attention of 3.5-medium included; those of the CLIP
                encoders where the recipe asks for it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from t2i.encoder_texts import EncoderPrompt, texts_for
from t2i.families import latents as autoencoder
from t2i.families.base import Conditioning, Dtypes, FamilyFacts, NativeLayer, Posterior
from t2i.families.clip import count_longer
from t2i.families.loading import load_pipeline
from t2i.families.tokens import moved, padded_tokens
from t2i.families.transformer import check_text_to_image
from t2i.noise import RectifiedFlow

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

T5_TOKENS = 256
"""Token limit of T5, the default of the pipeline."""
_BLOCK, _IMAGE, _TEXT = "transformer_blocks.{}", "joint_blocks.{}.x_block", "joint_blocks.{}.context_block"
_NATIVE_LAYERS = (
    NativeLayer(f"{_IMAGE}.attn.qkv", tuple(f"{_BLOCK}.attn.to_{x}" for x in "qkv")),
    NativeLayer(f"{_IMAGE}.attn.proj", (f"{_BLOCK}.attn.to_out.0",)),
    NativeLayer(f"{_IMAGE}.attn2.qkv", tuple(f"{_BLOCK}.attn2.to_{x}" for x in "qkv")),
    NativeLayer(f"{_IMAGE}.attn2.proj", (f"{_BLOCK}.attn2.to_out.0",)),
    NativeLayer(f"{_IMAGE}.mlp.fc1", (f"{_BLOCK}.ff.net.0.proj",)),
    NativeLayer(f"{_IMAGE}.mlp.fc2", (f"{_BLOCK}.ff.net.2",)),
    NativeLayer(f"{_IMAGE}.adaLN_modulation.1", (f"{_BLOCK}.norm1.linear",)),
    NativeLayer(f"{_TEXT}.attn.qkv", tuple(f"{_BLOCK}.attn.add_{x}_proj" for x in "qkv")),
    NativeLayer(f"{_TEXT}.attn.proj", (f"{_BLOCK}.attn.to_add_out",)),
    NativeLayer(f"{_TEXT}.mlp.fc1", (f"{_BLOCK}.ff_context.net.0.proj",)),
    NativeLayer(f"{_TEXT}.mlp.fc2", (f"{_BLOCK}.ff_context.net.2",)),
    NativeLayer(f"{_TEXT}.adaLN_modulation.1", (f"{_BLOCK}.norm1_context.linear",), "last"),
    NativeLayer("x_embedder.proj", ("pos_embed.proj",)),
    NativeLayer("context_embedder", ("context_embedder",)),
    NativeLayer("t_embedder.mlp.0", ("time_text_embed.timestep_embedder.linear_1",)),
    NativeLayer("t_embedder.mlp.2", ("time_text_embed.timestep_embedder.linear_2",)),
    NativeLayer("y_embedder.mlp.0", ("time_text_embed.text_embedder.linear_1",)),
    NativeLayer("y_embedder.mlp.2", ("time_text_embed.text_embedder.linear_2",)),
    NativeLayer("final_layer.linear", ("proj_out",)),
    NativeLayer("final_layer.adaLN_modulation.1", ("norm_out.linear",), "always"),
)
"""Names of Stability's transformer."""


class SD3:
    """A loaded Stable Diffusion 3 or 3.5 checkpoint."""

    facts: ClassVar[FamilyFacts] = FamilyFacts(
        name="sd3",
        pipeline_class="StableDiffusion3Pipeline",
        denoiser="transformer",
        guidance_scale=7.0,
        text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
        encoder_names=("clip_l", "clip_g", "t5"),
        lora_targets=(
            *("to_q", "to_k", "to_v", "to_out.0"),
            *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        ),
        text_encoder_lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
        kohya_prefixes=(
            ("transformer", "lora_unet"),
            ("text_encoder", "lora_te1"),
            ("text_encoder_2", "lora_te2"),
            ("text_encoder_3", "lora_te3"),
        ),
        comfyui_prefixes=(
            ("transformer", "diffusion_model"),
            ("text_encoder", "text_encoders.clip_l.transformer"),
            ("text_encoder_2", "text_encoders.clip_g.transformer"),
            ("text_encoder_3", "text_encoders.t5xxl.transformer"),
        ),
        native_layers=_NATIVE_LAYERS,
        optional_components=("text_encoder_3", "tokenizer_3"),
        unused_components=("image_encoder", "feature_extractor"),
    )

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        check_text_to_image(pipeline)
        self.pipeline = pipeline
        self.noise = RectifiedFlow.from_scheduler(pipeline.scheduler, pipeline.transformer.config["patch_size"])

    @classmethod
    def load(cls, folder: str, *, dtype: Dtypes, random_seed: int | None = None) -> SD3:
        return cls(load_pipeline(folder, cls.facts, dtype=dtype, random_seed=random_seed))

    @property
    def denoiser(self) -> nn.Module:
        return self.pipeline.transformer

    @property
    def pixel_multiple(self) -> int:
        return self.pipeline.vae_scale_factor * self.pipeline.transformer.config["patch_size"]

    @property
    def default_size(self) -> int:
        return self.pipeline.transformer.config["sample_size"] * self.pipeline.vae_scale_factor

    @property
    def sampling_options(self) -> Mapping[str, object]:
        """Arguments of the pipeline's call by which it treats prompts as training does."""
        return {"max_sequence_length": T5_TOKENS}

    def encode_prompts(self, prompts: Sequence[EncoderPrompt]) -> Conditioning:
        hidden, pooled = [], []
        for name, (encoder, tokenizer) in zip(("clip_l", "clip_g"), self._clips(), strict=True):
            tokens, _ = padded_tokens(tokenizer, texts_for(prompts, name), self.pipeline.tokenizer_max_length)
            output = encoder(moved(tokens, encoder.device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            pooled.append(output[0])
        clip, t5 = torch.cat(hidden, dim=-1), self._t5_states(texts_for(prompts, "t5"))
        clip = nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        return Conditioning(torch.cat([clip, t5], dim=1), torch.cat(pooled, dim=-1))

    def _t5_states(self, prompts: Sequence[str]) -> Tensor:
        """Last hidden states of T5, [B, 256, width]; zeros without a T5."""
        encoder = self.pipeline.text_encoder_3
        if encoder is None:
            width, first = self.pipeline.transformer.config["joint_attention_dim"], self.pipeline.text_encoder
            return torch.zeros(len(prompts), T5_TOKENS, width, device=first.device, dtype=first.dtype)
        tokens, _ = padded_tokens(self.pipeline.tokenizer_3, prompts, T5_TOKENS)
        return encoder(moved(tokens, encoder.device))[0]

    def count_truncated(self, prompts: Sequence[EncoderPrompt]) -> dict[str, int]:
        limit = self.pipeline.tokenizer_max_length
        counts = [
            count_longer(tokenizer, texts_for(prompts, name), limit)
            for name, (_, tokenizer) in zip(("clip_l", "clip_g"), self._clips(), strict=True)
        ]
        if self.pipeline.text_encoder_3 is not None:
            counts.append(count_longer(self.pipeline.tokenizer_3, texts_for(prompts, "t5"), T5_TOKENS))
        return dict(zip(self.facts.text_encoders, counts, strict=False))

    def encode_images(self, pixels: Tensor) -> Posterior:
        return autoencoder.encode_images(self.pipeline.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return autoencoder.decode_latents(self.pipeline.vae, latents)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.pipeline.transformer(
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=conditioning.prompt_embeds,
            pooled_projections=conditioning.pooled,
        ).sample

    def _clips(self) -> list[tuple[Any, Any]]:
        pipeline = self.pipeline
        return [(pipeline.text_encoder, pipeline.tokenizer), (pipeline.text_encoder_2, pipeline.tokenizer_2)]
