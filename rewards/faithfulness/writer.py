"""Questions written by a language model, and nothing believed that it writes before it is checked.

One request a prompt gives its questions with their dependencies as JSON. What is not of the form is sent back with the
complaint, a few times; a prompt that still has no sound questions is told as a defect, never left out in silence.
Unlike in TIFA's and DSG's own pipelines no second model filters the questions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, cast

from rewards.checkpoints import local_folder
from rewards.devices import full_precision
from rewards.errors import InputError, ModelError
from rewards.faithfulness.endpoint import ChatEndpoint, NoAnswerError, say, text_of
from rewards.faithfulness.loading import load_model, load_tokenizer
from rewards.faithfulness.questions import Defect, PromptQuestions, Question, QuestionBook, find_defects, in_cycles
from rewards.faithfulness.readers import parse_question

Style: TypeAlias = Literal["yes_no", "choices"]

_MAX_QUESTIONS = 60
_COMMON = """You write questions that check whether a picture shows what a prompt asks for.
Cover everything the prompt says and nothing else: each object, its number, each attribute, action and relation, \
the setting, the style. One fact a question. A question must make sense to someone who sees only the picture.
Answer with JSON alone, of this form: {"questions": [...]}. Each question is an object with
"id": 1, 2, 3, ...; "question": text that ends with a question mark;
"category": one of entity, attribute, counting, relation, action, setting, style, text;
"parents": ids of earlier questions without which this one makes no sense (whether the cup is red needs that there is \
a cup), [] for none;
"""
_STYLES: dict[Style, str] = {
    "yes_no": '"negative": the opposite question, to which a picture that fits is answered no.\n'
    "To each question itself the right answer for a picture that fits is yes.\n",
    "choices": '"choices": two to four short answers in lower case, one of them right, or ["yes", "no"];\n'
    '"answer": the right one, word for word.\n',
}


class TextModel(Protocol):
    """A language model."""

    def complete(self, prompts: Sequence[str]) -> Sequence[str | ModelError]:
        """Answers to B prompts, or why there is none to one of them. Raises NoAnswerError where nothing answers."""
        ...


class EndpointText:
    """A language model behind a `ChatEndpoint`."""

    def __init__(self, endpoint: ChatEndpoint) -> None:
        self._endpoint = endpoint

    def complete(self, prompts: Sequence[str]) -> list[str | ModelError]:
        """Answers to B prompts, one request each, or the error of one that failed for good.

        Raises NoAnswerError for a server that is down or answers none of them, InputError without a key.
        """
        found = self._endpoint.try_complete([say(prompt) for prompt in prompts])
        silent = [one for one in found if isinstance(one, NoAnswerError)]
        if silent and len(silent) == len(found):
            raise silent[0]
        return [one if isinstance(one, ModelError) else _text_or_error(one) for one in found]


def _text_or_error(choice: dict[str, object]) -> str | ModelError:
    try:
        return text_of(choice)
    except ModelError as error:
        return error


class TransformersText:
    """An instruction-tuned causal language model of transformers, greedy; opened by the first prompt.

    model: folder or hub id; max_new_tokens: of an answer, which is cut there (and then refused as no JSON).
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        dtype: str = "float32",
        max_new_tokens: int = 2048,
        device: str = "cpu",
    ) -> None:
        self.model_id = str(model)
        self._revision = revision
        self._dtype = dtype
        self._device = device
        self._max_new_tokens = max_new_tokens

    def complete(self, prompts: Sequence[str]) -> list[str]:
        """Answers to B prompts, in one batch."""
        import torch

        inputs = self._tokenizer.apply_chat_template(
            [say(prompt) for prompt in prompts],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        ).to(self._model.device)
        with torch.no_grad(), full_precision(self._model.device.type):
            tokens = self._model.generate(**inputs, max_new_tokens=self._max_new_tokens)
        return self._tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    @cached_property
    def _folder(self) -> Path:
        return local_folder(self.model_id, self._revision)

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = load_tokenizer(self._folder, self.model_id)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        return tokenizer

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModelForCausalLM, GenerationConfig

        model = load_model(AutoModelForCausalLM, self._folder, self.model_id, self._device, self._dtype)
        ends = model.generation_config.eos_token_id or self._tokenizer.eos_token_id
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=ends, pad_token_id=self._tokenizer.pad_token_id
        )
        return model


