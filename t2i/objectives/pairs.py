"""Two images of one prompt, of which one was preferred: what preference objectives see, and the errors they compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from t2i.objectives.base import Denoiser, DiffusionBatch, changed
from t2i.objectives.denoising import NoisyLatents, denoising_loss, noisy_latents

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from t2i.encoder_texts import EncoderPrompt
    from t2i.noise import NoiseProcess
    from t2i.timesteps import TimestepSettings


@dataclass(frozen=True)
class PairBatch:
    """Preference pairs ready for a denoising step. There is one noise, timestep and prompt for both of a pair.

    That is what makes the comparison sharp: independent draws would bury the difference of two images.
    """

    chosen: Tensor
    """Latents of the preferred images, [B, C, h, w], scaled."""
    rejected: Tensor
    """Latents of the others, [B, C, h, w]."""
    noise: Tensor
    """[B, C, h, w], standard normal."""
    uniform: Tensor
    """[B] in [0, 1), from which timesteps are taken."""
    prompts: tuple[EncoderPrompt, ...]
    sizes: Tensor | None = None
    """As in `DiffusionBatch`, [B, 6]; the two images of a pair are of one size and cut alike."""
    conditioning: Any = None
    """The encoded prompts, where they are cached."""
    keys: tuple[int, ...] | None = None
    """As in `DiffusionBatch`."""
    preference: Tensor | None = None
    """[B], the share of votes for the chosen, above 0.5; all of them if absent."""

    @classmethod
    def of_one_image(cls, batch: DiffusionBatch) -> PairBatch:
        """Each image of a batch over itself: nothing to learn from, but of the shape that pairs have."""
        shared = batch.noise, batch.uniform, batch.prompts, batch.sizes, batch.conditioning, batch.keys
        return cls(batch.latents, batch.latents, *shared)

    def to(self, device: torch.device) -> PairBatch:
        """The same batch with its tensors on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PairBatch:
        """The same batch in memory that a device reads while the host goes on; DataLoader calls this by its name."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> PairBatch:
        return PairBatch(**{field.name: changed(getattr(self, field.name), change) for field in fields(self)})

    def of_chosen(self) -> DiffusionBatch:
        """The preferred images alone, as captioned images."""
        return DiffusionBatch(
            self.chosen, self.noise, self.uniform, self.prompts, self.sizes, self.conditioning, keys=self.keys
        )

    def noisy(self, noise: NoiseProcess, timesteps: TimestepSettings | None) -> NoisyLatents:
        """All chosen, then all rejected, with the same noise at the same levels: [2B, ...]."""
        import torch

        latents = torch.cat([self.chosen, self.rejected])
        both = DiffusionBatch(latents, _twice(self.noise), _twice(self.uniform), self.prompts * 2)
        return noisy_latents(noise, both, timesteps)


@dataclass(frozen=True)
class PairErrors:
    """Mean squared errors in fp32 under the same noise and timestep, [B] each."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    """Of the model as it was before training."""
    reference_rejected: Tensor

    @property
    def chosen_gain(self) -> Tensor:
        """How much less the model errs on the chosen than its reference, [B]."""
        return self.reference_chosen - self.chosen

    @property
    def rejected_gain(self) -> Tensor:
        """The same for the rejected."""
        return self.reference_rejected - self.rejected

    @property
    def half_margin(self) -> Tensor:
        """Half of by how much the gain on the chosen exceeds that on the rejected, [B].

        Beta multiplies it. Each gain is a difference of nearly equal numbers, hence exact in floating point; the
        margin of the policy minus that of the reference would not be.
        """
        return 0.5 * (self.chosen_gain - self.rejected_gain)


def paired_errors(
    denoiser: Denoiser, noise: NoiseProcess, batch: PairBatch, timesteps: TimestepSettings | None = None
) -> PairErrors:
    """Errors of the policy and of its reference, in one forward pass of 2B images each; the reference's comes first.

    Both passes have the same shape, so that a fresh adapter gives the reference's errors bit for bit. The prompts go
    through the text encoders once, unless those are trained.
    """
    noisy = batch.noisy(noise, timesteps)
    with denoiser.reference():
        conditioning = _encode(denoiser, batch)
        reference = _errors(denoiser, noisy, conditioning).chunk(2)
    if denoiser.trains_text:
        conditioning = _encode(denoiser, batch)
    policy = _errors(denoiser, noisy, conditioning).chunk(2)
    return PairErrors(policy[0], policy[1], reference[0], reference[1])


def _errors(denoiser: Denoiser, noisy: NoisyLatents, conditioning: Any) -> Tensor:
    return denoising_loss(denoiser(noisy.latents, noisy.timesteps, conditioning), noisy.target)


def _encode(denoiser: Denoiser, batch: PairBatch) -> Any:
    """The conditioning of the prompts, twice over."""
    return denoiser.encode(batch.of_chosen()).map(_twice)


def _twice(tensor: Tensor) -> Tensor:
    import torch

    return torch.cat([tensor, tensor])
