"""What of a model is held in which precision, and what of it is on the device at a time.

Text encoders and autoencoder are there while captions and images are encoded, the denoiser while it is trained: of a
large model the two fit one after the other where they would not fit together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from t2i import devices
from t2i.families.loading import describe_checkpoint, family_class, load_family
from t2i.training.settings import FullSettings, LoraSettings, SpeedSettings

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from t2i.families.base import FamilyFacts, ModelFamily
    from t2i.training.tasks import TaskSettings


def held_dtypes(
    facts: FamilyFacts, trained: LoraSettings | FullSettings, speed: SpeedSettings
) -> dict[str, torch.dtype]:
    """The components whose frozen weights are bfloat16 from when they are read; all others are float32.

    The denoiser where its base has fewer bits than 32, 8 and 4 among them: the published ones of that size are in
    bfloat16 as it is. The text encoders where the recipe says so and a LoRA, if they carry one, is over that.
    """
    names: list[str] = []
    if isinstance(trained, LoraSettings) and trained.base_bits is not None:
        names.append(facts.denoiser)
    if speed.text_encoders == "bf16":
        whole = trained.components if isinstance(trained, FullSettings) else ()
        names += [name for name in facts.text_encoders if name not in whole]
    return dict.fromkeys(names, torch.bfloat16)


def load_for_training(settings: TaskSettings) -> ModelFamily:
    """The model that the settings name, in host memory, in the precisions that they ask for."""
    checkpoint = describe_checkpoint(settings.model, revision=settings.revision)
    dtypes = held_dtypes(family_class(checkpoint).facts, settings.trained, settings.speed)
    return load_family(
        settings.model, revision=settings.revision, dtype=dtypes or None, random_seed=settings.random_seed
    )


def pipeline_to_save(family: ModelFamily, settings: TaskSettings) -> DiffusionPipeline:
    """The pipeline of a model that is trained whole, with its frozen text encoders as the checkpoint has them.

    Those held in bfloat16 are loaded anew: kept in float32 from the start, they would take the memory that it spares.
    """
    held = held_dtypes(family.facts, settings.trained, settings.speed)
    rounded = [name for name in held if isinstance(family.pipeline.components.get(name), nn.Module)]
    if not rounded:
        return family.pipeline
    exact = load_family(settings.model, revision=settings.revision, random_seed=settings.random_seed)
    pipeline = copy.copy(family.pipeline)
    for name in rounded:
        setattr(pipeline, name, exact.pipeline.components[name])
    return pipeline


def encoder_names(facts: FamilyFacts) -> tuple[str, ...]:
    """Components that turn images and captions into what the denoiser takes."""
    return ("vae", *facts.text_encoders)


def place(family: ModelFamily, components: Iterable[str]) -> None:
    """Move components to the GPU, if there is one. One that the checkpoint lacks is passed over."""
    _move(family, components, devices.compute_device())


def release(family: ModelFamily, components: Iterable[str]) -> None:
    """Move components back to host memory."""
    _move(family, components, torch.device("cpu"))


def _move(family: ModelFamily, components: Iterable[str], device: torch.device) -> None:
    for name in components:
        module = family.pipeline.components.get(name)
        if isinstance(module, nn.Module):
            module.to(device)
