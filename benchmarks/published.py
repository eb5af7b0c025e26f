"""Configurations of published checkpoints, as their repositories state them: facts, no weights.

`REDUCED` shrinks every component of a family to something that a CPU trains in milliseconds, with the same classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Part:
    """A component: its class in diffusers or transformers, and its config where it differs from the class's own."""

    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, values: Mapping[str, Any]) -> Part:
        return replace(self, config={**self.config, **values})


@dataclass(frozen=True)
class Published:
    """A checkpoint."""

    source: str
    """Its repository."""
    pipeline: str
    size_px: int
    """Side of the square images that it is made for."""
    scheduler: Part
    parts: Mapping[str, Part]
    """Attribute of the pipeline -> component, tokenizers left out."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the pipeline's constructor."""

    def reduced(self, family: str) -> Published:
        """The same classes, small."""
        parts = {name: part.changed(REDUCED[family][name]) for name, part in self.parts.items()}
        return replace(self, size_px=32, parts=parts)


_CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "vocab_size": 49408,
}
_CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
    "vocab_size": 49408,
}
_T5_XXL = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
    "tie_word_embeddings": False,
}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
_VAE_XL = {**_VAE, "latent_channels": 4, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
_VAE_16 = {
    **_VAE,
    "latent_channels": 16,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": True,
}
_STABLE_DIFFUSION_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}

