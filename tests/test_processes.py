"""Several processes of one run: started through torchrun as a user starts them, on CPUs, speaking through gloo."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from t2i import cli, lora, processes
from t2i.errors import ConfigError
from t2i.training.log import read_metrics
from t2i.training.settings import LoraSettings

RECIPE = """
name: shared
model: MODEL
seed: 3
stages:
  - type: caption
    data: {type: folder, path: PHOTOGRAPHS}
    captioner: {type: files}
  - type: train
    data_from: caption
    captions: {caption: 1}
    trained: {type: lora, rank: 4, alpha: 8.0, text_encoder: true}
    optimizer: {learning_rate: 1e-3}
    loop: {steps: 20, batch_size: 8, log_every: 5, checkpoint_every: 10}
  - type: export
    weights_from: train
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    photographs = tiny.write_photographs(folder / "photographs")
    (folder / "shared.yaml").write_text(
        RECIPE.replace("MODEL", str(tiny.sd1())).replace("PHOTOGRAPHS", str(photographs))
    )
    return folder / "shared.yaml"


def start(recipe: Path, root: Path, *overrides: str, processes: int = 2) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "T2I_RUNS": str(root)}
    return subprocess.Popen(
        [*torchrun, "-m", "t2i.cli", "run", str(recipe), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def wait_for_training(run: subprocess.Popen[str], root: Path) -> None:
    """Return when a run has made a step."""
    deadline = time.monotonic() + 240
    files = lambda: [path for path in root.glob("shared/train-*/metrics.jsonl") if path.stat().st_size]  # noqa: E731
    while not files() and time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.wait(timeout=0.1)
            pytest.fail(f"ended with {run.returncode}")


def trained(root: Path) -> dict[str, Tensor]:
    [path] = root.glob("shared/train-*/adapter/*.safetensors")
    return load_file(path)


def norm(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """L2 norm of the difference."""
    return float(torch.stack([(a[name] - b[name]).double().square().sum() for name in a]).sum().sqrt())


def test_two_processes_of_four_learn_what_one_of_eight_learns(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = start(recipe, tmp_path / "two")
    monkeypatch.setenv("T2I_RUNS", str(tmp_path / "one"))
    cli.app(["run", str(recipe)], standalone_mode=False)
    printed, _ = both.communicate(timeout=300)
    assert both.returncode == 0, printed
    one, two = trained(tmp_path / "one"), trained(tmp_path / "two")
    fresh = lora.adapter_state(lora.inject(tiny.load_sd1(), LoraSettings(rank=4, alpha=8.0, text_encoder=True), seed=3))
    update = norm(one, fresh)
    assert update > 0.1
    assert 0 < norm(two, one) / update <= 1e-5
    assert [line for line in printed.splitlines() if line.endswith(": run (first run)")] == [
        f"[{number}/3] {name}: run (first run)" for number, name in enumerate(("caption", "train", "export"), 1)
    ]
    rows = [read_metrics(next(root.glob("shared/train-*/metrics.jsonl"))) for root in tmp_path.iterdir()]
    for row, expected in zip(*rows, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


def test_signal_to_torchrun_stops_all_processes_after_the_same_step(recipe: Path, tmp_path: Path) -> None:
    run = start(recipe, tmp_path, "train.loop.steps=100000", "train.loop.log_every=1")
    wait_for_training(run, tmp_path)
    run.send_signal(signal.SIGTERM)
    printed, _ = run.communicate(timeout=120)
    [checkpoint] = sorted(tmp_path.glob("shared/train-*/checkpoints/step-*"))[-1:]
    step = int(checkpoint.name.removeprefix("step-"))
    assert run.returncode != 0
    assert printed.count(f"SIGTERM: stopped after step {step} of 100000") == 2, printed


def test_signal_to_data_workers_too_stops_the_run_with_a_checkpoint(recipe: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "T2I_RUNS": str(tmp_path)}
    overrides = ["train.loop.steps=100000", "train.loop.workers=1", "train.loop.log_every=1"]
    run = subprocess.Popen(
        [sys.executable, "-m", "t2i.cli", "run", str(recipe), *overrides],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    wait_for_training(run, tmp_path)
    os.killpg(run.pid, signal.SIGTERM)
    _, printed = run.communicate(timeout=120)
    assert run.returncode == 128 + signal.SIGTERM, printed
    assert "SIGTERM: stopped after step" in printed
    assert list(tmp_path.glob("shared/train-*/checkpoints/step-*"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP is not supported, and on a CPU accelerate would leave it out"),
        ("ACCELERATE_USE_DEEPSPEED", "1", "DeepSpeed"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", r"loop\.precision"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", r"loop\.micro_batch_size"),
    ],
)
def test_settings_of_accelerate_that_would_be_passed_over_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"{name}={value}: .*{message}"):
        processes.check_launch()


def test_what_accelerate_sets_for_every_program_is_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    processes.check_launch()


def test_accelerate_launch_of_one_process_where_two_are_asked_for_is_refused(recipe: Path, tmp_path: Path) -> None:
    command = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "-m", "t2i.cli"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "T2I_RUNS": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-m", *command, "run", str(recipe)], capture_output=True, text=True, env=environment
    )
    assert ended.returncode != 0
    assert "started one process where 2 were asked for" in ended.stderr
    assert not list(tmp_path.iterdir())
