"""A caution where bf16 is emulated, and silence where it is fast or not asked for."""

from __future__ import annotations

import pytest
import torch

from t2i.training import bf16


@pytest.mark.parametrize(
    ("on_gpu", "in_onednn", "is_fast"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_bf16_is_fast_on_a_gpu_or_with_kernels_of_onednn(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool, in_onednn: bool, is_fast: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: in_onednn)
    assert bf16.is_bf16_fast() is is_fast
    assert (bf16.caution("bf16") is None) is is_fast
    assert bf16.caution("fp32") is None


def test_the_caution_agrees_with_the_processor() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU computes in bf16 whatever the processor does")
    has_kernels = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert (bf16.caution("bf16") is None) is has_kernels
