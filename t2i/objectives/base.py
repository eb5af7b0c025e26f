"""What an objective sees and returns. Objectives know neither families nor the loop."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class LossOutput:
    """loss: per-example losses, [B]; the loop takes their mean over the global batch. metrics: name -> [B], logged."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Denoiser(Protocol):
    """A denoiser with whatever adapters it carries."""

    def encode(self, prompts: Sequence[str]) -> Any:
        """Conditioning of the prompts; opaque to objectives."""
        ...

    def __call__(self, noisy: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        """Prediction for noisy latents [B, C, h, w] at timesteps [B]."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """The same model without its adapters and without gradients, for the length of the block."""
        ...


@dataclass(frozen=True)
class DiffusionBatch:
    """Captioned images ready for a denoising step; every random draw is already in it."""

    latents: Tensor
    """[B, C, h, w], scaled."""
    noise: Tensor
    """[B, C, h, w], standard normal."""
    uniform: Tensor
    """[B] in [0, 1), from which the noise process takes timesteps."""
    prompts: tuple[str, ...]

    def to(self, device: torch.device) -> DiffusionBatch:
        """The same batch with its tensors on a device."""
        return DiffusionBatch(
            self.latents.to(device, non_blocking=True),
            self.noise.to(device, non_blocking=True),
            self.uniform.to(device, non_blocking=True),
            self.prompts,
        )


@dataclass(frozen=True)
class ImageBatch:
    """Images with a caption or labels, for autoencoders, contrastive models and readers."""

    pixels: Tensor
    """[B, 3, H, W] in [-1, 1]."""
    noise: Tensor
    """Standard normal draws; their use is the objective's, [B, ...]."""
    prompts: tuple[str, ...]
    labels: dict[str, Tensor] = field(default_factory=dict)
    """Named integer targets, when the data has any."""

    def to(self, device: torch.device) -> ImageBatch:
        """The same batch with its tensors on a device."""
        labels = {name: label.to(device, non_blocking=True) for name, label in self.labels.items()}
        return ImageBatch(
            self.pixels.to(device, non_blocking=True), self.noise.to(device, non_blocking=True), self.prompts, labels
        )
