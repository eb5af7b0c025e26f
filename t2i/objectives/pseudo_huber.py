"""The pseudo-Huber loss: squared for small errors, absolute for large ones, so that bad examples pull less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from t2i.config import FrozenModel

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.noise import NoiseProcess


def pseudo_huber(errors: Tensor, c: Tensor) -> Tensor:
    """2 c (sqrt(e^2 + c^2) - c) of each error: e^2 where |e| << c, 2 c |e| where |e| >> c.

    errors: [B, ...]; c: [B], above 0. Twice the loss of Khrapov et al. 2024 (arXiv:2403.16728), so that a large c gives
    the squared error; this scale is kohya's `huber`.
    """
    c = c.reshape(-1, *[1] * (errors.ndim - 1))
    squares = errors.square()
    # c (sqrt(e^2 + c^2) - c) without its cancellation for small errors.
    return 2 * c * squares / ((squares + c.square()).sqrt() + c)


def exponential_c(levels: Tensor, c: float) -> Tensor:
    """c^level, [B]: from 1 without noise to c in pure noise (Khrapov et al. 2024, arXiv:2403.16728)."""
    return c**levels


def snr_c(snr: Tensor, c: float) -> Tensor:
    """(1 - c) / (1 + SNR^-1/2)^2 + c, [B]: from 1 without noise to c in pure noise (kohya's schedule `snr`)."""
    return (1 - c) / (1 + snr.rsqrt()).square() + c


class PseudoHuber(FrozenModel):
    """Pseudo-Huber loss instead of the squared error."""

    schedule: Literal["constant", "exponential", "snr"]
    """Whether c is the same at every level, or falls from 1 without noise to `c` in pure noise: `exponential` c^level,
    or `snr` (1 - c) / (1 + SNR^-1/2)^2 + c."""
    c: float = Field(default=0.1, gt=0, le=1)
    """Error of a latent value above which it counts linearly; smaller is more robust and learns slower."""

    def values(self, noise: NoiseProcess, timesteps: Tensor) -> Tensor:
        """c of each example, float32 [B]."""
        levels = noise.levels(timesteps)
        if self.schedule == "exponential":
            return exponential_c(levels, self.c)
        return snr_c(noise.snr(timesteps), self.c) if self.schedule == "snr" else levels.new_full(levels.shape, self.c)
