"""Ranks and alphas of many layers in the words of peft's configuration."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any


def rank_and_alpha_options(shapes: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """Options of a LoraConfig that give each layer, by its whole path, its (rank, alpha).

    The most common pair is the default and only the others are listed: peft tries every pattern on every layer, which
    for the layers of SDXL takes seconds. peft declares alpha an integer and works with any number.
    """
    [((rank, alpha), _)] = Counter(shapes.values()).most_common(1)
    anchored = {path: f"^{re.escape(path)}" for path in shapes}
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {anchored[path]: shape[0] for path, shape in shapes.items() if shape[0] != rank},
        "alpha_pattern": {anchored[path]: shape[1] for path, shape in shapes.items() if shape[1] != alpha},
    }
