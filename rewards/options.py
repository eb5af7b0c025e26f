"""Scorers and their options as they are written on a command line."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rewards.errors import InputError
from rewards.registry import available, takes_text_only


def scorer_specs(rewards: str, options: Sequence[str]) -> list[dict[str, object]]:
    """Turn "a,b" and ["a.key=value"] into specs for `load`. A value is JSON where it can be, else text.

    An option that the scorer takes as text only stays text, such as a revision of digits. Raises InputError for no
    scorer, one that is there twice, and options of another form or of none of them.
    """
    specs: dict[str, dict[str, object]] = {}
    for name in filter(None, (part.strip() for part in rewards.split(","))):
        if name in specs:
            raise InputError(f"--rewards: {name} is there twice.")
        specs[name] = {"name": name}
    if not specs:
        raise InputError(f"--rewards names no scorer; available: {', '.join(available())}.")
    for text in options:
        target, equals, value = text.partition("=")
        name, dot, key = target.rpartition(".")
        if not (equals and dot and key):
            raise InputError(f"--option {text!r}: expected scorer.key=value, such as clip_score.model=PATH.")
        if name not in specs:
            raise InputError(f"--option {text!r}: {name!r} is not among --rewards ({', '.join(specs)}).")
        if key == "name":
            raise InputError(f"--option {text!r}: 'name' is no option, it says what scores.")
        specs[name][key] = _value(name, key, value)
    return list(specs.values())


def _value(scorer: str, option: str, text: str) -> object:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    is_plain = value is None or isinstance(value, str)
    return value if is_plain or not takes_text_only(scorer, option) else text
