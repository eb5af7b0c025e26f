"""What an objective sees and returns. Objectives know neither families nor the loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from t2i.encoder_texts import EncoderPrompt


@dataclass(frozen=True)
class LossOutput:
    """loss: per-example losses, [B]; the loop takes their mean over the global batch. metrics: name -> [B], logged."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Denoiser(Protocol):
    """A denoiser with whatever adapters it carries."""

    @property
    def trains_text(self) -> bool:
        """Whether text encoders are trained, so that `encode` gives something else inside `reference()`."""
        ...

    def encode(self, batch: DiffusionBatch) -> Any:
        """Conditioning of the batch's prompts and sizes, cached or computed; opaque to objectives."""
        ...

    def __call__(self, noisy: Tensor, timesteps: Tensor, conditioning: Any) -> Tensor:
        """Prediction for noisy latents [B, C, h, w] at timesteps [B]."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """The model as it was before training, and without gradients, for the length of the block."""
        ...


@dataclass(frozen=True)
class DiffusionBatch:
    """Captioned images ready for a denoising step; every random draw is already in it."""

    latents: Tensor
    """[B, C, h, w], scaled."""
    noise: Tensor
    """[B, C, h, w], standard normal."""
    uniform: Tensor
    """[B] in [0, 1), from which timesteps are taken."""
    prompts: tuple[EncoderPrompt, ...]
    sizes: Tensor | None = None
    """Original height and width, top and left of the crop in the resized image, height and width of the crop, all in
    pixels, float32 [B, 6]; None where the family takes no sizes."""
    conditioning: Any = None
    """The encoded prompts, where they are cached: a `Conditioning` without sizes."""
    weights: Tensor | None = None
    """Weight of each example's loss, [B]; None means 1."""
    mask: Tensor | None = None
    """Weight of each latent position in the loss, [B, 1, h, w] in [0, 1]; None means 1."""
    keys: tuple[int, ...] | None = None
    """One integer per example, of its step and position alone: what `t2i.randomness.generator` is seeded with for draws
    whose shape only the objective knows (noise offset, noise on the embeddings)."""

    def to(self, device: torch.device) -> DiffusionBatch:
        """The same batch with its tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> DiffusionBatch:
        """The same batch in memory that a device reads while the host goes on; DataLoader calls this by its name."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> DiffusionBatch:
        return DiffusionBatch(**{field.name: changed(getattr(self, field.name), change) for field in fields(self)})


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A tensor, or what is made of tensors, changed; anything else as it is."""
    if hasattr(value, "pin_memory"):
        return change(value)
    return value.map(change) if hasattr(value, "map") else value


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
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> ImageBatch:
        """As `DiffusionBatch.pin_memory`."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> ImageBatch:
        labels = {name: change(label) for name, label in self.labels.items()}
        return ImageBatch(change(self.pixels), change(self.noise), self.prompts, labels)
