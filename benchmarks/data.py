"""Memory a row and time an image of the data stages: caption (around a captioner that does nothing) and filter.

python benchmarks/data.py

Memory is the growth of the peak over a run over 1,000 rows in the same process; each size runs in a process of its own.
Rows are records with two captions whose images do not exist, so no image is opened. Time is that of the whole caption
stage, records read, answers journalled, shards and records written, by image; the captioner says "a picture".
Near-duplicate search is not in it: it holds about 400 bytes an image for images and 5 kB for texts.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from machine import describe
from pydantic import Field
from rows import write_rows

from t2i.captioners.base import Answer, Describe
from t2i.config import FrozenModel
from t2i.records import Caption, CaptionedImage
from t2i.stages.base import StageContext
from t2i.stages.caption import CaptionStage
from t2i.stages.filter import Filter

ROWS = (10_000, 50_000, 200_000)


class NothingCaptioner(FrozenModel):
    """Says the same of every image, at once."""

    type: Literal["nothing"] = "nothing"
    kind: str = Field(default="short")

    def check(self, images: Iterable[Path]) -> None:
        """Reads every path, as a captioner may."""
        for _ in images:
            pass

    def load(self) -> Describe:
        """Nothing to open."""
        return self.caption

    def caption(self, records: Sequence[CaptionedImage]) -> Iterator[tuple[int, Answer]]:
        """An answer each."""
        for number in range(len(records)):
            yield number, (Caption(self.kind, "a picture", "nothing"),)


def run(root: Path) -> tuple[float, float]:
    """Seconds of the caption stage and of the filter stage over root/source/records.jsonl."""
    seconds = []
    captioner: Any = NothingCaptioner()
    stages = (
        (CaptionStage.model_construct(data_from="source", captioner=captioner), "data_from", "source", "caption"),
        (Filter(data_from="caption", require=("short", "dense"), max_words=99), "data_from", "caption", "filter"),
    )
    for stage, field, source, name in stages:
        (root / name).mkdir()
        began = time.perf_counter()
        stage.run(StageContext(root / name, {field: [(source, root / source)]}, 0, "data"))
        seconds.append(time.perf_counter() - began)
    return seconds[0], seconds[1]


def measure(root: Path, count: int) -> dict[str, float]:
    """Bytes a row and milliseconds an image, in this process."""
    for name, rows in (("small", 1000), ("large", count)):
        (root / name / "source").mkdir(parents=True)
        write_rows(root / name / "source" / "records.jsonl", rows)
    run(root / "small")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    caption_s, filter_s = run(root / "large")
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return {"bytes": grown / count, "caption_ms": 1000 * caption_s / count, "filter_ms": 1000 * filter_s / count}


def main() -> None:
    """Print a row for each number of rows."""
    print("| rows | peak memory, bytes a row | caption stage, ms an image | filter stage, ms an image |")
    print("|---:|---:|---:|---:|")
    for count in ROWS:
        done = subprocess.run([sys.executable, __file__, str(count)], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        print(f"| {count} | {found['bytes']:.0f} | {found['caption_ms']:.3f} | {found['filter_ms']:.3f} |")
    print(f"\nMeasured with `python benchmarks/data.py`: {describe()}.")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), int(sys.argv[1]))))
