"""Heads that are several linear layers without activations between them: one affine map, whatever their depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewards.errors import ModelError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AffineHead:
    """weight . x + bias with weight [D], in float32."""

    weight: torch.Tensor
    bias: float

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """[B, D] -> [B]. Raises ModelError for another D."""
        if vectors.shape[-1] != len(self.weight):
            found, expected = vectors.shape[-1], len(self.weight)
            raise ModelError(f"the head takes {expected} numbers, the encoder gives {found}: not made for each other.")
        return vectors @ self.weight.to(vectors.device) + self.bias


def collapse(state: Mapping[str, torch.Tensor], source: str) -> AffineHead:
    """Multiply the layers of a head out, in float64: W_n (... (W_1 x + b_1) ...) + b_n = w . x + b.

    state: "weight" and "bias" of one layer, or "layers.<position>.weight" and so on of several, in order of position.
    Dropout between them does nothing in evaluation. Raises ModelError unless the layers fit and end in one number.
    """
    import torch

    layers: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        *path, kind = key.split(".")
        if kind not in ("weight", "bias") or not (not path or path[-1].isdigit()):
            raise ModelError(f"{source}: {key!r} is no weight or bias of a linear layer.")
        layers.setdefault(int(path[-1]) if path else 0, {})[kind] = value.to(torch.float64)
    # From the last layer on, every product is one row.
    weight, bias = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for _, layer in sorted(layers.items(), reverse=True):
        if layer.keys() != {"weight", "bias"} or layer["weight"].shape[:1] != weight.shape[1:]:
            raise ModelError(f"{source}: its layers do not follow on each other down to one number.")
        weight, bias = weight @ layer["weight"], bias + weight @ layer["bias"]
    if not layers:
        raise ModelError(f"{source}: there is no layer in it.")
    return AffineHead(weight[0].float(), float(bias[0]))
