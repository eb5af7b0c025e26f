"""What is trained can be exported: proved before the first step and after the last, in the pipeline that trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_adapters import CHECKPOINTS, KINDS, family, fill

from t2i import lora
from t2i.errors import ModelError, RunError
from t2i.export.contract import check_contract, check_trained
from t2i.export.layouts import LAYOUTS, Layout
from t2i.families import load_family
from t2i.training.settings import LoraSettings


def adapted(name: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    model = load_family(str(CHECKPOINTS[name]()))
    settings = LoraSettings(rank=2, text_encoder=name != "pixart", **options)
    return model, lora.inject(model, settings, seed=3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_contract_holds_and_leaves_the_model_as_it_was(name: str, kind: str) -> None:
    model, settings = family(name), LoraSettings(rank=2, text_encoder=name != "pixart", **KINDS[kind])
    before = {key: value.clone() for key, value in model.denoiser.state_dict().items()}
    layouts: list[Layout] = ["diffusers", "peft"] if kind == "dora" else list(LAYOUTS)
    check_contract(model, settings, [layout for layout in layouts if (name, layout) != ("pixart", "kohya")], 0)
    after = model.denoiser.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("name", "layout", "options", "complaint"),
    [
        ("pixart", "kohya", {}, "no tool reads kohya files of pixart"),
        ("flux", "kohya", {"variant": "dora"}, "a DoRA"),
    ],
)
def test_a_layout_that_cannot_be_kept_ends_the_run_before_step_one(
    name: str, layout: Layout, options: dict, complaint: str
) -> None:
    with pytest.raises(RunError, match=f"before step 1: the adapter cannot be exported as {layout}: {complaint}"):
        check_contract(family(name), LoraSettings(rank=2, **options), [layout], 0)


def test_text_encoders_in_half_precision_read_an_adapter_no_more_exactly() -> None:
    held = dict.fromkeys(["text_encoder", "text_encoder_2"], torch.bfloat16)
    model = load_family(str(CHECKPOINTS["sdxl"]()), dtype=held)
    check_contract(model, LoraSettings(rank=2, text_encoder=True), ["diffusers", "peft"], 0)
    # The denoiser is in fp32, and what it reads is held to that.
    check_contract(model, LoraSettings(rank=2), ["diffusers", "peft"], 0)


def test_a_file_that_is_not_what_was_trained_is_found_out(tmp_path: Path) -> None:
    model, modules = adapted("sd1")
    path = tmp_path / "a.safetensors"
    lora.save(modules, path, {})
    with pytest.raises(RunError, match="every B is zero"):
        check_trained(model, modules, path)
    fill(modules)
    lora.save(modules, path, {})
    check_trained(model, modules, path)
    fill(modules, scale=0.1)
    with pytest.raises(RunError, match="differ by 1 relative"):
        check_trained(model, modules, path)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_training_starts_from_a_file_of_any_layout(tmp_path: Path, layout: Layout) -> None:
    from t2i.export.adapter import write_adapter

    _, modules = adapted("sd1", alpha=6.0)
    fill(modules)
    sent = lora.adapter_of(modules)
    path = tmp_path / "a.safetensors"
    fresh = load_family(str(CHECKPOINTS["sd1"]()))
    write_adapter(sent, path, fresh, layout=layout, precision="fp32", metadata={})
    other, started = adapted("sd1", alpha=1.0)
    assert lora.start_from(other.pipeline, started, path) == layout
    arrived = lora.adapter_of(started)
    for name, factors in sent.items():
        torch.testing.assert_close(arrived[name].delta(), factors.delta(), atol=1e-6, rtol=1e-6)
        assert arrived[name].alpha == 1
    assert {value.requires_grad for key, value in started["unet"].named_parameters() if ".lora_" in key} == {True}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"rank": 4}, "has rank 2, the recipe trains 4"),
        ({"targets": ("to_q",)}, "the recipe does not train"),
        ({"variant": "dora"}, "a DoRA and a plain LoRA"),
    ],
)
def test_a_start_that_does_not_fit_the_recipe_is_refused(tmp_path: Path, options: dict, complaint: str) -> None:
    _, modules = adapted("sd1")
    fill(modules)
    lora.save(modules, tmp_path / "a.safetensors", {})
    fresh = load_family(str(CHECKPOINTS["sd1"]()))
    other = lora.inject(fresh, LoraSettings(**({"rank": 2, "text_encoder": True} | options)), seed=3)
    with pytest.raises(ModelError, match=complaint):
        lora.start_from(fresh.pipeline, other, tmp_path / "a.safetensors")


def test_a_train_stage_goes_on_from_an_adapter_and_checks_its_layouts(tmp_path: Path) -> None:
    import tiny

    from t2i.stages.train import Train

    start = tiny.write_adapter(tmp_path / "start.safetensors")
    fields = {
        "model": str(tiny.sd1()),
        "adapter": str(start),
        "captions": {"caption": 1},
        "resolution": tiny.SIZE_PX,
        "layouts": ["diffusers", "kohya", "comfyui"],
        "trained": {"type": "lora", "rank": 4, "text_encoder": True},
        "optimizer": {"learning_rate": 1e-5},
        "loop": {"steps": 1, "batch_size": 2},
    }
    tiny.run_stage(Train, tmp_path / "train", fields, {"data_from": tiny.captioned_photographs()})
    before, after = load_file(start), load_file(tmp_path / "train/adapter/pytorch_lora_weights.safetensors")
    assert before.keys() == after.keys()
    assert all((after[key] - value).abs().max() < 1e-4 for key, value in before.items())
    assert any(not torch.equal(after[key], value) for key, value in before.items())
    fields["trained"] = {"type": "lora", "rank": 4}
    with pytest.raises(ModelError, match="the recipe does not train text_encoder"):
        tiny.run_stage(Train, tmp_path / "other", fields, {"data_from": tiny.captioned_photographs()})
    assert not (tmp_path / "other/adapter").exists()
