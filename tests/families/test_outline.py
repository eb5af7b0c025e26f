"""A model without its weights is the loaded one in all that needs none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_flow
import torch
from checkpoints import copied

from t2i.errors import ModelError
from t2i.families import load_family
from t2i.families.outline import outline_family

CHECKPOINTS: dict[str, Callable[[], Path]] = {
    "sd1": tiny.sd1,
    "sdxl": tiny.sdxl,
    "pixart alpha": tiny_flow.pixart,
    "pixart alpha told sizes": lambda: tiny_flow.pixart("alpha_sizes"),
    "pixart sigma": lambda: tiny_flow.pixart("sigma"),
    "sd3": tiny_flow.sd3,
    "sd3 without T5": lambda: tiny_flow.sd3(False),
    "flux dev": tiny_flow.flux,
    "flux schnell": lambda: tiny_flow.flux(False),
}
PROMPTS = ["a cat", "", "a red cup of coffee on the moon " * 4]


def parameters(family: Any) -> dict[str, torch.nn.Parameter]:
    models = {name: part for name, part in family.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{path}": value for name, part in models.items() for path, value in part.named_parameters()}


@pytest.mark.parametrize("name", CHECKPOINTS)
@torch.no_grad()
def test_outline_has_the_facts_and_shapes_of_the_loaded_model(name: str) -> None:
    model = str(CHECKPOINTS[name]())
    outline, loaded = outline_family(model), load_family(model)
    assert outline.facts is loaded.facts
    for fact in ("pixel_multiple", "default_size"):
        assert getattr(outline, fact) == getattr(loaded, fact)
    assert outline.count_truncated(PROMPTS) == loaded.count_truncated(PROMPTS)
    assert outline.noise.default_timesteps == loaded.noise.default_timesteps
    theirs = {path: (value.shape, value.dtype) for path, value in parameters(loaded).items()}
    assert {path: (value.shape, value.dtype) for path, value in parameters(outline).items()} == theirs
    assert all(value.is_meta for value in parameters(outline).values())
    ours, real = outline.encode_prompts(PROMPTS), loaded.encode_prompts(PROMPTS)
    for field in fields(ours):
        one, other = getattr(ours, field.name), getattr(real, field.name)
        assert (one is None) == (other is None)
        assert one is None or (one.shape, one.dtype) == (other.shape, other.dtype)
    pixels = torch.zeros(2, 3, tiny.SIZE_PX, 2 * tiny.SIZE_PX)
    assert outline.encode_images(pixels.to("meta")).mean.shape == loaded.encode_images(pixels).mean.shape


def test_outline_needs_weights_only_where_they_are_to_be_loaded(tmp_path: Path) -> None:
    folder = copied(tmp_path, weights=False)
    assert outline_family(str(folder), weights=False).default_size == tiny.SIZE_PX
    with pytest.raises(ModelError, match="no safetensors weights"):
        outline_family(str(folder))


def test_outline_reads_no_tensor(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    for path in folder.rglob("*.safetensors"):
        # Whole by its header, without a byte of its tensors.
        size, header = path.stat().st_size, 8 + int.from_bytes(path.read_bytes()[:8], "little")
        with path.open("r+b") as file:
            file.truncate(header)
            file.truncate(size)
    assert parameters(outline_family(str(folder))).keys() == parameters(tiny.load_sd1()).keys()
