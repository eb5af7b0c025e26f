"""Prompts written out by a language model: what it is asked, and what of its answer would be painted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
from pydantic import ValidationError

from t2i.captioners import Refusal
from t2i.captioners.chat import LocalModel, Replies, Reply, Request
from t2i.captioners.upsample import ModelUpsampler, ShapesUpsampler
from t2i.records import Caption, Origin, Prompt

sys.path.append(str(Path(__file__).parents[1] / "rewards"))
import vqa_tiny

LOCAL = {"type": "local", "model": "none"}


@dataclass
class Scripted:
    """A model that always says the same."""

    text: str
    finish_reason: str = "stop"
    origin: Origin = Origin("scripted")  # noqa: RUF009 (frozen)
    asked: list[str] = field(default_factory=list)

    def reply(self, requests: Sequence[Request]) -> Replies:
        self.asked += [request.text for request in requests]
        yield from ((number, Reply(self.text, self.finish_reason)) for number in reversed(range(len(requests))))


def upsampler(**fields: object) -> ModelUpsampler:
    return tiny.from_recipe(ModelUpsampler, {"model": LOCAL, **fields})


def expand(
    monkeypatch: pytest.MonkeyPatch, chat: Scripted, texts: Sequence[str], **fields: Any
) -> dict[int, Caption | Refusal]:
    monkeypatch.setattr(LocalModel, "open", lambda _: chat)
    return dict(upsampler(**fields).load(1)([Prompt(str(n), text) for n, text in enumerate(texts)]))


def test_answer_is_one_line_with_its_origin_and_belongs_to_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Scripted(" A ginger cat\n on a mat. ")
    found = expand(monkeypatch, chat, ["a cat", "a dog"])
    assert set(found) == {0, 1}
    for number, prompt in enumerate(["a cat", "a dog"]):
        caption = found[number]
        assert isinstance(caption, Caption)
        assert (caption.kind, caption.text, caption.source) == ("expanded", "A ginger cat on a mat.", "scripted")
        assert caption.origin is not None
        assert caption.origin.prompt.endswith(f"Prompt: {prompt}")


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ("A cat on a", "length", "cut at max_tokens (finish_reason length)"),
        (" ", "stop", "the reply is empty"),
        ("I'm sorry, but I can't help with that.", "stop", "the model would not describe it"),
        ("Sure, here is the caption: a cat.", "stop", "fails the check boilerplate"),
        ("A cat, a cat, a cat, a cat.", "stop", "fails the check loop"),
        ("The image shows a cat, a cat, a cat, a cat.", "stop", "fails the checks boilerplate, loop"),
        ("A cat.", "content_filter", "ended for the reason 'content_filter', expected stop or length"),
    ],
)
def test_what_should_not_be_painted_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str, finish_reason: str, reason: str
) -> None:
    found = expand(monkeypatch, Scripted(text, finish_reason), ["a cat"])
    assert found == {0: Refusal(reason, " ".join(text.split()))}


def test_examples_of_the_style_are_shown_and_a_prompt_is_never_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Scripted("A cat.")
    expand(monkeypatch, chat, ["{examples} and {prompt}"], examples=["A red cup on a table.", "Two dogs."])
    assert "- A red cup on a table.\n- Two dogs.\n" in chat.asked[0]
    assert chat.asked[0].endswith("Prompt: {examples} and {prompt}")
    expand(monkeypatch, chat, ["a cat"], prompt="Say more: {prompt}")
    assert chat.asked[1] == "Say more: a cat"


@pytest.mark.parametrize(
    "fields", [{"prompt": "Say more."}, {"prompt": "Say more: {prompt}", "examples": ["Two dogs."]}]
)
def test_prompt_that_would_leave_something_out_is_an_error(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="must hold"):
        upsampler(**fields)


def test_real_language_model_writes_a_prompt_out_or_says_why_not(tmp_path: Path) -> None:
    model = {"type": "local", "model": str(vqa_tiny.language_model(tmp_path)), "dtype": "float32", "max_tokens": 8}
    # Random weights never end within eight tokens: an answer, and a cut one.
    [(number, found)] = upsampler(model=model).load(1)([Prompt("0", "a cat")])
    assert number == 0
    assert isinstance(found, Refusal)
    assert "max_tokens" in found.reason


def test_shapes_prompts_are_written_out_by_rule() -> None:
    prompts = [Prompt("0", "a red circle left of a blue star"), Prompt("1", "a cat")]
    (_, written), (_, refused) = list(ShapesUpsampler().load(4)(prompts))
    assert isinstance(written, Caption)
    assert " red circle left of a " in written.text
    assert written.text.endswith(" background")
    assert refused == Refusal("not a caption of the shapes world")
