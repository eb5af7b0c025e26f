"""Which record stands at which place: pure functions of the seed and the place, without state to carry along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from t2i.randomness import generator


@dataclass(frozen=True)
class Stream:
    """Records of one dataset in one bucket. Its endless sequence is pass after pass, each in another order."""

    records: Sequence[int] | np.ndarray
    """Numbers of its records, at least one."""
    bucket: int = 0
    """Number of the size of its images: a batch is of one bucket."""
    passes: Fraction = Fraction(1)
    """How often each of its records comes in a pass over all the data: the repeats, or what gives its weight."""

    @property
    def rate(self) -> Fraction:
        """Its examples in a pass over all the data."""
        return self.passes * len(self.records)


class Interleaving:
    """An endless sequence of labels 0, 1, ...: pass e holds floor((e + 1) r) - floor(e r) of the label with rate r.

    So what is left over at the end of a pass is carried into the next one, and nothing is dropped. The labels of a
    pass are shuffled by a generator keyed by (seed, purpose, indices, e). Any place is found without those before it.
    """

    def __init__(self, rates: Sequence[Fraction], seed: int, purpose: str, *indices: int) -> None:
        self.rates, self.seed, self.purpose, self.indices = tuple(rates), seed, purpose, indices
        self._kept: _Pass | None = None

    def at(self, number: int) -> tuple[int, int]:
        """Label of the number-th place, and how many places before it have the same."""
        if len(self.rates) == 1:
            return 0, number
        if self._kept is None or not self._kept.start <= number < self._kept.start + len(self._kept.labels):
            self._kept = self._make_pass(self._pass_of(number))
        place = number - self._kept.start
        label = int(self._kept.labels[place])
        return label, self._kept.before[label] + int(self._kept.ranks[place])

    def _before(self, turn: int) -> list[int]:
        """Places of each label in the passes before this one."""
        return [turn * rate.numerator // rate.denominator for rate in self.rates]

    def _pass_of(self, number: int) -> int:
        turn = int(number / sum(self.rates))  # no later one: all roundings are downwards
        while sum(self._before(turn + 1)) <= number:
            turn += 1
        return turn

    def _make_pass(self, turn: int) -> _Pass:
        before = self._before(turn)
        counts = [after - earlier for earlier, after in zip(before, self._before(turn + 1), strict=True)]
        ordered = np.repeat(np.arange(len(counts), dtype=np.uint16), counts)
        labels = generator(self.seed, self.purpose, *self.indices, turn).permutation(ordered)
        ranks = np.empty(len(labels), dtype=np.uint32)
        for label, count in enumerate(counts):
            ranks[labels == label] = np.arange(count, dtype=np.uint32)
        return _Pass(sum(before), before, labels, ranks)


@dataclass(frozen=True)
class _Pass:
    """start: number of its first place; before: earlier places of each label; ranks: as `before`, within the pass."""

    start: int
    before: list[int]
    labels: np.ndarray
    ranks: np.ndarray


class Order:
    """Record of every place of every batch.

    Steps are dealt out to the buckets in proportion to their examples; the j-th batch of a bucket takes the next
    batch_size examples of the bucket's own endless sequence, in which its datasets are interleaved in the same way.
    With one stream this is one endless sequence of shuffled passes, cut into batches.
    """

    def __init__(self, streams: Sequence[Stream], seed: int, batch_size: int) -> None:
        self.streams, self.seed, self.batch_size = tuple(streams), seed, batch_size
        names = sorted({stream.bucket for stream in streams})
        self._members = [[n for n, stream in enumerate(streams) if stream.bucket == name] for name in names]
        rates = [[streams[n].rate for n in members] for members in self._members]
        self._steps = Interleaving([sum(own, Fraction(0)) / batch_size for own in rates], seed, "bucket order")
        self._datasets = [Interleaving(own, seed, "dataset order", names[n]) for n, own in enumerate(rates)]
        self._passes: dict[int, tuple[int, np.ndarray]] = {}

    def record_at(self, number: int) -> int:
        """Record of place number % batch_size of step number // batch_size."""
        step, position = divmod(number, self.batch_size)
        bucket, batch = self._steps.at(step)
        member, place = self._datasets[bucket].at(batch * self.batch_size + position)
        return self._record(self._members[bucket][member], place)

    def _record(self, stream: int, place: int) -> int:
        records = self.streams[stream].records
        turn, inner = divmod(place, len(records))
        kept = self._passes.get(stream)
        if kept is None or kept[0] != turn:
            # The first stream has the key it has where there is no other.
            key = (turn, stream) if stream else (turn,)
            order = generator(self.seed, "order", *key).permutation(len(records)).astype(np.uint32)
            kept = self._passes[stream] = (turn, order)
        return int(records[int(kept[1][inner])])
