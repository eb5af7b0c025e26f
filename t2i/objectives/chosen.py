"""Fine-tuning on the chosen images: the baseline that every preference method has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from t2i.config import FrozenModel
from t2i.objectives.base import Denoiser, LossOutput
from t2i.objectives.denoising import Denoising
from t2i.objectives.pairs import PairBatch

if TYPE_CHECKING:
    from t2i.noise import NoiseProcess
    from t2i.timesteps import TimestepSettings


class ChosenDenoising(FrozenModel):
    """The ordinary denoising loss on the chosen image of each pair; the rejected one is not looked at."""

    needs: ClassVar[str] = "preference_pairs"
    needs_reference: ClassVar[bool] = False

    type: Literal["chosen_denoising"] = "chosen_denoising"
    denoising: Denoising = Denoising()
    """The loss."""

    @property
    def timesteps(self) -> TimestepSettings | None:
        """Those of the loss."""
        return self.denoising.timesteps

    def __call__(self, denoiser: Denoiser, noise: NoiseProcess, batch: PairBatch) -> LossOutput:
        """Per-pair loss of one batch."""
        return self.denoising(denoiser, noise, batch.of_chosen())


def denoising_of(objective: object) -> Denoising | None:
    """The denoising loss that an objective is, or takes on the chosen images; None for any other."""
    if isinstance(objective, ChosenDenoising):
        return objective.denoising
    return objective if isinstance(objective, Denoising) else None
