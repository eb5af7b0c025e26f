"""What becomes of a model's reply, and replies of real model classes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image

from t2i.captioners import Refusal, VlmCaptioner
from t2i.captioners.chat import LocalModel, Pace, Replies, Reply, Request
from t2i.captioners.describe import PROMPTS, Detail, TokenBudget, Wording, described
from t2i.captioners.local import LocalChat
from t2i.errors import ModelError
from t2i.records import Caption, CaptionedImage, Origin

sys.path.append(str(Path(__file__).parents[1] / "rewards"))
import vqa_tiny

WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Scripted:
    """A model that always says the same."""

    text: str
    finish_reason: str = "stop"
    origin: Origin = Origin("scripted")  # noqa: RUF009 (frozen)

    def reply(self, requests: Sequence[Request]) -> Replies:
        yield from ((number, Reply(self.text, self.finish_reason, "8x8 of 8x8")) for number in range(len(requests)))


def answer(text: str, finish_reason: str = "stop", kind: Detail = "dense", **wording: Any) -> Caption | Refusal:
    """What is made of one reply."""
    chat = Scripted(text, finish_reason)
    [(_, found)] = described(chat, Wording(**wording), kind)([CaptionedImage("1", "a.png", 8, 8)])
    if isinstance(found, Refusal):
        return found
    [caption] = found
    return caption


def test_caption_is_on_one_line_and_has_its_origin() -> None:
    found = answer(" A cat.\n\nOn a\tmat. ")
    assert isinstance(found, Caption)
    assert (found.kind, found.text, found.source, found.checks) == ("dense", "A cat. On a mat.", "scripted", ())
    assert found.origin is not None
    assert (found.origin.prompt, found.origin.finish_reason) == (PROMPTS["dense"], "stop")
    assert found.origin.view == "8x8 of 8x8"


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ("A cat on a", "length", "cut at max_tokens (finish_reason length)"),
        (" \n", "stop", "the reply is empty"),
        ("I'm sorry, but I can't describe this.", "stop", "the model would not describe it"),
        ("A cat.", "content_filter", "ended for the reason 'content_filter', expected stop or length"),
        ("A \x07cat.", "stop", "the reply: the caption holds the control character U+0007; remove it."),
    ],
)
def test_what_is_no_whole_caption_is_refused_with_its_text(text: str, finish_reason: str, reason: str) -> None:
    found = answer(text, finish_reason)
    assert found == Refusal(reason, " ".join(text.split()))


def test_cut_reply_may_be_trimmed_to_whole_sentences_and_is_marked() -> None:
    found = answer("A cat. It sits on a mat. The wall is of", "length", when_cut="trim")
    assert isinstance(found, Caption)
    assert (found.text, found.checks) == ("A cat. It sits on a mat.", ("trimmed",))
    assert found.origin is not None
    assert found.origin.finish_reason == "length"
    assert isinstance(answer("A cat on a mat. ", "length", kind="structured", when_cut="trim"), Refusal)


def test_boilerplate_and_loops_are_marked() -> None:
    found = answer("The image shows a cat, a cat, a cat, a cat.")
    assert isinstance(found, Caption)
    assert found.checks == ("boilerplate", "loop")


def test_structured_caption_is_json_or_none() -> None:
    found = answer('```json\n{"style": "photo",\n "objects": []}\n```', kind="structured")
    assert isinstance(found, Caption)
    assert json.loads(found.text) == {"objects": [], "style": "photo"}
    refused = answer("a cat", kind="structured")
    assert isinstance(refused, Refusal)
    assert "not JSON" in refused.reason


def test_alt_text_is_shown_only_if_asked_and_quoted() -> None:
    row = CaptionedImage("1", "a.png", 8, 8, (Caption("alt", 'Ignore this\n"now"'),))
    assert "Ignore" not in Wording().request("short", row).text
    shown = Wording(show_alt=True).request("short", row).text
    assert json.dumps('Ignore this\n"now"') in shown
    assert shown.endswith(PROMPTS["short"])


def test_budget_of_a_text_encoder_is_asked_for_counted_and_kept(tmp_path: Path) -> None:
    vqa_tiny.word_tokenizer().save_pretrained(tmp_path)
    text = "the red cat is there"  # five tokens and two marks

    def budget(limit: int, over: str) -> dict[str, TokenBudget]:
        values = {"tokenizer": str(tmp_path), "max_tokens": limit, "over": over}
        return {"bert": TokenBudget.model_validate(values)}

    fits, marked = answer(text, budgets=budget(7, "mark")), answer(text, budgets=budget(6, "mark"))
    assert isinstance(fits, Caption)
    assert isinstance(marked, Caption)
    assert (fits.tokens, fits.checks) == ({"bert": 7}, ())
    assert (marked.tokens, marked.checks) == ({"bert": 7}, ("over_bert",))
    assert answer(text, budgets=budget(6, "refuse")) == Refusal("7 tokens of bert, at most 6", text)
    row = CaptionedImage("1", "a.png", 8, 8)
    request = Wording(budgets=budget(20, "mark") | {"other": TokenBudget(tokenizer="x", max_tokens=77)})
    assert request.request("dense", row).text.endswith("Use at most 14 words.")


@pytest.fixture(scope="module", params=["qwen", "idefics"])
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny image-text model of a real class."""
    return getattr(vqa_tiny, request.param)(tmp_path_factory.mktemp(request.param))


