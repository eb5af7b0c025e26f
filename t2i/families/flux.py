"""Flux.1, dev and schnell: transformer on packed latents, pooled CLIP and T5, rectified flow, distilled guidance.

Conventions (diffusers `FluxPipeline`; the models have no paper):
  prompt        T5: padded to 512 tokens (dev) or 256 (schnell) and cut there, last hidden state, no attention mask;
                CLIP: padded to its tokenizer's limit (77) and cut there, pooled vector alone. End tokens are kept,
                nothing is cleaned. A checkpoint counts as schnell if it has neither a guidance embedding nor dynamic
                shifting
  unconditional the empty prompt; sampling has none: guidance is distilled into the model (dev) or absent (schnell)
  guidance      transformers with `guidance_embeds` are told a guidance scale. In training it is 1, as the examples of
                diffusers and kohya's guide have it: the loss asks for the data as they are, not sharpened. Sampling
                keeps its usual one (3.5)
  sizes         the denoiser is not told any
  latents       (AutoencoderKL posterior - `shift_factor`) * `scaling_factor` (0.1159, 0.3611), sampled in training (the
                recipe's `posterior`), [B, 16, h, w]; `predict` packs 2 x 2 of them into one token with a position id of
                (0, row, column), text has (0, 0, 0)
  noise         rectified flow; the transformer is told the level, which is the timestep / 1000. Training levels are
                logit-normal (0, 1); with the scheduler's dynamic shifting (dev) shifted by the number of image tokens
                as in sampling, without it (schnell) by its fixed shift, which is 1: not at all
  LoRA          attention projections of both streams, in double and single blocks; those of CLIP where the recipe asks
                for it. A plain LoRA costs schnell part of its few-step distillation
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from t2i.encoder_texts import EncoderPrompt, texts_for
from t2i.errors import ModelError
from t2i.families import latents as autoencoder
from t2i.families.base import Conditioning, Dtypes, FamilyFacts, NativeLayer, Posterior
from t2i.families.clip import clip_tokens, count_longer
from t2i.families.loading import load_pipeline
from t2i.families.safetensor_files import read_header, weight_files
from t2i.families.tokens import moved, padded_tokens
from t2i.families.transformer import check_text_to_image
from t2i.noise import RectifiedFlow

if TYPE_CHECKING:
    from diffusers import FluxPipeline

PATCH = 2
"""Side, in latent positions, of what is packed into one token; fixed in the pipeline."""
TRAINING_GUIDANCE = 1.0
_DOUBLE, _SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
_NATIVE_LAYERS = (
    NativeLayer("double_blocks.{}.img_attn.qkv", tuple(f"{_DOUBLE}.attn.to_{x}" for x in "qkv")),
    NativeLayer("double_blocks.{}.img_attn.proj", (f"{_DOUBLE}.attn.to_out.0",)),
    NativeLayer("double_blocks.{}.img_mlp.0", (f"{_DOUBLE}.ff.net.0.proj",)),
    NativeLayer("double_blocks.{}.img_mlp.2", (f"{_DOUBLE}.ff.net.2",)),
    NativeLayer("double_blocks.{}.img_mod.lin", (f"{_DOUBLE}.norm1.linear",)),
    NativeLayer("double_blocks.{}.txt_attn.qkv", tuple(f"{_DOUBLE}.attn.add_{x}_proj" for x in "qkv")),
    NativeLayer("double_blocks.{}.txt_attn.proj", (f"{_DOUBLE}.attn.to_add_out",)),
    NativeLayer("double_blocks.{}.txt_mlp.0", (f"{_DOUBLE}.ff_context.net.0.proj",)),
    NativeLayer("double_blocks.{}.txt_mlp.2", (f"{_DOUBLE}.ff_context.net.2",)),
    NativeLayer("double_blocks.{}.txt_mod.lin", (f"{_DOUBLE}.norm1_context.linear",)),
    NativeLayer("single_blocks.{}.linear1", (*(f"{_SINGLE}.attn.to_{x}" for x in "qkv"), f"{_SINGLE}.proj_mlp")),
    NativeLayer("single_blocks.{}.linear2", (f"{_SINGLE}.proj_out",)),
    NativeLayer("single_blocks.{}.modulation.lin", (f"{_SINGLE}.norm.linear",)),
    NativeLayer("img_in", ("x_embedder",)),
    NativeLayer("txt_in", ("context_embedder",)),
    NativeLayer("time_in.in_layer", ("time_text_embed.timestep_embedder.linear_1",)),
    NativeLayer("time_in.out_layer", ("time_text_embed.timestep_embedder.linear_2",)),
    NativeLayer("vector_in.in_layer", ("time_text_embed.text_embedder.linear_1",)),
    NativeLayer("vector_in.out_layer", ("time_text_embed.text_embedder.linear_2",)),
    NativeLayer("guidance_in.in_layer", ("time_text_embed.guidance_embedder.linear_1",)),
    NativeLayer("guidance_in.out_layer", ("time_text_embed.guidance_embedder.linear_2",)),
    NativeLayer("final_layer.linear", ("proj_out",)),
    NativeLayer("final_layer.adaLN_modulation.1", ("norm_out.linear",), "always"),
)
"""Names of Black Forest Labs' transformer."""


