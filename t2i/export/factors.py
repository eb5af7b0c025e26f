"""An adapter as plain tensors, whatever file it came from: module -> the two factors of its weight change.

Modules are called as in diffusers files: `<component>.<module path>`, text encoders with `text_model.`. The weight
change is strength * B A with strength = alpha / rank (Hu et al. 2021, arXiv:2106.09685, section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from t2i.errors import ModelError


@dataclass(frozen=True)
class Factors:
    """Adapter of one layer."""

    down: Tensor
    """A: [rank, in], of a convolution [rank, in, height, width]."""
    up: Tensor
    """B: [out, rank], of a convolution [out, rank, 1, 1]."""
    alpha: float
    magnitude: Tensor | None = None
    """Of a DoRA: the norm of every row of the adapted weight, [out]."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def strength(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """The weight change in float64, [out, in * height * width]; of a DoRA, before its rows are given their norm."""
        return self.strength * (self.up.double().flatten(1) @ self.down.double().flatten(1))

    def folded(self) -> Factors:
        """The same of strength 1: what readers that know no alpha take it for. Exact for powers of two."""
        return replace(self, up=self.up * self.strength, alpha=float(self.rank))

    def magnitude_of_peft(self) -> Tensor:
        """The magnitude as peft holds it: [out], of a convolution [1, out, 1, 1]."""
        assert self.magnitude is not None
        return self.magnitude if self.down.dim() == 2 else self.magnitude.reshape(1, -1, 1, 1)

    def magnitude_column(self) -> Tensor:
        """The magnitude as LyCORIS holds it: [out, 1], of a convolution [out, 1, 1, 1]."""
        assert self.magnitude is not None
        return self.magnitude.reshape(-1, *[1] * (self.down.dim() - 1))

    def to(self, dtype: torch.dtype) -> Factors:
        """Factors rounded to a precision; magnitudes with them."""
        magnitude = None if self.magnitude is None else self.magnitude.to(dtype)
        return replace(self, down=self.down.to(dtype), up=self.up.to(dtype), magnitude=magnitude)


Adapter = dict[str, Factors]
"""Module -> its factors."""


def check_adapter(adapter: Adapter, source: str) -> None:
    """Raise ModelError unless all values are finite, factors fit each other and at least one B is not zero."""
    check_factors(adapter, source)
    if not any(factors.up.any() for factors in adapter.values()):
        raise ModelError(f"{source}: every B is zero: this adapter changes nothing.")


def check_factors(adapter: Adapter, source: str) -> None:
    """Raise ModelError unless all values are finite and the factors of every module fit each other."""
    for name, factors in adapter.items():
        down, up = factors.down, factors.up
        if up.dim() < 2 or down.dim() != up.dim() or up.shape[1] != down.shape[0]:
            shapes = f"A {list(down.shape)}, B {list(up.shape)}"
            raise ModelError(f"{source}: {name}: {shapes} do not fit each other; expected A [rank, in], B [out, rank].")
        tensors = [down, up, *([] if factors.magnitude is None else [factors.magnitude])]
        # An alpha of zero would be an adapter without effect.
        if not all(torch.isfinite(value).all() for value in tensors) or not 0 < abs(factors.alpha) < float("inf"):
            raise ModelError(f"{source}: {name}: holds values that are not finite, or an alpha of 0.")


def largest_error(sent: Adapter, arrived: Adapter) -> float:
    """The largest relative error of a weight change or magnitude. Raises ModelError where modules differ.

    Modules that change nothing may be missing on either side: fused layers carry them, or drop them.
    """
    errors = [torch.zeros((), dtype=torch.float64)]
    for name in sorted(sent.keys() | arrived.keys()):
        here, there = sent.get(name), arrived.get(name)
        if here is None or there is None:
            present = here or there
            if present is not None and (present.up.any() or present.magnitude is not None):
                raise ModelError(f"{name} is {'written and not read' if here else 'read and was never written'}.")
            continue
        errors.append(_relative(here.delta(), there.delta()))
        if (here.magnitude is None) != (there.magnitude is None):
            raise ModelError(f"{name} loses or gains its DoRA magnitude on the way.")
        if here.magnitude is not None and there.magnitude is not None:
            errors.append(_relative(here.magnitude.double(), there.magnitude.double()))
    # Python's max() would pass over an error that is not a number.
    return float(torch.stack(errors).max())


def _relative(expected: Tensor, found: Tensor) -> Tensor:
    if expected.shape != found.shape:
        raise ModelError(f"a weight change of shape {list(expected.shape)} arrives as {list(found.shape)}.")
    return (found - expected).norm() / expected.norm().clamp(min=1e-30)
