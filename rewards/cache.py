"""Scores that need not be computed again, keyed by everything they depend on.

One JSON object a line, only ever appended. A process killed while writing leaves a torn last line: it has no closing
brace, is skipped when read, and its score is computed and written again. Several processes may append to one file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from rewards.errors import InputError
from rewards.images import ImageLike, open_image

_LINE_START = b'{"key": "'
"""How every line begins, torn ones as far as they go."""


def image_digest(image: ImageLike) -> str:
    """SHA-256 of an image: of the file's bytes for a path, else of its pixels as `open_image` gives them.

    Raises ImageError for an image that cannot be read.
    """
    if not isinstance(image, str | os.PathLike):
        pixels = open_image(image)
        return hashlib.sha256(f"pixels {pixels.width}x{pixels.height}:".encode() + pixels.tobytes()).hexdigest()
    try:
        with Path(image).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        open_image(image)  # names the file and the reason
        raise


def score_key(digest: str, prompt: str | None, fingerprint: Mapping[str, str]) -> str:
    """Key of one score. prompt: None for a scorer that does not read it. Any change of any part gives another key."""
    parts = json.dumps([digest, prompt, sorted(fingerprint.items())], ensure_ascii=True)
    return hashlib.sha256(parts.encode()).hexdigest()


class ScoreCache:
    """Key -> score, in memory and in a JSONL file. The folder must exist; the file need not.

    Raises InputError for a file that cannot be read, or that is something else than such a cache.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.torn_lines = 0
        """Lines that an interrupted process left unfinished."""
        self._scores: dict[str, float] = {}
        self._needs_newline = False
        self._read()

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, key: str) -> float | None:
        """Score of a key, or None."""
        return self._scores.get(key)

    def put(self, scores: Mapping[str, float], scorer: str) -> None:
        """Append scores of one scorer. On return they survive a kill of this process."""
        for value in scores.values():
            if not math.isfinite(value):
                raise InputError(f"{self.path}: {scorer} gave {value}; only finite scores are kept.")
        lines = [json.dumps({"key": key, "scorer": scorer, "score": float(value)}) for key, value in scores.items()]
        if not lines:
            return
        # A torn line gets its line end first, or it would swallow the next one. One write: processes do not mix.
        text = ("\n" if self._needs_newline else "") + "".join(line + "\n" for line in lines)
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(text.encode())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}).") from error
        self._needs_newline = False
        self._scores.update(scores)

    def _read(self) -> None:
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read as a score cache ({error.strerror}).") from error
        self._needs_newline = bool(data) and not data.endswith(b"\n")
        for number, line in enumerate(data.splitlines(), 1):
            entry = _parse(line)
            if entry is not None:
                self._scores[entry[0]] = entry[1]
            elif _LINE_START.startswith(line[: len(_LINE_START)]):
                self.torn_lines += 1
            else:
                raise InputError(f"{self.path}:{number}: not a line of a score cache; name another file.")


def _parse(line: bytes) -> tuple[str, float] | None:
    """Key and score of a line, or None for one that is not whole."""
    try:
        entry = json.loads(line)
        key, value = entry["key"], entry["score"]
    except (ValueError, KeyError, TypeError):
        return None
    is_score = isinstance(key, str) and isinstance(value, float | int) and math.isfinite(value)
    return (key, float(value)) if is_score else None
