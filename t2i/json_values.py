"""What JSON in UTF-8 can hold, and so every file of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def unwritable(value: Any) -> str:
    """What in a value, at any depth, JSON in UTF-8 cannot hold: bytes, times, broken text. Empty if it holds all."""
    if isinstance(value, str):
        return "" if _is_unicode(value) else f"the text {value[:80]!a}, which is no Unicode"
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        return next((problem for inner in value if (problem := unwritable(inner))), "")
    return "" if value is None or isinstance(value, int | float) else f"a value of the type {type(value).__name__}"


def printable(text: str) -> str:
    """The text with escapes for what is no Unicode, such as bytes of a file's name that are no UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _is_unicode(text: str) -> bool:
    """Whether it has no half of a surrogate pair, by which Python also stands for bytes of a name that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
