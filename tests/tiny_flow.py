"""Tiny PixArt, Stable Diffusion 3 and Flux checkpoints with random weights, made in code."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import tiny

PixArtKind = Literal["alpha", "alpha_sizes", "sigma"]
WIDTH = 32
"""Of the text encoders' states; T5 has another beside two CLIPs."""


@functools.cache
def pixart(kind: PixArtKind = "alpha") -> Path:
    """Folder of a PixArt pipeline, the same every time; `alpha_sizes` is told sizes. Do not write into it."""
    return _saved(f"pixart-{kind}", _pixart_pipeline, kind)


@functools.cache
def sd3(with_t5: bool = True) -> Path:
    """Folder of a StableDiffusion3Pipeline with a dual-attention block, as 3.5-medium has. Do not write into it."""
    return _saved(f"sd3-{'t5' if with_t5 else 'no-t5'}", _sd3_pipeline, with_t5)


@functools.cache
def flux(guidance: bool = True) -> Path:
    """Folder of a FluxPipeline: with a guidance embedding like dev, without like schnell. Do not write into it."""
    return _saved(f"flux-{'dev' if guidance else 'schnell'}", _flux_pipeline, guidance)


def _saved(name: str, build: Any, kind: object) -> Path:
    import torch

    folder = tiny.temporary_folder() / name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build(kind).save_pretrained(folder)
    return folder


def _pixart_pipeline(kind: PixArtKind) -> Any:
    from diffusers import (
        DPMSolverMultistepScheduler,
        PixArtAlphaPipeline,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )

    tokens = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        # At 128, and only there, the pipeline of alpha tells sizes.
        sample_size=128 if kind == "alpha_sizes" else tiny.SIZE_PX // 2,
        use_additional_conditions=kind == "alpha_sizes",
        num_layers=2,
        # Size embeddings divide the width by 3, position embeddings by 4.
        num_attention_heads=4,
        attention_head_dim=12,
        cross_attention_dim=48,
        caption_channels=WIDTH,
    )
    autoencoder = vae(4, scaling_factor=0.13025 if kind == "sigma" else 0.18215)
    pipeline = PixArtSigmaPipeline if kind == "sigma" else PixArtAlphaPipeline
    return pipeline(tokens, t5(tokens, WIDTH), autoencoder, transformer.eval(), DPMSolverMultistepScheduler())


def _sd3_pipeline(with_t5: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    first, second, third = tiny.tokenizer(), tiny.tokenizer(padding="!"), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=tiny.SIZE_PX // 2,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=28 + 20,
        pos_embed_max_size=32,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=CLIPTextModelWithProjection(tiny.clip_config(first, width=WIDTH, projection_dim=28)).eval(),
        tokenizer=first,
        text_encoder_2=CLIPTextModelWithProjection(
            tiny.clip_config(second, width=24, projection_dim=20, layers=3)
        ).eval(),
        tokenizer_2=second,
        text_encoder_3=t5(third, 64) if with_t5 else None,
        tokenizer_3=third if with_t5 else None,
    )


def _flux_pipeline(guidance: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    first, second = tiny.tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )
    dynamic: dict[str, Any] = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256}
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance else 1.0, use_dynamic_shifting=guidance, max_image_seq_len=4096, **dynamic
        ),
        vae=vae(4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=CLIPTextModel(tiny.clip_config(first, width=WIDTH)).eval(),
        tokenizer=first,
        text_encoder_2=t5(second, 24),
        tokenizer_2=second,
        transformer=transformer.eval(),
    )


def vae(latent_channels: int, *, scaling_factor: float, shift_factor: float | None = None) -> Any:
    """An autoencoder that halves the sides, without the convolutions around the latents where they have a shift."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=tiny.SIZE_PX,
        latent_channels=latent_channels,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=shift_factor is None,
        use_post_quant_conv=shift_factor is None,
    ).eval()


def t5(tokens: Any, width: int) -> Any:
    """A T5 text encoder for a tokenizer."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokens),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config).eval()


def t5_tokenizer() -> Any:
    """A T5 tokenizer in which each of tiny.WORDS is one token and every other character one of its own.

    Its own limit is below those of all pipelines, which set theirs.
    """
    from transformers import T5Tokenizer

    characters = string.ascii_letters + string.digits + string.punctuation
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in tiny.WORDS]
    pieces += [(character, -6.0) for character in characters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=77)


FAMILIES: dict[str, Callable[[], Path]] = {
    "sd1": tiny.sd1,
    "sdxl": tiny.sdxl,
    "pixart": pixart,
    "sd3": sd3,
    "flux": flux,
}
"""Family -> what writes its tiny checkpoint and returns the folder."""
