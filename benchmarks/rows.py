"""Host memory and time of the data path by the number of rows: the one a few bytes a row, the other the same for all.

python benchmarks/rows.py

Memory is what came on top of a run over 100 rows in the same process: small numbers of rows show mostly what any run
takes. Each size runs in a process of its own, on latents of one number each that are already cached: what is timed is
to find a batch of 8, with its rows on disk, latents, captions and draws. The images do not exist; nothing opens one.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import torch
from machine import describe
from torch import nn

from t2i.data.batches import KeyedBatches
from t2i.data.cache import RowCache, image_identity
from t2i.data.captions import CaptionMix
from t2i.data.diffusion import DiffusionData
from t2i.data.encode import SHARD_SIZE, Framing, view_keys
from t2i.data.examples import Dataset, LatentExamples
from t2i.data.rows import RecordTable
from t2i.data.settings import BucketSettings
from t2i.data.views import Views

ROWS = (1_000, 10_000, 50_000, 200_000)
BATCH, STEPS = 8, 300
SIZES = ((1280, 960), (960, 1280), (1024, 1024))


def main() -> None:
    """Print one row for each number of rows."""
    print(
        "| rows | start: peak memory, bytes a row | training: memory held, bytes a row | start, s | a batch of 8, ms |"
    )
    print("|---:|---:|---:|---:|---:|")
    for count in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            write_rows(Path(folder, "records.jsonl"), count)
            command = [sys.executable, __file__, folder]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        middle, low, high = found["batch_ms"]
        memory = f"{found['peak'] / count:.0f} | {found['held'] / count:.0f}"
        print(f"| {count} | {memory} | {found['start_s']:.1f} | {middle:.2f} ({low:.2f}-{high:.2f}) |")
    print(f"\nMeasured with `python benchmarks/rows.py`: {describe()}.")


def write_rows(path: Path, count: int) -> None:
    """Records of images of three aspects with two captions each."""
    text = "a photograph of a brown dog that runs along a beach with a red ball in its mouth"
    with path.open("w") as file:
        for number in range(count):
            width, height = SIZES[number % len(SIZES)]
            captions = [{"kind": kind, "text": f"{text} {number}", "source": "file"} for kind in ("alt", "dense")]
            row = {"id": f"{number:032x}", "image": f"images/{number:08d}.jpg", "width": width, "height": height}
            file.write(json.dumps(row | {"captions": captions}) + "\n")


def measure(folder: Path) -> dict[str, Any]:
    """Peak memory, seconds until the first batch can be drawn, and milliseconds of a batch, in this process."""
    small = folder / "small"
    small.mkdir()
    write_rows(small / "records.jsonl", 100)
    for place in (small, folder):
        fill_cache(place)
    for _ in KeyedBatches(examples(small), 1, BATCH, BATCH).micro_batches(0, 100, 0, 1):
        pass  # everything is imported and warm
    peak, held = peak_bytes(), held_bytes()
    began = time.perf_counter()
    batches = KeyedBatches(examples(folder), 1, BATCH, BATCH)
    start_s = time.perf_counter() - began
    peak = peak_bytes() - peak
    times = []
    marks = time.perf_counter()
    for _ in batches.micro_batches(0, STEPS, 0, 1):
        times.append(1000 * (time.perf_counter() - marks))
        marks = time.perf_counter()
    # The first batches open the files of latents.
    parts = statistics.quantiles(times[STEPS // 2 :], n=10)
    held = held_bytes() - held
    return {"peak": peak, "held": held, "start_s": start_s, "batch_ms": (parts[4], parts[0], parts[8])}


def examples(folder: Path) -> LatentExamples:
    """What a train stage draws its batches from."""
    data = settings(folder)
    data.check_captions()
    return data.encode(family(), data.plan(1024), folder)


def settings(folder: Path) -> DiffusionData:
    """Buckets, two kinds of captions, no flips."""
    table = RecordTable(folder / "records.jsonl")
    mix = CaptionMix({"alt": 1.0, "dense": 1.0}, 0.1)
    return DiffusionData(table, (Dataset(0, len(table), mix),), 1, BucketSettings(), batch_size=BATCH)


def fill_cache(folder: Path) -> None:
    """Write a latent of one number for every row, in a process of its own, so that its memory is not counted."""
    if subprocess.run([sys.executable, __file__, str(folder), "fill"]).returncode:
        raise SystemExit("the cache could not be filled")


def write_cache(folder: Path) -> None:
    """As `fill_cache`, here."""
    data = settings(folder)
    framing = Framing(data.records, data.plan(1024), Views(data.views, data.seed))
    cache = RowCache(folder / "latents", "latents", image_identity(family(), "sample"))
    _, keys = view_keys(framing)
    for start in range(0, len(keys), SHARD_SIZE):
        part = keys[start : start + SHARD_SIZE]
        cache.add(part, {"mean": torch.zeros(len(part), 1, 1, 1), "std": torch.zeros(len(part), 1, 1, 1)})


def family() -> Any:
    """What the data path asks of a model when all is cached."""
    return types.SimpleNamespace(
        facts=types.SimpleNamespace(name="none", text_encoders=(), takes_sizes=True),
        pipeline=types.SimpleNamespace(
            vae=nn.Linear(1, 1, bias=False).requires_grad_(False).apply(zero), components={}
        ),
        denoiser=nn.Linear(1, 1),
    )


def zero(module: nn.Module) -> None:
    """The same weights, hence the same cache, in every process."""
    for value in module.parameters():
        nn.init.zeros_(value)


def peak_bytes() -> int:
    """Largest resident memory of this process so far (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def held_bytes() -> int:
    """Memory of this process now that is not a file's, which the system may take back at any time (Linux)."""
    [line] = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif len(sys.argv) == 3:
        write_cache(Path(sys.argv[1]))
    else:
        print(json.dumps(measure(Path(sys.argv[1]))))