def local(folder: Path, **fields: object) -> LocalModel:
    return tiny.from_recipe(LocalModel, {"model": str(folder), "dtype": "float32", "max_tokens": 12, **fields})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for number, colour in enumerate(("red", "navy", "white")):
        Image.new("RGB", (32, 32), colour).save(folder / f"{number}.png")
    return [folder / f"{number}.png" for number in range(3)]


def replies(model: LocalModel, pictures: Sequence[Path]) -> list[Reply | Refusal]:
    texts = ("what is there?", "a cat?", "how many cats are there?")
    found = dict(model.open().reply([Request(t, p) for t, p in zip(texts, pictures, strict=True)]))
    return [found[number] for number in range(len(texts))]


def test_replies_are_those_of_the_faithfulness_backend_in_any_batch(vlm: Path, pictures: list[Path]) -> None:
    from rewards.faithfulness.image_text import ImageTextVqa

    reference = ImageTextVqa(str(vlm), answer_instruction="", max_answer_tokens=12)
    images = [Image.open(path).convert("RGB") for path in pictures]
    expected = reference.answer(images, ["what is there?", "a cat?", "how many cats are there?"])
    for batch_size in (1, 3):
        found = replies(local(vlm, batch_size=batch_size), pictures)
        assert [reply.text.strip().partition("\n")[0].strip() for reply in found] == expected
        assert all(isinstance(reply, Reply) and reply.view == "32x32 of 32x32" for reply in found)


def test_reply_that_ends_by_itself_is_whole_and_one_that_reaches_the_limit_is_cut(
    vlm: Path, pictures: list[Path], tmp_path: Path
) -> None:
    import shutil

    assert [reply.finish_reason for reply in replies(local(vlm), pictures) if isinstance(reply, Reply)] == [
        "length"
    ] * 3
    shutil.copytree(vlm, tmp_path / "model")
    # Every token is an end: the first one stops the reply.
    settings = json.loads((tmp_path / "model/generation_config.json").read_text())
    settings["eos_token_id"] = list(range(300))
    (tmp_path / "model/generation_config.json").write_text(json.dumps(settings))
    found = replies(local(tmp_path / "model"), pictures)
    assert [reply.finish_reason for reply in found if isinstance(reply, Reply)] == ["stop"] * 3


def test_vlm_captioner_answers_for_every_image_and_hashes_its_weights(vlm: Path, pictures: list[Path]) -> None:
    fields = {"type": "vlm", "model": str(vlm), "dtype": "float32", "max_tokens": 4, "max_side_px": 16}
    captioner = tiny.from_recipe(VlmCaptioner, {**fields, "wording": {"prompt": "what?"}})
    rows = [CaptionedImage(str(n), str(path), 32, 32) for n, path in enumerate([*pictures, Path("none.png")])]
    answers = tiny.captions(captioner, rows)
    assert {found.reason for found in answers[:3] if isinstance(found, Refusal)} == {
        "cut at max_tokens (finish_reason length)"
    }
    assert isinstance(answers[3], Refusal)
    assert "none.png: no such image" in answers[3].reason
    assert len(LocalChat(captioner).origin.revision) == 64


def test_text_model_refuses_to_caption_images(pictures: list[Path], tmp_path: Path) -> None:
    folder = vqa_tiny.language_model(tmp_path / "model")
    chat = local(folder).open()
    [(number, reply)] = chat.reply([Request("say")])
    assert number == 0
    assert isinstance(reply, Reply)
    with pytest.raises(ModelError, match="reads no images"):
        list(chat.reply([Request("say", pictures[0])]))


def test_request_that_does_not_fit_is_an_error_before_anything_is_cut(pictures: list[Path], vlm: Path) -> None:
    with pytest.raises(ModelError, match=r"take \d+ tokens of at most 512"):
        list(local(vlm).open().reply([Request("a" * 600, pictures[0])]))


def test_pace_lets_calls_through_at_the_rate_and_no_faster() -> None:
    import time

    pace = Pace(per_minute=3000)
    began = time.monotonic()
    for _ in range(6):
        pace.wait()
    # The first is free; five more are 20 ms apart.
    assert time.monotonic() - began >= 0.1
