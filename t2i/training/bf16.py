"""Whether a machine computes in bf16 faster than it computes in fp32."""

from __future__ import annotations

from typing import Literal

import torch

SLOW_BF16 = (
    "loop.precision: bf16, but there is no GPU and this processor has no bf16 arithmetic; fp32 was 11 times as fast "
    "where it was measured. Set loop.precision=fp32."
)


def is_bf16_fast() -> bool:
    """True with a GPU, and on a processor for which oneDNN has bf16 kernels (AVX-512, or ARM with bf16)."""
    if torch.cuda.is_available():
        return True
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def caution(precision: Literal["fp32", "bf16"]) -> str | None:
    """What to say before a run that would be slow for its precision; the recipe is followed all the same."""
    return SLOW_BF16 if precision == "bf16" and not is_bf16_fast() else None
