"""The GPU benchmark: on a CPU with small models of the same classes, on a GPU (`make test-gpu`) at full size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from gpu_bench import Bench  # noqa: E402
from gpu_family import run_phases  # noqa: E402
from published import PUBLISHED  # noqa: E402
from random_models import build_family  # noqa: E402

PARAMETERS = {
    "sd1": 859_520_964,
    "sdxl": 2_567_463_684,
    "pixart": 610_856_096,
    "sd3": 2_243_171_520,
    "flux": 11_901_408_320,
}
"""Of the published denoisers."""
BUDGET_S = 420


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_config_gives_a_denoiser_of_the_published_size(name: str) -> None:
    family = build_family(name, torch.device("meta"), dtype=torch.bfloat16)
    assert sum(value.numel() for value in family.denoiser.parameters()) == PARAMETERS[name]
    assert family.default_size == PUBLISHED[name].size_px
    assert family.facts.name == name


def test_every_phase_holds_for_a_small_model_on_a_cpu(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    run_phases(Bench("sd3", torch.device("cpu"), tmp_path, reduced=True), lines.append)
    found = {line.pop("phase"): line for line in lines}
    assert not [(name, line["error"]) for name, line in found.items() if "error" in line]
    assert_sound(found)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), str(out), "--budget", str(BUDGET_S)]
    subprocess.run(command, check=False)
    print((out / "gpu.md").read_text())
    return json.loads((out / "gpu.json").read_text())["results"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_family_at_full_size_trains_resumes_samples_and_reloads(
    name: str, measured: dict[str, dict[str, Any]]
) -> None:
    found = measured[name]
    assert not [(phase, line["error"]) for phase, line in found.items() if "error" in line]
    assert_sound(found)
    assert found["without_waiting"]["host_waits_in_a_step"] == 0


def assert_sound(found: dict[str, dict[str, Any]]) -> None:
    """What holds for every family on every device, of the phases for which there was time."""
    assert found["train"]["step_s"] > 0
    assert found["resume"]["same_bits"]
    assert found["utilisation"]["tflop_per_step"] > 0
    for phase in ("checkpointing", "selective", "offload", "sample", "channels_last", "compiled"):
        assert found[phase].get("agrees", "skipped" in found[phase]), phase
    assert found["sample"]["adapter_effect"] > 0
