"""Captions by a model that sees the image: what it is asked, and what of its reply is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from t2i.captioners.adapters import check_request
from t2i.captioners.base import Answer, Describe, Refusal
from t2i.captioners.chat import Chat, EndpointModel, LocalModel, Reply, Request
from t2i.config import FrozenModel, ModelPath
from t2i.data.formats.texts import checked_text
from t2i.data.quality.texts import TEXT_CHECKS
from t2i.errors import DataError, ModelError
from t2i.records import Caption, CaptionedImage
from t2i.resources import resolve_path

Detail = Literal["short", "medium", "dense", "spatial", "tags", "structured"]
_RULES = (
    "Say only what can be seen. Begin with the subject itself, not with words such as 'The image shows'. "
    "Do not guess at names, moods or what is outside the picture. Write on one line."
)
PROMPTS: Mapping[Detail, str] = {
    "short": f"Describe this picture in one sentence of at most 15 words. {_RULES}",
    "medium": f"Describe this picture in two or three sentences: subjects, what they do, where, style. {_RULES}",
    "dense": (
        "Describe this picture in one paragraph: every object with its number, colour, size and material, what it "
        f"does, where it is, the background, light, viewpoint and style, and any text word for word. {_RULES}"
    ),
    "spatial": (
        "Describe where things are in this picture, in at most three sentences. Name pairs of objects and their "
        f"relation: left of, right of, above, below, in front of, behind, inside, near, far from. {_RULES}"
    ),
    "tags": "List what can be seen in this picture as tags in lower case with commas between, the main subject first.",
    "structured": (
        'Describe this picture as one JSON object with the keys "objects" (a list of objects with "name", "number", '
        '"attributes", "position"), "relations" (a list of texts), "background", "style" and "text". JSON alone.'
    ),
}
_ALT = (
    "The picture came with this text, which may be wrong or about something else: {alt}\n"
    "Take names, places and facts from it where the picture does not speak against them.\n"
)
_WORDS_PER_TOKEN = 0.7
"""English words a token of CLIP and T5, low: a caption must fit."""


class TokenBudget(FrozenModel):
    """A text encoder that the captions must fit into."""

    tokenizer: ModelPath
    """Hub id or folder of its tokenizer."""
    max_tokens: int = Field(gt=2)
    """Its limit, with its marks: 77 for CLIP, 512 for T5 in FLUX."""
    over: Literal["mark", "refuse"] = "mark"
    """Captions that are longer are marked `over_<name>`, or refused."""


class Wording(FrozenModel):
    """What is asked, and what is done with the reply."""

    prompt: str | None = None
    """Instead of the prompt of the kind."""
    show_alt: bool = False
    """Show the image's alt text, where it has one, as a hint."""
    when_cut: Literal["refuse", "trim"] = "refuse"
    """A reply that reached max_tokens is refused, or kept up to its last whole sentence and marked `trimmed`."""
    budgets: dict[str, TokenBudget] = Field(default_factory=dict)
    """Name of a text encoder -> its limit; the prompt asks for as many words as fit."""

    def instruction(self, kind: Detail) -> str:
        """What is asked about every image."""
        text = PROMPTS[kind] if self.prompt is None else self.prompt
        if self.budgets:
            words = int(_WORDS_PER_TOKEN * min(budget.max_tokens for budget in self.budgets.values()))
            text += f" Use at most {words} words."
        return text

    def request(self, kind: Detail, record: CaptionedImage) -> Request:
        """What is asked about one image."""
        text = self.instruction(kind)
        alt = record.caption("alt") if self.show_alt else None
        hint = _ALT.format(alt=json.dumps(alt, ensure_ascii=False)) if alt else ""
        return Request(hint + text, Path(record.image))


class VlmCaptioner(LocalModel):
    """Captions by an image-text model of transformers on this machine."""

    type: Literal["vlm"] = "vlm"
    kind: Detail = "dense"
    """How much to say, and the kind of the captions."""
    wording: Wording = Wording()
    """What is asked, and what is kept."""

    def check(self, images: Iterable[Path]) -> None:
        """Any image may be looked at."""

    def load(self) -> Describe:
        """Load the model. Raises ConfigError if its adapter was tuned with another request."""
        if self.adapter is not None:
            check_request(resolve_path(self.adapter), self.asks)
        return described(self.open(), self.wording, self.kind)

    @property
    def asks(self) -> dict[str, Any]:
        """All that decides what the model sees of an image and is asked about it."""
        return {
            "prompt": self.wording.instruction(self.kind),
            "show_alt": self.wording.show_alt,
            "max_side_px": self.max_side_px,
        }


