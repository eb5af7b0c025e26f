"""Nothing is forgotten in host memory when models compute elsewhere, and no training step waits for the device.

Not on a GPU, but on a device that torch is told of: see simulated_device.py. Results are those of the CPU up to
rounding, so that a tensor that is not moved, or not copied back, is found on any machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
LIMIT = 2e-4
"""Of the difference, relative to the largest value: kernels are the same, some are put together in another order."""
MASK_IS_LOOKED_AT = "padding_mask"
"""transformers asks whether a mask of padding masks anything, which only an encoder that is run in every step does."""


@pytest.fixture(scope="module")
def lines() -> dict[str, dict[str, Any]]:
    command = [sys.executable, str(HERE / "on_simulated_device.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["case"]: line for line in found}


def test_the_device_is_as_strict_as_a_gpu(lines: dict[str, dict[str, Any]]) -> None:
    assert lines["strictness"]["error"].startswith("RuntimeError: aten.add.Tensor: tensors on two devices")
    assert [wait[0] for wait in lines["waiting"]["waits"]] == ["aten._local_scalar_dense.default"]


def test_everything_computes_on_the_device_what_it_computes_on_the_cpu(lines: dict[str, dict[str, Any]]) -> None:
    assert [name for name, line in lines.items() if "error" in line] == ["strictness"], lines
    differences = {name: line["difference"] for name, line in lines.items() if name != "strictness"}
    assert len(differences) > 30
    assert all(value < LIMIT for value in differences.values()), differences


def test_no_step_waits_for_the_device(lines: dict[str, dict[str, Any]]) -> None:
    waits = [(name, wait) for name, line in lines.items() if name != "waiting" for wait in line.get("waits", ())]
    assert not [(name, wait) for name, wait in waits if MASK_IS_LOOKED_AT not in wait[-1]]
    assert {name for name, _ in waits} <= {"pixart diffusion_dpo", "reward encoder", "image models"}
