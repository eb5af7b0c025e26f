"""Errors a person can act on.

    RewardError
    ├── InputError              prompts, options, numbers or files given are wrong      exit 2
    │   └── ImageError          one image cannot be read; the message names it          exit 2
    ├── ModelError              a checkpoint is missing, broken or of another kind      exit 2
    ├── MissingDependencyError  an optional package is not installed                    exit 2
    └── ScoringError            a scorer returned something that is not a score         exit 1

Each message is one line: where, what was found, what was expected, what to do. Each class also inherits the standard
type it replaces, so callers may catch either. Add a class only when a caller must tell it apart.
"""

from __future__ import annotations

from typing import ClassVar


class RewardError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code: ClassVar[int] = 1


class InputError(RewardError, ValueError):
    """Prompts, options, numbers or files that were given are wrong."""

    exit_code = 2


class ImageError(InputError):
    """An image is missing, broken, too large, or of a kind that has no agreed meaning in RGB."""


class ModelError(RewardError, RuntimeError):
    """A checkpoint is missing, broken, or not of the kind that the scorer needs."""

    exit_code = 2


class MissingDependencyError(RewardError, ImportError):
    """A package is needed that is not installed; the message holds the exact pip command."""

    exit_code = 2


class ScoringError(RewardError, RuntimeError):
    """A scorer returned a wrong shape or a value that is not finite."""
