"""VQA backends on tiny checkpoints of the real classes, against the model one pair at a time without padding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vqa_tiny
from PIL import Image
from transformers import (
    AutoTokenizer,
    BlipForQuestionAnswering,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from rewards.errors import InputError, ModelError, ScoringError
from rewards.faithfulness import YesNo, load_backend
from rewards.faithfulness.blip import BlipVqa
from rewards.faithfulness.image_text import ANSWER_INSTRUCTION, YES_NO_INSTRUCTION, ImageTextVqa
from rewards.faithfulness.vqascore import VqaScore

QUESTIONS = ["is there a cat?", "is the dog red?", "how many dogs are there, and what color are the two?", "red?"]
KINDS = ("qwen", "idefics")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vqa")
    return {name: getattr(vqa_tiny, name)(root / name) for name in ("blip", *KINDS)}


@pytest.fixture(scope="module")
def pictures(make_image: Callable[..., Image.Image]) -> list[Image.Image]:
    return [make_image(1, 40, 40), make_image(2, 64, 33), make_image(3, 20, 48), make_image(4, 100, 80)]


def blip_pixels(image: Image.Image) -> torch.Tensor:
    values = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32) / 255.0
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    return torch.from_numpy((values - mean) / std).float().permute(2, 0, 1)[None]


def blip_parts(folder: Path, image: Image.Image, question: str) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Model, token ids and pixels of one pair."""
    model = BlipForQuestionAnswering.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(question, return_tensors="pt")["input_ids"]
    return model, ids, blip_pixels(image)


def test_blip_yes_and_no_are_the_first_answer_tokens(folders: dict[str, Path], pictures: list[Image.Image]):
    tokenizer = AutoTokenizer.from_pretrained(folders["blip"])
    yes, no, start = (tokenizer.convert_tokens_to_ids(token) for token in ("yes", "no", "[DEC]"))
    found = BlipVqa(str(folders["blip"])).yes_no(pictures, QUESTIONS)
    for image, question, answer in zip(pictures, QUESTIONS, found, strict=True):
        model, ids, pixels = blip_parts(folders["blip"], image, question)
        with torch.no_grad():
            patches = model.vision_model(pixel_values=pixels).last_hidden_state
            states = model.text_encoder(input_ids=ids, encoder_hidden_states=patches).last_hidden_state
            logits = model.text_decoder(input_ids=torch.tensor([[start]]), encoder_hidden_states=states).logits[0, 0]
        expected = torch.softmax(logits, dim=0)
        assert answer.yes == pytest.approx(float(expected[yes]), rel=1e-4)
        assert answer.no == pytest.approx(float(expected[no]), rel=1e-4)
        assert answer.p_yes == pytest.approx(float(expected[yes] / (expected[yes] + expected[no])), rel=1e-4)
    assert np.ptp([answer.p_yes for answer in found]) > 0.01


def test_blip_answers_are_those_of_generate(folders: dict[str, Path], pictures: list[Image.Image]):
    tokenizer = AutoTokenizer.from_pretrained(folders["blip"])
    found = BlipVqa(str(folders["blip"])).answer(pictures, QUESTIONS)
    for image, question, answer in zip(pictures, QUESTIONS, found, strict=True):
        model, ids, pixels = blip_parts(folders["blip"], image, question)
        tokens = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=10)
        assert answer == tokenizer.decode(tokens[0, 1:], skip_special_tokens=True).strip()
    assert len(set(found)) > 1


def test_blip_encodes_an_image_once_for_all_its_questions(folders: dict[str, Path], pictures: list[Image.Image]):
    backend = BlipVqa(str(folders["blip"]))
    seen: list[int] = []
    hook = backend._model.vision_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    backend.yes_no([pictures[0]] * 3 + [pictures[1]], QUESTIONS)
    hook.remove()
    assert seen == [2]


def test_blip_counts_questions_that_it_cuts(folders: dict[str, Path], pictures: list[Image.Image]):
    backend = BlipVqa(str(folders["blip"]))
    # 48 tokens with the first and the last; "red" is one.
    fits, longer = "red " * 46, "red " * 47
    assert (backend.token_limit, backend.count_truncated([fits, longer]), backend.count_truncated([])) == (48, 1, 0)
    scorer = VqaScore(backend, template="{prompt}")
    assert scorer.token_limit == 48
    assert scorer.count_truncated([fits, longer]) == 1
    scores = scorer.score(pictures[:1] * 2, [fits, longer])
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def independent_inputs(kind: str, folder: Path, image: Image.Image, text: str) -> dict[str, Any]:
    """Inputs of one pair, from the parts of a processor: no chat template, no AutoProcessor, no padding."""
    if kind == "idefics":
        processor = Idefics3Processor.from_pretrained(folder)
        return dict(processor(images=[image], text=vqa_tiny.prompt_text(kind, text), return_tensors="pt"))
    pixels = Qwen2VLImageProcessorPil.from_pretrained(folder)(images=[image], return_tensors="pt")
    count = int(pixels["image_grid_thw"].prod()) // 4
    mark = "<|image_pad|>"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(vqa_tiny.prompt_text(kind, text).replace(mark, mark * count), return_tensors="pt")
    image_token = tokenizer.convert_tokens_to_ids(mark)
    kinds = (tokens["input_ids"] == image_token).int()
    return dict(pixels) | {key: tokens[key] for key in ("input_ids", "attention_mask")} | {"mm_token_type_ids": kinds}


