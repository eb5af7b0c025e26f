"""What JSON in UTF-8 can hold, and so every file of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AROUND = 40
"""Letters that a message shows on either side of the wrong one."""


def unwritable(value: Any) -> str:
    """What in a value, at any depth, JSON in UTF-8 cannot hold: bytes, times, broken text. Empty if it holds all."""
    if isinstance(value, str):
        return _not_unicode(value)
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        return next((problem for inner in value if (problem := unwritable(inner))), "")
    return "" if value is None or isinstance(value, int | float) else f"a value of the type {type(value).__name__}"


def printable(text: str) -> str:
    """The text with escapes for what is no Unicode, such as bytes of a file's name that are no UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _not_unicode(text: str) -> str:
    """What about its first half of a surrogate pair, by which Python also stands for bytes of a name that are no UTF-8;
    empty if it has none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = text[max(0, error.start - AROUND) : error.end + AROUND]
        return f"the text {shown!a}, which is no Unicode"
    return ""
