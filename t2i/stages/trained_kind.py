"""Whether the stages that another reads train what it takes: an adapter, or a whole model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from t2i.objectives import DenoiserObjective
from t2i.stages.base import Stage
from t2i.training.settings import FullSettings, LoraSettings


def is_whole(stage: Stage | None) -> bool | None:
    """Whether it trains a whole model, and not an adapter; None for what does not say, such as `merge` and `pick`."""
    trained = getattr(stage, "trained", None)
    if isinstance(trained, LoraSettings):
        # The adapter of a reward model is saved with all that it needs, as one model.
        return None if not isinstance(getattr(stage, "objective", None), DenoiserObjective) else False
    return True if isinstance(trained, FullSettings) else None


def misfit_of(names: Iterable[str], earlier: Mapping[str, Stage], *, whole: bool) -> str:
    """What is wrong with the first of these stages that does not train such a thing; empty if all may."""
    for name in names:
        if is_whole(earlier.get(name)) is (not whole):
            found, wanted = ("an adapter", "a whole model") if whole else ("a whole model", "an adapter")
            return f"{name} trains {found}, and this takes {wanted}"
    return ""
