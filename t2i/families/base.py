"""What the toolkit must know about a family of models: facts as data, and five methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from torch import Tensor, nn

    from t2i.noise import NoiseProcess


@dataclass(frozen=True)
class FamilyFacts:
    """What is true of every checkpoint of a family."""

    name: str
    pipeline_class: str
    """Class of the diffusers pipeline, as `_class_name` in model_index.json."""
    denoiser: str
    """Attribute of the pipeline that holds the denoiser."""
    text_encoders: tuple[str, ...]
    lora_targets: tuple[str, ...]
    """Suffixes of the denoiser's modules that get a LoRA when the recipe names none."""
    text_encoder_lora_targets: tuple[str, ...]
    kohya_prefixes: tuple[tuple[str, str], ...]
    """(component, prefix of its keys in a kohya file)."""


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told about the picture."""

    prompt_embeds: Tensor
    """[B, tokens, width]."""


@dataclass(frozen=True)
class Posterior:
    """The autoencoder's belief about an image's latents, scaled as the denoiser takes them. Both [B, C, h, w]."""

    mean: Tensor
    std: Tensor


class ModelFamily(Protocol):
    """A loaded model of one family. Objectives reach it through the Denoiser protocol only."""

    facts: ClassVar[FamilyFacts]
    pipeline: DiffusionPipeline
    noise: NoiseProcess

    @classmethod
    def load(cls, folder: str, *, dtype: torch.dtype, random_seed: int | None = None) -> ModelFamily:
        """Load a checkpoint; with `random_seed`, build it from its configs alone with fresh keyed weights."""
        ...

    @property
    def denoiser(self) -> nn.Module:
        """The network that is called once per sampling step."""
        ...

    @property
    def pixel_multiple(self) -> int:
        """Width and height of an image must be multiples of this."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts as the family's pipeline does without guidance; gradients flow where they are asked for."""
        ...

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many of the prompts are longer than the text encoder's limit."""
        ...

    def encode_images(self, pixels: Tensor) -> Posterior:
        """pixels: [B, 3, H, W] in [-1, 1]."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Inverse of `encode_images`' mean: pixels [B, 3, H, W], about [-1, 1], not clipped."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output for noisy latents [B, C, h, w] at timesteps [B]; same shape as the latents."""
        ...
