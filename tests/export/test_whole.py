"""Merged models paint what the adapter painted; a DoRA becomes a LoRA only when asked, and says what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from tiny_adapters import CHECKPOINTS, KINDS, adapter, family, saved

from t2i.errors import ModelError
from t2i.export.adapter import DTYPES, TOLERANCES, export_lora
from t2i.export.whole import base_weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_merged_model_has_the_adapted_weights_and_the_base_keeps_its_own(
    tmp_path: Path, name: str, kind: str
) -> None:
    before = {module: weight.clone() for module, weight in base_weights(family(name)).items()}
    source = saved(tmp_path / "a.safetensors", name, kind)
    options: Any = {"layout": "merged", "precision": "fp32", "metadata": {}}
    exported = export_lora(source, tmp_path / "whole", family(name), **options)
    assert exported.error <= TOLERANCES["fp32"]
    assert all(torch.equal(weight, before[module]) for module, weight in base_weights(family(name)).items())
    merged = DiffusionPipeline.from_pretrained(tmp_path / "whole", safety_checker=None)
    facts, path = family(name).facts, next(iter(adapter(name, kind))).partition(".")[2]
    weight = getattr(merged, facts.denoiser).get_submodule(path).weight.detach().double()
    factors = adapter(name, kind)[f"{facts.denoiser}.{path}"]
    expected = before[f"{facts.denoiser}.{path}"].double() + factors.delta()
    if factors.magnitude is not None:
        expected *= factors.magnitude.double()[:, None] / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-6)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.safetensors", "whole"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_merged_model_is_written_in_the_precision_asked_for(tmp_path: Path, precision: str) -> None:
    source = saved(tmp_path / "a.safetensors", "sd1")
    options: Any = {"layout": "merged", "precision": precision, "metadata": {}}
    assert 0 < export_lora(source, tmp_path / "whole", family("sd1"), **options).error <= TOLERANCES[precision]
    [path] = (tmp_path / "whole/unet").glob("*.safetensors")
    assert {value.dtype for value in load_file(path).values()} == {DTYPES[precision]}


@pytest.mark.parametrize(("name", "layout"), [("flux", "kohya"), ("sd3", "comfyui"), ("pixart", "comfyui")])
def test_a_dora_is_converted_when_a_rank_is_given_and_the_loss_is_told(tmp_path: Path, name: str, layout: str) -> None:
    source = saved(tmp_path / "a.safetensors", name, "dora")
    options: Any = {"layout": layout, "precision": "fp32", "metadata": {}}
    with pytest.raises(ModelError, match="dora_rank"):
        export_lora(source, tmp_path / "out.safetensors", family(name), **options)
    losses = []
    for rank in (4, 16, 64):
        exported = export_lora(source, tmp_path / "out.safetensors", family(name), dora_rank=rank, **options)
        losses.append(exported.conversion_error)
    assert losses[0] > losses[1] > losses[2] >= 0
    assert losses[2] < 1e-6  # no layer of these models is wider
    exported = export_lora(source, tmp_path / "out.safetensors", family(name), dora_rank=4, **options)
    assert f"{100 * losses[0]:.2g} % of whose change is lost" in str(exported)
