"""BLIP-VQA: a small model that answers in a word or two, and whose yes and no are single tokens.

Each image is encoded once for all questions about it. Unlike in transformers' `generate`, the padding of a question is
masked in the decoder too, so that an answer does not depend on the other questions of its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from rewards.checkpoints import local_folder
from rewards.devices import full_precision, runtime_facts
from rewards.errors import InputError
from rewards.faithfulness.backends import YesNo
from rewards.faithfulness.loading import checkpoint_hash, load_model, load_processor, single_token

if TYPE_CHECKING:
    import torch

_MAX_ANSWER_TOKENS = 10


class BlipVqa:
    """Any transformers BlipForQuestionAnswering, in fp32; opened by the first question.

    model: folder or hub id; revision: of a hub id. Answers are greedy, of at most 10 tokens, lower case. yes and no
    are their probabilities as first token of the answer (Huang et al. 2023, T2I-CompBench, arXiv:2307.06350).
    """

    def __init__(
        self, model: str = "Salesforce/blip-vqa-base", revision: str | None = None, device: str = "cpu"
    ) -> None:
        self.model_id = str(model)
        self.revision = revision
        self.device = device

    def fingerprint(self) -> dict[str, str]:
        """Hash of the checkpoint, code version, libraries. Does not open the model."""
        return {"backend": "blip_vqa/1", "weights": self._hash} | runtime_facts(self.device)

    @property
    def token_limit(self) -> int:
        """Tokens of a question that are read, first and last token included (512 for the published models)."""
        return int(self._model.config.text_config.max_position_embeddings)

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """Number of questions longer than `token_limit`."""
        if not prompts:
            return 0
        ids = self._processor.tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
        return sum(len(one) > self.token_limit for one in ids)

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """Greedy answers to B questions about B RGB images."""
        import torch

        with torch.no_grad(), full_precision(self._model.device.type):
            states, mask = self._encode(images, questions)
            tokens = self._model.text_decoder.generate(
                input_ids=self._start(len(questions)),
                eos_token_id=self._model.config.text_config.sep_token_id,
                pad_token_id=self._model.config.text_config.pad_token_id,
                encoder_hidden_states=states,
                encoder_attention_mask=mask,
                max_new_tokens=_MAX_ANSWER_TOKENS,
                do_sample=False,
            )
        texts = self._processor.tokenizer.batch_decode(tokens[:, 1:], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def yes_no(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[YesNo]:
        """Probabilities over the whole vocabulary of yes and no as first token of the answer."""
        import torch

        with torch.no_grad(), full_precision(self._model.device.type):
            states, mask = self._encode(images, questions)
            output = self._model.text_decoder(
                input_ids=self._start(len(questions)), encoder_hidden_states=states, encoder_attention_mask=mask
            )
            probabilities = output.logits[:, -1].float().softmax(dim=-1)[:, list(self._yes_no_tokens)]
        return [YesNo(float(yes), float(no)) for yes, no in probabilities.tolist()]

    def _encode(self, images: Sequence[Image.Image], questions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """States [B, L, D] of B questions after they saw their images, and the mask [B, L] of their tokens."""
        import torch

        if len(images) != len(questions) or not questions:
            raise InputError(f"blip_vqa: {len(questions)} questions for {len(images)} images; expected one each.")
        device = self._model.device
        distinct = list({id(image): image for image in images}.values())
        place = {id(image): index for index, image in enumerate(distinct)}
        pixels = self._processor.image_processor(images=distinct, return_tensors="pt")["pixel_values"]
        patches = self._model.vision_model(pixel_values=pixels.to(device)).last_hidden_state
        patches = patches[[place[id(image)] for image in images]]
        tokens = self._processor.tokenizer(
            list(questions), padding=True, truncation=True, max_length=self.token_limit, return_tensors="pt"
        )
        mask = tokens["attention_mask"].to(device)
        states = self._model.text_encoder(
            input_ids=tokens["input_ids"].to(device),
            attention_mask=mask,
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:-1], dtype=torch.long, device=device),
        )
        return states.last_hidden_state, mask

    def _start(self, count: int) -> torch.Tensor:
        import torch

        return torch.full((count, 1), self._model.config.text_config.bos_token_id, device=self._model.device)

    @cached_property
    def _folder(self) -> Path:
        return local_folder(self.model_id, self.revision)

    @cached_property
    def _hash(self) -> str:
        return checkpoint_hash(self._folder)

    @cached_property
    def _processor(self) -> Any:
        return load_processor(self._folder, self.model_id)

    @cached_property
    def _yes_no_tokens(self) -> tuple[int, int]:
        tokenizer = self._processor.tokenizer
        return single_token(tokenizer, "yes", self.model_id), single_token(tokenizer, "no", self.model_id)

    @cached_property
    def _model(self) -> Any:
        from transformers import BlipForQuestionAnswering

        return load_model(BlipForQuestionAnswering, self._folder, self.model_id, self.device)
