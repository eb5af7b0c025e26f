"""Writing files so that a reader never sees half of one: a temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def check_new(option: str, path: Path) -> None:
    """Raise ConfigError if something has that name already, or no folder can be there to hold it. Makes nothing.

    option: what the message says that the path comes from.
    """
    # A link that leads nowhere is somebody's too, and would be replaced.
    if os.path.lexists(path):
        raise ConfigError(f"{option}: {path} exists; move it away, or write elsewhere.")
    check_folder(option, path.parent)


def check_folder(option: str, path: Path) -> None:
    """Raise ConfigError unless `path` is a folder, or can be made one. Makes nothing."""
    nearest = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not nearest.is_dir():
        raise ConfigError(f"{option}: {nearest} is no folder, and nothing can be written into it; write elsewhere.")


def check_file(option: str, path: Path) -> None:
    """Raise ConfigError unless `path` is a file, or can be made one. Makes nothing."""
    if path.is_dir():
        raise ConfigError(f"{option}: {path} is a folder; expected a file.")
    check_folder(option, path.parent)


def check_no_folder(path: Path) -> None:
    """Raise ConfigError rather than let a folder be replaced: what it holds is not known."""
    if path.is_dir():
        raise ConfigError(f"{path}: a folder of that name exists; move it away, or write elsewhere.")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either absent, the old one, or whole: temporary name, fsync, rename."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`, for bytes."""
    write_parts(path, [data])


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """As `write_text`, for bytes that are made one after the other and need not fit into memory."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; what the block wrote there takes its place, or is removed if the block fails."""
    # Not the process id alone: folders may be shared with other machines.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically. Equal tensors and metadata give equal bytes."""
    from safetensors.torch import save

    data = save({name: value.contiguous() for name, value in tensors.items()}, metadata=dict(metadata or {}) or None)
    # The library writes the metadata in another order in every process (a hash map of Rust).
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    # A view: another copy of a whole model may not fit into memory.
    write_parts(path, [len(header).to_bytes(8, "little"), header, memoryview(data)[end:]])
