"""Families of text-to-image models: one adapter file each."""

from t2i.families.base import Conditioning, FamilyFacts, ModelFamily, Posterior
from t2i.families.loading import load_family
from t2i.families.recognise import Checkpoint, describe_checkpoint

__all__ = [
    "Checkpoint",
    "Conditioning",
    "FamilyFacts",
    "ModelFamily",
    "Posterior",
    "describe_checkpoint",
    "load_family",
]
