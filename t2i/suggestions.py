"""What to say when a name is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], *, what: str = "known") -> str:
    """End of a message about an unknown name: the nearest known one, or else all of them. Begins with `; `."""
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; {what}: {', '.join(names)}" if names else ""
