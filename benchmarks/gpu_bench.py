"""A family at full size, ready to be trained by the toolkit's loop, and what is measured of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from published import PUBLISHED
from random_models import build_family, write_images
from timing import Spread, TimedBatches
from torch import Tensor, nn

from t2i.data.batches import KeyedBatches
from t2i.data.captions import CaptionMix
from t2i.data.settings import CacheSettings
from t2i.objectives import Denoising
from t2i.sampling import Sampler, SamplingSettings
from t2i.training.loop import fit
from t2i.training.settings import LoopSettings, LoraSettings, OptimizerSettings, SpeedSettings
from t2i.training.speed import apply_speed
from t2i.training.tasks import DiffusionTask, TaskSettings

BATCH = {"sd1": 16, "sdxl": 4, "pixart": 4, "sd3": 2, "flux": 1}
CHECKPOINTED = ("flux",)
"""Families whose activations do not fit beside the model: gradient checkpointing is on from the start."""
TOLERANCE = 0.05
"""Largest relative L2 difference of a variant's gradient or prediction from the plain one's, both computed in bf16."""
OPTIMIZER = OptimizerSettings(learning_rate=1e-4)
RANK = 16
SEED = 11


@dataclass
class Bench:
    """A family and its training task."""

    name: str
    device: torch.device
    folder: Path
    reduced: bool
    deadline: float = float("inf")
    """On the clock of `time.monotonic`."""
    batch_size: int = 0
    clock: Callable[[], float] = time.perf_counter
    """Where the host computes: `time.process_time` if others compute on it too."""
    results: dict[str, Any] = field(default_factory=dict)
    """What each phase found."""
    trained: dict[str, Tensor] = field(default_factory=dict)
    """The adapter after training."""
    batch: Any = None
    """What variants are compared on."""
    flops: float = 0.0
    """Of a training step."""
    rate: float = 0.0
    """FLOP/s of a matrix product."""

    def build(self) -> None:
        """The model in bf16 on its device, and its task with all images and captions encoded."""
        published = PUBLISHED[self.name].reduced(self.name) if self.reduced else PUBLISHED[self.name]
        self.batch_size = self.batch_size or (2 if self.reduced else BATCH[self.name])
        self.size_px = published.size_px
        self.family: Any = build_family(self.name, self.device, dtype=torch.bfloat16, reduced=self.reduced)
        self.records = write_images(self.folder / "images", max(8, self.batch_size), self.size_px)
        self.task = DiffusionTask(self._settings(), Denoising(), self.family)
        self.module.to(self.device)
        self.set_checkpointing(self.checkpointed)
        self.fresh = self.weights()

    @property
    def module(self) -> nn.Module:
        """What the loop calls: batch -> LossOutput."""
        return self.task.trainable.module

    @property
    def checkpointed(self) -> bool:
        """Whether gradient checkpointing is on from the start."""
        return self.name in CHECKPOINTED

    def set_checkpointing(self, kind: bool | Literal["selective"]) -> None:
        """Gradient checkpointing as a recipe sets it, or off again."""
        self.family.denoiser.disable_gradient_checkpointing()
        apply_speed(self.family, SpeedSettings(gradient_checkpointing=kind))

    def _settings(self) -> TaskSettings:
        return TaskSettings(
            model="",
            revision=None,
            random_seed=None,
            trained=LoraSettings(rank=RANK, base_bits=16),
            mix=CaptionMix({"caption": 1.0}, 0.1),
            resolution=self.size_px,
            posterior="sample",
            records=self.records,
            seed=SEED,
            folder=self.folder,
            encode_batch_size=4,
            cache=CacheSettings(text=True),
            batch_size=self.batch_size,
        )

    def fit(self, folder: Path, steps: int, *, every: int = 10**6) -> list[float]:
        """Train by the toolkit's loop, from a fresh adapter; seconds of every step but the last."""
        timed = TimedBatches(self.batches(), self.device, self.clock)
        self.fit_on(timed, folder, steps, every)
        return timed.marks.seconds()

    def fit_on(self, batches: Any, folder: Path, steps: int, every: int) -> None:
        """As `fit`, on a source of batches. every: steps between checkpoints and between lines of metrics."""
        folder.mkdir(parents=True, exist_ok=True)
        # The loop refuses to begin with an adapter that was trained.
        for name, value in self.task.trainable.parameters().items():
            value.data.copy_(self.fresh[name])
        loop = LoopSettings(
            steps=steps, batch_size=self.batch_size, precision="bf16", checkpoint_every=every, log_every=every
        )
        fit(self.task.trainable, batches, loop, OPTIMIZER, folder, seed=SEED)

    def batches(self) -> KeyedBatches:
        """The source of batches."""
        share = self.batch_size // PartialState().num_processes
        return KeyedBatches(self.task.examples, SEED, self.batch_size, share)

    def first_batch(self) -> Any:
        """The batch of step 0, on the device."""
        return next(self.batches().micro_batches(0, 1, 0, 1)).to(self.device)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the adapter."""
        return {name: value.detach().clone() for name, value in self.task.trainable.parameters().items()}

    def train_adapters_only(self) -> None:
        """Reloading a file leaves other parameters than training began with."""
        for name, value in self.family.denoiser.named_parameters():
            value.requires_grad_(".lora_" in name)

    def autocast(self) -> Any:
        """As the loop computes."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def gradients(self, batch: Any) -> tuple[float, dict[str, Tensor]]:
        """Mean loss of a batch and gradients of the adapter, by the module that is trained."""
        parameters = {name: value for name, value in self.module.named_parameters() if value.requires_grad}
        with self.autocast():
            loss = self.module(batch).loss.mean()
        found = torch.autograd.grad(loss, list(parameters.values()))
        return float(loss.detach()), dict(zip(parameters, found, strict=True))

    @torch.no_grad()
    def prediction(self, batch: Any, conditioning: Any = None) -> Tensor:
        """The denoiser's answer to the batch's latents, float32."""
        conditioning = conditioning or batch.conditioning.with_sizes(batch.sizes)
        timesteps = self.family.noise.timesteps(batch.uniform)
        with self.autocast():
            return self.family.predict(batch.latents, timesteps, conditioning).float()

    def image(self) -> Any:
        """One picture of four steps by the family's own pipeline."""
        settings = SamplingSettings(steps=4, guidance_scale=3.5, width=self.size_px, height=self.size_px)
        sampler = Sampler(self.family.pipeline, settings, self.family.sampling_options)
        with torch.no_grad():
            return sampler.generate(["a brown dog on a beach"], [5])[0]

    def speed(self, seconds: list[float]) -> dict[str, Any]:
        """Median, spread and images per second of the given steps."""
        spread = Spread.of(seconds)
        return {
            "step_s": spread.median,
            "step_low_s": spread.low,
            "step_high_s": spread.high,
            "images_per_s": self.batch_size / spread.median,
        }

    def reset_peak(self) -> None:
        """Forget the largest memory so far."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """Largest memory of tensors on the device since; None on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None


