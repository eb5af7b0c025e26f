"""A model's own images as images to train on: their prompts are what they should show, their scores how far they do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from t2i.data.images import content_id, seen_size
from t2i.errors import DataError
from t2i.records import Caption, CaptionedImage, GeneratedImage, ScoredImage, read_jsonl

CHOSEN_FILE = "chosen.jsonl"
"""The rows of a best_of stage with the sample and seed that each image was painted with."""
PROMPT_KIND = "prompt"
"""Kind of the caption that a prompt becomes: it says what was asked for, not what somebody saw."""


def generated_records(folder: Path) -> Iterator[CaptionedImage]:
    """The images of a finished generate, score or best_of stage, with absolute paths.

    Raises DataError for a row whose image or prompt is missing.
    """
    chosen = folder / CHOSEN_FILE
    path = chosen if chosen.is_file() else folder / "scores.jsonl"
    rows: Iterator[ScoredImage | GeneratedImage] = read_jsonl(path, ScoredImage)
    if not path.is_file():
        path = folder / "generations.jsonl"
        rows = read_jsonl(path, GeneratedImage)
    for row in rows:
        image = (folder / row.image).resolve()
        if not image.is_file():
            raise DataError(f"{path}: {row.image} is missing; run its generate stage again.")
        if not row.prompt.strip():
            raise DataError(f"{path}: {row.image} has an empty prompt, which says nothing to train on.")
        scores = dict(row.scores) if isinstance(row, ScoredImage) else {}
        caption = Caption(PROMPT_KIND, row.prompt, "prompt", scores=scores)
        extra = {"prompt_id": row.prompt_id, "seed": row.seed, "sample": row.sample, "category": row.category}
        width, height = seen_size(image)
        yield CaptionedImage(content_id(image), str(image), width, height, (caption,), extra)
