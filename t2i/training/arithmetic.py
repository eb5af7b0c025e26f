"""What a training step takes, counted on a model without weights: one pass of the real modules over shapes.

The multiplications and what is kept for the backward pass are those of the model, adapter and objective at hand, not
of a formula for its kind. Attention is counted as fused kernels compute it: they keep queries, keys, values and the
output, never the matrix of weights (Dao et al. 2022, arXiv:2205.14135), and compute that anew in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class StepArithmetic:
    """Of one forward and backward pass over one micro-batch."""

    forward_flops: int
    """Multiplications and additions of matrix products and convolutions."""
    flops: int
    """The same with the backward pass: gradients of activations, and of the weights that are trained."""
    activation_bytes: int
    """Kept between the passes, weights not counted."""


def step_arithmetic(module: nn.Module, loss_of: Callable[[], Tensor], others: Iterable[nn.Module]) -> StepArithmetic:
    """Count a step on the meta device.

    loss_of: runs the forward pass and returns the losses, of any shape. module, others: whose parameters and buffers
    are there anyway and not counted as activations.
    """
    fixed = {_storage(value) for owner in (module, *others) for value in (*owner.parameters(), *owner.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        key = _storage(tensor)
        # The graph holds the tensor, so that no other storage can get its address.
        if key not in fixed and tensor.is_meta:
            kept[key] = tensor.untyped_storage().nbytes()
        return tensor

    with _FlopCounter() as counter, _FusedAttention():
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = loss_of()
        forward = counter.flops
        losses.float().sum().backward()
    for parameter in module.parameters():
        parameter.grad = None
    return StepArithmetic(forward, counter.flops, sum(kept.values()))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _FlopCounter(TorchDispatchMode):
    """Adds up what torch's own formulas say of matrix products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


class _FusedAttention(TorchFunctionMode):
    """Counts `scaled_dot_product_attention` as a fused kernel computes it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        return _Attention.apply(named["query"], named["key"], named["value"])


class _Attention(torch.autograd.Function):
    """The products of attention, [..., heads, n, d] x [..., m, d] x [..., m, e], on shapes: no softmax, no scale."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = (query @ key.transpose(-1, -2)) @ value
        # As fused kernels lay it out, heads behind positions: joining the heads copies nothing.
        output = output.transpose(-3, -2).contiguous().transpose(-3, -2)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _ = ctx.saved_tensors
        [gradient] = gradients
        weights = query @ key.transpose(-1, -2)
        of_weights = gradient @ value.transpose(-1, -2)
        return of_weights @ key, of_weights.transpose(-1, -2) @ query, weights.transpose(-1, -2) @ gradient
