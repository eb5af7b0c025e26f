"""t2i: fine-tune and align text-to-image diffusion models from one recipe, and prove that they got better."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2i.engine import plan, run
    from t2i.errors import T2IError
    from t2i.export.adapter import export_lora
    from t2i.families.loading import load_family
    from t2i.recipe import Recipe
    from t2i.sampling import Sampler

__all__ = ["Recipe", "Sampler", "T2IError", "export_lora", "load_family", "plan", "run"]

_MODULES = {
    "Recipe": "t2i.recipe",
    "Sampler": "t2i.sampling",
    "T2IError": "t2i.errors",
    "export_lora": "t2i.export.adapter",
    "load_family": "t2i.families.loading",
    "plan": "t2i.engine",
    "run": "t2i.engine",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: the command line must not pay for torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 't2i' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
