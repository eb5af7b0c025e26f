"""A full or read-only disk, found at the root of whatever error it became."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from t2i.errors import RunError, T2IError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


def disk_error(error: BaseException, folder: Path) -> RunError | None:
    """The RunError to raise instead, if a full or read-only disk is at the root of an error; else None."""
    # A T2IError already says what to do about a file that cannot be read; only a full disk is news to it.
    not_writable = () if isinstance(error, T2IError) else _NOT_WRITABLE
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) else _number_in_text(str(cause))
        where = cause.filename if isinstance(cause, OSError) and cause.filename else folder
        if number in _DISK_FULL:
            return RunError(f"disk full while writing {where}; free space and run again: finished stages are kept.")
        if number is not None and number in not_writable:
            return RunError(
                f"{where}: {os.strerror(number)}; make it accessible and run again: finished stages are kept."
            )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _number_in_text(message: str) -> int | None:
    """Libraries written in C++ and Rust put the system's words into errors of their own types."""
    return next((n for n in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) if os.strerror(n) in message), None)
