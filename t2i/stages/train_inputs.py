"""What a train stage reads: records and pairs of its sources or stages, and the weights it starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2i import processes
from t2i.data.held_out import hold_out
from t2i.data.pairs import PAIRS_FILE, PairSource, iterate_pairs, save_pairs
from t2i.data.rows import RecordTable
from t2i.data.sources import RECORDS_FILE, ImageSource, save_records
from t2i.records import CaptionedImage, PreferencePair
from t2i.resources import resolve_path
from t2i.training.outputs import MODEL_FOLDER, trained_adapter

if TYPE_CHECKING:
    from t2i.stages.base import StageContext
    from t2i.stages.train import Train
    from t2i.training.tasks import TaskSettings


def read_inputs(train: Train, context: StageContext) -> TaskSettings:
    """Settings of the task with all that it reads; sources write their records into the stage's folder."""
    model = str(context.input("model_from") / MODEL_FOLDER) if train.model_from else train.model or ""
    return dataclasses.replace(
        _with_records(train, model, context),
        adapter=_start(train, context),
        layouts=train.layouts,
        pairs=_pairs(train, context),
        held_out_pairs=_held_out_pairs(train, context),
    )


def _with_records(train: Train, model: str, context: StageContext) -> TaskSettings:
    """Settings with the records of the stage's data, less those held out."""
    tables: Sequence[Sequence[CaptionedImage]] = _tables(train, context)
    if train.held_out is None:
        return train.task_settings(model, tables, context.seed, context.folder)
    kept, held = hold_out(tables, train.held_out.share, context.seed)
    undropped = train.model_copy(update={"caption_dropout": 0.0})
    rest = undropped.task_settings(model, held, context.seed, context.folder)
    datasets = tuple(dataset for dataset in rest.datasets if dataset.last > dataset.first)
    settings = train.task_settings(model, kept, context.seed, context.folder)
    return dataclasses.replace(settings, held_out=(rest.records, datasets))


def _tables(train: Train, context: StageContext) -> list[RecordTable]:
    """The rows of every source or stage; they stay on disk."""
    if train.data_from is not None:
        return [RecordTable(folder / RECORDS_FILE) for _, folder in context.inputs["data_from"]]
    # Sources may give images the same names; the first has the stage's folder to itself.
    sources = train.sources()
    folders = [context.folder / f"source-{number}" if number else context.folder for number in range(len(sources))]
    processes.first(lambda: _write_records(sources, folders, context.seed))
    return [RecordTable(folder / RECORDS_FILE) for folder in folders]


def _write_records(sources: Sequence[ImageSource], folders: Sequence[Path], seed: int) -> None:
    for source, folder in zip(sources, folders, strict=True):
        folder.mkdir(exist_ok=True)
        save_records(folder, source.read(folder, seed))


def _start(train: Train, context: StageContext) -> Path | None:
    """The LoRA file to start from."""
    if train.adapter_from is not None:
        return trained_adapter(context.input("adapter_from"))
    return None if train.adapter is None else resolve_path(train.adapter)


def _pairs(train: Train, context: StageContext) -> list[PreferencePair]:
    """The pairs of the source or of every stage, with their images checked."""
    pairs = train.pairs
    if pairs is not None:
        return processes.first(lambda: _read_pairs(pairs, context, "pairs"))
    folders = [folder for _, folder in context.inputs.get("pairs_from", [])]
    return [pair for folder in folders for pair in iterate_pairs(folder / PAIRS_FILE)]


def _held_out_pairs(train: Train, context: StageContext) -> list[PreferencePair]:
    pairs = train.held_out_pairs
    return [] if pairs is None else processes.first(lambda: _read_pairs(pairs, context, "held_out_pairs"))


def _read_pairs(source: PairSource, context: StageContext, name: str) -> list[PreferencePair]:
    """The pairs of a source, also written to a folder of the stage, with the images that the source draws."""
    folder = context.folder.resolve() / name
    folder.mkdir(exist_ok=True)
    pairs = list(source.read(folder, context.seed))
    save_pairs(folder, pairs)
    return pairs
