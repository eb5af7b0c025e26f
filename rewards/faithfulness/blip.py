"""BLIP-VQA: a small model that answers in a word or two, and whose yes and no are single tokens.

Each image is encoded once for all questions about it. An answer does not depend on the other questions of its batch:
BLIP's cross-attention drops its mask in transformers 5.23, and the decoder would read the padding of shorter questions,
so questions of equal length are decoded together, without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from rewards.base import Preprocessing
from rewards.checkpoints import local_folder
from rewards.clip_head import published
from rewards.devices import full_precision, runtime_facts
from rewards.errors import InputError
from rewards.faithfulness.backends import YesNo
from rewards.faithfulness.cards import BackendCard
from rewards.faithfulness.loading import checkpoint_hash, load_config, load_model, load_processor, single_token

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL = "Salesforce/blip-vqa-base"
_MAX_ANSWER_TOKENS = 10


class BlipVqa:
    """Any transformers BlipForQuestionAnswering, in fp32; opened by the first question.

    model: folder or hub id; revision: of a hub id. Answers are greedy, of at most 10 tokens, lower case. yes and no
    are their probabilities as first token of the answer (Huang et al. 2023, T2I-CompBench, arXiv:2307.06350).
    """

    def __init__(self, model: str = DEFAULT_MODEL, revision: str | None = None, device: str = "cpu") -> None:
        self.model_id = str(model)
        self.revision = revision
        self.device = device

    @property
    def card(self) -> BackendCard:
        """What the model is."""
        is_published = self.model_id == DEFAULT_MODEL
        return BackendCard(
            weights=self.model_id,
            revision=self.revision,
            licence=published("BSD-3-Clause", self.model_id, DEFAULT_MODEL),
            token_limit=512 if is_published else None,
            preprocessing=Preprocessing(
                resize="both sides to the checkpoint's size (384), bicubic; proportions are not kept",
                antialias=True,
                crop="none",
                normalise="mean and standard deviation of the checkpoint's preprocessor_config.json",
            ),
            trained_on=published(
                "129 million image-text pairs, then VQA v2.0 and Visual Genome", self.model_id, DEFAULT_MODEL
            ),
        )

    def fingerprint(self) -> dict[str, str]:
        """Hash of the checkpoint, code version, libraries. Does not open the model."""
        return {"backend": "blip_vqa/1", "weights": self._hash} | runtime_facts(self.device)

    @property
    def token_limit(self) -> int:
        """Tokens of a question that are read, first and last token included (512 for the published models)."""
        return int(self._config.text_config.max_position_embeddings)

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """Number of questions longer than `token_limit`."""
        if not prompts:
            return 0
        ids = self._processor.tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
        return sum(len(one) > self.token_limit for one in ids)

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """Greedy answers to B questions about B RGB images."""
        import torch

        found = [""] * len(questions)
        ends = self._model.config.text_config
        with torch.no_grad(), full_precision(self._model.device.type):
            for positions, states in self._encode(images, questions):
                tokens = self._model.text_decoder.generate(
                    input_ids=self._start(len(positions)),
                    eos_token_id=ends.sep_token_id,
                    pad_token_id=ends.pad_token_id,
                    encoder_hidden_states=states,
                    max_new_tokens=_MAX_ANSWER_TOKENS,
                    do_sample=False,
                )
                texts = self._processor.tokenizer.batch_decode(tokens[:, 1:], skip_special_tokens=True)
                for position, text in zip(positions, texts, strict=True):
                    found[position] = text.strip()
        return found

    def yes_no(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[YesNo]:
        """Probabilities over the whole vocabulary of yes and no as first token of the answer."""
        import torch

        found = [YesNo(0.0, 0.0)] * len(questions)
        with torch.no_grad(), full_precision(self._model.device.type):
            for positions, states in self._encode(images, questions):
                output = self._model.text_decoder(input_ids=self._start(len(positions)), encoder_hidden_states=states)
                probabilities = output.logits[:, -1].float().softmax(dim=-1)[:, list(self._yes_no_tokens)]
                for position, (yes, no) in zip(positions, probabilities.tolist(), strict=True):
                    found[position] = YesNo(yes, no)
        return found

    def _encode(
        self, images: Sequence[Image.Image], questions: Sequence[str]
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Positions of the questions of each length, with their states [B, L, D] after they saw their images."""
        import torch

        if len(images) != len(questions) or not questions:
            raise InputError(f"blip_vqa: {len(questions)} questions for {len(images)} images; expected one each.")
        patches = self._patches(images)
        tokens = self._processor.tokenizer(
            list(questions),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self.token_limit,
            return_tensors="pt",
        ).to(self._model.device)
        states = self._model.text_encoder(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:-1], dtype=torch.long, device=patches.device),
        ).last_hidden_state
        lengths = tokens["attention_mask"].sum(dim=1).tolist()
        for length in sorted(set(lengths)):
            positions = [position for position, own in enumerate(lengths) if own == length]
            yield positions, states[positions, :length]

    def _patches(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """[B, P, D] of B images; one that comes several times is encoded once."""
        distinct = list({id(image): image for image in images}.values())
        place = {id(image): index for index, image in enumerate(distinct)}
        pixels = self._processor.image_processor(images=distinct, return_tensors="pt")["pixel_values"]
        patches = self._model.vision_model(pixel_values=pixels.to(self._model.device)).last_hidden_state
        return patches[[place[id(image)] for image in images]]

    def _start(self, count: int) -> torch.Tensor:
        import torch

        return torch.full((count, 1), self._model.config.text_config.bos_token_id, device=self._model.device)

    @cached_property
    def _folder(self) -> Path:
        return local_folder(self.model_id, self.revision)

    @cached_property
    def _config(self) -> Any:
        return load_config(self._folder, self.model_id)

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
