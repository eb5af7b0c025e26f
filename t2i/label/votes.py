"""Votes and their file: one JSON line each, on disk before anybody is told that it counts."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from t2i.errors import DataError, RunError

Choice = Literal["left", "right", "tie", "skip"]
Ballots = dict[str, dict[int, Choice]]
"""Rater -> pair -> choice."""


@dataclass(frozen=True)
class Vote:
    """What a person said about a pair. pair: its row in `pairs.jsonl`, from 0; choice: in that row's terms."""

    rater: str
    pair: int
    choice: Choice
    first: Literal["left", "right"]
    """The image that was shown at the left of the page."""
    seconds: float
    """Since the pair was shown."""
    at: str
    """Time of the vote, ISO 8601, UTC."""


class VoteLog:
    """An append-only JSONL file of votes, for one process and any number of its threads.

    A line that a crash cut short was never acknowledged: it is taken out when the file is opened, and `note` says so.
    """

    def __init__(self, path: Path, pairs: int) -> None:
        """Raises DataError for a file that holds something else than votes on that many pairs."""
        self.path = path
        self._ballots: Ballots = {}
        self._lock = threading.Lock()
        data = path.read_bytes() if path.exists() else b""
        whole, self.note = _whole_lines(data, path)
        for number, line in enumerate(whole.splitlines(), 1):
            if line.strip():
                rater, pair, choice = _parse(line, f"{path}:{number}", pairs)
                self._count(rater, pair, choice)
        # Unbuffered and in append mode: nothing of a vote stays in this process.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if whole != data:
            os.ftruncate(self._file, min(len(whole), len(data)))
            self._write(whole[len(data) :])
        _sync_folder(path.parent)

    @property
    def ballots(self) -> Ballots:
        """The votes so far, as a copy: other threads vote while somebody goes through it."""
        with self._lock:
            return {rater: dict(own) for rater, own in self._ballots.items()}

    def append(self, vote: Vote) -> None:
        """Write a vote and wait until the disk has it. Raises RunError, with the file as before, if it cannot."""
        line = json.dumps(dataclasses.asdict(vote), ensure_ascii=False).encode() + b"\n"
        with self._lock:
            self._write(line)
            self._count(vote.rater, vote.pair, vote.choice)

    def close(self) -> None:
        """Close the file; nothing is pending."""
        os.close(self._file)

    def _write(self, data: bytes) -> None:
        before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, data)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes could be written")
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise RunError(f"{self.path}: the vote cannot be written ({error}); make room and vote again.") from error

    def _count(self, rater: str, pair: int, choice: Choice) -> None:
        """The last choice counts; a skip leaves an earlier one alone, as it does for the pair stage."""
        own = self._ballots.setdefault(rater, {})
        if choice != "skip" or pair not in own:
            own[pair] = choice


def _whole_lines(data: bytes, path: Path) -> tuple[bytes, str]:
    """(the lines that are whole, each with its line break; what was done to the last one)."""
    if not data or data.endswith(b"\n"):
        return data, ""
    start = data.rfind(b"\n") + 1
    last = data[start:]
    try:
        json.loads(last)
    except ValueError:
        shown = last[:80].decode(errors="replace")
        return data[:start], f"{path}: the last line was cut short, which is no vote, and is taken out: {shown}"
    return data + b"\n", ""


def _parse(line: bytes, where: str, pairs: int) -> tuple[str, int, Choice]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); remove or mend the line.") from error
    if isinstance(row, Mapping):
        rater, pair, choice = row.get("rater"), row.get("pair"), row.get("choice")
        is_row = isinstance(pair, int) and not isinstance(pair, bool) and 0 <= pair < pairs
        if isinstance(rater, str) and is_row and choice in get_args(Choice):
            return rater, cast("int", pair), cast("Choice", choice)
    raise DataError(f"{where}: not a vote on one of {pairs} pairs: {line[:80].decode(errors='replace')}")


def _sync_folder(folder: Path) -> None:
    """So that a new file's name survives a power cut too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