class EndpointCaptioner(EndpointModel):
    """Captions by an image-text model behind an OpenAI-compatible server."""

    type: Literal["endpoint"] = "endpoint"
    kind: Detail = "dense"
    """How much to say, and the kind of the captions."""
    wording: Wording = Wording()
    """What is asked, and what is kept."""

    def check(self, images: Iterable[Path]) -> None:
        """Any image may be looked at."""

    def load(self) -> Describe:
        """Read the key and open the client."""
        return described(self.open(), self.wording, self.kind)


def described(chat: Chat, wording: Wording, kind: Detail) -> Describe:
    """Captions of one kind from a model."""
    count = token_counters(wording.budgets)

    def describe(records: Sequence[CaptionedImage]) -> Iterator[tuple[int, Answer]]:
        requests = [wording.request(kind, record) for record in records]
        for number, reply in chat.reply(requests):
            if isinstance(reply, Refusal):
                yield number, reply
            else:
                caption = finished(chat, reply, requests[number].text, kind, trim=wording.when_cut == "trim")
                yield number, caption if isinstance(caption, Refusal) else _budgeted(caption, wording.budgets, count)

    return describe


def finished(
    chat: Chat, reply: Reply, prompt: str, kind: str, *, trim: bool = False, parents: tuple[str, ...] = ()
) -> Caption | Refusal:
    """The caption of a reply, on one line and with its origin and failed checks; a refusal for what is none."""
    text, checks = " ".join(reply.text.split()), []
    if reply.finish_reason not in ("stop", "length"):
        return Refusal(f"ended for the reason {reply.finish_reason!r}, expected stop or length", text)
    if reply.finish_reason == "length":
        kept = _whole_sentences(text) if trim and kind != "structured" else ""
        if not kept:
            return Refusal("cut at max_tokens (finish_reason length)", text)
        text, checks = kept, ["trimmed"]
    try:
        text = _structured(text) if kind == "structured" else text
        if checked_text(text, "the reply") is None:
            return Refusal("the reply is empty")
    except DataError as error:
        return Refusal(str(error), text)
    checks += [name for name in ("refusal", "boilerplate", "loop") if TEXT_CHECKS[name](text)]
    if "refusal" in checks:
        return Refusal("the model would not describe it", text)
    origin = dataclasses.replace(
        chat.origin,
        prompt=prompt,
        prompt_sha256=hashlib.sha256(prompt.encode()).hexdigest(),
        finish_reason=reply.finish_reason,
        view=reply.view,
        parents=parents,
    )
    return Caption(kind, text, chat.origin.model, origin, checks=tuple(checks))


def _whole_sentences(text: str) -> str:
    """Up to the last end of a sentence; empty if there is none."""
    end = max(text.rfind(mark) for mark in (". ", "! ", "? "))
    return text if text.endswith((".", "!", "?")) else text[: end + 1]


def _structured(text: str) -> str:
    """The JSON object in a reply, which models like to wrap in a code fence. Raises DataError for none."""
    start, end = text.find("{"), text.rfind("}")
    try:
        values = json.loads(text[start : end + 1])
    except ValueError as error:
        raise DataError(f"the reply is not JSON ({error}).") from error
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def token_counters(budgets: Mapping[str, TokenBudget]) -> dict[str, Any]:
    """A tokenizer for each budget. Raises ModelError for one that cannot be read."""
    if not budgets:
        return {}
    from transformers import AutoTokenizer

    from rewards.checkpoints import reason

    found = {}
    for name, budget in budgets.items():
        path = resolve_path(budget.tokenizer)
        try:
            place = str(path) if path.exists() else budget.tokenizer
            found[name] = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{budget.tokenizer}: no readable tokenizer ({reason(error)}).") from error
    return found


def _budgeted(caption: Caption, budgets: Mapping[str, TokenBudget], counters: Mapping[str, Any]) -> Answer:
    tokens = {name: len(counter(caption.text)["input_ids"]) for name, counter in counters.items()}
    over = [name for name, number in tokens.items() if number > budgets[name].max_tokens]
    refused = next((name for name in over if budgets[name].over == "refuse"), None)
    if refused:
        limit = budgets[refused].max_tokens
        return Refusal(f"{tokens[refused]} tokens of {refused}, at most {limit}", caption.text)
    return (dataclasses.replace(caption, tokens=tokens, checks=(*caption.checks, *(f"over_{name}" for name in over))),)
