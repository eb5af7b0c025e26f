"""Training objectives: pure losses, and the small classes that a recipe names them by."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from t2i.objectives.autoencoder import Autoencoder
from t2i.objectives.bradley_terry import BradleyTerry
from t2i.objectives.chosen import ChosenDenoising, denoising_of
from t2i.objectives.classification import Classification
from t2i.objectives.contrastive import Contrastive
from t2i.objectives.denoising import Denoising
from t2i.objectives.diffusion_dpo import DiffusionDPO
from t2i.objectives.kto import DiffusionKTO

PairObjective = DiffusionDPO | DiffusionKTO | ChosenDenoising
"""Objectives on preference pairs."""
DenoiserObjective = Denoising | PairObjective
"""Objectives that train a denoiser."""
AnyObjective = Annotated[
    Denoising
    | DiffusionDPO
    | DiffusionKTO
    | ChosenDenoising
    | Autoencoder
    | BradleyTerry
    | Contrastive
    | Classification,
    Field(discriminator="type"),
]

__all__ = [
    "AnyObjective",
    "Autoencoder",
    "BradleyTerry",
    "ChosenDenoising",
    "Classification",
    "Contrastive",
    "DenoiserObjective",
    "Denoising",
    "DiffusionDPO",
    "DiffusionKTO",
    "PairObjective",
    "denoising_of",
]
