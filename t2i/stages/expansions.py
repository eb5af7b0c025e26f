"""What prompts are painted as, when they are written out first: asked for once, kept beside the originals."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.captioners.upsample import ModelUpsampler, ShapesUpsampler, UpsampleTask
from t2i.errors import DataError
from t2i.records import ExpandedPrompt, Prompt, read_jsonl, write_jsonl

if TYPE_CHECKING:
    from t2i.data.shards import Shards

EXPANSIONS_FILE = "expansions.jsonl"
SHARDS_FOLDER = "expanding"
SHARD_SIZE = 64
SHOWN = 5
"""Refused prompts that an error names."""


def expand_prompts(
    upsampler: ModelUpsampler | ShapesUpsampler, prompts: Sequence[Prompt], folder: Path, seed: int
) -> list[ExpandedPrompt]:
    """Every prompt written out, in order, as `expansions.jsonl` in the folder keeps it.

    A killed run asks only for what has no answer yet. Raises DataError for prompts that the upsampler refused, unless
    it is told to keep those as they are; what it answered stays, and the next run asks for the refused ones again.
    """
    path = folder / EXPANSIONS_FILE
    if not path.is_file():
        write_jsonl(path, _expanded(upsampler, prompts, folder / SHARDS_FOLDER, seed))
    # Also what a kill between the two left behind: a finished stage has the same files however often it was killed.
    shutil.rmtree(folder / SHARDS_FOLDER, ignore_errors=True)
    return list(read_jsonl(path, ExpandedPrompt))


def expansions_of(folder: Path, prompts: Sequence[Prompt]) -> list[ExpandedPrompt]:
    """What another generate stage painted these prompts as. Raises DataError if it did not, or has other prompts."""
    path = folder / EXPANSIONS_FILE
    if not path.is_file():
        raise DataError(f"{path}: is missing; expected a generate stage with `expand`.")
    rows = list(read_jsonl(path, ExpandedPrompt))
    if [(row.prompt_id, row.prompt) for row in rows] != [(prompt.id, prompt.text) for prompt in prompts]:
        raise DataError(f"{path}: holds other prompts than this stage has; give both stages the same `prompts`.")
    return rows


def _expanded(
    upsampler: ModelUpsampler | ShapesUpsampler, prompts: Sequence[Prompt], folder: Path, seed: int
) -> list[ExpandedPrompt]:
    from t2i.data.shards import Shards
    from t2i.training.progress import progress_bar

    shards = Shards(folder, prompts, SHARD_SIZE, UpsampleTask(upsampler, seed))
    with progress_bar("writing prompts out", 0, len(prompts)) as advance:
        shards.run(1, advance)
    rows = [_row(prompt, answer) for prompt, answer in zip(prompts, shards.answers(), strict=True)]
    if upsampler.when_refused == "stop":
        _check_refused(rows, shards)
    return rows


def _row(prompt: Prompt, answer: dict[str, Any]) -> ExpandedPrompt:
    if "refused" in answer:
        return ExpandedPrompt(prompt.id, prompt.text, refused=answer["refused"])
    return ExpandedPrompt(prompt.id, prompt.text, answer["expanded"], answer["source"], answer["origin"] or {})


def _check_refused(rows: Sequence[ExpandedPrompt], shards: Shards[Prompt]) -> None:
    refused = [row for row in rows if row.refused]
    if refused:
        shards.reopen(lambda answer: "refused" not in answer)
        more = [f"... and {len(refused) - SHOWN} more"] if len(refused) > SHOWN else []
        shown = "\n  ".join([*(f"{row.prompt[:80]!r}: {row.refused}" for row in refused[:SHOWN]), *more])
        raise DataError(
            f"expand: {len(refused)} of {len(rows)} prompts were not written out:\n  {shown}\n"
            "Mend that and run again (answers are kept), or set `when_refused: keep` to paint those as they are."
        )
