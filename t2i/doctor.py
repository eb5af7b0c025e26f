"""A numerical self-check on this machine and with this model, before a long run: what must hold of preference training.

Each check has a known answer, worked out in the tests on tiny models; here it is asked of the user's own weights,
device and libraries. The size of the images is reduced so that all takes less than a minute besides loading.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from t2i import devices
from t2i.families.loading import load_family
from t2i.objectives import DiffusionDPO
from t2i.objectives.denoising import denoising_loss, noisy_latents
from t2i.objectives.pairs import PairBatch
from t2i.randomness import derive_key, deterministic_kernels
from t2i.resources import resolve_path
from t2i.training.diffusion import DiffusionModule, diffusion_trainable
from t2i.training.loop import Trainable, fit
from t2i.training.settings import LoopSettings, LoraSettings, OptimizerSettings

if TYPE_CHECKING:
    from t2i.families.base import ModelFamily

BETA = 2000.0
PROMPTS = ("a photo of a cat", "a red cup on a table")
LARGEST_SIDE_PX = 256
PERTURBATION = 0.02
"""Deviation of what is added to the adapter to stand for training."""


@dataclass(frozen=True)
class Check:
    """One question with a known answer. error: how far the answer is from it; limit: how far it may be."""

    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the answer is near enough; NaN is not."""
        return self.error <= self.limit


def examine(model: str, revision: str | None = None) -> Iterator[Check]:
    """All checks on one model, each when it is done, on the GPU if there is one.

    Raises ModelError for a model that cannot be loaded, RunError for one whose loss is not finite and for an operation
    without a deterministic kernel.
    """
    local = resolve_path(model)
    family = load_family(str(local) if local.exists() else model, revision=revision)
    # As a train stage: other kernels need not give the same bits twice, and cuBLAS asks when the device is first used.
    with deterministic_kernels(strict=True):
        family.pipeline.to(devices.compute_device())
        patient = Patient(family)
        yield patient.starts_at_log_two()
        yield patient.first_gradient()
        yield patient.reference_is_the_model()
        yield patient.swapped_labels()
        yield patient.precision_of_the_logit()
        yield patient.resumes_to_the_same_bits()


