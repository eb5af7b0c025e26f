"""Caption i goes with image i, with its sizes, its mask and its weight, however the data is shuffled and shared out.

Several trainers cache latents by the loader's position and then shuffle: every image is trained with another one's
caption. Here the latents themselves tell which picture they were made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from painted import PaintedFamily, number_in, paint, paint_one, shown_number
from PIL import Image
from torch import Tensor

from t2i.data.batches import KeyedBatches
from t2i.data.captions import CaptionMix
from t2i.data.diffusion import DiffusionData
from t2i.data.examples import Dataset, LatentExamples
from t2i.data.rows import JoinedRecords, RecordTable
from t2i.data.settings import BucketSettings, CacheSettings, MaskSettings, ViewSettings
from t2i.data.sources import save_records
from t2i.errors import DataError
from t2i.objectives.base import DiffusionBatch
from t2i.records import CaptionedImage

SIZES = [(40, 40), (80, 50), (50, 80)]
COUNT = 48
BUCKETS = BucketSettings(step=8)
MIX = CaptionMix({"caption": 1.0}, dropout=0.2)
FLIPS = ViewSettings(flip=True, crop="random", crops=2)


def table(folder: Path, rows: list[CaptionedImage]) -> RecordTable:
    folder.mkdir(parents=True, exist_ok=True)
    return RecordTable(save_records(folder, rows))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> RecordTable:
    """Pictures of three aspects, mixed; those with an even number have a mask of that darkness."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = paint(folder / "files", [SIZES[number % 3] for number in range(COUNT)])
    for number in range(0, COUNT, 2):
        Image.new("L", SIZES[number % 3], 100 + number).save(folder / f"files/{number:04d}.mask.png")
    return table(folder / "stage", rows)


def made(records: Any, folder: Path, **fields: Any) -> LatentExamples:
    fields = {"datasets": (Dataset(0, len(records), MIX),), "batch_size": 4, "encode_batch_size": 5, **fields}
    data = DiffusionData(records, seed=3, **fields)
    family: Any = PaintedFamily(takes_sizes=True)
    folder.mkdir(exist_ok=True)
    return data.encode(family, data.plan(32), folder)


