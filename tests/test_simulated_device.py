"""Nothing is forgotten in host memory when models compute elsewhere, and no training step waits for the device.

Not on a GPU, but on a device that torch is told of: see simulated_device.py. Results are those of the CPU up to
rounding, so that a tensor that is not moved, or not copied back, is found on any machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("on_simulated_device.py")
LIMIT = 1e-3
"""Of the difference, relative to the largest value: kernels are the same, some are put together in another order, and
Adam makes whole steps of small gradients. What is left on the wrong device, or not copied back, differs by far more."""
IN_SUITE = (
    *("sdxl", "pixart", "flux", "sdxl diffusion_dpo", "pixart diffusion_dpo", "autoencoder"),
    *("pixart sampling", "flux sampling", "image models", "scorers", "answers"),
    *("strictness", "waiting", "reward head", "reward encoder"),
)
"""Cases of the suite: every place where something can be left behind, most of them for one family."""
MASK_IS_LOOKED_AT = "padding_mask"
"""transformers asks whether a mask of padding masks anything, which only an encoder that is run in every step does."""


@pytest.mark.parametrize("names", [IN_SUITE, pytest.param((), marks=pytest.mark.device, id="all")])
def test_a_device_computes_what_the_cpu_computes_and_no_step_waits(names: tuple[str, ...]) -> None:
    """One test, because the cases share a process. names: of the cases; all if none is named."""
    done = subprocess.run([sys.executable, str(SCRIPT), *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}
    # As strict as a GPU, and a step that reads a value is noticed.
    refused, waiting = lines.pop("strictness"), lines.pop("waiting")
    assert refused["error"].startswith("RuntimeError: aten.add.Tensor: tensors on two devices")
    assert [wait[0] for wait in waiting["waits"]] == ["aten._local_scalar_dense.default"]
    assert not {name: line["error"] for name, line in lines.items() if "error" in line}
    assert len(lines) == len(names) - 2 if names else len(lines) > 20
    differences = {name: line["difference"] for name, line in lines.items()}
    assert all(value < LIMIT for value in differences.values()), differences
    waits = [(name, wait) for name, line in lines.items() for wait in line["waits"]]
    assert not [(name, wait) for name, wait in waits if MASK_IS_LOOKED_AT not in wait[-1]]
    assert {name for name, _ in waits} <= {"pixart diffusion_dpo", "reward encoder", "image models"}
