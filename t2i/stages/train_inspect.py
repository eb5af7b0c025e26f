"""What `t2i inspect` says of a train stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from t2i.data.pairs import PairsFile, iterate_stated_pairs
from t2i.data.preview import preview_source
from t2i.objectives import DenoiserObjective, Denoising, DiffusionDPO, DiffusionKTO
from t2i.objectives.beta import CONVENTIONS
from t2i.resources import resolve_path
from t2i.training.settings import warmup_caution

if TYPE_CHECKING:
    from t2i.data.preview import Preview
    from t2i.records import PreferencePair
    from t2i.stages.base import InspectContext
    from t2i.stages.train import Train


def inspect_training(train: Train, context: InspectContext) -> dict[str, JsonValue]:
    """Steps; of a denoiser also its data and what it takes. Raises what the run would raise about them."""
    facts: dict[str, JsonValue] = {
        "steps": train.loop.steps,
        "examples seen": train.loop.steps * train.loop.batch_size,
        **_logit_scale(train),
        **_caution(train),
        **_warmup(train),
    }
    if train.model is None or not isinstance(train.objective, DenoiserObjective):
        return facts
    from t2i.training.inspection import Inspection

    has_captions = True
    if isinstance(train.objective, Denoising):
        previews = _previews(train, context)
        known = [preview for preview in previews if preview is not None]
        not_read: list[JsonValue] = [line for preview in known for line in preview.not_read]
        if train.data is not None and not_read:
            facts["not read"] = not_read
        tables = [preview.records for preview in known] if len(known) == len(previews) else [[]] * len(previews)
        has_captions = all(preview.has_captions for preview in known)
        settings = train.task_settings(train.model, tables, context.seed, Path())
    else:
        settings = train.task_settings(train.model, [[]], context.seed, Path())
        settings = dataclasses.replace(settings, pairs=_known_pairs(train, context))
    share = train.held_out.share if train.held_out else None
    inspection = Inspection(settings, train.objective, train.loop, train.optimizer, has_captions, share)
    return facts | inspection.facts(is_probed=context.is_probed)


def _caution(train: Train) -> dict[str, JsonValue]:
    """What is slow on this machine."""
    from t2i.training.bf16 import caution

    line = caution(train.loop.precision)
    return {"caution": line} if line else {}


def _warmup(train: Train) -> dict[str, JsonValue]:
    """That the learning rate does not reach its course, where it does not."""
    line = warmup_caution(train.optimizer, train.loop.steps)
    return {"warm-up": line} if line else {}


def _logit_scale(train: Train) -> dict[str, JsonValue]:
    """By how much a unit of mean squared error moves the logit of a pair, where the recipe alone tells."""
    objective = train.objective
    if not isinstance(objective, DiffusionDPO | DiffusionKTO):
        return {}
    if objective.beta_from is not None and CONVENTIONS[objective.beta_from.tool].summed:
        return {}
    return {"logit per mean squared error": objective.beta_at(1) / 2}


def _previews(train: Train, context: InspectContext) -> list[Preview | None]:
    if train.data_from is not None:
        return context.previews["data_from"]
    return [preview_source(source) for source in train.sources()]


def _known_pairs(train: Train, context: InspectContext) -> list[PreferencePair]:
    """The pairs of a file, or of stages that have run; none where only a run can tell."""
    if isinstance(train.pairs, PairsFile):
        return list(iterate_stated_pairs(resolve_path(train.pairs.path)))
    files = [preview.pairs if preview else None for preview in context.previews.get("pairs_from", [])]
    if None in files:
        return []
    return [pair for file in files if file is not None for pair in iterate_stated_pairs(file)]
