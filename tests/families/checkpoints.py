"""Tiny checkpoints to break, and what a refused one must look like."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from t2i.errors import ModelError
from t2i.families import load_family
from t2i.families.sd1 import SD1
from t2i.families.sdxl import SDXL

CLASSES = {"sd1": SD1, "sdxl": SDXL}


def copied(tmp_path: Path, name: str = "model", family: str = "sd1", *, weights: bool = True) -> Path:
    ignored = None if weights else shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(tiny.FAMILIES_TINY[family](), tmp_path / name, ignore=ignored))


def state_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a file in memory of their own, so that the file may be written anew."""
    return {name: value.clone() for name, value in load_file(path).items()}


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def all_weights(family: Any) -> dict[str, Tensor]:
    models = {name: part for name, part in family.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value for name, part in models.items() for key, value in part.state_dict().items()}


def assert_same_weights(ours: Any, theirs: Any) -> None:
    mine, others = all_weights(ours), all_weights(theirs)
    assert mine.keys() == others.keys()
    assert all(torch.equal(mine[key], others[key]) for key in mine)


def assert_refused(match: str, model: Path | str, **options: Any) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load_family(str(model), **options)
    assert "\n" not in str(caught.value)
