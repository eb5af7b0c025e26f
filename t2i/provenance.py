"""How a stage's files came to be: versions, machine, commit. Imports nothing that is not imported already."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

from pydantic import JsonValue

_PACKAGES = (
    "t2i-toolkit",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "tokenizers",
    "datasets",
    "numpy",
    "scipy",
    "pillow",
    "trl",
    "bitsandbytes",
    "xformers",
)
"""What computes, extras too; null where one is not installed."""


def environment() -> dict[str, JsonValue]:
    """Versions of what computes, and the machine. torch's own facts are null if the stage never imported torch."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "torch": _torch_facts(),
    }


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch_facts() -> dict[str, JsonValue] | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    has_cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if has_cuda else "cpu",
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def git_commit(folder: Path) -> dict[str, JsonValue] | None:
    """Commit of the repository around a folder, and whether tracked files differ from it; None outside of one."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "is_dirty": _git(folder, "status", "--porcelain", "--untracked-files=no") != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
