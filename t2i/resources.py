"""Files that a recipe names: where they are, and a hash of what is in them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from t2i.config import PathMark
from t2i.errors import ConfigError, DataError
from t2i.files import write_text

PACKAGE_PREFIX = "pkg:"
_EXPLICIT_PREFIXES = (PACKAGE_PREFIX, "/", "./", "../", "~")
_OWN = ("t2i", "rewards")
_SETTLED_S = 2.0
"""A file younger than this may still change without a new time stamp: no statement about it is kept."""


def resolve_path(text: str) -> Path:
    """Path that a recipe's string means: `pkg:package.name/inner/path` inside an installed package, else as written.

    Relative paths start at the working directory. The path need not exist. Raises ConfigError for an unknown package.
    """
    if not text.startswith(PACKAGE_PREFIX):
        return Path(text).expanduser()
    package, _, inner = text.removeprefix(PACKAGE_PREFIX).partition("/")
    return _package_folder(package, text) / inner


def _package_folder(package: str, text: str) -> Path:
    # find_spec imports the parents only; the package's own (possibly heavy) code stays unread.
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"{text!r}: no installed package {package!r}; write pkg:package.name/path/inside/it.")
    return Path(next(iter(spec.submodule_search_locations)))


def code_file(text: str) -> Path | None:
    """The file of a `module:Class` on the import path; None for other texts, what is not there, and this toolkit's own
    code, of which stages have versions. Imports the packages that the module is in, not the module."""
    module, found, name = text.partition(":")
    parts = module.split(".")
    if not found or not name.isidentifier() or not all(part.isidentifier() for part in parts) or parts[0] in _OWN:
        return None
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # of a package that is not ours; the run says what is wrong with it
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def local_path(text: str, mark: PathMark) -> Path | None:
    """The file or folder that a marked string names, or None for a hub id and for the name of what is known."""
    if (mark.may_be_code or mark.must_be_code) and (code := code_file(text)) is not None:
        return code
    if mark.must_be_code:
        return None
    explicit = text.startswith(_EXPLICIT_PREFIXES) or not mark.may_be_hub_id
    path = resolve_path(text)
    # An empty text would be the working directory.
    return path if explicit or (text and path.exists()) else None


@dataclass
class ContentHashes:
    """Content hashes of files and folders, remembered by path, size, times and inode.

    file: where they are kept between runs; None keeps them in memory. A cache that cannot be read is made anew.
    """

    file: Path | None = None
    _entries: dict[str, list[int | str]] = field(default_factory=dict)
    _changed: bool = False

    def __post_init__(self) -> None:
        if self.file is not None and self.file.is_file():
            self._entries = _read_entries(self.file)

    def hash_path(self, path: Path) -> str:
        """SHA-256 (hex) of a file's suffix and bytes, or of a folder's relative names and bytes.

        Names that begin with a dot and `__pycache__` are not content. Where the path stands, and times, do not matter.
        Raises DataError if it is missing or unreadable.
        """
        try:
            if not path.is_dir():
                return _digest(f"file {path.suffix.lower()} {self._hash_file(path)}")
            rows = [f"{inner.relative_to(path).as_posix()} {self._hash_file(inner)}" for inner in files_in(path)]
        except OSError as error:
            raise DataError(f"{error.filename or path}: cannot be read ({error.strerror}).") from error
        return _digest("\n".join(["folder", *rows]))

    def hash_files(self, folder: Path) -> dict[str, str]:
        """Relative name -> SHA-256 of every file that counts in a folder's hash. Raises DataError as `hash_path`."""
        try:
            return {inner.relative_to(folder).as_posix(): self._hash_file(inner) for inner in files_in(folder)}
        except OSError as error:
            raise DataError(f"{error.filename or folder}: cannot be read ({error.strerror}).") from error

    def hash_each(self, files: Iterable[Path]) -> str:
        """One SHA-256 (hex) of the content of these files, in this order; one that cannot be read counts as missing."""
        rows = []
        for path in dict.fromkeys(files):
            try:
                rows.append(self._hash_file(path))
            except OSError:  # said by the stage that reads it, with the row that names it
                rows.append("missing")
        return _digest("\n".join(rows))

    def _hash_file(self, path: Path) -> str:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        name = str(path.absolute())
        settled = time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_S
        entry = self._entries.get(name)
        if settled and entry is not None and entry[:-1] == stamp:
            return str(entry[-1])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if settled:
            self._entries[name] = [*stamp, digest]
            self._changed = True
        return digest

    def save(self) -> None:
        """Keep the hashes for the next run, if the folder of `file` exists and can be written."""
        if self._changed and self.file is not None and self.file.parent.is_dir():
            with contextlib.suppress(OSError):  # a lost cache costs time only; planning must work on a read-only disk
                write_text(self.file, json.dumps(self._entries))
                self._changed = False


def hash_path(path: Path, cache: ContentHashes | None = None) -> str:
    """Content hash of one file or folder; see `ContentHashes.hash_path`."""
    return (cache or ContentHashes()).hash_path(path)


def _read_entries(file: Path) -> dict[str, list[int | str]]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    rows = entries.items() if isinstance(entries, dict) else ()
    return {name: entry for name, entry in rows if isinstance(entry, list) and len(entry) == 5}


def files_in(folder: Path, around: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files below a folder, by name; links are followed, and a link to a folder above is an error."""
    real = os.path.realpath(folder)
    if real in around:
        raise DataError(f"{folder}: links to a folder that contains it; remove the link.")
    for inner in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if inner.name.startswith(".") or inner.name == "__pycache__":
            continue
        if inner.is_dir():
            yield from files_in(inner, around | {real})
        elif inner.exists() and not inner.is_file():
            raise DataError(f"{inner}: neither a file nor a folder, reading it could wait forever; remove it.")
        else:
            yield inner


def _digest(text: str) -> str:
    # Of a name that is no UTF-8, its bytes.
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