class Flux:
    """A loaded Flux.1 checkpoint."""

    facts: ClassVar[FamilyFacts] = FamilyFacts(
        name="flux",
        pipeline_class="FluxPipeline",
        denoiser="transformer",
        guidance_scale=3.5,
        dispatches_attention=True,
        text_encoders=("text_encoder", "text_encoder_2"),
        encoder_names=("clip", "t5"),
        lora_targets=(
            *("to_q", "to_k", "to_v", "to_out.0"),
            *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        ),
        text_encoder_lora_targets=("q_proj", "k_proj", "v_proj", "out_proj"),
        # T5 is the third encoder for the readers of these files, as in SD3.
        kohya_prefixes=(("transformer", "lora_unet"), ("text_encoder", "lora_te1"), ("text_encoder_2", "lora_te3")),
        comfyui_prefixes=(
            ("transformer", "diffusion_model"),
            ("text_encoder", "text_encoders.clip_l.transformer"),
            ("text_encoder_2", "text_encoders.t5xxl.transformer"),
        ),
        native_layers=_NATIVE_LAYERS,
        diffusers_reads=("diffusers", "kohya", "comfyui"),
        takes_negative_prompt=False,
        unused_components=("image_encoder", "feature_extractor"),
    )

    def __init__(self, pipeline: FluxPipeline) -> None:
        check_text_to_image(pipeline, packed=PATCH**2)
        self.pipeline = pipeline
        self.noise = RectifiedFlow.from_scheduler(pipeline.scheduler, PATCH)
        self.guidance = TRAINING_GUIDANCE
        """The guidance scale that `predict` tells a transformer with a guidance embedding."""

    @classmethod
    def load(cls, folder: str, *, dtype: Dtypes, random_seed: int | None = None) -> Flux:
        pipeline = load_pipeline(folder, cls.facts, dtype=dtype, random_seed=random_seed)
        if random_seed is None:
            _check_guidance(Path(folder), pipeline.transformer.config)
        return cls(pipeline)

    @property
    def denoiser(self) -> nn.Module:
        return self.pipeline.transformer

    @property
    def pixel_multiple(self) -> int:
        return self.pipeline.vae_scale_factor * PATCH

    @property
    def default_size(self) -> int:
        return self.pipeline.default_sample_size * self.pipeline.vae_scale_factor

    @property
    def token_limit(self) -> int:
        """Tokens that T5 reads, the end mark included."""
        is_dev = (
            self.pipeline.transformer.config["guidance_embeds"] or self.noise.default_timesteps.shift == "resolution"
        )
        return 512 if is_dev else 256

    @property
    def sampling_options(self) -> Mapping[str, object]:
        """Arguments of the pipeline's call by which it treats prompts as training does."""
        return {"max_sequence_length": self.token_limit}

    def encode_prompts(self, prompts: Sequence[EncoderPrompt]) -> Conditioning:
        clip, t5 = self.pipeline.text_encoder, self.pipeline.text_encoder_2
        tokens = clip_tokens(self.pipeline.tokenizer, texts_for(prompts, "clip"))
        pooled = clip(moved(tokens, clip.device)).pooler_output
        tokens, _ = padded_tokens(self.pipeline.tokenizer_2, texts_for(prompts, "t5"), self.token_limit)
        return Conditioning(t5(moved(tokens, t5.device))[0], pooled)

    def count_truncated(self, prompts: Sequence[EncoderPrompt]) -> dict[str, int]:
        clip, t5 = self.pipeline.tokenizer, self.pipeline.tokenizer_2
        return {
            "text_encoder": count_longer(clip, texts_for(prompts, "clip"), clip.model_max_length),
            "text_encoder_2": count_longer(t5, texts_for(prompts, "t5"), self.token_limit),
        }

    def encode_images(self, pixels: Tensor) -> Posterior:
        return autoencoder.encode_images(self.pipeline.vae, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return autoencoder.decode_latents(self.pipeline.vae, latents)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        rows, columns = noisy.shape[-2] // PATCH, noisy.shape[-1] // PATCH
        embeds, transformer = conditioning.prompt_embeds, self.pipeline.transformer
        guidance = None
        if transformer.config["guidance_embeds"]:
            guidance = torch.full((len(noisy),), self.guidance, device=noisy.device)
        prediction = transformer(
            hidden_states=pack(noisy),
            # In the latents' precision, as in the pipeline.
            timestep=timesteps.to(noisy.dtype) / 1000,
            guidance=guidance,
            pooled_projections=conditioning.pooled,
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=noisy.device),
            img_ids=image_ids(rows, columns, noisy.device),
        ).sample
        return unpack(prediction, rows, columns)


def _check_guidance(path: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError for the weights of dev with the configs of schnell: diffusers would drop their guidance."""
    files = weight_files(path / "transformer") if path.is_dir() else [path]
    names = (name for file in files for name in read_header(file))
    if not config["guidance_embeds"] and any("guidance_in." in name or "guidance_embedder." in name for name in names):
        raise ModelError(
            f"{path}: holds the guidance embedder of Flux.1 dev, and its configs are those of schnell "
            "(guidance_embeds: false); give the configs of dev."
        )


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w] to tokens [B, h/2 * w/2, 4 C], row by row; in a token, the channel is the slowest index."""
    return pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Inverse of `pack` for latents of 2 rows x 2 columns positions."""
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, columns)), PATCH)


def image_ids(rows: int, columns: int, device: torch.device) -> Tensor:
    """Position of each token: (0, row, column), float32 [rows * columns, 3]."""
    grid = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    places = torch.stack(grid, dim=-1).flatten(0, 1)
    return nn.functional.pad(places, (1, 0)).float()