def model_of(kind: str, folder: Path) -> Any:
    model_class = {"qwen": Qwen2_5_VLForConditionalGeneration, "idefics": Idefics3ForConditionalGeneration}[kind]
    return model_class.from_pretrained(folder).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_image_text_yes_and_no_are_the_next_token(folders: dict[str, Path], pictures: list[Image.Image], kind: str):
    folder = folders[kind]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), model_of(kind, folder)
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))
    found = ImageTextVqa(str(folder)).yes_no(pictures, QUESTIONS)
    for image, question, answer in zip(pictures, QUESTIONS, found, strict=True):
        with torch.no_grad():
            inputs = independent_inputs(kind, folder, image, f"{question} {YES_NO_INSTRUCTION}")
            expected = model(**inputs).logits[0, -1].softmax(dim=0)
        assert answer.yes == pytest.approx(float(expected[yes]), rel=1e-4)
        assert answer.no == pytest.approx(float(expected[no]), rel=1e-4)
    shares = [answer.yes for answer in found]
    assert max(shares) > 1.1 * min(shares)


@pytest.mark.parametrize("kind", KINDS)
def test_image_text_answers_are_greedy(folders: dict[str, Path], pictures: list[Image.Image], kind: str):
    folder = folders[kind]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), model_of(kind, folder)
    found = ImageTextVqa(str(folder), max_answer_tokens=3).answer(pictures, QUESTIONS)
    for image, question, answer in zip(pictures, QUESTIONS, found, strict=True):
        inputs = independent_inputs(kind, folder, image, f"{question} {ANSWER_INSTRUCTION}")
        tokens: list[int] = []
        for _ in range(3):
            with torch.no_grad():
                tokens.append(int(model(**inputs).logits[0, -1].argmax()))
            if tokens[-1] == tokenizer.eos_token_id:
                break
            more = torch.tensor([[tokens[-1]]])
            inputs |= {"input_ids": torch.cat([inputs["input_ids"], more], dim=1)}
            inputs |= {"attention_mask": torch.ones_like(inputs["input_ids"])}
            if "mm_token_type_ids" in inputs:
                kinds = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, 1, dtype=torch.int)], dim=1)
                inputs |= {"mm_token_type_ids": kinds}
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert answer == text.strip().partition("\n")[0].strip()


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_reaches_the_model(folders: dict[str, Path], pictures: list[Image.Image], kind: str):
    found = ImageTextVqa(str(folders[kind])).yes_no(pictures, ["is there a cat?"] * 4)
    assert len({round(answer.yes, 9) for answer in found}) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_marks_in_a_question_are_text(folders: dict[str, Path], pictures: list[Image.Image], kind: str):
    mark, broken = {"qwen": ("<|image_pad|>", "< |image_pad|>"), "idefics": ("<image>", "< image>")}[kind]
    backend = ImageTextVqa(str(folders[kind]))
    inputs = backend._inputs(pictures[:1], [f"is {mark} <eos> <x> here?"], YES_NO_INSTRUCTION, padding_side="right")
    shown = backend._processor.tokenizer.decode(inputs["input_ids"][0])
    assert f"is {broken} < eos> <x> here?" in shown
    plain = backend._inputs(pictures[:1], ["is here?"], YES_NO_INSTRUCTION, padding_side="right")
    image_token = backend._model.config.image_token_id
    assert int((inputs["input_ids"] == image_token).sum()) == int((plain["input_ids"] == image_token).sum())


@pytest.mark.parametrize("kind", ["blip", *KINDS])
def test_a_batch_is_its_pairs_in_any_order(folders: dict[str, Path], pictures: list[Image.Image], kind: str):
    name = "blip_vqa" if kind == "blip" else "image_text"
    backend = load_backend({"name": name, "model": str(folders[kind])})
    whole = backend.yes_no(pictures, QUESTIONS)
    for image, question, answer in zip(pictures, QUESTIONS, whole, strict=True):
        [alone] = backend.yes_no([image], [question])
        assert (alone.yes, alone.no) == (pytest.approx(answer.yes, rel=1e-5), pytest.approx(answer.no, rel=1e-5))
    order = [2, 0, 3, 1]
    permuted = backend.yes_no([pictures[i] for i in order], [QUESTIONS[i] for i in order])
    assert [one.yes for one in permuted] == pytest.approx([whole[i].yes for i in order], rel=1e-5)


