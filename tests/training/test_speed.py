"""Switches of speed and memory, on a tiny checkpoint of each family: what they leave as it is, and what they refuse."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from tiny_flow import FAMILIES
from torch import Tensor

from t2i.errors import ConfigError, MissingDependencyError
from t2i.families import load_family
from t2i.families.base import ModelFamily
from t2i.training.settings import SpeedSettings
from t2i.training.speed import apply_speed, attention_processors, check_speed, repeated_blocks, use_xformers

sys.path.insert(0, str(Path(__file__).parent.parent / "families"))
import truths


def load(name: str) -> ModelFamily:
    return load_family(str(FAMILIES[name]()), expected=name)


def step(name: str, **settings: object) -> dict[str, Tensor]:
    """Losses and LoRA gradients of one training step."""
    family = load(name)
    modules = truths.adapted(family, trained=0.1)
    apply_speed(family, SpeedSettings.model_validate(settings))
    losses = truths.our_losses(family, modules, truths.fixed_batch(family))
    losses.mean().backward()
    trained = {path: value for module in modules.values() for path, value in module.named_parameters()}
    gradients = {path: value.grad for path, value in trained.items() if value.grad is not None}
    return {"losses": losses.detach(), **gradients}


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_changes_no_bit(name: str) -> None:
    plain = step(name)
    for kind in (True, "selective"):
        found = step(name, gradient_checkpointing=kind)
        assert found.keys() == plain.keys()
        assert [path for path, value in plain.items() if not torch.equal(found[path], value)] == []


def test_gradient_checkpointing_computes_again_what_it_says() -> None:
    """Products of matrices in a forward and backward pass: all of the forward ones again, none, or as without it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, operation, types, arguments=(), options=None):
            self.count += operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
            return operation(*arguments, **(options or {}))

    counts = {}
    for kind in (False, True, "selective"):
        family = load("flux")
        modules = truths.adapted(family, trained=0.1)
        apply_speed(family, SpeedSettings(gradient_checkpointing=kind))
        batch = truths.fixed_batch(family)
        with Products() as products:
            truths.our_losses(family, modules, batch).mean().backward()
        counts[kind] = products.count
    assert counts["selective"] == counts[False] < counts[True]


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_channels_last_agrees_and_is_set(name: str) -> None:
    plain, found = step(name), step(name, channels_last=True)
    for path, value in plain.items():
        torch.testing.assert_close(found[path], value, atol=1e-5, rtol=1e-4)
    family = load(name)
    apply_speed(family, SpeedSettings(channels_last=True))
    weights = [value for value in family.denoiser.parameters() if value.dim() == 4 and value.shape[1:].numel() > 1]
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in weights)


@pytest.mark.parametrize("name", ["pixart", "sd3", "flux"])
def test_channels_last_is_refused_for_transformers(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"speed\.channels_last: .*denoiser of {name} is a transformer"):
        check_speed(load(name), SpeedSettings(channels_last=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_blocks_to_compile_and_attention_to_set(name: str) -> None:
    family = load(name)
    assert len(repeated_blocks(family.denoiser)) >= 2
    processors = attention_processors(family.denoiser)
    assert len(processors) >= 2
    dispatched = [hasattr(processor, "_attention_backend") for processor in processors]
    assert all(dispatched) if family.facts.dispatches_attention else not any(dispatched)


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is installed")
def test_xformers_without_its_package_is_refused() -> None:
    with pytest.raises(MissingDependencyError, match=r"speed\.attention: xformers needs .*t2i-toolkit\[xformers\]"):
        check_speed(load("sd1"), SpeedSettings(attention="xformers"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", FAMILIES)
def test_xformers_without_a_gpu_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="computes on a GPU, and there is none"):
        use_xformers(load(name))


def test_no_other_attention_is_known() -> None:
    with pytest.raises(ValueError, match="'sdpa' or 'xformers'"):
        SpeedSettings.model_validate({"attention": "flash"})
