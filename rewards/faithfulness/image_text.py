"""Any image-text model of transformers (Qwen-VL, SmolVLM, Idefics, LLaVA, Gemma, ...) as a VQA backend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from rewards.base import Preprocessing
from rewards.checkpoints import local_folder
from rewards.devices import full_precision, runtime_facts
from rewards.errors import InputError, ModelError
from rewards.faithfulness.backends import YesNo
from rewards.faithfulness.cards import UNTOLD, BackendCard
from rewards.faithfulness.loading import (
    as_text,
    checkpoint_hash,
    load_model,
    load_processor,
    own_marks,
    single_token,
    to_device,
)

ANSWER_INSTRUCTION = "Answer with one word or a short phrase."
YES_NO_INSTRUCTION = "Please answer Yes or No."


class ImageTextVqa:
    """A transformers image-text model with a chat template; opened by the first question.

    model: folder or hub id; revision: of a hub id; dtype: float32, bfloat16 or float16 (answers of another dtype are
    other answers); answer_instruction, yes_no_instruction: put behind each question, with a space; max_answer_tokens:
    of a free answer, which is greedy. yes and no are the probabilities over the whole vocabulary of "Yes" and "No" as
    the next token, as in t2v_metrics 3.1. Numbers of different models are not comparable. A mark of the model, such as
    "<image>", in a question is broken by a space, so that it is read as text.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        dtype: str = "float32",
        answer_instruction: str = ANSWER_INSTRUCTION,
        yes_no_instruction: str = YES_NO_INSTRUCTION,
        max_answer_tokens: int = 16,
        device: str = "cpu",
    ) -> None:
        if max_answer_tokens < 1:
            raise InputError(f"image_text: max_answer_tokens is {max_answer_tokens}; expected at least 1.")
        self.model_id = str(model)
        self.revision = revision
        self.dtype = dtype
        self.device = device
        self._answer_instruction = answer_instruction
        self._yes_no_instruction = yes_no_instruction
        self._max_answer_tokens = max_answer_tokens

    @property
    def card(self) -> BackendCard:
        """What is known of the model; its licence and data are for its own card to say."""
        preprocessing = Preprocessing(
            resize="by the checkpoint's own image processor",
            antialias=True,
            crop="by the checkpoint's own image processor",
            normalise="by the checkpoint's own image processor",
            dtype=self.dtype,
        )
        return BackendCard(self.model_id, self.revision, UNTOLD, None, preprocessing, UNTOLD)

    def fingerprint(self) -> dict[str, str]:
        """Hash of the checkpoint, wording, dtype, libraries. Does not open the model."""
        wording = {
            "answer_instruction": self._answer_instruction,
            "yes_no_instruction": self._yes_no_instruction,
            "max_answer_tokens": str(self._max_answer_tokens),
        }
        facts = runtime_facts(self.device) | {"dtype": self.dtype}
        return {"backend": "image_text/1", "weights": self._hash} | wording | facts

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """First lines of the greedy answers to B questions about B RGB images."""
        import torch

        inputs = self._inputs(images, questions, self._answer_instruction, padding_side="left")
        with torch.no_grad(), full_precision(self._model.device.type):
            tokens = self._model.generate(**inputs, max_new_tokens=self._max_answer_tokens)
        fresh = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.tokenizer.batch_decode(fresh, skip_special_tokens=True)
        return [text.strip().partition("\n")[0].strip() for text in texts]

    def yes_no(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[YesNo]:
        """Probabilities of "Yes" and "No" as the next token."""
        import torch

        # Padding on the right leaves positions, and so the numbers, as they are for one question alone.
        inputs = self._inputs(images, questions, self._yes_no_instruction, padding_side="right")
        with torch.no_grad(), full_precision(self._model.device.type):
            logits = self._model(**inputs).logits
        last = inputs["attention_mask"].sum(dim=1) - 1
        probabilities = logits[torch.arange(len(last), device=last.device), last].float().softmax(dim=-1)
        return [YesNo(float(yes), float(no)) for yes, no in probabilities[:, list(self._yes_no_tokens)].tolist()]

    def _inputs(
        self, images: Sequence[Image.Image], questions: Sequence[str], instruction: str, padding_side: str
    ) -> dict[str, Any]:
        if len(images) != len(questions) or not questions:
            raise InputError(f"image_text: {len(questions)} questions for {len(images)} images; expected one each.")
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
            for image, text in zip(
                images, (f"{as_text(one, self._marks)} {instruction}".strip() for one in questions), strict=True
            )
        ]
        inputs = self._processor.apply_chat_template(
            conversations,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True, "padding_side": padding_side},
        )
        if "pixel_values" not in inputs:
            raise ModelError(f"{self.model_id}: its processor dropped the image; the answers would be blind guesses.")
        length, limit = inputs["input_ids"].shape[1], self._context
        if length > limit:
            raise InputError(f"{self.model_id}: a question and its image take {length} tokens of at most {limit}.")
        return to_device(inputs, self._model.device, self._model.dtype)

    @property
    def _context(self) -> int:
        return int(self._model.config.get_text_config().max_position_embeddings)

    @cached_property
    def _folder(self) -> Path:
        return local_folder(self.model_id, self.revision)

    @cached_property
    def _hash(self) -> str:
        return checkpoint_hash(self._folder)

    @cached_property
    def _processor(self) -> Any:
        processor = load_processor(self._folder, self.model_id)
        if not (processor.chat_template or processor.tokenizer.chat_template):
            raise ModelError(f"{self.model_id}: has no chat template; expected an instruction-tuned image-text model.")
        return processor

    @cached_property
    def _marks(self) -> list[str]:
        return own_marks(self._processor.tokenizer)

    @cached_property
    def _yes_no_tokens(self) -> tuple[int, int]:
        tokenizer = self._processor.tokenizer
        return single_token(tokenizer, "Yes", self.model_id), single_token(tokenizer, "No", self.model_id)

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoModelForImageTextToText, GenerationConfig

        model = load_model(AutoModelForImageTextToText, self._folder, self.model_id, self.device, self.dtype)
        own = model.generation_config
        # Only the ends of an answer are the checkpoint's; its sampling settings would make answers random.
        model.generation_config = GenerationConfig(
            do_sample=False, bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
        )
        return model
