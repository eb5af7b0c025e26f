"""Where models compute: the one place that decides it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def compute_device() -> torch.device:
    """This process's GPU if there is one, else the CPU. Under torchrun each process has been given one of its own."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
