"""Scorers by name: nothing is imported until it is asked for."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, NoneType
from typing import TypeAlias

from rewards.base import DifferentiableReward, Reward
from rewards.errors import InputError, MissingDependencyError, RewardError

RewardSpec: TypeAlias = str | Mapping[str, object]
"""A registered name, "module:Class", or either as {"name": ..., option: value, ...}."""

_REGISTRY = {
    "aesthetic": "rewards.aesthetic:Aesthetic",
    "aesthetic_v1": "rewards.aesthetic:AestheticV1",
    "blank": "rewards.controls:Blank",
    "brightness": "rewards.controls:Brightness",
    "clip_iqa": "rewards.clip_iqa:ClipIqa",
    "clip_score": "rewards.clip_score:ClipScore",
    "dsg": "rewards.faithfulness.dsg:Dsg",
    "hpsv2": "rewards.hpsv2:HpsV2",
    "image_reward": "rewards.image_reward:ImageReward",
    "jpeg_size": "rewards.controls:JpegSize",
    "pickscore": "rewards.pickscore:PickScore",
    "pn_vqa": "rewards.faithfulness.pn_vqa:PnVqa",
    "reward_model": "rewards.reward_model:RewardModel",
    "saturation": "rewards.controls:Saturation",
    "sharpness": "rewards.controls:Sharpness",
    "tifa": "rewards.faithfulness.tifa:Tifa",
    "vqascore": "rewards.faithfulness.vqascore:VqaScore",
}

_ATTRIBUTES = ("name", "version", "scale", "needs_prompt", "differentiable", "higher_is_better", "score")


_PLAIN: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "Path": (str, Path),
    "None": (NoneType,),
}
"""Types in signatures that are checked, and what is taken for them."""
_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def available() -> tuple[str, ...]:
    """Names that `load` knows, sorted."""
    return tuple(sorted(_REGISTRY))


def load(spec: RewardSpec, device: str = "cpu") -> Reward:
    """Make a scorer. Models are opened by its first `score`, not here.

    spec: a registered name ("clip_score"), a class of your own ("my_package.my_module:MyScorer"), or a mapping with
    "name" and the scorer's options ({"name": "clip_score", "model": "openai/clip-vit-base-patch32"}). device: a torch
    device, for scorers that have one. Raises InputError for an unknown name or option, an option of another type than
    the scorer's signature says, or a class that is no `Reward`; MissingDependencyError when a package is not installed.
    """
    name, options = _split(spec)
    scorer_class = _find(name)
    accepted = inspect.signature(scorer_class).parameters
    known = sorted(key for key, value in accepted.items() if key != "device" and value.kind not in _ANY_NUMBER)
    takes_any = any(value.kind is inspect.Parameter.VAR_KEYWORD for value in accepted.values())
    for option, value in options.items():
        if option not in known and not takes_any:
            raise InputError(
                f"{name} has no option {option!r}{_did_you_mean(option, known)} Options: {_listed(known)}."
            )
        if option in known:
            _check_type(f"{name}: option {option!r}", value, accepted[option].annotation)
    lacking = [key for key in required_options(name) if key not in options]
    if lacking:
        raise InputError(f"{name} needs the option {lacking[0]!r}; give {{'name': '{name}', '{lacking[0]}': ...}}.")
    return _checked(_made(scorer_class, name, options, {"device": device} if "device" in accepted else {}), name)


def _made(scorer_class: type, name: str, options: dict[str, object], device: dict[str, str]) -> object:
    """The scorer. What it makes of an option of the wrong kind, such as text for a number, is an InputError."""
    try:
        return scorer_class(**options, **device)
    except RewardError:
        raise
    except (TypeError, ValueError) as error:
        if not options:
            raise
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise InputError(f"{name} cannot be made with {given}: {str(error).partition(chr(10))[0]}.") from error


def _check_type(where: str, value: object, annotation: object) -> None:
    """Raise InputError for a value that a signature excludes; types that are not plain are left to the scorer."""
    names = _type_names(annotation)
    if not set(names) <= _PLAIN.keys():
        return
    types = tuple(kind for name in names for kind in _PLAIN[name])
    # A truth value is a number to Python, and to nobody else.
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise InputError(f"{where} is {value!r}, expected {' or '.join(names)}.")


def _type_names(annotation: object) -> list[str]:
    words = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return words.split(" | ")


def takes_text_only(name: str, option: str) -> bool:
    """Whether a scorer's signature allows text for an option, and no number. Errors as `load`."""
    accepted = inspect.signature(_find(name)).parameters.get(option)
    names = set(_type_names(accepted.annotation)) if accepted is not None else set()
    return "str" in names and names <= {"str", "Path", "None"}


def required_options(name: str) -> tuple[str, ...]:
    """Options without which a scorer cannot be made: the folder of a model of one's own. Errors as `load`."""
    accepted = inspect.signature(_find(name)).parameters
    needed = {key: value for key, value in accepted.items() if value.kind not in _ANY_NUMBER}
    return tuple(sorted(key for key, value in needed.items() if value.default is inspect.Parameter.empty))


def _split(spec: RewardSpec) -> tuple[str, dict[str, object]]:
    if isinstance(spec, str):
        return spec, {}
    if not isinstance(spec, Mapping):
        raise InputError(f"a scorer is named by text or a mapping with 'name'; found {type(spec).__name__}.")
    options = dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise InputError(f"scorer {dict(spec)}: 'name' is missing; expected {{'name': 'clip_score', ...}}.")
    return name, options


def _find(name: str) -> type:
    target = name if ":" in name else _REGISTRY.get(name)
    if target is None:
        raise InputError(
            f"unknown scorer {name!r}{_did_you_mean(name, available())} Available: {_listed(available())}."
        )
    module_name, _, class_name = target.partition(":")
    module = _import(module_name, name)
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise InputError(f"scorer {name!r}: module {module_name} has no class {class_name!r}.")
    return found


def _import(module_name: str, scorer: str) -> ModuleType:
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise InputError(f"scorer {scorer!r}: {module_name!r} is not a module name; expected module:Class.")
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(missing + "."):
            raise InputError(
                f"scorer {scorer!r}: there is no module {missing!r} on the import path (PYTHONPATH)."
            ) from error
        raise MissingDependencyError(
            f"scorer {scorer!r} needs the package {missing!r}: pip install {missing.partition('.')[0]}"
        ) from error


def _checked(reward: object, name: str) -> Reward:
    if not isinstance(reward, Reward):
        lacking = [attribute for attribute in _ATTRIBUTES if not hasattr(reward, attribute)]
        raise InputError(f"scorer {name!r} is no Reward; it lacks {_listed(lacking)}.")
    if reward.differentiable and not isinstance(reward, DifferentiableReward):
        raise InputError(f"scorer {name!r} says it is differentiable, but has no score_tensor.")
    return reward


def _did_you_mean(word: str, known: tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names) or "none"
