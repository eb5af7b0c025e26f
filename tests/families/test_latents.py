"""Which autoencoders a family takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_flow
from diffusers import AutoencoderTiny

from t2i.errors import ModelError
from t2i.families import load_family


@pytest.mark.parametrize("checkpoint", [tiny.sd1, tiny_flow.sd3], ids=["unet", "transformer"])
def test_a_model_with_another_kind_of_autoencoder_is_refused(checkpoint: Callable[[], Path], tmp_path: Path) -> None:
    pipeline: Any = load_family(str(checkpoint())).pipeline
    blocks = {f"{side}_block_out_channels": (8, 8) for side in ("encoder", "decoder")}
    counts = {f"num_{side}_blocks": (1, 1) for side in ("encoder", "decoder")}
    channels = pipeline.vae.config["latent_channels"]
    pipeline.register_modules(vae=AutoencoderTiny(latent_channels=channels, **blocks, **counts))
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="the VAE is an AutoencoderTiny; expected an AutoencoderKL") as error:
        load_family(str(tmp_path / "model"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("checkpoint", [tiny.sd1, tiny_flow.sd3], ids=["unet", "transformer"])
def test_latents_that_are_standardised_by_channel_are_refused(checkpoint: Callable[[], Path]) -> None:
    family: Any = load_family(str(checkpoint()))
    family.pipeline.vae.register_to_config(latents_mean=[0.0] * 4)
    with pytest.raises(ModelError, match="standardised by channel"):
        type(family)(family.pipeline)
