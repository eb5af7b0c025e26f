"""Prompt upsampling: a short prompt written out like the captions that a model was trained on (Betker et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from t2i.captioners.base import Refusal
from t2i.captioners.chat import ChatModel, Request
from t2i.captioners.describe import finished
from t2i.config import FrozenModel
from t2i.records import Caption, Prompt

if TYPE_CHECKING:
    from t2i.data.shards import Work

KIND = "expanded"
PROMPT = (
    "Write this prompt for a picture out as one detailed caption of the finished picture. Keep every object, number, "
    "colour, relation, name, style and quoted text that it asks for, and add what it leaves open: attributes, places, "
    "background, light, viewpoint. Add no object that would change what the picture is about. "
    "{examples}Answer with the caption alone, on one line.\nPrompt: {prompt}"
)
_STYLE = "Write in the style and length of these captions:\n{captions}\n"

Expand: TypeAlias = Callable[[Sequence[Prompt]], Iterator[tuple[int, "Caption | Refusal"]]]
"""Prompts -> (number of a prompt, its caption or why there is none), each number once, as they come."""


class Upsampler(FrozenModel):
    """What all upsamplers are told."""

    when_refused: Literal["stop", "keep"] = "stop"
    """A prompt that cannot be written out stops the stage, or is painted as it is and counted."""


class ShapesUpsampler(Upsampler):
    """Write out prompts of the shapes world by its own grammar; what a prompt leaves open is drawn by lot."""

    type: Literal["shapes"] = "shapes"

    def load(self, seed: int) -> Expand:
        """Nothing to open. The draw depends on the seed and a prompt's text alone."""
        from t2i.shapes.write_out import write_out

        def expand(prompts: Sequence[Prompt]) -> Iterator[tuple[int, Caption | Refusal]]:
            for number, prompt in enumerate(prompts):
                text = write_out(prompt.text, seed)
                yield number, Refusal("not a caption of the shapes world") if text is None else _by_rule(text)

        return expand


class ModelUpsampler(Upsampler):
    """Have a language model write prompts out: one on this machine, or one behind an endpoint."""

    type: Literal["model"] = "model"
    model: ChatModel
    """The language model."""
    examples: tuple[str, ...] = ()
    """Captions like those that the image model was trained on, whose style and length the answers should have."""
    prompt: str | None = None
    """Instead of the built-in prompt; `{prompt}` stands for the short one, `{examples}` for the request about style."""

    @model_validator(mode="after")
    def _prompt_is_asked_for(self) -> ModelUpsampler:
        if self.prompt is not None and "{prompt}" not in self.prompt:
            raise ValueError("prompt: must hold {prompt}")
        if self.prompt is not None and self.examples and "{examples}" not in self.prompt:
            raise ValueError("prompt: must hold {examples}, or they would not be shown; or leave `examples` out")
        return self

    def load(self, seed: int) -> Expand:
        """Open the language model."""
        chat = self.model.open()

        def expand(prompts: Sequence[Prompt]) -> Iterator[tuple[int, Caption | Refusal]]:
            requests = [Request(self.request(prompt.text)) for prompt in prompts]
            for number, reply in chat.reply(requests):
                if isinstance(reply, Refusal):
                    yield number, reply
                else:
                    yield number, _whole(finished(chat, reply, requests[number].text, KIND))

        return expand

    def request(self, prompt: str) -> str:
        """What is asked about one prompt."""
        captions = "\n".join(f"- {caption}" for caption in self.examples)
        style = _STYLE.replace("{captions}", captions) if self.examples else ""
        # The prompt last: it may hold anything, the word {examples} too.
        return (self.prompt or PROMPT).replace("{examples}", style).replace("{prompt}", prompt)


AnyUpsampler = Annotated[ModelUpsampler | ShapesUpsampler, Field(discriminator="type")]


@dataclass(frozen=True)
class UpsampleTask:
    """An upsampler for `Shards`."""

    upsampler: ModelUpsampler | ShapesUpsampler
    seed: int

    def load(self) -> Work[Prompt]:
        """Open the upsampler."""
        expand = self.upsampler.load(self.seed)

        def work(prompts: Sequence[Prompt]) -> Iterator[tuple[int, Any]]:
            for number, answer in expand(prompts):
                if isinstance(answer, Refusal):
                    yield number, {"refused": answer.reason, "text": answer.text}
                else:
                    origin = dataclasses.asdict(answer.origin) if answer.origin else None
                    yield number, {"expanded": answer.text, "source": answer.source, "origin": origin}

        return work

    def identity(self, item: Prompt) -> str:
        """The prompt's text."""
        return item.text


def _by_rule(text: str) -> Caption:
    return Caption(KIND, text, "shapes-rules")


def _whole(answer: Caption | Refusal) -> Caption | Refusal:
    """A caption that could be painted: one that chats or repeats itself is none."""
    if isinstance(answer, Caption) and answer.checks:
        return Refusal(f"fails the check{'s' * (len(answer.checks) > 1)} {', '.join(answer.checks)}", answer.text)
    return answer
