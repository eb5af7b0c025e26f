"""Training a denoiser, through adapters or as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from t2i import lora
from t2i.errors import ConfigError, RunError
from t2i.families.base import Conditioning, ModelFamily
from t2i.objectives.base import DiffusionBatch, LossOutput
from t2i.training.loop import Trainable
from t2i.training.settings import FullSettings, LoraSettings

if TYPE_CHECKING:
    from t2i.objectives.denoising import Denoising


class FamilyDenoiser:
    """The Denoiser that objectives see: a family's denoiser and text encoders with their adapters."""

    def __init__(self, family: ModelFamily, adapted: dict[str, nn.Module]) -> None:
        self.family, self.adapted = family, adapted

    def encode(self, batch: DiffusionBatch) -> Conditioning:
        """Conditioning of the batch: as cached, or through the text encoders and their adapters if these are on."""
        cached: Conditioning | None = batch.conditioning
        conditioning = self.family.encode_prompts(batch.prompts) if cached is None else cached
        return conditioning.with_sizes(batch.sizes)

    def __call__(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        return self.family.predict(noisy, timesteps, conditioning)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Adapters off and no gradients, for the length of the block."""
        with lora.adapters_off(self.adapted), torch.no_grad():
            yield


class DiffusionModule(nn.Module):
    """`forward(batch)` is the objective's loss; its sub-modules are the components that are trained."""

    def __init__(
        self, family: ModelFamily, objective: Denoising, trained: dict[str, nn.Module], adapted: dict[str, nn.Module]
    ) -> None:
        super().__init__()
        self.components = nn.ModuleDict(trained)
        self.denoiser = FamilyDenoiser(family, adapted)
        self.noise = family.noise
        self.objective = objective

    def forward(self, batch: DiffusionBatch) -> LossOutput:
        """Per-example loss of one batch."""
        return self.objective(self.denoiser, self.noise, batch)


def diffusion_trainable(
    family: ModelFamily, objective: Denoising, settings: LoraSettings | FullSettings, seed: int
) -> tuple[Trainable, dict[str, nn.Module]]:
    """Prepare a family for training. Returns what the loop trains, and the trained components by name."""
    if not isinstance(settings, LoraSettings):
        components = _unfreeze(family, settings.components)
        module = DiffusionModule(family, objective, components, {})
        return Trainable(module, check=lambda batch: _check_first_batch(module, {}, batch)), components
    adapted = lora.inject(family, settings, seed)
    module = DiffusionModule(family, objective, adapted, adapted)
    own_rates = lora.learning_rates(adapted, family.facts, settings)
    trainable = Trainable(
        module,
        {f"components.{prefix}": rate for prefix, rate in own_rates.items()},
        lambda batch: _check_first_batch(module, adapted, batch),
        {".lora_B.": settings.b_learning_rate_ratio},
    )
    return trainable, adapted


def _unfreeze(family: ModelFamily, names: Sequence[str]) -> dict[str, nn.Module]:
    lora.freeze(family)
    known = {name: value for name, value in family.pipeline.components.items() if isinstance(value, nn.Module)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"trained.components: {unknown} are not components of this model; known: {', '.join(known)}.")
    return {name: known[name].requires_grad_(True) for name in names}


@torch.no_grad()
def _check_first_batch(module: DiffusionModule, adapted: dict[str, nn.Module], batch: DiffusionBatch) -> None:
    """Step 0: the loss is finite, only adapters are trained, and a fresh adapter changes nothing, bit for bit."""
    losses = module(batch).loss
    if not torch.isfinite(losses).all():
        raise RunError(
            "step 0: the loss of the untrained model is not finite; the checkpoint or its precision is unfit."
        )
    if not adapted:
        return
    strangers = [name for name, value in module.named_parameters() if value.requires_grad and ".lora_" not in name]
    if strangers:
        raise RunError(f"step 0: parameters other than the adapter's would be trained: {strangers[:3]}.")
    with module.denoiser.reference():
        reference = module(batch).loss
    if not torch.equal(losses, reference):
        raise RunError("step 0: the fresh adapter changes the model's output; it must start as the model itself.")