PUBLISHED: dict[str, Published] = {
    "sd1": Published(
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        pipeline="StableDiffusionPipeline",
        size_px=512,
        scheduler=Part("PNDMScheduler", {**_STABLE_DIFFUSION_NOISE, "skip_prk_steps": True, "set_alpha_to_one": False}),
        parts={
            "unet": Part(
                "UNet2DConditionModel",
                {
                    "sample_size": 64,
                    "block_out_channels": (320, 640, 1280, 1280),
                    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
                    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
                    "layers_per_block": 2,
                    "cross_attention_dim": 768,
                    "attention_head_dim": 8,
                },
            ),
            "vae": Part("AutoencoderKL", {**_VAE, "latent_channels": 4, "sample_size": 512, "scaling_factor": 0.18215}),
            "text_encoder": Part("CLIPTextModel", _CLIP_L),
        },
        options={"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
    ),
    "sdxl": Published(
        source="stabilityai/stable-diffusion-xl-base-1.0",
        pipeline="StableDiffusionXLPipeline",
        size_px=1024,
        scheduler=Part("EulerDiscreteScheduler", {**_STABLE_DIFFUSION_NOISE, "timestep_spacing": "leading"}),
        parts={
            "unet": Part(
                "UNet2DConditionModel",
                {
                    "sample_size": 128,
                    "block_out_channels": (320, 640, 1280),
                    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                    "layers_per_block": 2,
                    "transformer_layers_per_block": (1, 2, 10),
                    "cross_attention_dim": 2048,
                    "attention_head_dim": (5, 10, 20),
                    "use_linear_projection": True,
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": 2816,
                },
            ),
            "vae": Part("AutoencoderKL", _VAE_XL),
            "text_encoder": Part("CLIPTextModel", _CLIP_L),
            "text_encoder_2": Part("CLIPTextModelWithProjection", _CLIP_G),
        },
        options={"add_watermarker": False},
    ),
    "pixart": Published(
        source="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        pipeline="PixArtSigmaPipeline",
        size_px=1024,
        scheduler=Part("DPMSolverMultistepScheduler", {"beta_start": 0.0001, "beta_end": 0.02}),
        parts={
            "transformer": Part(
                "PixArtTransformer2DModel",
                {
                    "sample_size": 128,
                    "num_layers": 28,
                    "num_attention_heads": 16,
                    "attention_head_dim": 72,
                    "cross_attention_dim": 1152,
                    "caption_channels": 4096,
                    "interpolation_scale": 2,
                    "use_additional_conditions": False,
                },
            ),
            "vae": Part("AutoencoderKL", _VAE_XL),
            "text_encoder": Part("T5EncoderModel", _T5_XXL),
        },
    ),
    "sd3": Published(
        source="stabilityai/stable-diffusion-3.5-medium",
        pipeline="StableDiffusion3Pipeline",
        size_px=1024,
        scheduler=Part("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        parts={
            "transformer": Part(
                "SD3Transformer2DModel",
                {
                    "sample_size": 128,
                    "patch_size": 2,
                    "in_channels": 16,
                    "out_channels": 16,
                    "num_layers": 24,
                    "attention_head_dim": 64,
                    "num_attention_heads": 24,
                    "joint_attention_dim": 4096,
                    "caption_projection_dim": 1536,
                    "pooled_projection_dim": 2048,
                    "pos_embed_max_size": 384,
                    "dual_attention_layers": tuple(range(13)),
                    "qk_norm": "rms_norm",
                },
            ),
            "vae": Part("AutoencoderKL", {**_VAE_16, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
            "text_encoder": Part("CLIPTextModelWithProjection", _CLIP_L),
            "text_encoder_2": Part("CLIPTextModelWithProjection", _CLIP_G),
            "text_encoder_3": Part("T5EncoderModel", _T5_XXL),
        },
    ),
    "flux": Published(
        source="black-forest-labs/FLUX.1-dev",
        pipeline="FluxPipeline",
        size_px=1024,
        scheduler=Part(
            "FlowMatchEulerDiscreteScheduler",
            {
                "shift": 3.0,
                "use_dynamic_shifting": True,
                "base_shift": 0.5,
                "max_shift": 1.15,
                "base_image_seq_len": 256,
                "max_image_seq_len": 4096,
            },
        ),
        parts={
            "transformer": Part(
                "FluxTransformer2DModel",
                {
                    "in_channels": 64,
                    "num_layers": 19,
                    "num_single_layers": 38,
                    "attention_head_dim": 128,
                    "num_attention_heads": 24,
                    "joint_attention_dim": 4096,
                    "pooled_projection_dim": 768,
                    "guidance_embeds": True,
                    "axes_dims_rope": (16, 56, 56),
                },
            ),
            "vae": Part("AutoencoderKL", {**_VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159}),
            "text_encoder": Part("CLIPTextModel", _CLIP_L),
            "text_encoder_2": Part("T5EncoderModel", _T5_XXL),
        },
    ),
}

_SMALL_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
    "vocab_size": 200,
}
_SMALL_T5 = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 2, "vocab_size": 200}
_SMALL_VAE = {
    "block_out_channels": (16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 32,
}
_SMALL_UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}

REDUCED: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {
        "unet": {
            **_SMALL_UNET,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 32,
        },
        "vae": _SMALL_VAE,
        "text_encoder": _SMALL_CLIP,
    },
    "sdxl": {
        "unet": {
            **_SMALL_UNET,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "attention_head_dim": (2, 4),
            "cross_attention_dim": 64,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 32 + 6 * 8,
        },
        "vae": _SMALL_VAE,
        "text_encoder": _SMALL_CLIP,
        "text_encoder_2": _SMALL_CLIP,
    },
    "pixart": {
        "transformer": {
            "sample_size": 16,
            "num_layers": 2,
            "num_attention_heads": 4,
            "attention_head_dim": 12,
            "cross_attention_dim": 48,
            "caption_channels": 64,
        },
        "vae": _SMALL_VAE,
        "text_encoder": _SMALL_T5,
    },
    "sd3": {
        "transformer": {
            "sample_size": 16,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 64,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 64,
            "pos_embed_max_size": 32,
            "dual_attention_layers": (0,),
        },
        "vae": _SMALL_VAE,
        "text_encoder": _SMALL_CLIP,
        "text_encoder_2": _SMALL_CLIP,
        "text_encoder_3": _SMALL_T5,
    },
    "flux": {
        "transformer": {
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 64,
            "pooled_projection_dim": 32,
            "axes_dims_rope": (4, 4, 8),
        },
        "vae": _SMALL_VAE,
        "text_encoder": _SMALL_CLIP,
        "text_encoder_2": _SMALL_T5,
    },
}