class Patient:
    """A model with a fresh adapter, and two pairs of random latents."""

    def __init__(self, family: ModelFamily) -> None:
        self.device = next(family.denoiser.parameters()).device
        self.batch = _pairs(family).to(self.device)
        self.before = self._predict_plainly(family)
        trainable, _ = diffusion_trainable(family, DiffusionDPO(beta=BETA), LoraSettings(rank=4), seed=0)
        self.trainable: Trainable = trainable
        self.module: DiffusionModule = trainable.module  # type: ignore[assignment]
        self.parameters = trainable.parameters()
        self.fresh = {name: value.detach().clone() for name, value in self.parameters.items()}
        half = next(family.denoiser.parameters()).dtype != torch.float32
        self.tolerance = 5e-2 if half else 1e-3

    @torch.no_grad()
    def _predict_plainly(self, family: ModelFamily) -> Tensor:
        """What the model says before it has an adapter."""
        noisy = self.batch.noisy(family.noise, None)
        conditioning = family.encode_prompts(self.batch.prompts * 2).with_sizes(_twice(self.batch.sizes))
        return family.predict(noisy.latents, noisy.timesteps, conditioning)

    def starts_at_log_two(self) -> Check:
        """A fresh adapter changes nothing, so that no pair is preferred."""
        loss = self.module(self.batch).loss.detach()
        return Check("loss is log 2 before the first step", float((loss - math.log(2)).abs().max()), 1e-7)

    def first_gradient(self) -> Check:
        """Of the loss, against beta/4 (gradient on the chosen - gradient on the rejected)."""
        found = self._gradient(self.module(self.batch).loss.sum())
        chosen, rejected = (self._plain_errors(side) for side in (self.batch.chosen, self.batch.rejected))
        expected = self._gradient(BETA / 4 * (chosen - rejected).sum())
        error = float((found - expected).norm() / expected.norm())
        return Check("first gradient is beta/4 (chosen - rejected)", error, self.tolerance)

    def reference_is_the_model(self) -> Check:
        """The adapter, changed as if by training and switched off, leaves what the model said without one."""
        self._disturb()
        noisy = self.batch.noisy(self.module.noise, None)
        denoiser = self.module.denoiser
        with denoiser.reference():
            both = replace(self.batch.of_chosen(), prompts=self.batch.prompts * 2, sizes=_twice(self.batch.sizes))
            found = denoiser(noisy.latents, noisy.timesteps, denoiser.encode(both))
        return Check("adapter switched off is the model", float((found - self.before).abs().max()), 0.0)

    def swapped_labels(self) -> Check:
        """The logit of each pair, against that of the pair with its images swapped."""
        straight = self.module(self.batch).metrics["logit"]
        swapped = replace(self.batch, chosen=self.batch.rejected, rejected=self.batch.chosen)
        flipped = self.module(swapped).metrics["logit"]
        error = float(((straight + flipped).abs() / straight.abs().clamp(min=1e-3)).max())
        return Check("swapped labels flip the sign of the logit", error, self.tolerance)

    @torch.no_grad()
    def precision_of_the_logit(self) -> Check:
        """The logit in fp32 against fp64, both from the same predictions; bf16 is off by about 0.3 at full size."""
        noisy = self.batch.noisy(self.module.noise, None)
        denoiser = self.module.denoiser
        conditioning = denoiser.encode(self.batch.of_chosen()).map(_twice)
        with denoiser.reference():
            reference = denoiser(noisy.latents, noisy.timesteps, conditioning)
        policy = denoiser(noisy.latents, noisy.timesteps, conditioning)
        single, double = (
            _logit(policy.to(kind), reference.to(kind), noisy.target.to(kind))
            for kind in (torch.float32, torch.float64)
        )
        return Check("logit in fp32 is that in fp64", float((single - double).abs().max()), 0.02)

    def resumes_to_the_same_bits(self) -> Check:
        """Four steps against two, a checkpoint, and two more."""
        with tempfile.TemporaryDirectory() as folder:
            whole = self._train(Path(folder, "whole"), (4,))
            parts = self._train(Path(folder, "parts"), (2, 4))
        error = max(float((whole[name] - parts[name]).abs().max()) for name in whole)
        return Check("a resumed run ends in the same bits", error, 0.0)

    def _train(self, folder: Path, ends: tuple[int, ...]) -> dict[str, Tensor]:
        folder.mkdir()
        self._restore()
        for steps in ends:
            loop = LoopSettings(steps=steps, batch_size=len(PROMPTS), checkpoint_every=2)
            optimizer = OptimizerSettings(learning_rate=1e-4)
            fit(self.trainable, _SamePairs(self.batch), loop, optimizer, folder, seed=0)
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    def _restore(self) -> None:
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(self.fresh[name])

    def _disturb(self) -> None:
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for value in self.parameters.values():
                value.add_((PERTURBATION * torch.randn(value.shape, generator=draw)).to(value.device))

    def _gradient(self, loss: Tensor) -> Tensor:
        found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        return torch.cat([value.float().flatten() for value in found if value is not None])

    def _plain_errors(self, latents: Tensor) -> Tensor:
        alone = replace(self.batch, chosen=latents).of_chosen()
        noisy = noisy_latents(self.module.noise, alone)
        denoiser = self.module.denoiser
        return denoising_loss(denoiser(noisy.latents, noisy.timesteps, denoiser.encode(alone)), noisy.target)


@dataclass(frozen=True)
class _SamePairs:
    """The same batch at every step."""

    batch: PairBatch

    def micro_batches(self, first_step: int, last_step: int, rank: int, world_size: int) -> Iterator[PairBatch]:
        return iter([self.batch] * (last_step - first_step))

    def describe(self, step: int) -> str:
        return "random latents"


def _pairs(family: ModelFamily) -> PairBatch:
    side = min(family.default_size, LARGEST_SIDE_PX)
    side -= side % family.pixel_multiple
    device, dtype = next(family.denoiser.parameters()).device, next(family.denoiser.parameters()).dtype
    with torch.no_grad():
        shape = family.encode_images(torch.zeros(1, 3, side, side, device=device)).mean.shape[1:]
    draw = torch.Generator().manual_seed(derive_key(0, "doctor") % 2**63)
    chosen, rejected, noise = torch.randn(3, len(PROMPTS), *shape, generator=draw).to(dtype)
    sizes = torch.tensor([[side, side, 0, 0, side, side]] * len(PROMPTS), dtype=torch.float32)
    takes_sizes = family.facts.takes_sizes
    return PairBatch(chosen, rejected, noise, torch.tensor([0.3, 0.7]), PROMPTS, sizes if takes_sizes else None)


def _logit(policy: Tensor, reference: Tensor, target: Tensor) -> Tensor:
    """Beta times the half margin, in the dtype of what is given; chosen first, then rejected."""
    gains = (reference - target).square().flatten(1).mean(1) - (policy - target).square().flatten(1).mean(1)
    chosen, rejected = gains.chunk(2)
    return BETA / 2 * (chosen - rejected)


def _twice(tensor: Any) -> Any:
    return None if tensor is None else torch.cat([tensor, tensor])
