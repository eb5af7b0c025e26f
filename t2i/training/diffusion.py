"""Training a denoiser, through adapters or as a whole."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from t2i import lora
from t2i.errors import ConfigError, RunError
from t2i.families.base import Conditioning, ModelFamily
from t2i.objectives.base import DiffusionBatch, LossOutput
from t2i.training.settings import FullSettings, LoraSettings
from t2i.training.trainable import Trainable

if TYPE_CHECKING:
    from t2i.objectives import DenoiserObjective


class FamilyDenoiser:
    """The Denoiser that objectives see: a family's denoiser and text encoders with their adapters.

    The reference is the same model with its adapters off; where whole components are trained, it is `frozen`, the
    family with copies of these components.
    """

    def __init__(
        self,
        family: ModelFamily,
        adapted: dict[str, nn.Module],
        *,
        frozen: ModelFamily | None = None,
        trains_text: bool = False,
    ) -> None:
        self.family, self.adapted, self.frozen = family, adapted, frozen
        self.trains_text = trains_text

    def encode(self, batch: DiffusionBatch) -> Conditioning:
        """Conditioning of the batch: as cached, or through the text encoders and their adapters if these are on."""
        cached: Conditioning | None = batch.conditioning
        conditioning = self.family.encode_prompts(batch.prompts) if cached is None else cached
        return conditioning.with_sizes(batch.sizes)

    def __call__(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        # Encoders may be held in another precision than latents are.
        floats = conditioning.map(lambda tensor: tensor.to(noisy.dtype) if tensor.is_floating_point() else tensor)
        return self.family.predict(noisy, timesteps, floats)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The model as it was before training, and no gradients, for the length of the block."""
        with torch.no_grad():
            if self.frozen is None:
                with lora.adapters_off(self.adapted):
                    yield
                return
            policy, self.family = self.family, self.frozen
            try:
                yield
            finally:
                self.family = policy


class DiffusionModule(nn.Module):
    """`forward(batch)` is the objective's loss; its sub-modules are the components that are trained."""

    def __init__(
        self,
        family: ModelFamily,
        objective: DenoiserObjective,
        trained: dict[str, nn.Module],
        adapted: dict[str, nn.Module],
        frozen: ModelFamily | None = None,
    ) -> None:
        super().__init__()
        self.components = nn.ModuleDict(trained)
        trains_text = any(name in family.facts.text_encoders for name in trained)
        self.denoiser = FamilyDenoiser(family, adapted, frozen=frozen, trains_text=trains_text)
        self.noise = family.noise
        self.objective = objective

    def forward(self, batch: Any) -> LossOutput:
        """Per-example loss of one batch of what the objective needs."""
        return self.objective(self.denoiser, self.noise, batch)


def diffusion_trainable(
    family: ModelFamily,
    objective: DenoiserObjective,
    settings: LoraSettings | FullSettings,
    seed: int,
    *,
    start: Path | None = None,
) -> tuple[Trainable, dict[str, nn.Module]]:
    """Prepare a family for training. Returns what the loop trains, and the trained components by name.

    start: a LoRA file that a LoRA goes on from; an objective's reference is still the model without any.

    An objective that compares with the untrained model gets it from its own adapters, switched off; only where whole
    components are trained is a second, frozen copy of these held.
    """
    if not isinstance(settings, LoraSettings):
        components = _unfreeze(family, settings.components)
        frozen = _frozen_copy(family, components) if objective.needs_reference else None
        module = DiffusionModule(family, objective, components, {}, frozen)
        return Trainable(module, check=lambda batch: _check_first_batch(module, {}, batch)), components
    adapted = lora.inject(family, settings, seed)
    if start is not None:
        lora.start_from(family.pipeline, adapted, start)
    if objective.needs_reference:
        lora.check_restorable(adapted)
    module = DiffusionModule(family, objective, adapted, adapted)
    own_rates = lora.learning_rates(adapted, family.facts, settings)
    trainable = Trainable(
        module,
        {f"components.{prefix}": rate for prefix, rate in own_rates.items()},
        lambda batch: _check_first_batch(module, adapted, batch, is_fresh=start is None),
        {".lora_B.": settings.b_learning_rate_ratio},
    )
    return trainable, adapted


def _frozen_copy(family: ModelFamily, components: dict[str, nn.Module]) -> ModelFamily:
    """The family with copies of these components that nothing changes; everything else is shared."""
    frozen = copy.copy(family)
    frozen.pipeline = copy.copy(family.pipeline)
    for name, component in components.items():
        setattr(frozen.pipeline, name, copy.deepcopy(component).requires_grad_(False).eval())
    return frozen


def _unfreeze(family: ModelFamily, names: Sequence[str]) -> dict[str, nn.Module]:
    lora.freeze(family)
    known = {name: value for name, value in family.pipeline.components.items() if isinstance(value, nn.Module)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"trained.components: {unknown} are not components of this model; known: {', '.join(known)}.")
    return {name: known[name].requires_grad_(True) for name in names}


@torch.no_grad()
def _check_first_batch(
    module: DiffusionModule, adapted: dict[str, nn.Module], batch: Any, *, is_fresh: bool = True
) -> None:
    """Step 0: the loss is finite, only adapters are trained, and a fresh adapter changes nothing, bit for bit.

    Blocks that are to be compiled are not yet: with adapters and without they become two graphs, which round otherwise.
    """
    with torch.compiler.set_stance("force_eager"):
        _check_uncompiled(module, adapted, batch, is_fresh=is_fresh)


def _check_uncompiled(module: DiffusionModule, adapted: dict[str, nn.Module], batch: Any, *, is_fresh: bool) -> None:
    output = module(batch)
    if not torch.isfinite(output.loss).all():
        raise RunError(
            "step 0: the loss of the untrained model is not finite; the checkpoint or its precision is unfit."
        )
    strangers = [name for name, value in module.named_parameters() if value.requires_grad and ".lora_" not in name]
    if adapted and strangers:
        raise RunError(f"step 0: parameters other than the adapter's would be trained: {strangers[:3]}.")
    if is_fresh and not _starts_as_reference(module, output, batch, bool(adapted)):
        raise RunError("step 0: the fresh adapter changes the model's output; it must start as the model itself.")


def _starts_as_reference(module: DiffusionModule, output: LossOutput, batch: Any, adapted: bool) -> bool:
    """Whether the untrained model gives what its reference gives, to the last bit; True where there is no reference."""
    if module.objective.needs_reference:
        # Such an objective makes both passes itself; within `reference()` they would be the same by construction.
        return not output.metrics["logit"].any()
    if not adapted:
        return True
    with module.denoiser.reference():
        return torch.equal(output.loss, module(batch).loss)
