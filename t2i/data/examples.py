"""Examples for the objectives: everything random about them is drawn here, in the data workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from t2i.data.captions import CaptionMix
from t2i.data.encode import LatentStore, load_pixels
from t2i.data.images import check_sizes
from t2i.objectives.base import DiffusionBatch, ImageBatch
from t2i.randomness import generator
from t2i.records import CaptionedImage


@dataclass(frozen=True)
class LatentExamples:
    """Cached latents with a caption, noise and a timestep draw."""

    records: Sequence[CaptionedImage]
    store: LatentStore
    mix: CaptionMix
    seed: int
    posterior: Literal["sample", "mode"] = "sample"

    def __len__(self) -> int:
        return len(self.records)

    def describe(self, record: int) -> str:
        """Path of the image."""
        return self.records[record].image

    def example(self, record: int, step: int, position: int) -> tuple[Tensor, Tensor, float, str]:
        """(latents, noise, uniform draw, caption)."""
        mean, std = self.store[record]
        if self.posterior == "sample":
            mean = mean + std * normal(self.seed, "posterior", step, position, shape=mean.shape)
        noise = normal(self.seed, "noise", step, position, shape=mean.shape)
        uniform = generator(self.seed, "timestep", step, position).random()
        return mean, noise, uniform, self.mix.draw(self.records[record], self.seed, step, position)

    def collate(self, examples: Sequence[tuple[Tensor, Tensor, float, str]]) -> DiffusionBatch:
        """Stack examples into a batch."""
        latents, noise, uniform, prompts = zip(*examples, strict=True)
        return DiffusionBatch(torch.stack(latents), torch.stack(noise), torch.tensor(uniform).float(), tuple(prompts))


@dataclass(frozen=True)
class ImageExamples:
    """Whole images with a caption, a normal draw, and labels where the task has some."""

    records: Sequence[CaptionedImage]
    resolution: int
    seed: int
    noise_shape: tuple[int, ...] = ()
    mix: CaptionMix | None = None
    labels: Callable[[CaptionedImage], dict[str, np.ndarray]] | None = None

    def __post_init__(self) -> None:
        check_sizes(self.records, self.resolution)

    def __len__(self) -> int:
        return len(self.records)

    def describe(self, record: int) -> str:
        """Path of the image."""
        return self.records[record].image

    def example(self, record: int, step: int, position: int) -> tuple[Tensor, Tensor, str, dict[str, np.ndarray]]:
        """(pixels, noise, caption, labels)."""
        row = self.records[record]
        noise = normal(self.seed, "noise", step, position, shape=self.noise_shape)
        caption = self.mix.draw(row, self.seed, step, position) if self.mix else ""
        labels = self.labels(row) if self.labels else {}
        return load_pixels(row, self.resolution), noise, caption, labels

    def collate(self, examples: Sequence[tuple[Tensor, Tensor, str, dict[str, np.ndarray]]]) -> ImageBatch:
        """Stack examples into a batch."""
        pixels, noise, prompts, labels = zip(*examples, strict=True)
        stacked = {name: torch.from_numpy(np.stack([row[name] for row in labels])) for name in labels[0]}
        return ImageBatch(torch.stack(pixels), torch.stack(noise), tuple(prompts), stacked)


def normal(seed: int, purpose: str, step: int, position: int, *, shape: Sequence[int]) -> Tensor:
    """Standard normal draw for one place in one step, float32."""
    draw = generator(seed, purpose, step, position).standard_normal(tuple(shape), dtype=np.float32)
    return torch.from_numpy(np.asarray(draw))
