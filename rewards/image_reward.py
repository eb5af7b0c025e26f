"""ImageReward v1.0 (Xu et al. 2023, arXiv:2304.05977): BLIP reads image and prompt together, a head gives the reward.

The published checkpoint holds BLIP under the names of its authors' code (a timm vision transformer, and a BERT with
cross attention); it is mapped onto transformers' BLIP modules. A prompt is read to 35 tokens only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from rewards.affine_head import AffineHead, collapse
from rewards.base import ImageLike, Preprocessing, ScorerCard, Scores1D, check_prompts, check_scores, open_batch
from rewards.checkpoints import files_hash, fill, local_file, read_state, reason, settings_files, settings_folder
from rewards.clip_head import published
from rewards.devices import full_precision, runtime_facts, torch_device
from rewards.errors import InputError, ModelError
from rewards.preprocess import Preprocessor

if TYPE_CHECKING:
    import torch
    from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel, PreTrainedTokenizerBase
    from transformers.models.blip.modeling_blip_text import BlipTextModel

DEFAULT_MODEL = "THUDM/ImageReward"
TOKENIZER = "google-bert/bert-base-uncased"
_FILE, _CONFIG = "ImageReward.pt", "med_config.json"

TOKEN_LIMIT = 35
MEAN, STANDARD_DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Of the raw head output on the authors' data: what makes the reward 0 on average, with standard deviation 1."""

_HEAD_WIDTH = 64
"""Of one attention head in BLIP's vision transformers, base and large."""

_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_VISION_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@dataclass(frozen=True)
class _Parts:
    """Weights of the published checkpoint, under transformers' names."""

    vision: dict[str, torch.Tensor]
    text: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Model:
    vision: BlipVisionModel
    text: BlipTextModel
    head: AffineHead


class ImageReward:
    """The normalised reward: 0 on average and standard deviation 1 over the authors' data, no bounds.

    model: the checkpoint file, or a folder or hub id that holds ImageReward.pt and med_config.json; revision: of a hub
    id; tokenizer: folder or hub id of BERT's uncased tokenizer; device: a torch device; batch_size: speed only.
    """

    name: ClassVar[str] = "image_reward"
    version: ClassVar[str] = "1"
    scale: ClassVar[str] = "ImageReward, mean 0 and standard deviation 1 over its own data, unbounded; most in -2 to 2"
    needs_prompt: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        revision: str | None = None,
        tokenizer: str = TOKENIZER,
        device: str = "cpu",
        batch_size: int = 32,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1.")
        self._id = str(model)
        self._revision = revision
        self._tokenizer_id = str(tokenizer)
        self._device = device
        self._batch_size = batch_size

    @property
    def card(self) -> ScorerCard:
        """What the scorer is."""
        return ScorerCard(
            name=self.name,
            version=self.version,
            weights=self._id,
            revision=self._revision,
            licence=published("Apache-2.0", self._id, DEFAULT_MODEL),
            scale=self.scale,
            low=None,
            high=None,
            token_limit=TOKEN_LIMIT,
            preprocessing=Preprocessing(
                resize="short side to the checkpoint's size (224), bicubic",
                antialias=True,
                crop="centre, to the checkpoint's size (224); half a pixel is rounded to even",
                normalise="CLIP's mean and standard deviation",
            ),
            needs_prompt=self.needs_prompt,
            differentiable=self.differentiable,
            higher_is_better=self.higher_is_better,
            trained_on=published("ImageRewardDB: experts' rankings of generated images", self._id, DEFAULT_MODEL),
            key_map="unverified",
        )

    @property
    def token_limit(self) -> int:
        """Tokens of a prompt that are read, start and end token included."""
        return TOKEN_LIMIT

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """Number of prompts that are longer than `token_limit`."""
        if not prompts:
            return 0
        encoded = self._tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
        return sum(len(ids) > TOKEN_LIMIT for ids in encoded)

    def fingerprint(self) -> dict[str, str]:
        """Everything a score depends on beside image and prompt. Hashes the weights, but does not open the model."""
        facts = {"name": self.name, "version": self.version, "scale": self.scale, "weights": self._hash}
        return facts | runtime_facts(self._device)

    def score(self, images: Sequence[ImageLike], prompts: Sequence[str] | None = None) -> Scores1D:
        """Score B images against their B prompts. Returns [B] float32. Errors as `Reward.score`, and ModelError."""
        import torch

        texts = check_prompts(self.name, len(images), prompts)
        opened = open_batch(images)
        if not texts:
            return np.zeros(0, dtype=np.float32)
        parts = []
        for start in range(0, len(texts), self._batch_size):
            part = slice(start, start + self._batch_size)
            with torch.no_grad():
                pixels = self._preprocessor.from_images(opened[part]).to(self._model.vision.device)
                parts.append(self._rewards(pixels, texts[part]))
        return check_scores(self.name, torch.cat(parts).cpu().numpy(), len(texts))

    def score_tensor(self, pixels: torch.Tensor, prompts: Sequence[str] | None = None) -> torch.Tensor:
        """Score [B, 3, H, W] in [0, 1] on the scorer's device. Returns [B] float32 with gradient."""
        texts = check_prompts(self.name, len(pixels), prompts)
        if pixels.device != self._model.vision.device:
            raise InputError(f"pixels are on {pixels.device}, the scorer is on {self._model.vision.device}.")
        return self._rewards(self._preprocessor.from_tensor(pixels), texts)

    def _rewards(self, pixels: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """[B, 3, H, W] normalised pixels and B prompts -> [B]. Always padded to 35 tokens, as in training."""
        import torch

        model = self._model
        inputs = self._tokenizer(
            prompts, truncation=True, max_length=TOKEN_LIMIT, padding="max_length", return_tensors="pt"
        ).to(model.vision.device)
        with full_precision(model.vision.device.type):
            patches = model.vision(pixel_values=pixels).last_hidden_state
            states = model.text(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                encoder_hidden_states=patches,
                encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device),
                # Cross attention, but no causal mask: BLIP's multimodal encoder.
                is_decoder=False,
            ).last_hidden_state
            return (model.head(states[:, 0]) - MEAN) / STANDARD_DEVIATION

    @cached_property
    def _file(self) -> Path:
        return local_file(self._id, _FILE, self._revision)

    @cached_property
    def _config_file(self) -> Path:
        beside = Path(self._id).expanduser()
        return local_file(str(beside.parent) if beside.is_file() else self._id, _CONFIG, self._revision)

    @cached_property
    def _hash(self) -> str:
        return files_hash([self._file, self._config_file, *settings_files(settings_folder(self._tokenizer_id))])

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(str(settings_folder(self._tokenizer_id)), trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"{self._tokenizer_id}: no readable tokenizer ({reason(error)}).") from error

    @cached_property
    def _preprocessor(self) -> Preprocessor:
        size = cast("int", self._model.vision.config.image_size)
        return Preprocessor(short_side=size, crop=(size, size), centre="half_even")

    @cached_property
    def _model(self) -> _Model:
        import torch
        from transformers import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        device = torch_device(self._device)
        source = str(self._file)
        parts = split_weights(read_state(self._file), source)
        vision_config = _vision_config(parts.vision, source)
        vision = BlipVisionModel(vision_config)
        text = BlipTextModel(_text_config(self._config_file, vision_config.hidden_size), add_pooling_layer=False)
        for model, weights in ((vision, parts.vision), (text, parts.text)):
            fill(model, weights, source)
            model.eval().requires_grad_(False)
            torch.nn.Module.to(model, device)
        return _Model(vision, text, collapse(parts.head, source))