@dataclass(frozen=True)
class QuestionWriter:
    """Writes questions about prompts.

    style: yes_no (for DSG and PN-VQA) or choices (for TIFA); attempts: per prompt; batch_size: prompts at once.
    """

    model: TextModel
    style: Style = "yes_no"
    attempts: int = 3
    batch_size: int = 16

    def write(self, prompts: Sequence[str]) -> QuestionBook:
        """Questions of each distinct prompt, under the ids "1", "2", ... in order.

        Prompts for which no attempt gave sound questions are defects of kind "unwritten" with the last complaint.
        So are those that the model refused, which are not asked again, and those that were left when a server went
        silent. Raises InputError when that is all of them, NoAnswerError for a server that was silent from the start.
        """
        distinct = list(dict.fromkeys(prompts))
        waiting = dict.fromkeys(distinct, "")
        written: dict[str, tuple[Question, ...]] = {}
        refused: dict[str, str] = {}
        try:
            for _ in range(self.attempts):
                todo = list(waiting)
                for start in range(0, len(todo), self.batch_size):
                    self._ask(todo[start : start + self.batch_size], waiting, written, refused)
        except NoAnswerError as error:
            # What is written has cost requests; it is kept.
            if not written:
                raise
            waiting = {prompt: complaint or str(error) for prompt, complaint in waiting.items()}
        reasons = waiting | refused
        if not written:
            reason = next((reasons[prompt] for prompt in distinct), "no prompts were given")
            raise InputError(f"question writer: no prompt got questions; first complaint: {reason}")
        ids = {prompt: str(number) for number, prompt in enumerate(distinct, 1)}
        items = tuple(PromptQuestions(ids[p], p, written[p]) for p in distinct if p in written)
        failed = [Defect("unwritten", ids[prompt], "", reasons[prompt]) for prompt in distinct if prompt in reasons]
        return QuestionBook("question writer", items, (*failed, *find_defects(items)))

    def _ask(
        self,
        batch: Sequence[str],
        waiting: dict[str, str],
        written: dict[str, tuple[Question, ...]],
        refused: dict[str, str],
    ) -> None:
        """Ask for the questions of a batch. A prompt whose answer is not sound keeps waiting, with the complaint."""
        asked = [request(prompt, self.style, waiting[prompt]) for prompt in batch]
        for prompt, answer in zip(batch, self.model.complete(asked), strict=True):
            try:
                if isinstance(answer, ModelError):
                    refused[prompt] = str(answer)
                else:
                    written[prompt] = parse_written(answer, self.style)
                del waiting[prompt]
            except InputError as error:
                waiting[prompt] = str(error)


def load_writer(model: str, endpoint: str | None, key_env: str | None, style: str, device: str) -> QuestionWriter:
    """A writer by a model of transformers or, with an address, by one behind an endpoint. Raises InputError for a style
    there is not."""
    if style not in _STYLES:
        raise InputError(f"style is {style!r}; expected {' or '.join(_STYLES)}.")
    found: TextModel = (
        TransformersText(model, device=device)
        if endpoint is None
        else EndpointText(ChatEndpoint(endpoint, model, key_env))
    )
    return QuestionWriter(found, cast("Style", style))


def request(prompt: str, style: Style, complaint: str = "") -> str:
    """What the language model is asked; complaint: what was wrong with its last answer."""
    again = f"\nYour last answer was refused: {complaint}\nWrite it anew.\n" if complaint else ""
    return f"{_COMMON}{_STYLES[style]}{again}\nThe prompt: {json.dumps(prompt, ensure_ascii=False)}\n"


def parse_written(text: str, style: Style) -> tuple[Question, ...]:
    """Questions of a model's answer. Raises InputError, one line a model can act on, for anything that is not sound."""
    start, end = text.find("{"), text.rfind("}")
    try:
        listed = json.loads(text[start : end + 1])["questions"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError('the answer is not JSON of the form {"questions": [...]}.') from error
    if not isinstance(listed, list) or not 1 <= len(listed) <= _MAX_QUESTIONS:
        raise InputError(f'"questions" must be a list of 1 to {_MAX_QUESTIONS} objects.')
    questions = tuple(parse_question(row, f"question {number}") for number, row in enumerate(listed, 1))
    _check_sound(questions, style)
    return questions


def _check_sound(questions: Sequence[Question], style: Style) -> None:
    ids = [question.id for question in questions]
    if len(set(ids)) < len(ids):
        raise InputError("two questions have the same id.")
    if len({question.text.lower() for question in questions}) < len(questions):
        raise InputError("a question is there twice.")
    if in_cycles({question.id: question.parents for question in questions}):
        raise InputError("questions hang on each other in a circle.")
    for question in questions:
        wrong = [parent for parent in question.parents if parent not in ids or parent == question.id]
        if wrong:
            raise InputError(f"question {question.id}: its parent {wrong[0]} is no other question.")
        if not question.text.rstrip().endswith("?"):
            raise InputError(f"question {question.id}: the text must end with a question mark.")
        if style == "yes_no" and not (question.is_yes_no and question.answer == "yes"):
            raise InputError(f"question {question.id}: the right answer must be yes.")
        if not 2 <= len(set(question.choices)) == len(question.choices) <= 4:
            raise InputError(f"question {question.id}: there must be 2 to 4 different choices.")
