"""Scorers of images against prompts: raw numbers in their published scale, with what is needed to trust them."""

from rewards.base import Reward
from rewards.registry import available, load
from rewards.scoring import score

__all__ = ["Reward", "available", "load", "score"]
