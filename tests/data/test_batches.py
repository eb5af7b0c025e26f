"""Batch k is a function of the seed and k, however it is portioned, prepared or shared out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2i.data.batches import KeyedBatches
from t2i.data.examples import ImageExamples
from t2i.data.images import open_image
from t2i.data.order import Stream
from t2i.errors import DataError
from t2i.randomness import generator
from t2i.records import CaptionedImage

Example = tuple[int, int, int, float]


@dataclass(frozen=True)
class Draws:
    """An example says which it is and what it drew."""

    count: int

    def __len__(self) -> int:
        return self.count

    def streams(self) -> list[Stream]:
        return [Stream(range(self.count))] if self.count else []

    def example(self, record: int, step: int, position: int) -> Example:
        return record, step, position, generator(5, "test", step, position).random()

    def collate(self, examples: Sequence[Example]) -> list[Example]:
        return list(examples)

    def describe(self, record: int) -> str:
        return f"picture {record}"


def batches(count: int = 10, *, seed: int = 1, size: int = 8, portion: int = 8, workers: int = 0) -> KeyedBatches:
    return KeyedBatches(Draws(count), seed, size, portion, workers)


def drawn(source: KeyedBatches, first: int = 0, last: int = 5, *, rank: int = 0, world: int = 1) -> list[Any]:
    return list(source.micro_batches(first, last, rank, world))


EXPECTED = list(itertools.chain(*drawn(batches())))


@pytest.mark.parametrize("count", [1, 7, 10, 64])
def test_every_pass_shows_every_record_once(count: int) -> None:
    source = batches(count)
    passes = [[source.record_at(e * count + place) for place in range(count)] for e in range(4)]
    assert all(sorted(one) == list(range(count)) for one in passes)
    if count > 5:
        assert len({tuple(one) for one in passes}) == 4
        assert passes[0] != list(range(count))


def test_order_is_another_for_another_seed() -> None:
    assert batches(64, seed=1).records(0) != batches(64, seed=2).records(0)


def test_batch_goes_on_into_the_next_pass() -> None:
    source = batches(10, size=8)
    sequence = [source.record_at(number) for number in range(40)]
    assert [source.records(step) for step in range(5)] == [sequence[start : start + 8] for start in range(0, 40, 8)]


def test_batch_larger_than_the_data_is_filled_from_several_passes() -> None:
    assert sorted(batches(3, size=9).records(0)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_examples_are_told_their_step_and_position() -> None:
    assert [(step, position) for _, step, position, _ in EXPECTED] == [divmod(n, 8) for n in range(40)]


@pytest.mark.parametrize("portion", [1, 2, 4, 8])
def test_portions_of_any_size_hold_the_same_examples(portion: int) -> None:
    portions = drawn(batches(portion=portion))
    assert {len(one) for one in portions} == {portion}
    assert list(itertools.chain(*portions)) == EXPECTED


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    assert list(itertools.chain(*drawn(batches(portion=2, workers=workers)))) == EXPECTED


@pytest.mark.parametrize(("world", "portion"), [(2, 1), (2, 4), (4, 2), (8, 1)])
def test_processes_share_out_every_batch(world: int, portion: int) -> None:
    shares = [drawn(batches(portion=portion), rank=rank, world=world) for rank in range(world)]
    of_step = [[e for rank in shares for one in rank for e in one if e[1] == step] for step in range(5)]
    assert list(itertools.chain(*of_step)) == EXPECTED


@pytest.mark.parametrize("first", [1, 3, 5])
def test_run_that_goes_on_sees_what_it_would_have_seen(first: int) -> None:
    assert list(itertools.chain(*drawn(batches(), first))) == EXPECTED[first * 8 :]


def test_number_of_steps_changes_no_batch() -> None:
    assert list(itertools.chain(*drawn(batches(), 0, 3))) == EXPECTED[: 3 * 8]


def test_step_is_described_by_its_records() -> None:
    source = batches(size=3)
    assert source.describe(2) == ", ".join(f"picture {record}" for record in source.records(2))


def test_no_record_is_an_error() -> None:
    with pytest.raises(DataError, match="no image left"):
        batches(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_a_data_worker_has_the_message_it_was_raised_with(workers: int, tmp_path: Path) -> None:
    path = tmp_path / "torn.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(DataError) as expected:
        open_image(path)
    examples = ImageExamples([CaptionedImage("", str(path), 64, 64)], 32, seed=1)
    with pytest.raises(DataError) as raised:
        list(KeyedBatches(examples, 1, 2, 1, workers).micro_batches(0, 1, 0, 1))
    assert str(raised.value) == str(expected.value)
