"""Preference pairs for tests: random latents for a tiny checkpoint, and pictures on disk with their pair records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i.data.pairs import save_pairs
from t2i.families import load_family
from t2i.objectives import DenoiserObjective
from t2i.objectives.pairs import PairBatch
from t2i.records import PreferencePair
from t2i.training.diffusion import DiffusionModule, diffusion_trainable
from t2i.training.settings import FullSettings, LoraSettings
from tests import tiny, tiny_flow

CHECKPOINTS = {
    "epsilon": lambda: tiny.sd1("epsilon"),
    "v_prediction": lambda: tiny.sd1("v_prediction"),
    "flow": lambda: tiny_flow.sd3(with_t5=False),
}
"""Kind of prediction -> folder of a tiny checkpoint that makes it."""
PROMPTS = ("a cat", "the moon", "a red cup")


def module_of(
    kind: str, objective: DenoiserObjective, trained: LoraSettings | FullSettings | None = None, *, spoiled: float = 0.0
) -> DiffusionModule:
    """A fresh copy of a checkpoint, ready to train. spoiled: deviation of noise on the trained values."""
    family = load_family(str(CHECKPOINTS[kind]()))
    settings = trained or LoraSettings(rank=4, text_encoder=True)
    module: Any = diffusion_trainable(family, objective, settings, seed=0)[0].module
    if spoiled:
        spoil(module, spoiled)
    return module


def spoil(module: nn.Module, scale: float, seed: int = 5) -> None:
    """Add noise to what is trained, as if some steps had been taken."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained(module).values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that ask for a gradient, by name."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Gradient of a scalar by name of the parameter; absent ones are zero."""
    parameters = trained(module)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def batch_for(module: DiffusionModule, *, side: int = 8, seed: int = 1) -> PairBatch:
    """Three pairs of random latents, at levels 0.1, 0.5 and 0.9."""
    channels = module.denoiser.family.pipeline.vae.config.latent_channels
    draws = torch.randn(3, len(PROMPTS), channels, side, side, generator=torch.Generator().manual_seed(seed))
    return PairBatch(draws[0], draws[1], draws[2], torch.tensor([0.1, 0.5, 0.9]), PROMPTS)


def swapped(batch: PairBatch) -> PairBatch:
    """The same pairs with the labels flipped."""
    return PairBatch(batch.rejected, batch.chosen, batch.noise, batch.uniform, batch.prompts)


def write_pairs(folder: Path, *, count: int = 8, size: int = 32, flipped: bool = False) -> Path:
    """Finished folder of a pair stage: a bright picture is preferred to a dark one of the same noise."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    pairs = []
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 60, (size, size, 3))
        for name, level in (("bright", 190), ("dark", 10)):
            Image.fromarray((noise + level).astype(np.uint8)).save(folder / f"{number:02d}-{name}.png")
        sides = [f"{number:02d}-bright.png", f"{number:02d}-dark.png"]
        chosen, rejected = reversed(sides) if flipped else sides
        pairs.append(PreferencePair(PROMPTS[number % 3], chosen, rejected, source="brightness"))
    save_pairs(folder, pairs)
    return folder
