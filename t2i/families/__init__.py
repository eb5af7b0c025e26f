"""Families of text-to-image models: one adapter file each."""

from t2i.families.base import Conditioning, FamilyFacts, ModelFamily, Posterior
from t2i.families.loading import load_family

__all__ = ["Conditioning", "FamilyFacts", "ModelFamily", "Posterior", "load_family"]
