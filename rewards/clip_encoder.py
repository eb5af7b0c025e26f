"""A CLIP model as two functions, images -> embeddings and prompts -> embeddings, for all scorers built on one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, cast

from PIL import Image

from rewards.checkpoints import reason
from rewards.clip_source import ClipSource
from rewards.devices import full_precision, runtime_facts, torch_device
from rewards.errors import InputError, ModelError

if TYPE_CHECKING:
    import torch
    from transformers import CLIPModel, CLIPTextConfig, PreTrainedTokenizerBase, SiglipModel, SiglipTextConfig
    from transformers.modeling_outputs import BaseModelOutputWithPooling


class ClipEncoder:
    """A CLIP or SigLIP model in fp32 and evaluation mode; opened on first use.

    source: its files; device: a torch device; batch_size: images or prompts per forward pass, which changes speed and
    memory only.
    """

    def __init__(self, source: ClipSource, device: str, batch_size: int) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1.")
        self.source = source
        self.device = device
        self.batch_size = batch_size

    @property
    def identity(self) -> tuple[ClipSource, str]:
        """Equal for encoders that give equal embeddings on the same device."""
        return self.source, self.device

    def fingerprint(self) -> dict[str, str]:
        """What an embedding depends on: the files' hash, kind of device and library versions. Opens no model."""
        return self.source.facts() | runtime_facts(self.device)

    @property
    def token_limit(self) -> int:
        """Tokens the text encoder reads, start and end token included (77 for CLIP, 64 for SigLIP)."""
        positions = self._text_config.max_position_embeddings
        return min(positions, self._tokenizer.model_max_length)

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """Number of prompts that are longer than `token_limit`."""
        if not prompts:
            return 0
        encoded = self._tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
        return sum(len(ids) > self.token_limit for ids in encoded)

    def logit_scale(self) -> float:
        """The factor that was learned for the cosine, exp(logit_scale): about 100 for the published models."""
        return float(self.model.logit_scale.exp())

    def logit_bias(self) -> float:
        """SigLIP's learned bias beside the factor. Raises ModelError for a model without one."""
        bias = getattr(self.model, "logit_bias", None)
        if bias is None:
            raise ModelError(f"{self.source.label}: CLIP has no logit_bias; expected a SigLIP model.")
        return float(bias)

    def encode_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """B RGB images -> [B, D] unit vectors, no gradient."""
        import torch

        parts = []
        for start in range(0, len(images), self.batch_size):
            pixels = self.source.preprocessor.from_images(images[start : start + self.batch_size])
            with torch.no_grad():
                parts.append(self._image_features(pixels.to(self.model.device)))
        return torch.cat(parts)

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, D] unit vectors, with gradient to the pixels."""
        if pixels.device != self.model.device:
            raise InputError(f"pixels are on {pixels.device}, the scorer is on {self.model.device}.")
        return self._image_features(self.source.preprocessor.from_tensor(pixels))

    def encode_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """B prompts -> [B, D] unit vectors, no gradient. Too long ones lose their end, but keep the end token.

        The embedding is read at the end token: cutting it off (as some libraries do) changes the score by a third.
        Equal prompts are encoded once.
        """
        import torch

        distinct = list(dict.fromkeys(prompts))
        parts = []
        for start in range(0, len(distinct), self.batch_size):
            ids, mask = self.tokens(distinct[start : start + self.batch_size])
            ids, mask = ids.to(self.model.device), None if mask is None else mask.to(self.model.device)
            with torch.no_grad(), full_precision(self.model.device.type):
                parts.append(_unit(self.model.get_text_features(input_ids=ids, attention_mask=mask)))
        position = {prompt: index for index, prompt in enumerate(distinct)}
        return torch.cat(parts)[[position[prompt] for prompt in prompts]]

    def check_embeddings(self, embeddings: torch.Tensor) -> torch.Tensor:
        """[B, D] embeddings as unit vectors, float32. Raises InputError for another shape or type, or length 0."""
        if embeddings.ndim != 2 or not embeddings.is_floating_point():
            found = f"{embeddings.dtype} of shape {tuple(embeddings.shape)}"
            raise InputError(f"embeddings are {found}; expected float [B, D].")
        lengths = embeddings.float().norm(dim=-1, keepdim=True)
        if not bool((lengths > 0.0).all()):
            raise InputError("an embedding has length 0 or is not a number; expected the output of an image encoder.")
        return embeddings.float() / lengths

    def tokens(self, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token ids [B, T] with their mask, or None where the model reads the padding too; on the CPU."""
        is_siglip = self.source.config.model_type == "siglip"
        inputs = self._tokenizer(
            list(prompts),
            truncation=True,
            max_length=self.token_limit,
            # SigLIP reads its embedding at the last position and was trained on padding, unmasked.
            padding="max_length" if is_siglip else True,
            return_tensors="pt",
        )
        return inputs["input_ids"], None if is_siglip else inputs["attention_mask"]

    def _image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        with full_precision(self.model.device.type):
            return _unit(self.model.get_image_features(pixel_values=pixel_values))

    @property
    def _text_config(self) -> CLIPTextConfig | SiglipTextConfig:
        # read_config has checked that it is there.
        return cast("CLIPTextConfig | SiglipTextConfig", self.source.config.text_config)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.source.folder), trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"{self.source.label}: no readable tokenizer ({reason(error)}).") from error
        if self.source.config.model_type == "clip":
            _check_end_token(self.source.label, self._text_config.eos_token_id, tokenizer)
        return tokenizer

    @cached_property
    def model(self) -> CLIPModel | SiglipModel:
        """The model itself, frozen."""
        import torch

        device = torch_device(self.device)
        model = self.source.load().eval().requires_grad_(False)
        torch.nn.Module.to(model, device)
        return cast("CLIPModel | SiglipModel", model)


def _check_end_token(model_id: str, configured: int | list[int] | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError unless the model will read the embedding where the tokenizer puts the end token.

    The model looks for the configured id, or, when that is the historical value 2, for the highest id of the prompt. If
    it finds neither it reads the start token, and all prompts get one embedding.
    """
    end = tokenizer.eos_token_id
    if configured != end and not (configured == 2 and end == len(tokenizer) - 1):
        raise ModelError(
            f"{model_id}: the config's eos_token_id is {configured}, the tokenizer's {end}; correct the config."
        )


def _unit(output: tuple[object, ...] | BaseModelOutputWithPooling) -> torch.Tensor:
    """Embeddings of a transformers 5 output object, scaled to length 1."""
    vectors = None if isinstance(output, tuple) else output.pooler_output
    if vectors is None:
        raise ModelError("the CLIP model returned no pooled embedding; expected transformers 5 or newer.")
    return vectors / vectors.norm(dim=-1, keepdim=True)
