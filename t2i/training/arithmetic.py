"""What a training step takes, counted on a model without weights: one pass of the real modules over shapes.

The multiplications and the tensors are those of the model, adapter and objective at hand, not of a formula for its
kind; so is what gradient checkpointing spares. Attention is counted as fused kernels compute it: they keep queries,
keys, values and the output, never the matrix of weights (Dao et al. 2022, arXiv:2205.14135), which they compute anew in
the backward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class StepArithmetic:
    """Of one forward and backward pass over one micro-batch."""

    forward_flops: int
    """Multiplications and additions of matrix products and convolutions."""
    flops: int
    """The same with the backward pass: gradients of activations, and of the weights that are trained."""
    activation_bytes: int
    """Most that is there at once beside the weights and the batch, gradients included."""


def step_arithmetic(module: nn.Module, loss_of: Callable[[], Tensor]) -> StepArithmetic:
    """Count a step on the meta device.

    loss_of: runs the forward pass and returns the losses, of any shape. module: its gradients are deleted afterwards.
    """
    with _Counter() as counter, _FusedAttention(counter):
        losses = loss_of()
        forward = counter.flops
        total = losses.float().sum()
        # From its edge in the graph: inside functions of tensors no mode holds, and blocks may be computed again there.
        torch.autograd.backward(get_gradient_edge(total), torch.ones_like(total))
    for parameter in module.parameters():
        parameter.grad = None
    return StepArithmetic(forward, counter.flops, counter.peak_bytes)


class _Counter(TorchDispatchMode):
    """Adds up what torch's own formulas say of matrix products and convolutions, and follows memory as it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        # What is a view, or was written in place, has the storage of one of the arguments.
        given = {_storage(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.is_meta and _storage(value) not in given | self._known:
                self._take(value.untyped_storage())
        return result

    def _take(self, storage: Any) -> None:
        """Count a storage until nothing holds it any more."""
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live_bytes -= size


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _FusedAttention(TorchFunctionMode):
    """Counts `scaled_dot_product_attention` as a fused kernel computes it."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        return _Attention.apply(named["query"], named["key"], named["value"], self.counter)


class _Attention(torch.autograd.Function):
    """Attention, [B, heads, n, d] x [B, heads, m, d] x [B, heads, m, e], by the shapes of what goes in and out."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, counter: _Counter) -> Tensor:
        # As fused kernels lay it out, heads behind positions: joining the heads copies nothing.
        shape = (*query.shape[:-3], query.shape[-2], query.shape[-3], value.shape[-1])
        output = query.new_empty(shape).transpose(-3, -2)
        ctx.save_for_backward(query, key, value, output)
        ctx.counter = counter
        counter.flops += _product(query, key.shape[-2]) + _product(output, key.shape[-2])
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, output = ctx.saved_tensors
        # The weights anew, then the gradients of weights, query, key and value.
        ctx.counter.flops += 3 * _product(query, key.shape[-2]) + 2 * _product(output, key.shape[-2])
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _product(rows: Tensor, others: int) -> int:
    """FLOPs of a product of rows [..., n, d] with `others` rows of length d."""
    return 2 * rows.numel() * others
