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
