"""Folders of finished work: made, locked, marked done, and found again.

`<root>/<recipe>/<stage>-<fingerprint>/` holds one stage: `config.json` first (what it is), then the stage's files,
`provenance.json` (how it was made), and `done.json` last. A folder without a valid `done.json` is unfinished.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import JsonValue

from t2i.errors import RunError
from t2i.files import write_bytes

CONFIG, PROVENANCE, DONE = "config.json", "provenance.json", "done.json"
_FOLDER = re.compile(r"(?P<label>.+)-(?P<fingerprint>[0-9a-f]{16})")


@dataclass(frozen=True)
class Done:
    """What `done.json` says. finished: ISO 8601, UTC; files: relative path -> size in bytes."""

    finished: str
    facts: dict[str, JsonValue]
    files: dict[str, int]


def now_utc() -> str:
    """The time as ISO 8601 in UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_json(path: Path) -> dict[str, JsonValue] | None:
    """A JSON object, or None if the file is absent, unreadable or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Mapping[str, JsonValue]) -> None:
    """Write an indented JSON object atomically."""
    # Names of files that are no UTF-8 are written with the escapes of JSON.
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_done(folder: Path) -> Done | None:
    """The done marker of a stage folder; None if none can be read. Does not look at the files; see `damage`."""
    value = read_json(folder / DONE) or {}
    finished, facts, files = (value.get(key) for key in ("finished", "facts", "files"))
    if not (isinstance(finished, str) and isinstance(facts, dict) and isinstance(files, dict)):
        return None
    sizes = {name: size for name, size in files.items() if isinstance(size, int)}
    return Done(finished, facts, sizes) if len(sizes) == len(files) else None


def damage(folder: Path, done: Done) -> str:
    """What is wrong with the files that `done.json` lists ("images/3.png is missing"); empty if nothing is."""
    for name, size in done.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
    return ""


class RunDirectory:
    """The folder of one recipe. As a context manager it holds the recipe's lock: one run at a time."""

    def __init__(self, root: Path, recipe_name: str) -> None:
        self.folder = root / recipe_name
        self._holder = self.folder / ".holder.json"
        # flock, which the kernel releases when the process dies; a lock file that merely exists would outlive SIGKILL.
        self._lock = FileLock(self.folder / ".lock", timeout=0, fallback_to_soft=False)

    def __enter__(self) -> RunDirectory:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            write_json(self._holder, {"pid": os.getpid(), "since": now_utc()})
        except Timeout as error:
            raise RunError(self._in_use()) from error
        except OSError as error:
            self._lock.release()
            raise RunError(
                f"{self.folder}: the run folder cannot be written ({error.strerror}); "
                "make it writable, or set T2I_RUNS to another folder."
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # a full or read-only disk must not hide why the run ended
            self._holder.unlink(missing_ok=True)
        self._lock.release()

    def _in_use(self) -> str:
        holder = read_json(self._holder)
        who = f" by process {holder['pid']} since {holder['since']}" if holder else ""
        return f"{self.folder}: already in use{who}; wait for that run to end, or set T2I_RUNS to another folder."

    def stage_folder(self, stage_name: str, fingerprint: str) -> Path:
        """Where a stage's work is or will be. A stage that was only renamed finds its old folder."""
        own = self.folder / f"{stage_name.replace('/', '.')}-{fingerprint}"
        known = [folder for folder in self.stage_folders() if folder.name.endswith(f"-{fingerprint}")]
        return min(known, key=lambda folder: (read_done(folder) is None, folder != own, folder.name), default=own)

    def stage_folders(self) -> list[Path]:
        """All stage folders, by name."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_dir() and _FOLDER.fullmatch(path.name))

    def begin(self, folder: Path, config: Mapping[str, JsonValue]) -> None:
        """Make a stage's folder, or ready what an interrupted run left: no done marker, no halves of files.

        `config.json` is written first. Where the folder exists it keeps only when the stage was begun: names that it
        mentions may be others by now, and must be those of the provenance.
        """
        folder.mkdir(parents=True, exist_ok=True)
        _remove_damaged(folder)
        (folder / DONE).unlink(missing_ok=True)
        for leftover in [*folder.rglob(".*.tmp"), *folder.rglob(".*.draft*")]:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)
        begun = (read_json(folder / CONFIG) or {}).get("begun", now_utc())
        write_json(folder / CONFIG, {**config, "begun": begun})

    def finish(
        self,
        folder: Path,
        *,
        fingerprint: str,
        facts: Mapping[str, JsonValue],
        provenance: Mapping[str, JsonValue],
    ) -> None:
        """Write the provenance, and last of all the done marker with the facts and the size of every file."""
        write_json(folder / PROVENANCE, provenance)
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*"))
                 if path.is_file() and path.name != DONE}  # fmt: skip
        done = {"fingerprint": fingerprint, "finished": now_utc(), "facts": dict(facts), "files": dict(files)}
        write_json(folder / DONE, done)


def _remove_damaged(folder: Path) -> None:
    done = read_done(folder)
    for name, size in (done.files if done else {}).items():
        path = folder / name
        if path.is_file() and path.stat().st_size != size:
            path.unlink()


def unused_folders(root: Path, keep: set[Path]) -> list[Path]:
    """Stage folders of every recipe under a root that are not among those to keep."""
    recipes = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [
        folder
        for recipe in recipes
        for folder in RunDirectory(root, recipe.name).stage_folders()
        if folder not in keep and (folder / CONFIG).is_file()
    ]


def prune(root: Path, folders: list[Path]) -> None:
    """Delete stage folders under a root.

    Raises RunError before anything is deleted if a run uses one of them, or one is a link, whose target may have other
    users.
    """
    links = [folder for folder in folders if folder.is_symlink()]
    if links:
        raise RunError(f"{links[0]}: a link to {links[0].resolve()}; nothing is deleted. Remove the link by hand.")
    with ExitStack() as locks:
        for name in sorted({folder.parent.name for folder in folders}):
            locks.enter_context(RunDirectory(root, name))
        for folder in folders:
            # The marker goes first: a deletion that is cut short must not leave a folder that looks finished.
            (folder / DONE).unlink(missing_ok=True)
            shutil.rmtree(folder)
