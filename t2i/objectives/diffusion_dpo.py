"""Diffusion-DPO: become better than the reference on the chosen image by more than on the rejected one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from t2i.config import FrozenModel
from t2i.objectives.base import Denoiser, LossOutput
from t2i.objectives.beta import BetaFrom, check_one_beta, resolve_beta
from t2i.objectives.pairs import PairBatch, PairErrors, paired_errors
from t2i.timesteps import TimestepSettings

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.noise import NoiseProcess

Kind = Literal["sigmoid", "hinge", "ipo"]


def diffusion_dpo_loss(
    half_margin: Tensor, beta: float, kind: Kind = "sigmoid", preference: Tensor | None = None
) -> Tensor:
    """Loss of each pair, [B], of its half margin (see `PairErrors.half_margin`), [B] in fp32.

    preference: [B], the probability p that the chosen is the better one; the loss is then its mean over that doubt,
    p loss(m) + (1 - p) loss(-m), as in conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences").

    sigmoid: -log sigmoid(beta m), log 2 where policy and reference agree (Wallace et al. 2023, arXiv:2311.12908,
    equation 14); its gradient there is beta/4 (grad of the chosen's error - grad of the rejected's).
    hinge: max(0, 1 - beta m) (Zhao et al. 2023, arXiv:2305.10425). ipo: (m - 1/(2 beta))^2, least at the margin
    1/(2 beta) instead of without end (Azar et al. 2023, arXiv:2310.12036, equation 17).
    """
    from torch.nn import functional

    if preference is not None:
        as_labelled = diffusion_dpo_loss(half_margin, beta, kind)
        return preference * as_labelled + (1 - preference) * diffusion_dpo_loss(-half_margin, beta, kind)
    if kind == "sigmoid":
        return -functional.logsigmoid(beta * half_margin)
    if kind == "hinge":
        return functional.relu(1 - beta * half_margin)
    return (half_margin - 1 / (2 * beta)).square()


def implicit_accuracy(half_margin: Tensor) -> Tensor:
    """1 where the pair is ranked as labelled, 0 where not, 1/2 where policy and reference agree, [B]."""
    return 0.5 * (half_margin.sign() + 1)


def pair_metrics(errors: PairErrors, beta: float) -> dict[str, Tensor]:
    """What is logged of each pair: logit, accuracy, the two implicit rewards (beta/2 times the gain), two errors."""
    margin = errors.half_margin.detach()
    return {
        "logit": beta * margin,
        "accuracy": implicit_accuracy(margin),
        "reward_chosen": 0.5 * beta * errors.chosen_gain.detach(),
        "reward_rejected": 0.5 * beta * errors.rejected_gain.detach(),
        "error_chosen": errors.chosen.detach(),
        "error_rejected": errors.rejected.detach(),
    }


class DiffusionDPO(FrozenModel):
    """Learn from preference pairs, held near the reference: the model without its adapter, or as it was before."""

    needs: ClassVar[str] = "preference_pairs"
    needs_reference: ClassVar[bool] = True

    type: Literal["diffusion_dpo"] = "diffusion_dpo"
    loss: Kind = "sigmoid"
    """`sigmoid` is the paper's; `hinge` forgets pairs that are far enough apart; `ipo` aims at one fixed margin."""
    beta: float | None = Field(default=None, gt=0)
    """Pull to the reference: it multiplies half the difference of mean squared errors. 5000 in the authors' runs of
    epsilon models; 100 to 2000 are usual for flow."""
    beta_from: BetaFrom | None = None
    """Another tool's value instead, which is converted: `{tool: diffusers_sd15, value: 2500}`."""
    preferences: Literal["winner", "share"] = "winner"
    """Of pairs that people or scorers did not agree on: the winner counts as the better one, as in the paper; or only
    with the share p of votes that it got: the loss of `sigmoid` is then least where the model is as sure as they were,
    that of `ipo` where the margin is (2p - 1) times the full one. Ties are left out by both."""
    timesteps: TimestepSettings | None = None
    """Which noise levels are trained; as the model was made for if absent."""

    @model_validator(mode="after")
    def _one_beta(self) -> DiffusionDPO:
        check_one_beta(self.beta, self.beta_from)
        if self.preferences == "share" and self.loss == "hinge":
            raise ValueError("preferences: a hinge is least at one margin whatever the share; use sigmoid or ipo")
        return self

    def beta_at(self, latent_elements: int) -> float:
        """The beta in force for images of so many latent elements."""
        return resolve_beta(self.beta, self.beta_from, latent_elements)

    def __call__(self, denoiser: Denoiser, noise: NoiseProcess, batch: PairBatch) -> LossOutput:
        """Per-pair loss of one batch."""
        errors = paired_errors(denoiser, noise, batch, self.timesteps)
        beta = self.beta_at(batch.chosen[0].numel())
        share = batch.preference if self.preferences == "share" else None
        return LossOutput(diffusion_dpo_loss(errors.half_margin, beta, self.loss, share), pair_metrics(errors, beta))
