"""Which record stands at which place, with buckets, datasets, repeats and weights."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from t2i.data.order import Interleaving, Order, Stream
from t2i.randomness import generator

STREAMS = [
    Stream(range(7), 0),
    Stream(range(7, 18), 1),
    Stream(range(18, 20), 1, Fraction(3)),
    Stream(range(20, 29), 2),
]
BUCKET = {record: stream.bucket for stream in STREAMS for record in stream.records}


def batches(order: Order, steps: int) -> list[list[int]]:
    return [[order.record_at(step * order.batch_size + p) for p in range(order.batch_size)] for step in range(steps)]


def test_one_stream_is_shuffled_passes_one_after_the_other() -> None:
    order = Order([Stream(range(10))], 3, 4)
    expected = np.concatenate([generator(3, "order", turn).permutation(10) for turn in range(4)])
    assert [order.record_at(number) for number in range(40)] == expected.tolist()


def test_pass_holds_floor_of_what_each_label_has_earned() -> None:
    rates = (Fraction(5, 2), Fraction(4, 3))
    sequence = Interleaving(rates, 1, "test")
    # Passes hold 2+1, 3+1, 2+2, 3+1, ... of labels 0 and 1.
    labels = [sequence.at(number)[0] for number in range(15)]
    parts = [labels[0:3], labels[3:7], labels[7:11], labels[11:15]]
    assert [(part.count(0), part.count(1)) for part in parts] == [(2, 1), (3, 1), (2, 2), (3, 1)]


def test_occurrence_counts_the_places_before() -> None:
    sequence = Interleaving((Fraction(5, 2), Fraction(4, 3), Fraction(1, 7)), 1, "test")
    seen: Counter[int] = Counter()
    for number in range(200):
        label, before = sequence.at(number)
        assert before == seen[label]
        seen[label] += 1


def test_any_place_is_found_without_those_before() -> None:
    rates = (Fraction(5, 2), Fraction(4, 3))
    in_order = Interleaving(rates, 1, "test")
    expected = [in_order.at(number) for number in range(60)]
    assert [Interleaving(rates, 1, "test").at(number) for number in reversed(range(60))] == expected[::-1]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_batch_is_of_one_bucket(batch_size: int) -> None:
    for batch in batches(Order(STREAMS, 1, batch_size), 100):
        assert len({BUCKET[record] for record in batch}) == 1


def test_nothing_is_dropped_at_the_end_of_a_pass() -> None:
    # Of 7 images in batches of 4, one pass leaves 3 over: they come first in the next.
    order = Order([Stream(range(7), 0), Stream(range(7, 20), 1)], 2, 4)
    seen = [record for batch in batches(order, 100) for record in batch]
    for records in (range(7), range(7, 20)):
        own = [record for record in seen if record in records]
        passes = [own[start : start + len(records)] for start in range(0, len(own), len(records))]
        assert all(sorted(one) == list(records) for one in passes[:-1])
        assert len({tuple(one) for one in passes}) > 1


def test_images_of_all_buckets_come_equally_often() -> None:
    order = Order([Stream(range(7), 0), Stream(range(7, 20), 1), Stream(range(20, 25), 2)], 2, 4)
    passes = 40
    seen = Counter(record for batch in batches(order, 25 * passes // 4) for record in batch)
    assert set(seen) == set(range(25))
    # Each bucket is at most a batch behind what it has earned: one image of it, once or twice.
    assert all(abs(count - passes) <= 2 for count in seen.values())


def test_repeated_dataset_comes_as_often_as_it_says() -> None:
    seen = Counter(record for batch in batches(Order(STREAMS, 1, 2), 1000) for record in batch)
    base = seen[8]
    assert all(abs(seen[record] / base - 3) < 0.1 for record in (18, 19))
    assert all(abs(seen[record] / base - 1) < 0.1 for record in (0, 10, 25))


def test_weights_give_shares_whatever_the_sizes() -> None:
    # 90 and 10 images at equal weights: passes of 100 examples, 50 of each.
    streams = [Stream(range(90), 0, Fraction(50, 90)), Stream(range(90, 100), 0, Fraction(5))]
    seen = [record for batch in batches(Order(streams, 1, 4), 250) for record in batch]
    assert sum(record >= 90 for record in seen) == 500
    assert [sum(record >= 90 for record in seen[start : start + 100]) for start in range(0, 1000, 100)] == [50] * 10
    assert len({record for record in seen if record < 90}) == 90


def test_order_is_keyed_by_the_seed_and_shuffles_buckets() -> None:
    one, again, other = (batches(Order(STREAMS, seed, 2), 60) for seed in (1, 1, 2))
    assert one == again != other
    buckets = [BUCKET[batch[0]] for batch in one]
    assert buckets != sorted(buckets)
    assert [BUCKET[batch[0]] for batch in other] != buckets


def test_other_places_asked_for_first_change_nothing() -> None:
    expected = batches(Order(STREAMS, 1, 3), 50)
    order = Order(STREAMS, 1, 3)
    for number in (149, 3, 80, 0, 120):
        order.record_at(number)
    assert batches(order, 50) == expected
