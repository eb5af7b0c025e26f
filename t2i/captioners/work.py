"""Captioning as work over shards: records in, answers out as JSON values, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.captioners.base import Answer, Captioner, Refusal
from t2i.records import CaptionedImage, caption_from, caption_values, record_values

if TYPE_CHECKING:
    from t2i.data.shards import Work


@dataclass(frozen=True)
class CaptionTask:
    """A captioner for `Shards`."""

    captioner: Captioner

    def load(self) -> Work[CaptionedImage]:
        """Open the captioner."""
        describe = self.captioner.load()

        def work(records: Sequence[CaptionedImage]) -> Iterator[tuple[int, Any]]:
            for number, answer in describe(records):
                yield number, answer_values(answer)

        return work

    def identity(self, item: CaptionedImage) -> str:
        """The record, wherever its image lies."""
        return json.dumps(record_values(dataclasses.replace(item, image=Path(item.image).name)), sort_keys=True)

    def answer_in(self, written: CaptionedImage, item: CaptionedImage) -> dict[str, Any] | None:
        """The answer that turned a record into the written one, as JSON values; None if no answer did.

        A record that is written as it came was refused, whatever captions came with it.
        """
        answer = tuple(caption for caption in written.captions if caption.kind == self.captioner.kind)
        is_answered = self.identity(item) != self.identity(written) == self.identity(with_answer(item, answer))
        # Parents of the kind that gave way to the answer are in the item alone.
        parents = {parent for caption in answer if caption.origin for parent in caption.origin.parents}
        is_made_of_it = parents <= {caption.id for caption in item.captions}
        return answer_values(answer) if is_answered and is_made_of_it else None


def with_answer(row: CaptionedImage, answer: Answer) -> CaptionedImage:
    """The record with the new captions; those of the same kind that were there before give way."""
    if isinstance(answer, Refusal):
        return row
    kinds = {caption.kind for caption in answer}
    kept = tuple(caption for caption in row.captions if caption.kind not in kinds)
    return dataclasses.replace(row, captions=(*kept, *answer))


def answer_values(answer: Answer) -> dict[str, Any]:
    """An answer as JSON values."""
    if isinstance(answer, Refusal):
        return {"refused": answer.reason, "text": answer.text}
    return {"captions": [caption_values(caption) for caption in answer]}


def answer_from(values: dict[str, Any]) -> Answer:
    """The answer that `answer_values` gave."""
    if "captions" in values:
        return tuple(caption_from(caption) for caption in values["captions"])
    return Refusal(values["refused"], values["text"])
