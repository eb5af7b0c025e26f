"""What the stages that another reads train: an adapter or a whole model, over which model, and with which settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

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


def base_of(name: str, earlier: Mapping[str, Stage]) -> str:
    """The stage whose whole model an adapter was trained over, looked for through `pick` and `merge`; else empty."""
    stage = earlier.get(name)
    # The difference of a whole model from `model` goes with that one, whatever the whole was trained over.
    if stage is None or getattr(stage, "kind", "") == "extract":
        return ""
    own = getattr(stage, "model_from", None) or ""
    found = (base_of(source, earlier) for source in stage.references.get("weights_from", ()))
    return own or next(filter(None, found), "")


def trainings_of(name: str, earlier: Mapping[str, Stage]) -> Iterator[Stage]:
    """The stages that trained some weights, looked for through `pick` and `merge`."""
    stage = earlier.get(name)
    sources = () if stage is None else stage.references.get("weights_from", ())
    if stage is not None and not sources:
        yield stage
    for source in sources:
        yield from trainings_of(source, earlier)
