"""A frozen base in 8 or 4 bits, so that a larger model fits: bitsandbytes' linear layers in the place of torch's."""

from __future__ import annotations

import importlib
from typing import Any, Literal

from torch import nn

from t2i import devices
from t2i.training.extras import require_package


def quantize_linears(module: nn.Module, bits: Literal[4, 8]) -> int:
    """Replace every `nn.Linear` in a module by a quantized one, on the GPU if there is one; returns how many.

    4: the NormalFloat type of QLoRA (Dettmers et al. 2023, arXiv:2305.14314, section 3), one scale per 64 weights. 8:
    rows of integers, activations too (Dettmers et al. 2022, arXiv:2208.07339). Gradients flow through to the inputs;
    the weights cannot be trained. Raises MissingDependencyError without bitsandbytes.
    """
    require_package("bitsandbytes", "trained.base_bits")
    linears = {path: child for path, child in module.named_modules() if type(child) is nn.Linear}
    for path, linear in linears.items():
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, _quantized(linear, bits))
    # By these peft tells its own layers for quantized weights from the plain ones.
    for width in (4, 8):
        setattr(module, f"is_loaded_in_{width}bit", bits == width)
    return len(linears)


def _quantized(linear: nn.Linear, bits: Literal[4, 8]) -> nn.Module:
    quantized: Any = importlib.import_module("bitsandbytes").nn
    # Weights are quantized on the way from host memory to where they stay: a GPU never holds them whole.
    weight = linear.weight.detach().cpu()
    arguments: dict[str, Any] = {"bias": linear.bias is not None}
    if bits == 4:
        layer = quantized.Linear4bit(linear.in_features, linear.out_features, quant_type="nf4", **arguments)
        layer.weight = quantized.Params4bit(weight, requires_grad=False, quant_type="nf4")
        # Or the first pass without gradients on a CPU repacks the weights, with their scales rounded, for good.
        layer.support_avx512bf16_for_cpu = False
    else:
        layer = quantized.Linear8bitLt(
            linear.in_features, linear.out_features, has_fp16_weights=False, threshold=6.0, **arguments
        )
        layer.weight = quantized.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    return layer.to(devices.compute_device()).eval()
