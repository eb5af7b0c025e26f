"""What is read in which precision, and that encoders and denoiser are on the device one after the other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tiny_flow import FAMILIES
from torch import nn

from t2i.families import load_family
from t2i.families.outline import outline_family
from t2i.stages.train import Train
from t2i.training import tasks
from t2i.training.placement import held_dtypes
from t2i.training.settings import FullSettings, LoopSettings, LoraSettings, SpeedSettings, check_precision
from t2i.training.tasks import DiffusionTask

sys.path.insert(0, str(Path(__file__).parent.parent / "families"))
import truths

HALF = SpeedSettings(text_encoders="bf16")


def dtypes(family: Any) -> dict[str, set[torch.dtype]]:
    modules = {name: module for name, module in family.pipeline.components.items() if isinstance(module, nn.Module)}
    return {name: {value.dtype for value in module.parameters()} for name, module in modules.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_held_in_bf16_is_the_model_cast_to_it(name: str) -> None:
    exact = load_family(str(FAMILIES[name]()))
    facts = exact.facts
    asked = held_dtypes(facts, LoraSettings(rank=2, base_bits=16), HALF)
    assert set(asked) == {facts.denoiser, *facts.text_encoders}
    for held in (
        load_family(str(FAMILIES[name]()), dtype=asked),
        outline_family(str(FAMILIES[name]()), dtype=asked),
    ):
        expected = {part: {asked.get(part, torch.float32)} for part in dtypes(exact)}
        assert dtypes(held) == expected
    held = load_family(str(FAMILIES[name]()), dtype=asked)
    for part, module in exact.pipeline.components.items():
        if isinstance(module, nn.Module):
            found = dict(held.pipeline.components[part].named_parameters())
            dtype = asked.get(part, torch.float32)
            assert all(torch.equal(found[key], value.to(dtype)) for key, value in module.named_parameters())


def test_what_is_trained_is_never_held_in_bf16() -> None:
    facts = tiny.load_sd1().facts
    assert held_dtypes(facts, LoraSettings(rank=2), SpeedSettings()) == {}
    assert held_dtypes(facts, FullSettings(components=("unet", "text_encoder")), HALF) == {}
    assert set(held_dtypes(facts, FullSettings(components=("unet",)), HALF)) == {"text_encoder"}
    assert set(held_dtypes(facts, LoraSettings(rank=2, base_bits=4), SpeedSettings())) == {"unet"}


def test_random_weights_are_held_alike() -> None:
    family = load_family(str(tiny.sd1()), dtype={"unet": torch.bfloat16}, random_seed=3)
    assert dtypes(family) == {"unet": {torch.bfloat16}, "vae": {torch.float32}, "text_encoder": {torch.float32}}


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_base_in_fewer_bits_needs_bf16_arithmetic(bits: int) -> None:
    base = LoraSettings.model_validate({"rank": 2, "base_bits": bits})
    with pytest.raises(ValueError, match=rf"base_bits: {bits} .* needs loop\.precision: bf16"):
        check_precision(base, LoopSettings(steps=1, batch_size=1))
    check_precision(base, LoopSettings(steps=1, batch_size=1, precision="bf16"))


@pytest.mark.parametrize(("is_cached", "released"), [(True, ["vae", "text_encoder"]), (False, ["vae"])])
def test_denoiser_takes_the_place_of_the_encoders(
    is_cached: bool, released: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(tasks, "place", lambda _, names: events.append(("place", list(names))))
    monkeypatch.setattr(tasks, "release", lambda _, names: events.append(("release", list(names))))
    encode = DiffusionTask._encode_held_out
    monkeypatch.setattr(
        DiffusionTask, "_encode_held_out", lambda *given: (events.append(("encode", [])), encode(*given))[1]
    )
    task = tiny.diffusion_task(tmp_path, cache_text=is_cached)
    assert isinstance(task, DiffusionTask)
    assert events == [
        ("place", ["vae", "text_encoder"]),
        ("encode", []),
        ("release", released),
        ("place", ["unet"]),
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_text_encoders_in_bf16_tell_the_denoiser_nearly_the_same(name: str) -> None:
    losses = []
    for asked in (
        None,
        dict.fromkeys(load_family(str(FAMILIES[name]())).facts.text_encoders, torch.bfloat16),
    ):
        family = load_family(str(FAMILIES[name]()), dtype=asked)
        modules = truths.adapted(family, trained=0.1)
        losses.append(truths.our_losses(family, modules, truths.fixed_batch(family)).detach())
    assert losses[1].dtype == torch.float32
    assert not torch.equal(losses[0], losses[1])
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_text_encoders_held_in_bf16_are_saved_as_the_checkpoint_has_them(init: str, tmp_path: Path) -> None:
    fields = {
        "model": str(tiny.sd1()),
        "init": init,
        "captions": {"caption": 1},
        "trained": {"type": "full", "components": ["unet"]},
        "optimizer": {"learning_rate": 1e-3},
        "loop": {"steps": 1, "batch_size": 2},
        "speed": {"text_encoders": "bf16"},
    }
    inputs = {"data_from": tiny.captioned_photographs()}
    facts = tiny.run_stage(Train, tmp_path / "train", fields, inputs, seed=7)
    folder = tmp_path / "train" / facts["model"]
    assert {value.dtype for value in load_file(folder / "text_encoder/model.safetensors").values()} == {torch.float32}
    exact = load_family(str(tiny.sd1()), random_seed=7 if init == "random" else None).pipeline.components
    saved = load_family(str(folder)).pipeline.components
    for name, is_exact in {"text_encoder": True, "vae": True, "unet": False}.items():
        found, expected = saved[name].state_dict(), exact[name].state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in found.items()) == is_exact
