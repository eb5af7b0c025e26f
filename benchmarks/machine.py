"""What a measurement was made with, in one line."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def describe() -> str:
    """Commit, machine and versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))
    return f"commit {commit()}; {processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def commit() -> str:
    """Short hash of the checkout, with `+` if files differ from it."""
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if _git("status", "--porcelain") else "")


def _git(*arguments: str) -> str:
    """What git says of the checkout; nothing without git or outside of one."""
    command = ["git", *arguments]
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def processor() -> str:
    """Model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
