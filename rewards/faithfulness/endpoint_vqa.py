"""A model behind an OpenAI-compatible endpoint as a VQA backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version

from PIL import Image

from rewards.base import Preprocessing
from rewards.errors import InputError, ModelError
from rewards.faithfulness.backends import YesNo
from rewards.faithfulness.cards import UNTOLD, BackendCard
from rewards.faithfulness.endpoint import ChatEndpoint, say, text_of
from rewards.faithfulness.image_text import ANSWER_INSTRUCTION, YES_NO_INSTRUCTION

_TOP = 20
"""Tokens whose probabilities are asked for; the most that OpenAI gives."""


class EndpointVqa:
    """Answers from a chat endpoint that takes images; options as `ChatEndpoint`.

    yes and no are sums of probabilities over the 20 likeliest first tokens that read yes or no, whatever their case;
    a word that is not among them has 0. Servers that give no token probabilities can answer, but not `yes_no`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_env: str | None = "OPENAI_API_KEY",
        timeout_s: float = 60.0,
        attempts: int = 4,
        backoff_s: float = 1.0,
        parallel: int = 4,
        answer_instruction: str = ANSWER_INSTRUCTION,
        yes_no_instruction: str = YES_NO_INSTRUCTION,
    ) -> None:
        self._endpoint = ChatEndpoint(url, model, key_env, timeout_s, attempts, backoff_s, parallel)
        self._answer_instruction = answer_instruction
        self._yes_no_instruction = yes_no_instruction

    @property
    def card(self) -> BackendCard:
        """The address and the model's name there, which is all that can be told from outside."""
        preprocessing = Preprocessing("by the server", False, "by the server", "by the server")
        weights = f"{self._endpoint.model} at {self._endpoint.url}"
        return BackendCard(weights, None, UNTOLD, None, preprocessing, UNTOLD)

    def fingerprint(self) -> dict[str, str]:
        """Address, model's name there, wording. A model that is replaced under its name is not noticed."""
        wording = {"answer_instruction": self._answer_instruction, "yes_no_instruction": self._yes_no_instruction}
        return {"backend": "endpoint/1", "pillow": version("pillow")} | wording | self._endpoint.fingerprint()

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """First lines of the answers."""
        choices = self._choices(images, questions, self._answer_instruction, max_tokens=32)
        return [text_of(choice).strip().partition("\n")[0].strip() for choice in choices]

    def yes_no(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[YesNo]:
        """Probabilities of yes and no as the first token."""
        choices = self._choices(
            images, questions, self._yes_no_instruction, max_tokens=1, logprobs=True, top_logprobs=_TOP
        )
        return [_yes_no(choice) for choice in choices]

    def _choices(
        self, images: Sequence[Image.Image], questions: Sequence[str], instruction: str, **options: object
    ) -> list[dict[str, object]]:
        if len(images) != len(questions):
            raise InputError(f"endpoint: {len(questions)} questions for {len(images)} images; expected one each.")
        turns = [say(f"{text} {instruction}".strip(), image) for image, text in zip(images, questions, strict=True)]
        return self._endpoint.complete(turns, **options)


def _yes_no(choice: dict[str, object]) -> YesNo:
    totals = {"yes": 0.0, "no": 0.0}
    for token, logprob in _top_tokens(choice):
        word = token.strip().strip(".,!").lower()
        if word in totals:
            totals[word] += math.exp(logprob)
    return YesNo(min(totals["yes"], 1.0), min(totals["no"], 1.0))


def _top_tokens(choice: dict[str, object]) -> list[tuple[str, float]]:
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    try:
        top = content[0]["top_logprobs"] if isinstance(content, list) else None
        return [(str(entry["token"]), float(entry["logprob"])) for entry in top or ()] or _none_given()
    except (LookupError, TypeError, ValueError):
        return _none_given()


def _none_given() -> list[tuple[str, float]]:
    raise ModelError("the endpoint gave no token probabilities (logprobs); choose a server that does, or tifa or dsg.")
