"""Batch k as a function of (seed, k): which records, in which portions, prepared where."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from t2i.data.order import Order, Stream
from t2i.errors import DataError, T2IError


class Examples(Protocol):
    """Records turned into examples. Called in the data workers: everything random is keyed by (step, position)."""

    def __len__(self) -> int:
        """Number of records."""
        ...

    def streams(self) -> Sequence[Stream]:
        """What batches are drawn from; `[Stream(range(n))]` for all records in turn."""
        ...

    def example(self, record: int, step: int, position: int) -> Any:
        """One example for one place in one global batch."""
        ...

    def collate(self, examples: Sequence[Any]) -> Any:
        """A batch of examples, with a `to(device)`."""
        ...

    def describe(self, record: int) -> str:
        """The record's name in error messages."""
        ...


@dataclass(frozen=True)
class KeyedBatches:
    """Endless shuffled passes over the records, cut into global batches; each batch is of one bucket.

    Place p of step s is example s * batch_size + p of an `Order` keyed by the seed. Nothing depends on workers,
    processes, portions or on where a run was interrupted.
    """

    examples: Examples
    seed: int
    batch_size: int
    micro_batch_size: int
    workers: int = 0

    def __post_init__(self) -> None:
        if len(self.examples) == 0 or not self.examples.streams():
            raise DataError("no image left to train on.")

    @cached_property
    def order(self) -> Order:
        """Which record stands at which place."""
        return Order(self.examples.streams(), self.seed, self.batch_size)

    def record_at(self, number: int) -> int:
        """Record of place number % batch_size of step number // batch_size."""
        return self.order.record_at(number)

    def records(self, step: int) -> list[int]:
        """Records of one global batch, by position."""
        return [self.record_at(step * self.batch_size + position) for position in range(self.batch_size)]

    def describe(self, step: int) -> str:
        """The examples of a step, for error messages."""
        return ", ".join(self.examples.describe(record) for record in self.records(step))

    def micro_batches(self, first_step: int, last_step: int, rank: int, world_size: int) -> Iterator[Any]:
        """All micro-batches of process `rank` for steps first_step .. last_step - 1, in order."""
        loader = DataLoader(
            _MicroBatches(self),
            batch_size=None,
            sampler=_Portions(self, first_step, last_step, rank, world_size),
            num_workers=self.workers,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=False,
            worker_init_fn=_outlive_signals,
        )
        return _raising(iter(loader))


def _outlive_signals(worker: int) -> None:
    """Leave it to the training process to end: terminals and schedulers send their signals to all processes at once,
    and it needs its workers until the step is done. They end when it asks them to, or is gone."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class _Failure:
    """What stands in the place of a micro-batch that could not be made."""

    error: T2IError


def _raising(batches: Iterator[Any]) -> Iterator[Any]:
    """The same micro-batches; raises the error of one that could not be made."""
    for batch in batches:
        if isinstance(batch, _Failure):
            raise batch.error
        yield batch


def _unchanged(batch: Any) -> Any:
    return batch


class _MicroBatches(Dataset[Any]):
    """Example numbers -> a micro-batch of these."""

    def __init__(self, batches: KeyedBatches) -> None:
        self.batches = batches

    def __getitem__(self, numbers: list[int]) -> Any:
        # An error that is raised in a worker reaches the training process with the worker's traceback as its message.
        try:
            return self.batches.examples.collate([self._example(number) for number in numbers])
        except T2IError as error:
            return _Failure(error)

    def _example(self, number: int) -> Any:
        step, position = divmod(number, self.batches.batch_size)
        return self.batches.examples.example(self.batches.record_at(number), step, position)


class _Portions(Sampler[list[int]]):
    """Example numbers of each micro-batch: process r takes the r-th equal part of every global batch."""

    def __init__(self, batches: KeyedBatches, first_step: int, last_step: int, rank: int, world_size: int) -> None:
        self.batches, self.first_step, self.last_step = batches, first_step, last_step
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        share, size = self.batches.batch_size // self.world_size, self.batches.micro_batch_size
        for step in range(self.first_step, self.last_step):
            start = step * self.batches.batch_size + self.rank * share
            for offset in range(start, start + share, size):
                yield list(range(offset, offset + size))