@pytest.mark.parametrize("kind", ["blip", *KINDS])
def test_vqascore_is_p_yes_of_the_question_about_the_prompt(
    folders: dict[str, Path], pictures: list[Image.Image], kind: str
):
    spec = {"name": "blip_vqa" if kind == "blip" else "image_text", "model": str(folders[kind])}
    prompts = ["a red cat", "two {dogs}", "a dog", ""]
    expected = load_backend(spec).yes_no(pictures, [f'Does this figure show "{prompt}"?' for prompt in prompts])
    scores = VqaScore(spec, batch_size=3).score(pictures, prompts)
    assert scores.dtype == np.float32
    assert scores.shape == (4,)
    np.testing.assert_allclose(scores, [one.yes for one in expected], rtol=1e-5)
    normalised = VqaScore(spec, normalised=True)
    np.testing.assert_allclose(normalised.score(pictures, prompts), [one.p_yes for one in expected], rtol=1e-5)
    assert normalised.name == "vqascore_normalised"
    assert VqaScore(spec).score([], []).shape == (0,)


def test_a_question_over_the_context_is_refused(folders: dict[str, Path], pictures: list[Image.Image]):
    with pytest.raises(InputError, match=r"take \d+ tokens of at most 512"):
        ImageTextVqa(str(folders["qwen"])).yes_no(pictures[:1], ["x" * 600])


def test_a_changed_chat_template_changes_the_fingerprint(folders: dict[str, Path], tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(folders["qwen"], copy)
    before = ImageTextVqa(str(folders["qwen"])).fingerprint()
    assert ImageTextVqa(str(copy)).fingerprint() == before
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert ImageTextVqa(str(copy)).fingerprint() != before
    assert ImageTextVqa(str(folders["qwen"]), dtype="bfloat16").fingerprint() != before
    assert ImageTextVqa(str(folders["qwen"]), yes_no_instruction="Yes or No?").fingerprint() != before


def test_checkpoints_that_cannot_answer_are_refused(folders: dict[str, Path], tmp_path: Path, pictures: list):
    bert = vqa_tiny.encoder(tmp_path / "bert")
    with pytest.raises(ModelError, match="no processor for 'bert'"):
        ImageTextVqa(str(bert)).yes_no(pictures[:1], ["is it?"])
    copy = tmp_path / "copy"
    shutil.copytree(folders["qwen"], copy)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        ImageTextVqa(str(copy)).yes_no(pictures[:1], ["is it?"])


def test_weights_that_are_missing_are_not_made_up(folders: dict[str, Path], tmp_path: Path, pictures: list):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(folders["blip"], copy)
    state = load_file(copy / "model.safetensors")
    del state["vision_model.post_layernorm.weight"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing, first vision_model.post_layernorm.weight"):
        BlipVqa(str(copy)).yes_no(pictures[:1], ["is it?"])


def test_words_that_are_no_single_token_are_refused(folders: dict[str, Path], tmp_path: Path, pictures: list):
    copy = tmp_path / "copy"
    shutil.copytree(folders["blip"], copy)
    path = copy / "tokenizer.json"
    table = json.loads(path.read_text())
    table["model"]["vocab"]["yup"] = table["model"]["vocab"].pop("yes")
    path.write_text(json.dumps(table))
    with pytest.raises(ModelError, match="'yes' is 3 known tokens"):
        BlipVqa(str(copy)).yes_no(pictures[:1], ["is it?"])


def test_a_model_that_says_neither_yes_nor_no_has_no_p_yes():
    with pytest.raises(ScoringError, match="does not answer yes or no"):
        _ = YesNo(0.0, 0.0).p_yes


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("blip", "did you mean 'blip_vqa'"),
        ("image_text", "needs the option 'model'"),
        ({"name": "blip_vqa", "modl": "x"}, "no option 'modl'"),
        ({"model": "x"}, "'name' is missing"),
        ("no.such.module:Vqa", "no module 'no'"),
        ("rewards.errors:Nothing", "no class 'Nothing'"),
        ("rewards.faithfulness.matching:WordNearest", "no VQA backend; it lacks answer, yes_no"),
    ],
)
def test_backends_there_are_not_are_refused(spec: Any, message: str):
    with pytest.raises(InputError, match=message):
        load_backend(spec)
