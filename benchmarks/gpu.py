"""Every family at full size on one GPU: speed, memory, utilisation, exact resume, and variants that agree.

python benchmarks/gpu.py OUT [--families sd1,sdxl] [--budget SECONDS] [--reduced]

Prints a line for each result as it comes and writes OUT/gpu.json and OUT/gpu.md. Each family has a process and a share
of the time of its own; one that fails or hangs stops no other. `--reduced` takes small models of the same classes and
runs on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any

from machine import describe

SHARES = {"sd1": 0.1, "pixart": 0.15, "sd3": 0.16, "flux": 0.22, "sdxl": 0.37}
"""Of the time, in the order in which families run; what one does not use is the others'. Last comes torch.compile."""
IMPORTS_S = 90
GRACE_S = 15
"""A family that is this much over its time is ended."""


def main() -> int:
    arguments = _arguments()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    import torch

    if not torch.cuda.is_available() and not arguments.reduced:
        print("skipped: no CUDA device; --reduced runs small models of the same classes anywhere")
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = f"{torch.cuda.get_device_name() if device == 'cuda' else 'no GPU'}; {describe()}"
    chosen = arguments.families.split(",")
    began = time.monotonic()
    log = (out / "gpu.log").open("a")
    size = "reduced" if arguments.reduced else "full"
    workers = {name: _Worker(name, log, device, size) for name in SHARES if name in chosen}
    results: dict[str, dict[str, Any]] = {}
    for number, (name, worker) in enumerate(workers.items()):
        left = arguments.budget - (time.monotonic() - began)
        share = SHARES[name] / sum(SHARES[other] for other in list(workers)[number:])
        results[name] = {}
        for line in worker.run(max(20.0, left * share)):
            phase = line.pop("phase")
            results[name][phase] = line
            print(f"{time.monotonic() - began:6.1f} s  {name:7} {phase:16} {_short(line)}", flush=True)
            _write(out, machine, results)
    failed = [
        f"{name} {phase}" for name, phases in results.items() for phase, line in phases.items() if "error" in line
    ]
    print(f"{time.monotonic() - began:.0f} s; failed: {', '.join(failed) or 'nothing'}")
    return int(bool(failed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--families", default=",".join(SHARES))
    parser.add_argument("--budget", type=float, default=280.0)
    parser.add_argument("--reduced", action="store_true")
    return parser.parse_args()


class _Worker:
    """A process for one family: started at once, so that it has imported everything when its turn comes."""

    def __init__(self, name: str, log: IO[str], device: str, size: str) -> None:
        script = str(Path(__file__).with_name("gpu_family.py"))
        command = [sys.executable, script, name, device, size]
        pipe = subprocess.PIPE
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment)
        self.lines: Queue[str | None] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def run(self, budget_s: float) -> Iterator[dict[str, Any]]:
        """Let it begin; what it tells, as it comes."""
        yield from self._results(IMPORTS_S)
        if self.process.poll() is not None:
            return
        assert self.process.stdin is not None
        self.process.stdin.write(f"{budget_s}\n")
        self.process.stdin.flush()
        yield from self._results(budget_s + GRACE_S)

    def _results(self, limit_s: float) -> Iterator[dict[str, Any]]:
        """Until it is ready, or at its end, or at the limit, which ends it."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                line = self.lines.get(timeout=max(0.1, deadline - time.monotonic()))
            except Empty:
                self.process.kill()
                self.process.wait()
                yield {"phase": "process", "error": f"still at work after {limit_s:.0f} s; ended"}
                return
            if line is None:
                if code := self.process.wait():
                    yield {"phase": "exit", "error": f"code {code}; see the log"}
                return
            found = json.loads(line) if line.startswith("{") else {}
            if found.get("phase") == "ready":
                return
            if found:
                yield found


def _short(line: dict[str, Any]) -> str:
    shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in line.items()}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


def _write(out: Path, machine: str, results: dict[str, dict[str, Any]]) -> None:
    (out / "gpu.json").write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    (out / "gpu.md").write_text(f"{table(results)}\nMeasured with `python benchmarks/gpu.py`: {machine}.\n")


COLUMNS = (
    ("px", "build", "resolution", "{}"),
    ("batch", "build", "batch", "{}"),
    ("s a step", "train", "step_s", "{:.3f}"),
    ("images/s", "train", "images_per_s", "{:.2f}"),
    ("utilisation", "utilisation", "utilisation", "{:.1%}"),
    ("peak GiB", "train", "peak_memory_gib", "{:.1f}"),
    ("s a step, any kernels", "free_kernels", "step_s", "{:.3f}"),
    ("utilisation, any kernels", "free_kernels", "utilisation", "{:.1%}"),
    ("of the bare loop", "bare_loop", "ours_over_bare", "{:.3f}"),
    ("resumed: same bits", "resume", "same_bits", "{}"),
    ("host waits", "without_waiting", "host_waits_in_a_step", "{}"),
    ("checkpointing, gradient", "checkpointing", "gradient_difference", "{:.1e}"),
    ("selective checkpointing, gradient", "selective", "gradient_difference", "{:.1e}"),
    ("offload, prediction", "offload", "prediction_difference", "{:.1e}"),
    ("reloaded, prediction", "sample", "prediction_difference", "{:.1e}"),
    ("channels last, gradient", "channels_last", "gradient_difference", "{:.1e}"),
    ("channels last, speed", "channels_last", "speedup", "{:.2f}"),
    ("compiled, gradient", "compiled", "gradient_difference", "{:.1e}"),
    ("compiled, speed", "compiled", "speedup", "{:.2f}"),
)
"""Heading, phase, field and format."""


def table(results: dict[str, dict[str, Any]]) -> str:
    """One row for each fact, one column for each family."""
    lines = [f"| | {' | '.join(results)} |", f"|---|{'---:|' * len(results)}"]
    for heading, phase, key, form in COLUMNS:
        cells = []
        for phases in results.values():
            value = phases.get(phase, {}).get(key)
            cells.append("" if value is None else form.format(value))
        lines.append(f"| {heading} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
