"""Adapters of several layers as one adapter of the layer that holds them stacked, and back. Pure functions.

Where the parts share A (and strength), B is stacked and the rank stays. Otherwise A is stacked and B is block-diagonal:
the rank is the sum of the parts' ranks, and alpha grows with it, so that alpha / rank stays what it was.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from t2i.export.factors import Adapter, Factors
from t2i.export.names import Layer


def fuse(layer: Layer, adapter: Mapping[str, Factors]) -> Factors | None:
    """The adapter of a layer from those of its parts; rows of parts without one are zero. None if no part has one."""
    present = [adapter[part.module] for part in layer.parts if part.module in adapter]
    if not present:
        return None
    if len(layer.parts) == 1:
        [fused] = present
    elif all(other.strength == present[0].strength and _equal(other.down, present[0].down) for other in present):
        fused = Factors(present[0].down, _stacked(layer, adapter, present[0]), present[0].alpha)
    else:
        fused = _block_diagonal(layer, adapter, present)
    return Factors(fused.down, _swapped(fused.up), fused.alpha) if layer.swaps_halves else fused


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _stacked(layer: Layer, adapter: Mapping[str, Factors], like: Factors) -> Tensor:
    absent = {part.module: like.up.new_zeros(part.rows, *like.up.shape[1:]) for part in layer.parts}
    return torch.cat([adapter[name].up if name in adapter else zeros for name, zeros in absent.items()])


def _block_diagonal(layer: Layer, adapter: Mapping[str, Factors], present: list[Factors]) -> Factors:
    strengths = {factors.strength for factors in present}
    # Parts of different strength have none in common: theirs go into B.
    parts = present if len(strengths) == 1 else [factors.folded() for factors in present]
    rank = sum(factors.rank for factors in parts)
    up = parts[0].up.new_zeros(sum(part.rows for part in layer.parts), rank)
    row = column = 0
    queue = iter(parts)
    for part in layer.parts:
        if part.module in adapter:
            factors = next(queue)
            up[row : row + part.rows, column : column + factors.rank] = factors.up
            column += factors.rank
        row += part.rows
    strength = strengths.pop() if len(strengths) == 1 else 1.0
    return Factors(torch.cat([factors.down for factors in parts]), up, strength * rank)


def split(layer: Layer, factors: Factors) -> Adapter:
    """Adapters of the parts of a layer, of the same strength; parts of whose rows all are zero have none.

    Of a block-diagonal B each part gets back its own rank: ranks that only meet zeros are dropped.
    """
    if layer.swaps_halves:
        factors = Factors(factors.down, _swapped(factors.up), factors.alpha, factors.magnitude)
    if len(layer.parts) == 1:
        return {layer.parts[0].module: factors}
    rows = factors.up.split([part.rows for part in layer.parts])
    is_fresh = not factors.up.any()
    adapter: Adapter = {}
    for part, up in zip(layer.parts, rows, strict=True):
        used = torch.ones(factors.rank, dtype=torch.bool) if is_fresh else (up != 0).any(dim=0)
        if used.any():
            rank = int(used.sum())
            adapter[part.module] = Factors(
                factors.down[used].contiguous(), up[:, used].contiguous(), factors.strength * rank
            )
    return adapter


def _swapped(up: Tensor) -> Tensor:
    """Scale and shift, the halves of the rows, the other way round."""
    first, second = up.chunk(2)
    return torch.cat([second, first])
