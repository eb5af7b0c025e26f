"""Denoising: the ordinary diffusion loss, for any prediction type, with its usual variations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from t2i.config import FrozenModel
from t2i.objectives.base import Denoiser, DiffusionBatch, LossOutput
from t2i.objectives.perturbation import channel_draws, example_keys, offset_noise, perturb_conditioning
from t2i.objectives.pseudo_huber import PseudoHuber, pseudo_huber
from t2i.objectives.weighting import Weighting
from t2i.timesteps import TimestepSettings, completed, noise_levels

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.noise import NoiseProcess


def denoising_loss(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error per example in fp32 (Ho et al. 2020, arXiv:2006.11239, eq. 14). [B, ...] each; gives [B].

    mask: see `mean_per_example`.
    """
    return mean_per_example((prediction.float() - target.float()).square(), mask)


def pseudo_huber_loss(prediction: Tensor, target: Tensor, c: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean pseudo-Huber loss per example in fp32. prediction, target: [B, ...]; c: [B]; gives [B]."""
    return mean_per_example(pseudo_huber(prediction.float() - target.float(), c.float()), mask)


def mean_per_example(errors: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over all but the first dimension, [B].

    mask: weight of each position, [B, 1, h, w] for errors [B, C, h, w]. The mean is the weighted one, divided by the
    sum of the weights: an example with a small mask counts as much as a whole one, and a mask of any one value above 0
    changes nothing. An example whose mask is 0 everywhere gives 0.
    """
    if mask is None:
        return errors.flatten(1).mean(1)
    sums = (errors * mask).flatten(1).sum(1)
    count = mask.float().flatten(1).sum(1) * (errors[0].numel() / mask[0].numel())
    return sums / count.clamp(min=1e-6)


@dataclass(frozen=True)
class NoisyLatents:
    """What a denoiser is shown, and what it should answer. All along the batch's first dimension."""

    latents: Tensor
    timesteps: Tensor
    target: Tensor


def noisy_latents(
    noise: NoiseProcess, batch: DiffusionBatch, settings: TimestepSettings | None = None, noise_offset: float = 0.0
) -> NoisyLatents:
    """Put the batch's noise on its latents, at levels drawn as `settings` say, and where they do not, as the noise
    process does."""
    settings = completed(settings, noise.default_timesteps)
    levels = noise_levels(batch.uniform, settings, image_tokens(noise, batch.latents))
    timesteps, eps = noise.timesteps(levels), batch.noise
    if noise_offset:
        eps = offset_noise(eps, channel_draws(example_keys(batch, "noise_offset"), eps), noise_offset)
    target = noise.target(batch.latents, eps, timesteps)
    return NoisyLatents(noise.add_noise(batch.latents, eps, timesteps), timesteps, target)


def image_tokens(noise: NoiseProcess, latents: Tensor) -> float | None:
    """Tokens that a denoiser makes of latents [B, C, h, w]; None where it makes none."""
    return None if noise.patch_size is None else latents.shape[-2] * latents.shape[-1] / noise.patch_size**2


class Denoising(FrozenModel):
    """Learn to undo the noise on captioned images. Each example's loss is weighted, then the mean is taken."""

    needs: ClassVar[str] = "captioned_images"
    needs_reference: ClassVar[bool] = False
    """Whether the untrained model is asked too."""

    type: Literal["denoising"] = "denoising"
    timesteps: TimestepSettings | None = None
    """Which noise levels are trained; whatever is absent as the model was made for: uniform for DDPM, logit-normal with
    the shift of the checkpoint's scheduler for flow."""
    weighting: Weighting | None = None
    """How much each noise level counts; all alike if absent."""
    pseudo_huber: PseudoHuber | None = None
    """Loss that forgives outliers, instead of the squared error."""
    zero_terminal_snr: bool = False
    """Train as if the noise ended in nothing but noise (v_prediction only). Generation must be told, here by
    `sampling.zero_terminal_snr`, and in other tools by `rescale_betas_zero_snr: true`, `timestep_spacing: trailing`,
    which a model that is trained whole is saved with."""
    noise_offset: float = Field(default=0.0, ge=0, le=1)
    """Noise common to a whole channel, for darker and brighter images; 0 is off, 0.05 to 0.1 is usual."""
    embedding_noise: float = Field(default=0.0, ge=0)
    """Condition-embedding perturbation (CEP): length of the noise on each token's embedding; 0 is off, the paper's
    value is 1."""

    def process(self, noise: NoiseProcess) -> NoiseProcess:
        """The noise that is trained with. Raises ConfigError where a setting does not fit the model's noise."""
        if self.zero_terminal_snr:
            from t2i.noise import with_zero_terminal_snr

            noise = with_zero_terminal_snr(noise)
        if self.weighting is not None:
            self.weighting.check(noise, completed(self.timesteps, noise.default_timesteps))
        return noise

    def __call__(self, denoiser: Denoiser, noise: NoiseProcess, batch: DiffusionBatch) -> LossOutput:
        """Per-example loss of one batch, and the same before weights where there are any."""
        noise = self.process(noise)
        noisy = noisy_latents(noise, batch, self.timesteps, self.noise_offset)
        conditioning = denoiser.encode(batch)
        if self.embedding_noise:
            keys = example_keys(batch, "embedding_noise")
            conditioning = perturb_conditioning(conditioning, keys, self.embedding_noise)
        prediction = denoiser(noisy.latents, noisy.timesteps, conditioning)
        return self._weighted(self.errors(noise, prediction, noisy, batch.mask), noise, noisy.timesteps, batch.weights)

    def errors(self, noise: NoiseProcess, prediction: Tensor, noisy: NoisyLatents, mask: Tensor | None) -> Tensor:
        """Error of each example before weights, [B]."""
        if self.pseudo_huber is None:
            return denoising_loss(prediction, noisy.target, mask)
        return pseudo_huber_loss(prediction, noisy.target, self.pseudo_huber.values(noise, noisy.timesteps), mask)

    def _weighted(self, loss: Tensor, noise: NoiseProcess, timesteps: Tensor, weights: Tensor | None) -> LossOutput:
        if self.weighting is None and weights is None:
            return LossOutput(loss)
        metrics = {"unweighted_loss": loss.detach()}
        if self.weighting is not None:
            loss = loss * self.weighting.weights(noise, timesteps)
        return LossOutput(loss if weights is None else loss * weights, metrics)
