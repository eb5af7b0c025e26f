"""What a captioner learns: requests as captioning makes them, and the captions that people wrote as the answers."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t2i.captioners.chat import Request
from t2i.captioners.opened import OpenedModel
from t2i.captioners.view import shown
from t2i.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of tokens that are not learned."""
SHOWN = 10
"""Captions that an error names."""


@dataclass(frozen=True)
class Example:
    """A request about an image, and the caption that a person wrote."""

    request: Request
    caption: str


@dataclass(frozen=True)
class Lesson:
    """The examples of a model, as it sees them."""

    opened: OpenedModel
    examples: Sequence[Example]

    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Inputs and labels [B, tokens] of some examples: requests padded on the left, captions on the right.

        Labels are IGNORED everywhere but in the caption and its end token.
        """
        import torch

        chosen = [self.examples[number] for number in numbers]
        asked = self.opened.inputs([(example.request.text, self._image(example)) for example in chosen])
        answers = [self.answer(example) for example in chosen]
        length = max(map(len, answers))
        pad = self.opened.tokenizer.pad_token_id
        prompt = asked["input_ids"]
        tokens = prompt.new_tensor([answer + [pad] * (length - len(answer)) for answer in answers])
        is_answer = prompt.new_tensor([[1] * len(answer) + [0] * (length - len(answer)) for answer in answers])
        # What else a processor says of every token (whether it is of an image) is 0 for text.
        per_token = {name: value for name, value in asked.items() if value.shape == prompt.shape}
        longer = {name: torch.cat([value, torch.zeros_like(tokens)], dim=1) for name, value in per_token.items()}
        learned = tokens.masked_fill(is_answer == 0, IGNORED)
        return {
            **asked,
            **longer,
            "input_ids": torch.cat([prompt, tokens], dim=1),
            "attention_mask": torch.cat([asked["attention_mask"], is_answer], dim=1),
            "labels": torch.cat([torch.full_like(prompt, IGNORED), learned], dim=1),
        }

    def answer(self, example: Example) -> list[int]:
        """The tokens to learn."""
        return self.opened.answer_tokens(
            example.request.text, example.caption, has_image=example.request.image is not None
        )

    def check(self) -> None:
        """Raise DataError that lists the captions which cannot be learned whole, before the first step."""
        problems = [
            f"{example.request.image}: {reason}" for example in self.examples if (reason := self._unfit(example))
        ]
        if problems:
            more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
            listed = "\n  ".join([*problems[:SHOWN], *more])
            raise DataError(f"{len(problems)} of {len(self.examples)} captions cannot be learned whole:\n  {listed}")

    def _unfit(self, example: Example) -> str | None:
        try:
            image = self._image(example)
        except DataError as error:
            return str(error)
        answer, limit = self.answer(example), self.opened.settings.max_tokens
        said = self.opened.tokenizer.decode(answer, skip_special_tokens=True)
        if _plain(said) != _plain(self.opened.clean(example.caption)):
            return f"the model's tokens cannot write the caption: it would read {said[:60]!r}"
        if len(answer) > limit:
            return f"{len(answer)} tokens with the end, and captioner.max_tokens is {limit}"
        length = self.opened.inputs([(example.request.text, image)])["input_ids"].shape[1] + len(answer)
        if length > self.opened.limit:
            return f"{length} tokens with the request, and the model reads {self.opened.limit}; lower max_side_px"
        return None

    def _image(self, example: Example) -> Any:
        if example.request.image is None:
            return None
        return shown(example.request.image, self.opened.settings.max_side_px)[0]


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def caption_loss(model: Any, lesson: Lesson, batch_size: int) -> float:
    """Mean negative log-likelihood of a caption's token, over all tokens of all examples."""
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(lesson.examples), batch_size):
            batch = lesson.batch(range(start, min(start + batch_size, len(lesson.examples))))
            labels = batch.pop("labels")
            answer = int((labels != IGNORED).any(dim=0).sum())
            # The logits of a place are about the next one.
            logits = model(**batch, logits_to_keep=answer + 1).logits[:, -answer - 1 : -1].float()
            wanted = labels[:, -answer:]
            losses = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="sum"
            )
            total, count = total + losses.item(), count + int((wanted != IGNORED).sum())
    return total / count
