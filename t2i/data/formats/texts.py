"""Captions as files hold them: what is text, what is none, and what several lines mean."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Literal, get_args

from t2i.errors import DataError

MAX_CAPTION_CHARS = 100_000
"""Longer texts are no captions but files that were mistaken for one."""

Dialect = Literal["one_line", "first_line", "line_each", "whole_file", "tags"]
DIALECTS: dict[Dialect, str] = {
    "one_line": "one caption; a second line is an error",
    "first_line": "the first line, the others are left out (kohya sd-scripts)",
    "line_each": "every line a caption of its own (SimpleTuner, OneTrainer)",
    "whole_file": "one caption with its line ends (diffusion-pipe, ai-toolkit)",
    "tags": "tags with commas between, joined by `, ` in one caption (TagGUI)",
}


def checked_text(value: object, where: str) -> str | None:
    """A caption without space around it, or None for an empty one or a null.

    Raises DataError for what is not text, holds control characters, or is longer than `MAX_CAPTION_CHARS`.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{where}: the caption is {type(value).__name__}, expected text.")
    if len(value) > MAX_CAPTION_CHARS:
        raise DataError(f"{where}: the caption has {len(value)} characters, at most {MAX_CAPTION_CHARS} are a caption.")
    text = value.replace("\r\n", "\n").replace("\r", "\n").strip()
    bad = next((letter for letter in text if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t"), "")
    if bad:
        raise DataError(f"{where}: the caption holds the control character U+{ord(bad):04X}; remove it.")
    return text or None


def checked_texts(value: object, where: str) -> list[str]:
    """As `checked_text`, for a text or a list of them; empty ones are left out."""
    values = value if isinstance(value, list | tuple) else [value]
    texts = [checked_text(one, where) for one in values]
    return [text for text in texts if text]


def read_text(path: Path) -> str:
    """A text file, which must be UTF-8. Raises DataError that names a probable other encoding, or the size."""
    if path.stat().st_size > 4 * MAX_CAPTION_CHARS:
        raise DataError(f"{path}: {path.stat().st_size} bytes; expected a caption, at most {4 * MAX_CAPTION_CHARS}.")
    return decoded(path.read_bytes(), str(path))


def decoded(data: bytes, where: str) -> str:
    """UTF-8 text, with or without a mark at its beginning. Raises DataError."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{where}: UTF-16 text; save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x}); save it as UTF-8."
        ) from error


def captions_in(text: str, dialect: Dialect, where: str) -> list[str]:
    """The captions of a text file as its dialect means them; empty lines do not count. Raises DataError."""
    whole = checked_text(text, where)
    # Not splitlines: a caption may hold U+2028 or U+0085, which end no line of a text file.
    lines = [line.strip() for line in (whole or "").split("\n") if line.strip()]
    if not lines:
        return []
    if dialect == "one_line" and len(lines) > 1:
        choices = "; ".join(f"{name}: {meaning}" for name, meaning in DIALECTS.items() if name != "one_line")
        raise DataError(f"{where}: {len(lines)} lines, which tools read differently; set dialect to one of {choices}.")
    if dialect == "whole_file":
        return [whole or ""]
    if dialect == "tags":
        return [", ".join(tag.strip() for line in lines for tag in line.split(",") if tag.strip())]
    return lines if dialect == "line_each" else lines[:1]


def text_file(captions: list[str], dialect: Dialect, where: str) -> str:
    """What `captions_in` reads back as these captions. Raises DataError for what the dialect cannot hold."""
    text = "\n".join(captions)
    if captions_in(text, dialect, where) != captions:
        raise DataError(
            f"{where}: the dialect {dialect} cannot hold {len(captions)} captions with {len(text.splitlines())} lines; "
            f"choose one of {', '.join(name for name in get_args(Dialect) if name != dialect)}."
        )
    return text + "\n"
