"""Where a model runs, and in which precision: the same for every scorer, whatever the caller trains in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

from rewards.errors import InputError

if TYPE_CHECKING:
    import torch

_LIBRARIES = ("numpy", "pillow", "tokenizers", "torch", "transformers")


def torch_device(name: str) -> torch.device:
    """The torch device of that name. Raises InputError for none, or one that this torch cannot see."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is not a torch device; expected cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r}: this torch sees no CUDA device; use cpu.")
    # "cuda" alone means the current one; tensors say which.
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def runtime_facts(device: str) -> dict[str, str]:
    """What a value depends on beside weights and code: kind of device, precision, library versions."""
    libraries = {name: version(name) for name in _LIBRARIES}
    return {"device": device.partition(":")[0], "dtype": "float32"} | libraries


@contextlib.contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """No autocast and no TF32, whatever the caller trains in: scores must not depend on it."""
    import torch

    # The module is replaced by an object at import, which type checkers do not see.
    convolution = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    settings = (convolution, torch.backends.cuda.matmul) if device_type == "cuda" else ()
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar for the second that a scorer takes to load."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
