"""VQA backends, language models and question sources by name or as `module:Class`."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from rewards.errors import InputError, MissingDependencyError

PluginSpec: TypeAlias = str | Mapping[str, object]
"""A registered name, "module:Class", or either as {"name": ..., option: value, ...}."""


def load_plugin(
    spec: PluginSpec, registry: Mapping[str, str], kind: str, needs: Sequence[str], device: str = "cpu"
) -> Any:
    """Make the object that `spec` names.

    registry: name -> "module:Class"; kind: what it is, for errors; needs: attributes that it must have; device: passed
    on where the class takes one. Raises InputError for an unknown name, class or option, or an object that lacks what
    is needed; MissingDependencyError for a package that is not installed.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise InputError(f"{kind} {dict(options)}: 'name' is missing; expected {{'name': ..., option: value}}.")
    target = name if ":" in name else registry.get(name)
    if target is None:
        close = difflib.get_close_matches(name, registry, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise InputError(f"unknown {kind} {name!r}{hint} Known: {', '.join(registry) or 'none'}, or module:Class.")
    found = _find_class(target, kind)
    accepted = inspect.signature(found).parameters
    unknown = [option for option in options if option not in accepted or option == "device"]
    if unknown:
        known = ", ".join(option for option in accepted if option != "device") or "none"
        raise InputError(f"{kind} {name} has no option {unknown[0]!r}. Options: {known}.")
    required = [key for key, value in accepted.items() if value.default is inspect.Parameter.empty]
    if lacking := [key for key in required if key not in options and key != "device"]:
        raise InputError(f"{kind} {name} needs the option {lacking[0]!r}.")
    made = found(**options, **({"device": device} if "device" in accepted else {}))
    absent = [attribute for attribute in needs if not hasattr(made, attribute)]
    if absent:
        raise InputError(f"{name} is no {kind}; it lacks {', '.join(absent)}.")
    return made


def _find_class(target: str, kind: str) -> type:
    module_name, _, class_name = target.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise InputError(f"{kind} {target!r}: {module_name!r} is not a module name; expected module:Class.")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(missing + "."):
            raise InputError(f"{kind} {target!r}: there is no module {missing!r} on the import path.") from error
        package = missing.partition(".")[0]
        raise MissingDependencyError(f"{kind} {target!r} needs {package!r}: pip install {package}") from error
    if not isinstance(found, type):
        raise InputError(f"{kind} {target!r}: module {module_name} has no class {class_name!r}.")
    return found
