"""Autoencoders that overflow in half precision: no image turns black, and latents that are no numbers are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import change, copied, state_of
from safetensors.torch import save_file

from t2i.families import load_family


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """SDXL whose autoencoder has activations beyond 65504 on the way to ordinary latents, as the published one."""
    folder = copied(tmp_path, family="sdxl")
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    state = state_of(path)
    # Group norm takes the factor out again.
    state["encoder.conv_in.weight"] *= 3e5
    state["encoder.down_blocks.0.resnets.0.conv1.weight"] *= 3e5
    for name in ("encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.conv1.weight"):
        state[name] = state[name].clamp(-6e4, 6e4)
    save_file(state, path)
    return folder


@torch.no_grad()
def test_an_autoencoder_known_to_overflow_runs_in_fp32_and_comes_back_in_fp16(overflowing: Path) -> None:
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    family: Any = load_family(str(overflowing), dtype=torch.float16)
    posterior = family.encode_images(pixels)
    assert family.pipeline.vae.dtype == torch.float16
    assert torch.isfinite(posterior.mean).all()
    theirs: Any = load_family(str(overflowing), dtype=torch.float16).pipeline.vae.float()
    expected = theirs.encode(pixels).latent_dist.mean * theirs.config.scaling_factor
    assert torch.equal(posterior.mean, expected)
    decoded = family.decode_latents(posterior.mean)
    assert torch.isfinite(decoded).all()


@torch.no_grad()
def test_the_same_without_the_mark_in_its_config_is_not_finite(overflowing: Path) -> None:
    change(overflowing / "vae/config.json", force_upcast=False)
    family: Any = load_family(str(overflowing), dtype=torch.float16)
    assert not torch.isfinite(family.encode_images(torch.ones(1, 3, 32, 32)).mean).all()
