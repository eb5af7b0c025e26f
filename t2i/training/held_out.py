"""The loss on images that are not trained on, at noise and noise levels that never change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from t2i.data.examples import LatentExamples
from t2i.objectives.base import DiffusionBatch, LossOutput
from t2i.randomness import generator

if TYPE_CHECKING:
    from t2i.data.examples import DiffusionExample
    from t2i.training.settings import HeldOutSettings


class HeldOutLoss:
    """Example i is record i, from the first again after the last, with the i-th draws of the seed. Noise levels are
    spread evenly: each of n equal parts of the levels' distribution has one, and chance says which example."""

    def __init__(self, examples: LatentExamples, settings: HeldOutSettings, *, batch_size: int, seed: int) -> None:
        """examples: of the images held out. batch_size: examples per forward pass."""
        self.examples, self.count = examples, settings.examples
        self.batch_size, self.seed = batch_size, seed

    @torch.no_grad()
    def __call__(self, module: nn.Module, device: torch.device, *, precision: str) -> float:
        """Mean loss of all examples under the module as it is. precision: of the arithmetic, fp32 or bf16."""
        total = torch.zeros((), device=device, dtype=torch.float64)
        for batch in self._batches():
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                output: LossOutput = module(batch.to(device))
            total += output.loss.double().sum()
        return float(total) / self.count

    def _batches(self) -> Iterator[DiffusionBatch]:
        plan = self.examples.framing.plan
        records = [number for number, bucket in enumerate(plan.of_record) if bucket >= 0]
        chosen = [records[place % len(records)] for place in range(self.count)]
        levels = (generator(self.seed, "held-out levels").permutation(self.count) + 0.5) / self.count
        # A batch is of one size; within it, the order of the examples is that of their numbers.
        places = sorted(range(self.count), key=lambda place: int(plan.of_record[chosen[place]]))
        group: list[DiffusionExample] = []
        for number, place in enumerate(places):
            example = self.examples.example(chosen[place], 0, place)
            group.append(replace(example, uniform=float(levels[place])))
            following = places[number + 1] if number + 1 < len(places) else None
            ends = following is None or plan.of_record[chosen[following]] != plan.of_record[chosen[place]]
            if ends or len(group) == self.batch_size:
                yield self.examples.collate(group)
                group = []
