"""One caption out of several: a language model joins alt text and a synthetic caption, or the two best of a kind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from t2i.captioners.base import Answer, Describe, Refusal
from t2i.captioners.chat import ChatModel, Request
from t2i.captioners.describe import finished
from t2i.config import FrozenModel
from t2i.records import Caption, CaptionedImage

PROMPT = (
    "Here are texts about one picture. Write one caption of it on one line: keep what they agree on, add facts and "
    "names that only one of them has and the others do not contradict, and leave out advertising, file names and "
    "guesses. Where they contradict each other, the later text saw the picture. Answer with the caption alone.\n{texts}"
)


class FuseCaptioner(FrozenModel):
    """Join captions that an image already has; it is not looked at again."""

    type: Literal["fuse"] = "fuse"
    kind: str = "fused"
    """Kind of the new captions."""
    model: ChatModel
    """The language model."""
    kinds: tuple[str, ...] = Field(default=("alt", "dense"), min_length=1)
    """Kinds to join, the most trusted last. An image must have them all."""
    best: int | None = Field(default=None, ge=2)
    """Instead of the first caption of each kind: of one kind, this many with the highest score."""
    ranked_by: str | None = None
    """Name of the captions' score by which they are ranked, with `best`."""
    prompt: str | None = None
    """Instead of the built-in prompt; `{texts}` stands for the numbered texts."""

    @model_validator(mode="after")
    def _consistent(self) -> FuseCaptioner:
        if (self.best is None) != (self.ranked_by is None):
            raise ValueError("give both `best` and `ranked_by`, or neither")
        if self.best is not None and len(self.kinds) != 1:
            raise ValueError("best: name one kind in `kinds`")
        if self.best is None and len(self.kinds) < 2:
            raise ValueError("kinds: one caption alone cannot be joined; name two kinds, or set `best`")
        if self.prompt is not None and "{texts}" not in self.prompt:
            raise ValueError("prompt: must hold {texts}")
        return self

    def check(self, images: Iterable[Path]) -> None:
        """The images are not looked at."""

    def load(self) -> Describe:
        """Open the language model."""
        chat = self.model.open()

        def fuse(records: Sequence[CaptionedImage]) -> Iterator[tuple[int, Answer]]:
            asked: list[tuple[int, Request, tuple[str, ...]]] = []
            for number, record in enumerate(records):
                parents = self.parents(record)
                if isinstance(parents, Refusal):
                    yield number, parents
                else:
                    asked.append((number, self._request(parents), tuple(caption.id for caption in parents)))
            for place, reply in chat.reply([request for _, request, _ in asked]):
                number, request, ids = asked[place]
                if isinstance(reply, Refusal):
                    yield number, reply
                else:
                    caption = finished(chat, reply, request.text, self.kind, parents=ids)
                    yield number, caption if isinstance(caption, Refusal) else (caption,)

        return fuse

    def parents(self, record: CaptionedImage) -> list[Caption] | Refusal:
        """The captions to join, the most trusted last."""
        if self.best is None or self.ranked_by is None:
            found = [next((c for c in record.captions if c.kind == kind), None) for kind in self.kinds]
            lacking = [kind for kind, caption in zip(self.kinds, found, strict=True) if caption is None]
            if lacking:
                return Refusal(f"no caption of kind {', '.join(lacking)} to join")
            return [caption for caption in found if caption is not None]
        name = self.ranked_by
        ranked = [c for c in record.captions if c.kind == self.kinds[0] and name in c.scores]
        if len(ranked) < self.best:
            return Refusal(
                f"{len(ranked)} captions of kind {self.kinds[0]} with a score {name}, {self.best} are joined"
            )
        return sorted(ranked, key=lambda caption: caption.scores[name])[-self.best :]

    def _request(self, parents: Sequence[Caption]) -> Request:
        texts = "\n".join(f"{n}. {json.dumps(c.text, ensure_ascii=False)}" for n, c in enumerate(parents, 1))
        return Request((self.prompt or PROMPT).replace("{texts}", texts))