def drawn(examples: LatentExamples, first: int = 0, last: int = 40, *, rank: int = 0, world: int = 1, **fields: int):
    source = KeyedBatches(examples, 7, 4, fields.pop("portion", 4 // world), **fields)
    return list(source.micro_batches(first, last, rank, world))


def numbers(batch: DiffusionBatch) -> list[int]:
    return [shown_number(latents) for latents in batch.latents]


def rows_of(batch: DiffusionBatch, name: str) -> list[Tensor]:
    value = getattr(batch, name)
    return [] if value is None else list(value)


def assert_paired(records: Any, batch: DiffusionBatch) -> None:
    for place, number in enumerate(numbers(batch)):
        row = records[number]
        assert batch.prompts[place] in ("", row.caption("caption"))
        assert batch.sizes is not None
        assert batch.sizes[place, :2].tolist() == [row.height, row.width]
        assert batch.sizes[place, 4:].tolist() == [8 * side for side in batch.latents.shape[2:]]
        if batch.conditioning is not None:
            told = [float(len(batch.prompts[place])), float(number_in(batch.prompts[place]))]
            assert batch.conditioning.prompt_embeds[place, 0].tolist() == told
        if batch.mask is not None:
            expected = (100 + number) / 255 if number % 2 == 0 else 1.0
            assert batch.mask[place].unique().tolist() == pytest.approx([expected])


FIELDS = {
    "square": {},
    "buckets": {"buckets": BUCKETS},
    "everything": {
        "buckets": BUCKETS,
        "views": FLIPS,
        "masks": MaskSettings(missing="whole"),
        "cache": CacheSettings(text=True),
    },
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_caption_goes_with_its_image(records: RecordTable, tmp_path: Path, fields: dict[str, Any]) -> None:
    examples = made(records, tmp_path, **fields)
    seen: list[int] = []
    prompts: list[str] = []
    for batch in drawn(examples):
        assert_paired(records, batch)
        seen += numbers(batch)
        prompts += batch.prompts
    assert sorted(set(seen)) == list(range(COUNT))
    assert seen[:COUNT] != sorted(seen[:COUNT])
    assert 0.1 < prompts.count("") / len(prompts) < 0.3


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS.keys())
def test_batches_are_the_same_with_workers_portions_processes_and_after_a_restart(
    records: RecordTable, tmp_path: Path, fields: dict[str, Any]
) -> None:
    examples = made(records, tmp_path, **fields)
    expected = drawn(examples, 0, 12)

    def assert_same(batches: list[DiffusionBatch], part: list[DiffusionBatch]) -> None:
        for name in ("latents", "noise", "uniform", "sizes", "mask"):
            wanted, found = ([row for batch in some for row in rows_of(batch, name)] for some in (part, batches))
            assert len(wanted) == len(found)
            assert all(torch.equal(one, other) for one, other in zip(wanted, found, strict=True))
        assert [p for batch in batches for p in batch.prompts] == [p for batch in part for p in batch.prompts]

    assert_same(drawn(examples, 0, 12, portion=2), expected)
    assert_same(drawn(made(records, tmp_path, **fields), 5, 12), expected[5:])
    assert_same(drawn(examples, 0, 6, workers=2), expected[:6])
    shares = [drawn(examples, 0, 12, rank=rank, world=2) for rank in range(2)]
    assert_same([half for step in zip(*shares, strict=True) for half in step], expected)


def test_batch_has_one_size_and_every_size_comes(records: RecordTable, tmp_path: Path) -> None:
    batches = drawn(made(records, tmp_path, buckets=BUCKETS))
    assert {tuple(batch.latents.shape[2:]) for batch in batches} == {(4, 4), (3, 5), (5, 3)}


def test_records_in_another_order_find_their_own_latents_in_a_shared_cache(
    records: RecordTable, tmp_path: Path
) -> None:
    cache = CacheSettings(folder=str(tmp_path / "cache"), text=True)
    made(records, tmp_path / "a", cache=cache, buckets=BUCKETS)
    size = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.safetensors"))
    turned = table(tmp_path / "turned", list(records)[::-1][:40])
    examples = made(turned, tmp_path / "b", cache=cache, buckets=BUCKETS)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.safetensors")) == size
    for batch in drawn(examples):
        assert_paired(records, batch)
    assert not list((tmp_path / "b").rglob("*.safetensors"))


def test_several_datasets_keep_their_words_weights_and_shares(tmp_path: Path) -> None:
    own = paint(tmp_path / "own", [(32, 32)] * 4, "dog {}")
    prior = [paint_one(tmp_path / "own", number, (32, 32), f"animal {number}") for number in range(4, 16)]
    joined = JoinedRecords([table(tmp_path / "one", own), table(tmp_path / "two", prior)])
    datasets = (
        Dataset(0, 4, CaptionMix({"caption": 1.0}, 0.0, "sks"), repeats=3),
        Dataset(4, 16, CaptionMix({"caption": 1.0}, 0.0), loss_weight=0.5),
    )
    examples = made(joined, tmp_path, datasets=datasets, cache=CacheSettings(text=True))
    counts = [0, 0]
    for batch in drawn(examples, 0, 60):
        assert batch.weights is not None
        for place, number in enumerate(numbers(batch)):
            expected = (f"sks, dog {number}", 1.0) if number < 4 else (f"animal {number}", 0.5)
            assert (batch.prompts[place], float(batch.weights[place])) == expected
            counts[number >= 4] += 1
    assert counts == [120, 120]


def test_dropped_and_enlarged_images_are_named_in_a_file(records: RecordTable, tmp_path: Path) -> None:
    buckets = BucketSettings(step=8, max_aspect=1.5, unfit="drop")
    examples = made(records, tmp_path, buckets=buckets)
    lines = (tmp_path / "unfit.jsonl").read_text().splitlines()
    assert len(lines) == 32
    assert '"reason": "dropped", "detail": "80x50: an aspect above 1.5"' in lines[0]
    assert {number % 3 for batch in drawn(examples, 0, 20) for number in numbers(batch)} == {0}


def test_bucket_with_less_than_a_batch_is_refused_before_anything_is_encoded(
    records: RecordTable, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"a batch of 17 .* 3 buckets: 24x40 \(16\), 32x32 \(16\), 40x24 \(16\)"):
        made(records, tmp_path, buckets=BUCKETS, batch_size=17)
    assert not list(tmp_path.rglob("*.safetensors"))