class Guarded:
    """Batches; from the third step on, whatever makes the host wait for the device raises an error."""

    def __init__(self, batches: KeyedBatches) -> None:
        self.batches = batches

    def micro_batches(self, first_step: int, last_step: int, rank: int, world_size: int) -> Iterator[Any]:
        for step, batch in enumerate(self.batches.micro_batches(first_step, last_step, rank, world_size)):
            # The last step ends with a checkpoint, which waits.
            torch.cuda.set_sync_debug_mode("error" if 2 <= step < last_step - 1 else "default")
            yield batch

    def describe(self, step: int) -> str:
        return self.batches.describe(step)


def quarter(batch: Any) -> Any:
    """The same images, half as wide and high."""
    height, width = batch.latents.shape[-2] // 2, batch.latents.shape[-1] // 2
    cut = {name: getattr(batch, name)[..., :height, :width] for name in ("latents", "noise")}
    return replace(batch, **cut)


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Relative L2 difference over all tensors of a name."""
    if first.keys() != second.keys():
        raise ValueError(f"other tensors: {sorted(first.keys() ^ second.keys())[:3]}")
    gap = sum(float((first[name].double() - value.double()).square().sum()) for name, value in second.items())
    return (gap / sum(float(value.double().square().sum()) for value in second.values())) ** 0.5


def relative(first: Tensor, second: Tensor) -> float:
    """Relative L2 difference."""
    return float((first.double() - second.double()).norm() / second.double().norm())
