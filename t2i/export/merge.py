"""Adapters made of others, as pure functions: merged, resized, converted from DoRA, extracted from two models.

What is merged are weight changes, sum of weight_i * strength_i B_i A_i, in three ways of writing the sum down:
  cat      factors side by side: exact, the ranks add up
  linear   exact, in the smallest rank that holds the sum
  svd      the nearest adapter (in the Frobenius norm) of a rank, or of a share of the energy; the error is returned
and one that is no sum of weight changes:
  factors  A = sum of weight_i A_i, B = sum of weight_i strength_i B_i, of adapters of equal shape. Its change holds
           cross terms B_i A_j; it is near the others only where the adapters are, such as checkpoints of one run
k copies of one adapter with weights 1/k are that adapter, in all four.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from t2i.errors import ModelError
from t2i.export.factors import Adapter, Factors

MergeKind = Literal["linear", "cat", "svd", "factors"]
WeightOf = Callable[[str], float]
"""Module -> weight of an adapter there."""
_ZERO = 1e-10
"""Singular values below this share of the largest are rounding: factors come in float32, sums are in float64."""


@dataclass(frozen=True)
class Size:
    """How large an adapter may be: the smaller of a rank and of what a share of the energy (squared norm) needs."""

    rank: int | None = None
    energy: float = 1.0
    """Above 0, up to 1."""

    def chosen(self, values: Tensor) -> int:
        """How many of the singular values, largest first, to keep; at least one."""
        energy = values.square().cumsum(0)
        significant = max(1, int((values > _ZERO * values[0]).sum()))
        enough = significant
        if self.energy < 1:
            enough = int(torch.searchsorted(energy, self.energy * energy[-1])) + 1
        return min(significant, enough, self.rank or significant)


@dataclass(frozen=True)
class Merged:
    """A new adapter and what was lost on the way to it."""

    adapter: Adapter
    error: float
    """Norm of what was cut off over the norm of the whole change, over all modules."""


def merge(
    adapters: Sequence[Adapter], weights: Sequence[WeightOf], kind: MergeKind, size: Size | None = None
) -> Merged:
    """Merge adapters; see the module. A module that an adapter lacks is one that it does not change. size: for `svd`.

    Raises ModelError for DoRAs, for `factors` of adapters of different shape, and for layers of different width.
    """
    if any(factors.magnitude is not None for adapter in adapters for factors in adapter.values()):
        raise ModelError("a DoRA cannot be merged: its magnitudes are of one whole weight. Convert it to a LoRA first.")
    if kind == "factors":
        return Merged(_averaged_factors(adapters, weights), 0.0)
    modules = dict.fromkeys(module for adapter in adapters for module in adapter)
    joined = {module: _joined(module, adapters, weights) for module in modules}
    if kind == "cat":
        return Merged(joined, 0.0)
    return shrink(joined, (size or Size()) if kind == "svd" else Size())


def _joined(module: str, adapters: Sequence[Adapter], weights: Sequence[WeightOf]) -> Factors:
    """The weighted sum of one module's changes, ranks side by side."""
    terms = [
        (adapter[module], weight(module) * adapter[module].strength)
        for adapter, weight in zip(adapters, weights, strict=True)
        if module in adapter
    ]
    shapes = {(factors.up.shape[0], *factors.down.shape[1:]) for factors, _ in terms}
    if len(shapes) > 1:
        raise ModelError(f"{module}: has {len(shapes)} different widths; the adapters are of different models.")
    if len({strength for _, strength in terms}) == 1:
        # One strength for all stays what it is: B is then copied, not rounded.
        up = torch.cat([factors.up for factors, _ in terms], dim=1)
        return Factors(torch.cat([factors.down for factors, _ in terms]), up, terms[0][1] * up.shape[1])
    up = torch.cat([(factors.up.double() * strength).float() for factors, strength in terms], dim=1)
    return Factors(torch.cat([factors.down for factors, _ in terms]), up, float(up.shape[1]))


def _averaged_factors(adapters: Sequence[Adapter], weights: Sequence[WeightOf]) -> Adapter:
    first = adapters[0]
    shapes = [{module: factors.down.shape for module, factors in adapter.items()} for adapter in adapters]
    if any(other != shapes[0] for other in shapes):
        raise ModelError("factors of adapters of different ranks or modules cannot be averaged; merge them as linear.")
    merged: Adapter = {}
    for module in first:
        parts = [(adapter[module], weight(module)) for adapter, weight in zip(adapters, weights, strict=True)]
        down = sum(weight * factors.down.double() for factors, weight in parts)
        up = sum(weight * factors.strength * factors.up.double() for factors, weight in parts)
        assert isinstance(down, Tensor)
        assert isinstance(up, Tensor)
        merged[module] = Factors(down.float(), up.float(), float(first[module].rank))
    return merged


