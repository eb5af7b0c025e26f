"""Examples for the objectives: everything random about them is drawn here, in the data workers."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from t2i.data.captions import CaptionMix
from t2i.data.encode import Framing, LatentStore, TextStore, join_conditioning, load_pixels
from t2i.data.images import check_sizes
from t2i.data.order import Stream
from t2i.encoder_texts import EncoderPrompt
from t2i.families.base import Conditioning
from t2i.objectives.base import DiffusionBatch, ImageBatch
from t2i.randomness import derive_key, generator
from t2i.records import CaptionedImage


@dataclass(frozen=True)
class Dataset:
    """Records first .. last - 1 and how they are used."""

    first: int
    last: int
    mix: CaptionMix
    repeats: int = 1
    """How often each record comes in a pass over all data, where there is no weight."""
    weight: Fraction | None = None
    """Its share of all examples, relative to the other datasets' weights; all have one or none."""
    loss_weight: float = 1.0


@dataclass(frozen=True)
class DiffusionExample:
    """One place of a batch; the fields are those of `DiffusionBatch`, without its first dimension."""

    latents: Tensor
    noise: Tensor
    uniform: float
    prompt: EncoderPrompt
    key: int
    """Of its step and position alone: seeds draws whose shape only the objective knows."""
    sizes: Tensor | None = None
    conditioning: Conditioning | None = None
    weight: float = 1.0
    mask: Tensor | None = None


@dataclass(frozen=True)
class LatentExamples:
    """Cached latents with a caption, noise and a timestep draw. A record's number leads to all that belongs to it."""

    framing: Framing
    store: LatentStore
    datasets: tuple[Dataset, ...]
    """In the order of the records, without gaps."""
    seed: int
    texts: TextStore | None = None
    """The encoded captions, where they are cached."""
    takes_sizes: bool = False
    """Whether batches carry the sizes of the image and its crop."""

    def __len__(self) -> int:
        return len(self.framing.records)

    def describe(self, record: int) -> str:
        """Path of the image."""
        return self.framing.records[record].image

    def streams(self) -> list[Stream]:
        """One for the records of each dataset in each bucket.

        With weights w, a dataset of n of all N images comes w / sum(w) * N / n times in a pass over all data, so that
        a pass keeps its length.
        """
        plan = self.framing.plan
        passes = self._passes()
        found = [
            Stream(plan.records_of(bucket, dataset.first, dataset.last), bucket, often)
            for bucket in range(len(plan.sizes))
            for dataset, often in zip(self.datasets, passes, strict=True)
        ]
        return [stream for stream in found if len(stream.records)]

    def _passes(self) -> list[Fraction]:
        weights = [dataset.weight for dataset in self.datasets if dataset.weight is not None]
        if not weights:
            return [Fraction(dataset.repeats) for dataset in self.datasets]
        kept = [int((self.framing.plan.of_record[d.first : d.last] >= 0).sum()) for d in self.datasets]
        return [w / sum(weights) * sum(kept) / count for w, count in zip(weights, kept, strict=True)]

    def example(self, record: int, step: int, position: int) -> DiffusionExample:
        """The example for one place in one step: always the same for the same arguments."""
        row, dataset = self.framing.records[record], self._dataset_of(record)
        number = self.framing.views.draw(row, self.seed, step, position)
        found = self.store.read(record, number)
        latents = found.mean
        if found.std is not None:
            latents = latents + found.std * normal(self.seed, "posterior", step, position, shape=latents.shape)
        prompt = dataset.mix.draw(row, self.seed, step, position)
        sizes = self.framing.view(record, number, row).conditions if self.takes_sizes else None
        return DiffusionExample(
            latents,
            normal(self.seed, "noise", step, position, shape=latents.shape),
            generator(self.seed, "timestep", step, position).random(),
            prompt,
            derive_key(self.seed, "objective", step, position),
            None if sizes is None else torch.tensor(sizes, dtype=torch.float32),
            self.texts.read(prompt) if self.texts else None,
            dataset.loss_weight,
            found.mask,
        )

    def _dataset_of(self, record: int) -> Dataset:
        return self.datasets[self.dataset_number(record)]

    def dataset_number(self, record: int) -> int:
        """Number of the dataset that a record is of."""
        return bisect.bisect_right(self.datasets, record, key=lambda dataset: dataset.first) - 1

    def collate(self, examples: Sequence[DiffusionExample]) -> DiffusionBatch:
        """Stack examples into a batch."""
        weighted = any(dataset.loss_weight != 1 for dataset in self.datasets)
        return DiffusionBatch(
            latents=torch.stack([example.latents for example in examples]),
            noise=torch.stack([example.noise for example in examples]),
            uniform=torch.tensor([example.uniform for example in examples]).float(),
            prompts=tuple(example.prompt for example in examples),
            sizes=_stacked([example.sizes for example in examples]),
            conditioning=_joined([example.conditioning for example in examples]),
            weights=torch.tensor([example.weight for example in examples]) if weighted else None,
            mask=_stacked([example.mask for example in examples]),
            keys=tuple(example.key for example in examples),
        )


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None


def _joined(rows: Sequence[Conditioning | None]) -> Conditioning | None:
    present = [row for row in rows if row is not None]
    return join_conditioning(present) if present else None


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

    def streams(self) -> list[Stream]:
        """All records in turn."""
        return [Stream(range(len(self.records)))]

    def example(self, record: int, step: int, position: int) -> tuple[Tensor, Tensor, str, dict[str, np.ndarray]]:
        """(pixels, noise, caption, labels)."""
        row = self.records[record]
        noise = normal(self.seed, "noise", step, position, shape=self.noise_shape)
        caption = self.mix.draw_one(row, self.seed, step, position) if self.mix else ""
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
