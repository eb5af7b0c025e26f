"""Errors a person can act on.

    T2IError
    ├── ConfigError             the recipe or the command line is wrong        exit 2
    ├── DataError               images, captions or prompts are wrong          exit 2
    ├── ModelError              a checkpoint is missing, broken or of another family   exit 2
    ├── MissingDependencyError  an optional package is not installed           exit 2
    ├── RunError                the run itself failed (disk, lock, loss)       exit 1
    └── StoppedError            a signal ended it after a checkpoint           exit 128 + signal

Each message is one line per problem: where, what was found, what was expected, what to do. Each class also inherits
the standard type it replaces, so callers may catch either. Add a class only when a caller must tell it apart.
"""

from __future__ import annotations


class T2IError(Exception):
    """Base of every error that this toolkit raises on purpose."""

    exit_code: int = 1


class ConfigError(T2IError, ValueError):
    """The recipe, an override or a flag is wrong."""

    exit_code = 2


class DataError(T2IError, ValueError):
    """Images, captions, prompts or records are missing, unreadable or inconsistent."""

    exit_code = 2


class ModelError(T2IError, RuntimeError):
    """A checkpoint is missing, broken, or not of the family it is used as."""

    exit_code = 2


class MissingDependencyError(T2IError, ImportError):
    """An optional package is needed; the message holds the exact pip command."""

    exit_code = 2


class RunError(T2IError, RuntimeError):
    """A run failed while running: lock held, disk full, non-finite loss."""


class StoppedError(T2IError, RuntimeError):
    """A signal asked the run to stop, and it did, after a checkpoint. Ends with the code that a shell gives to it."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
