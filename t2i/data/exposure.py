"""How often each kind of caption was drawn in a run: counted again from the keys, not remembered."""

from __future__ import annotations

from collections import Counter

from t2i.data.batches import KeyedBatches
from t2i.data.examples import LatentExamples


def count_exposures(batches: KeyedBatches, steps: int) -> list[dict[str, int]]:
    """For each dataset, examples seen by kind of caption in steps 0 .. steps - 1; `dropped` for the empty prompt.

    Where encoders are given kinds of their own, an example counts for each of them too, under `encoder: kind`.

    Every draw is a function of seed, step and position, so the counts are exact whatever was interrupted, and by any
    number of workers. About 20 microseconds an example. Empty for examples that are not of a denoiser.
    """
    examples = batches.examples
    if not isinstance(examples, LatentExamples):
        return []
    counts: list[Counter[str]] = [Counter() for _ in examples.datasets]
    for step in range(steps):
        for position, record in enumerate(batches.records(step)):
            number = examples.dataset_number(record)
            counts[number].update(examples.datasets[number].mix.labels_at(examples.seed, step, position))
    return [dict(sorted(count.items())) for count in counts]