def shrink(adapter: Adapter, size: Size) -> Merged:
    """The nearest adapter of a size: resize by rank or energy. Raises ModelError for a DoRA."""
    if any(factors.magnitude is not None for factors in adapter.values()):
        raise ModelError("a DoRA cannot be resized; convert it to a LoRA first.")
    shrunk = {module: _shrunk(factors, size) for module, factors in adapter.items()}
    return _summed(shrunk)


def _shrunk(factors: Factors, size: Size) -> tuple[Factors, float, float]:
    """(smaller factors, squared norm that was cut off, squared norm of the whole), without making B A itself."""
    up, down = factors.strength * factors.up.double().flatten(1), factors.down.double().flatten(1)
    left, left_rest = torch.linalg.qr(up)
    right, right_rest = torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(left_rest @ right_rest.T, full_matrices=False)
    return _truncated(left @ u, values, v @ right.T, size, factors.down.shape[1:])


def _truncated(u: Tensor, values: Tensor, v: Tensor, size: Size, inputs: Sequence[int]) -> tuple[Factors, float, float]:
    rank, root = size.chosen(values), values.sqrt()
    up = (u[:, :rank] * root[:rank]).float()
    down = (root[:rank, None] * v[:rank]).float()
    kernel = [1] * (len(inputs) - 1)
    factors = Factors(down.reshape(rank, *inputs).contiguous(), up.reshape(-1, rank, *kernel).contiguous(), float(rank))
    return factors, float(values[rank:].square().sum()), float(values.square().sum())


def _summed(parts: Mapping[str, tuple[Factors, float, float]]) -> Merged:
    lost, whole = sum(part[1] for part in parts.values()), sum(part[2] for part in parts.values())
    error = (lost / whole) ** 0.5 if whole else 0.0
    return Merged({module: part[0] for module, part in parts.items()}, error if error > _ZERO else 0.0)


def dora_to_lora(adapter: Adapter, weights: Mapping[str, Tensor], size: Size) -> Merged:
    """The nearest plain LoRA of a DoRA over the given weights: of m (W + s B A) / |W + s B A| - W, by rows.

    weights: module -> W. Raises ModelError for modules without a weight.
    """
    lacking = sorted(adapter.keys() - weights.keys())
    if lacking:
        raise ModelError(f"the model has no {lacking[0]}.")
    return from_changes({module: dora_change(factors, weights[module]) for module, factors in adapter.items()}, size)


def dora_change(factors: Factors, weight: Tensor) -> Tensor:
    """What an adapter, DoRA or not, adds to a weight: float64, of the weight's shape."""
    base = weight.detach().double().flatten(1)
    adapted = base + factors.delta().to(base.device)
    if factors.magnitude is not None:
        adapted = adapted * (factors.magnitude.double().to(base.device)[:, None] / adapted.norm(dim=1, keepdim=True))
    return (adapted - base).reshape(weight.shape)


def extract(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], size: Size) -> Merged:
    """The nearest adapter of what lies between two models' weights; modules that are equal get none.

    Raises ModelError if the models have other modules or shapes, or are equal.
    """
    differing = sorted(base.keys() ^ tuned.keys()) or [
        module for module, weight in base.items() if weight.shape != tuned[module].shape
    ]
    if differing:
        raise ModelError(f"{differing[0]} is not the same layer in both models; they are of different architecture.")
    changes = {module: tuned[module].double() - weight.double() for module, weight in base.items()}
    changes = {module: change for module, change in changes.items() if change.any()}
    if not changes:
        raise ModelError("the two models have the same weights in every layer that can carry an adapter.")
    return from_changes(changes, size)


def from_changes(changes: Mapping[str, Tensor], size: Size) -> Merged:
    """The nearest adapter of weight changes of the weights' own shapes."""
    parts = {}
    for module, change in changes.items():
        u, values, v = torch.linalg.svd(change.double().flatten(1), full_matrices=False)
        parts[module] = _truncated(u, values, v, size, change.shape[1:])
    return _summed(parts)
