"""The untrained tiny models: configs and tokenizer in diffusers and transformers layout, no weights.

`recipes/tiny_pretrain.yaml` trains them from `pkg:t2i.shapes/architecture`. They are small instances of the real
classes: Stable Diffusion 2.x (v-prediction), and CLIP.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.files import write_text
from t2i.shapes.captions import WORDS
from t2i.shapes.scenes import IMAGE_SIZE_PX

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

MAX_TOKENS = 20
"""Start, end and the 16 words of the longest caption fit, and so do spelled-out file names."""
WIDTH = 128
"""Of the text encoder and of the U-Net's cross-attention."""


def write_architecture(folder: Path) -> None:
    """Write `pipeline/` (model_index.json, configs, tokenizer) and `clip/` below the folder."""
    pipeline, clip = folder / "pipeline", folder / "clip"
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(pipeline / "tokenizer")
    tokenizer.save_pretrained(clip)
    _write(pipeline / "model_index.json", _model_index())
    for name, config in _pipeline_configs(tokenizer).items():
        _write(pipeline / name / ("scheduler_config.json" if name == "scheduler" else "config.json"), config)
    _write(clip / "config.json", _clip_config(tokenizer))
    _write(clip / "preprocessor_config.json", _clip_preprocessor())


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer in which every word of the world is one token, and anything else is spelled out."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[Any] = []  # of pairs; CLIPTokenizer declares strings and takes pairs
    for word in WORDS:
        # New merges rank below the old ones, so they cannot change how an earlier word is joined.
        while len(parts := _apply(merges, word)) > 1:
            merges.append((parts[0], parts[1]))
            vocabulary.append(parts[0] + parts[1])
    # The end token has the highest number: CLIP finds the end of a text by argmax.
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    numbers = {token: number for number, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=MAX_TOKENS, pad_token="<|endoftext|>")


def _apply(merges: list[tuple[str, str]], word: str) -> list[str]:
    """Byte-pair encoding of one ASCII word."""
    parts = [*word[:-1], word[-1] + "</w>"]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while True:
        candidates = [(ranks[pair], place) for place, pair in enumerate(itertools.pairwise(parts)) if pair in ranks]
        if not candidates:
            return parts
        _, place = min(candidates)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def _model_index() -> dict[str, object]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _pipeline_configs(tokenizer: CLIPTokenizer) -> dict[str, dict[str, object]]:
    unet = {
        "_class_name": "UNet2DConditionModel",
        "sample_size": IMAGE_SIZE_PX // 4,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": [32, 128],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 16,
        "use_linear_projection": True,
    }
    vae = {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [16, 32, 64],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        "sample_size": IMAGE_SIZE_PX,
        "scaling_factor": 1.0,
    }
    scheduler = {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "trailing",
    }
    text_encoder = {"architectures": ["CLIPTextModel"], **_text_config(tokenizer)}
    return {"unet": unet, "vae": vae, "scheduler": scheduler, "text_encoder": text_encoder}


def _text_config(tokenizer: CLIPTokenizer) -> dict[str, object]:
    return {
        "model_type": "clip_text_model",
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "hidden_act": "gelu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _clip_config(tokenizer: CLIPTokenizer) -> dict[str, object]:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE_PX,
        "patch_size": 8,
        "hidden_act": "gelu",
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": WIDTH,
        "logit_scale_init_value": 2.6592,
        "text_config": _text_config(tokenizer),
        "vision_config": vision,
    }


def _clip_preprocessor() -> dict[str, object]:
    size = IMAGE_SIZE_PX
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _write(path: Path, config: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
