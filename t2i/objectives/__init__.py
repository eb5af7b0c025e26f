"""Training objectives: pure losses, and the small classes that a recipe names them by."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from t2i.objectives.autoencoder import Autoencoder
from t2i.objectives.bradley_terry import BradleyTerry
from t2i.objectives.classification import Classification
from t2i.objectives.contrastive import Contrastive
from t2i.objectives.denoising import Denoising

AnyObjective = Annotated[
    Denoising | Autoencoder | BradleyTerry | Contrastive | Classification, Field(discriminator="type")
]

__all__ = ["AnyObjective", "Autoencoder", "BradleyTerry", "Classification", "Contrastive", "Denoising"]
