"""Which modules get an adapter, and of what shape: names and patterns of a recipe against the layers of a model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from t2i.errors import ConfigError

if TYPE_CHECKING:
    from t2i.training.settings import LoraModules, LoraSettings

ADAPTABLE = (nn.Linear, nn.Conv2d)
"""What a LoRA can be put on."""


@dataclass(frozen=True)
class AdapterShape:
    """Rank and alpha of one module's adapter."""

    rank: int
    alpha: float


def denoiser_adapters(
    module: nn.Module, name: str, defaults: tuple[str, ...], settings: LoraSettings
) -> dict[str, AdapterShape]:
    """Module path -> shape of its adapter, for the denoiser `name`. `defaults` are the family's targets.

    Raises ConfigError for names that fit no layer, patterns that match none, and two patterns that match the same.
    """
    targets = defaults if settings.targets is None else settings.targets
    shapes = dict.fromkeys(named_layers(module, name, targets), shape(settings, None, None))
    layers = adaptable_layers(module)
    claimed: dict[str, str] = {}
    for rule in settings.modules:
        found = matching(rule.match, layers)
        if not found:
            near = ", ".join(difflib.get_close_matches(rule.match, layers, n=2, cutoff=0))
            raise ConfigError(f"trained.modules: {rule.match!r} matches no layer of {name}; nearest: {near}.")
        for path in found:
            if path in claimed:
                both = f"{claimed[path]!r} and {rule.match!r}"
                raise ConfigError(f"trained.modules: {both} both match {path} of {name}; make them exclusive.")
            claimed[path] = rule.match
            shapes[path] = shape(settings, rule.rank, rule.alpha)
    return shapes


def text_encoder_adapters(
    module: nn.Module, name: str, targets: tuple[str, ...], settings: LoraSettings
) -> dict[str, AdapterShape]:
    """Module path -> shape of its adapter, for the text encoder `name`."""
    own = shape(settings, settings.text_encoder_rank, settings.text_encoder_alpha)
    return dict.fromkeys(named_layers(module, name, targets), own)


def shape(settings: LoraSettings, rank: int | None, alpha: float | None) -> AdapterShape:
    """Of an adapter with values of its own. What is absent is the whole LoRA's; no alpha anywhere: the rank."""
    rank = rank or settings.rank
    return AdapterShape(rank, alpha or settings.alpha or float(rank))


def rule_of(path: str, rules: Iterable[LoraModules]) -> LoraModules | None:
    """The rule that matches a module, if any."""
    return next((rule for rule in rules if matching(rule.match, [path])), None)


def matching(pattern: str, paths: Iterable[str]) -> list[str]:
    """Paths that a pattern matches from their beginning, or from behind one of their dots, to their end."""
    compiled = re.compile(rf"(?:.*\.)?(?:{pattern})")
    return [path for path in paths if compiled.fullmatch(path)]


def adaptable_layers(module: nn.Module) -> list[str]:
    """Paths of all layers that can carry an adapter."""
    return [path for path, child in module.named_modules() if isinstance(child, ADAPTABLE)]


def carries(module: nn.Module, targets: Sequence[str]) -> bool:
    """Whether every target names layers of a module."""
    return bool(targets) and all(_named(module, target) for target in targets)


def named_layers(module: nn.Module, name: str, targets: Sequence[str]) -> list[str]:
    """Paths of the layers that suffixes name. Raises ConfigError for one that names none, or what is no layer."""
    strangers = [target for target in targets if not _named(module, target)]
    if strangers:
        layers = adaptable_layers(module)
        near = ", ".join(_nearest(target, layers) for target in strangers)
        known = ", ".join(sorted({_last_name(path) for path in layers}))
        raise ConfigError(f"LoRA targets {strangers} do not name layers of {name}; nearest: {near}; known: {known}.")
    return list(dict.fromkeys(path for target in targets for path in _named(module, target)))


def _named(module: nn.Module, target: str) -> list[str]:
    """Paths of the modules that a suffix names; none if one of them cannot carry an adapter."""
    named = {path: child for path, child in module.named_modules() if path == target or path.endswith(f".{target}")}
    return list(named) if all(isinstance(child, ADAPTABLE) for child in named.values()) else []


def _nearest(target: str, layers: Sequence[str]) -> str:
    """The most similar last name of a layer."""
    names = sorted({_last_name(path) for path in layers})
    wanted = target.split(".")[-1] if not target[-1:].isdigit() else ".".join(target.split(".")[-2:])
    return difflib.get_close_matches(wanted, names, n=1, cutoff=0)[0]


def _last_name(path: str) -> str:
    """`a.to_q` -> `to_q`, `a.to_out.0` -> `to_out.0`: a number alone would name layers of every kind."""
    parts = path.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])
