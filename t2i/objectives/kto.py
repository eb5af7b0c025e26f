"""Diffusion-KTO: each image is good or bad by itself, and the loss flattens for what is far from the average."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from t2i.config import FrozenModel
from t2i.objectives.base import Denoiser, LossOutput
from t2i.objectives.beta import BetaFrom, check_one_beta, resolve_beta
from t2i.objectives.diffusion_dpo import pair_metrics
from t2i.objectives.pairs import PairBatch, paired_errors
from t2i.timesteps import TimestepSettings

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.noise import NoiseProcess


def kto_loss(reward: Tensor, reference_point: Tensor | float, sign: int, weight: float = 1.0) -> Tensor:
    """weight (1 - sigmoid(sign (reward - reference point))), [B] (Li et al. 2024, arXiv:2404.04465, equation 10).

    reward: beta/2 times the gain over the reference, [B]; sign: +1 for liked, -1 for disliked images. Half the weight
    where policy and reference agree. The paper's beta multiplies the whole gain: its 1000 is 2000 here.
    """
    import torch

    return weight * (1 - torch.sigmoid(sign * (reward - reference_point)))


def kl_reference_point(rewards: Tensor) -> Tensor:
    """Mean reward of a batch, at least 0, without a gradient: the estimate of beta times the KL divergence, scalar."""
    return rewards.detach().mean().clamp(min=0)


class DiffusionKTO(FrozenModel):
    """Learn from liked and disliked images: of a pair, the chosen is liked and the rejected disliked, whatever share of
    the votes it got."""

    needs: ClassVar[str] = "preference_pairs"
    needs_reference: ClassVar[bool] = True

    type: Literal["diffusion_kto"] = "diffusion_kto"
    beta: float | None = Field(default=None, gt=0)
    """Pull to the reference: it multiplies half the gain in mean squared error; 2000 is the paper's 1000."""
    beta_from: BetaFrom | None = None
    """Another tool's value instead, which is converted: `{tool: diffusion_kto, value: 1000}`."""
    liked_weight: float = Field(default=1.0, ge=0)
    """Weight of the liked images."""
    disliked_weight: float = Field(default=1.0, ge=0)
    """Weight of the disliked images."""
    reference_point: Literal["batch", "zero"] = "batch"
    """What a reward is compared with: the mean over the batch, as in the paper, which couples the batch, so that it
    must fit into one forward pass; or 0, for batches that are accumulated."""
    timesteps: TimestepSettings | None = None
    """Which noise levels are trained; as the model was made for if absent."""

    @model_validator(mode="after")
    def _consistent(self) -> DiffusionKTO:
        check_one_beta(self.beta, self.beta_from)
        if self.liked_weight == 0 and self.disliked_weight == 0:
            raise ValueError("liked_weight and disliked_weight: both are 0, so that nothing is learned")
        return self

    @property
    def couples_batch(self) -> bool:
        """Whether the loss of a batch is not that of its parts."""
        return self.reference_point == "batch"

    def beta_at(self, latent_elements: int) -> float:
        """The beta in force for images of so many latent elements."""
        return resolve_beta(self.beta, self.beta_from, latent_elements)

    def __call__(self, denoiser: Denoiser, noise: NoiseProcess, batch: PairBatch) -> LossOutput:
        """Loss of each pair: the mean of its two images'."""
        import torch

        errors = paired_errors(denoiser, noise, batch, self.timesteps)
        beta = self.beta_at(batch.chosen[0].numel())
        liked, disliked = 0.5 * beta * errors.chosen_gain, 0.5 * beta * errors.rejected_gain
        point = kl_reference_point(torch.cat([liked, disliked])) if self.couples_batch else torch.zeros_like(liked[0])
        loss = 0.5 * (
            kto_loss(liked, point, 1, self.liked_weight) + kto_loss(disliked, point, -1, self.disliked_weight)
        )
        return LossOutput(loss, pair_metrics(errors, beta) | {"reference_point": point.expand(len(liked))})
