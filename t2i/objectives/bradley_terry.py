"""Bradley-Terry: give images numbers whose differences say which of two is preferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from t2i.config import FrozenModel
from t2i.objectives.base import LossOutput

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, preference: Tensor) -> Tensor:
    """Per-pair negative log-likelihood with P(chosen over rejected) = sigmoid(chosen - rejected).

    Bradley & Terry 1952 (Biometrika 39). chosen, rejected: scores [B]; preference: [B], probability that the chosen
    image is preferred. A tie, 0.5, counts as half a win of each, as in PickScore (Kirstain et al. 2023,
    arXiv:2305.01569, section 4). Returns [B]; -log sigmoid(chosen - rejected) for a sure preference, log 2 for equal
    scores.
    """
    from torch.nn import functional

    margin = (chosen - rejected).float()
    return preference * functional.softplus(-margin) + (1 - preference) * functional.softplus(margin)


def davidson_loss(chosen: Tensor, rejected: Tensor, preference: Tensor, tie_weight: float) -> Tensor:
    """As `bradley_terry_loss`, with ties as an outcome of their own (Davidson 1970, JASA 65, equation 2.2).

    With strengths a = exp(chosen) and b = exp(rejected), win : tie : loss = a : tie_weight sqrt(a b) : b. Between win
    and loss the odds are those of Bradley and Terry. A preference p counts as 2p - 1 wins and 2 - 2p ties, so that a
    win is worth 1 and a tie 0.5. Returns [B]; for equal scores, a win costs log(2 + tie_weight).
    """
    import torch

    half = (chosen - rejected).float() / 2
    tie = torch.full_like(half, tie_weight).log()
    total = torch.logsumexp(torch.stack([half, tie, -half]), dim=0)
    return total - (2 * preference - 1) * half - (2 - 2 * preference) * tie


@dataclass(frozen=True)
class PreferenceBatch:
    """Preference pairs for a reward model."""

    chosen: Tensor
    """Pixels as the encoder takes them, [B, 3, H, W], or the embeddings of a frozen encoder, [B, D]."""
    rejected: Tensor
    texts: tuple[Tensor, ...]
    """Of the prompts: token ids and mask, each [B, T], or embeddings [B, D]; empty where no prompt is read."""
    preference: Tensor
    """Probability that the chosen image is preferred, [B] in 0.5 .. 1."""
    head: Tensor
    """Which of the model's heads the pair is for, integers [B]."""

    def to(self, device: torch.device) -> PreferenceBatch:
        """The same batch on a device."""
        return PreferenceBatch(
            self.chosen.to(device, non_blocking=True),
            self.rejected.to(device, non_blocking=True),
            tuple(text.to(device, non_blocking=True) for text in self.texts),
            self.preference.to(device, non_blocking=True),
            self.head.to(device, non_blocking=True),
        )


class BradleyTerry(FrozenModel):
    """Train a reward model on preference pairs: a small head on a CLIP or SigLIP, which is frozen or tuned with it."""

    needs: ClassVar[str] = "preference_pairs"

    type: Literal["bradley_terry"] = "bradley_terry"
    aspects: tuple[str, ...] = ()
    """One head for each, trained on the pairs of that aspect. Empty: one head for all pairs, which must then be of one
    aspect."""
    reads_prompt: bool = True
    """Whether a score depends on the prompt; if not, the model judges images alone."""
    hidden: int = Field(default=0, ge=0)
    """Width of the head's hidden layer; 0 makes it linear, which is hard to overfit."""
    ties: Literal["half", "davidson"] = "half"
    """A tie is half a win of each image, or an outcome of its own (Davidson 1970)."""
    tie_weight: float = Field(default=1.0, gt=0)
    """Davidson's: images of equal score tie with probability w / (2 + w)."""
    held_out_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the prompts whose pairs only measure accuracy and calibration, where no `held_out_pairs` are given."""

    head_learning_rate: float | None = Field(default=None, gt=0)
    """Learning rate of the head; the optimizer's if absent. The head is new, an encoder wants to be moved gently."""

    @field_validator("aspects")
    @classmethod
    def _are_distinct(cls, aspects: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(aspects)) < len(aspects) or "" in aspects:
            raise ValueError(f"{list(aspects)}: name every aspect once")
        return aspects

    @model_validator(mode="after")
    def _ties_are_weighed(self) -> Self:
        if self.ties == "half" and self.tie_weight != 1:
            raise ValueError("tie_weight: it is Davidson's; set ties: davidson, or leave it out")
        return self

    def __call__(self, chosen: Tensor, rejected: Tensor, preference: Tensor) -> LossOutput:
        """Per-pair loss, and how often the chosen image has the higher score. chosen, rejected: [B] scores."""
        if self.ties == "davidson":
            loss = davidson_loss(chosen, rejected, preference, self.tie_weight)
        else:
            loss = bradley_terry_loss(chosen, rejected, preference)
        margin = (chosen - rejected).detach()
        hits = (margin > 0).float() + 0.5 * (margin == 0).float()
        return LossOutput(loss, {"accuracy": hits, "margin": margin})