def split_weights(state: Mapping[str, torch.Tensor], source: str) -> _Parts:
    """Sort the published checkpoint into vision transformer, text model and head, named as in transformers, float32.

    The two projections that BLIP was pretrained with are left out: the reward does not use them. Raises ModelError for
    a vision weight that is not known.
    """
    parts = _Parts({}, {}, {})
    for key, value in state.items():
        if key.startswith("blip.visual_encoder."):
            parts.vision[_vision_name(key.removeprefix("blip.visual_encoder."), source)] = value.float()
        elif key.startswith("blip.text_encoder."):
            # Named alike in both: transformers' BLIP text model was made from the authors' BERT.
            parts.text[key.removeprefix("blip.text_encoder.")] = value.float()
        elif key.startswith("mlp.layers."):
            parts.head[key.removeprefix("mlp.")] = value.float()
    return parts


def _vision_name(name: str, source: str) -> str:
    if name in _VISION:
        return _VISION[name]
    if name.startswith("blocks."):
        number, _, rest = name.removeprefix("blocks.").partition(".")
        part, _, kind = rest.rpartition(".")
        if part in _VISION_BLOCK:
            return f"encoder.layers.{number}.{_VISION_BLOCK[part]}.{kind}"
    raise ModelError(f"{source}: {name!r} is no weight of BLIP's vision transformer.")


def _vision_config(weights: Mapping[str, torch.Tensor], source: str) -> BlipVisionConfig:
    """Read the architecture off the shapes."""
    from transformers import BlipVisionConfig

    try:
        width, _, patch, _ = weights["embeddings.patch_embedding.weight"].shape
        patches = weights["embeddings.position_embedding"].shape[1] - 1
        inner = weights["encoder.layers.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(f"{source}: not a published ImageReward checkpoint ({error!r}).") from error
    layers = {key.split(".")[2] for key in weights if key.startswith("encoder.layers.")}
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        image_size=patch * round(patches**0.5),
        patch_size=patch,
        hidden_act="gelu",
        # timm's, not transformers' default of 1e-5.
        layer_norm_eps=1e-6,
    )


def _text_config(path: Path, encoder_width: int) -> BlipTextConfig:
    from transformers import BlipTextConfig

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        config = BlipTextConfig(
            vocab_size=int(values["vocab_size"]),
            hidden_size=int(values["hidden_size"]),
            intermediate_size=int(values["intermediate_size"]),
            num_hidden_layers=int(values["num_hidden_layers"]),
            num_attention_heads=int(values["num_attention_heads"]),
            max_position_embeddings=int(values["max_position_embeddings"]),
            layer_norm_eps=float(values["layer_norm_eps"]),
            hidden_act=str(values["hidden_act"]),
            pad_token_id=int(values["pad_token_id"]),
            encoder_hidden_size=encoder_width,
            # Of generation, which is not done here; the defaults are warned about where the vocabulary is smaller.
            bos_token_id=None,
            eos_token_id=None,
            # Gives every layer its cross attention.
            is_decoder=True,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a configuration of BLIP's text model ({error!r}).") from error
    return config
