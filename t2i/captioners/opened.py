"""A transformers checkpoint that answers: opened once, and asked in one way by captioning and by tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i import devices
from t2i.captioners.adapters import wear
from t2i.captioners.chat import LocalModel
from t2i.errors import ModelError
from t2i.resources import resolve_path


@dataclass(frozen=True)
class OpenedModel:
    """A model in evaluation mode, without gradients, and what turns requests into its inputs."""

    settings: LocalModel
    folder: Path
    """Where its files are."""
    model: Any
    words: Any
    """Its processor, or the tokenizer of one that reads no images."""
    reads_images: bool

    @property
    def tokenizer(self) -> Any:
        """Of the text."""
        return self.words.tokenizer if self.reads_images else self.words

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        return list(ends) if isinstance(ends, list | tuple) else [ends]

    @property
    def limit(self) -> int:
        """Tokens of a request and its answer, at most."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def inputs(self, asked: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        """Model inputs for (text, image or None) as one batch, padded on the left, on the model's device.

        Nothing is cut. Raises ModelError if the processor dropped an image.
        """
        from rewards.faithfulness.loading import to_device

        conversations = [[self._said("user", text, image is not None, image)] for text, image in asked]
        padding = {"padding": True, "padding_side": "left"}
        options: dict[str, Any] = {"processor_kwargs": padding} if self.reads_images else padding
        inputs = self.words.apply_chat_template(
            conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
        )
        if any(image is not None for _, image in asked) and "pixel_values" not in inputs:
            raise ModelError(f"{self.settings.model}: its processor dropped the image; captions would be inventions.")
        return to_device(inputs, self.model.device, self.model.dtype)

    def answer_tokens(self, text: str, answer: str, *, has_image: bool) -> list[int]:
        """What the model should say after a request: the answer as its chat template writes it, up to its end token.

        Raises ModelError for a template that writes answers in another place than it asks for them.
        """
        asked = [self._said("user", text, has_image)]
        prompt = self.words.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        whole = self.words.apply_chat_template([*asked, self._said("assistant", answer, False)], tokenize=False)
        if not whole.startswith(prompt):
            raise ModelError(
                f"{self.settings.model}: its chat template does not write an answer behind the request for it; "
                "it cannot be tuned as it is asked."
            )
        tokens = self.tokenizer(whole[len(prompt) :].rstrip(), add_special_tokens=False)["input_ids"]
        place = next((number for number, token in enumerate(tokens) if token in self.ends), None)
        # Some templates write no end; without one the model would learn never to stop.
        return [*tokens, self.ends[0]] if place is None else tokens[: place + 1]

    def clean(self, text: str) -> str:
        """A text with the model's own marks broken: alt texts and captions are anybody's, so "<image>" is text."""
        from rewards.faithfulness.loading import as_text, own_marks

        return as_text(text, own_marks(self.tokenizer))

    def _said(self, role: str, text: str, has_image: bool, image: Any = None) -> dict[str, Any]:
        text = self.clean(text)
        if not self.reads_images:
            return {"role": role, "content": text}
        shown = [{"type": "image", "image": image}] if has_image else []
        return {"role": role, "content": [*shown, {"type": "text", "text": text}]}


def open_model(settings: LocalModel) -> OpenedModel:
    """The model with its adapter, if it has one.

    Raises ModelError for a checkpoint that is missing, broken, or has no chat template, and for an adapter that does
    not fit it.
    """
    from rewards.errors import RewardError

    try:
        folder = _folder(settings)
        reads_images = _reads_images(folder)
        model, words = _opened(folder, settings, reads_images)
    except RewardError as error:
        raise ModelError(str(error)) from error
    if settings.adapter is not None:
        model = wear(model, resolve_path(settings.adapter), folder)
    return OpenedModel(settings, folder, model, words, reads_images)


def _folder(settings: LocalModel) -> Path:
    from rewards.checkpoints import local_folder

    path = resolve_path(settings.model)
    return local_folder(str(path) if path.exists() else settings.model, settings.revision)


def _reads_images(folder: Path) -> bool:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from rewards.checkpoints import reason

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: no readable config.json ({reason(error)}).") from error


def _opened(folder: Path, settings: LocalModel, reads_images: bool) -> tuple[Any, Any]:
    """The model, and its processor or tokenizer."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

    from rewards.faithfulness.loading import load_model, load_processor, load_tokenizer

    device = str(devices.compute_device()) if settings.device == "auto" else settings.device
    kind = AutoModelForImageTextToText if reads_images else AutoModelForCausalLM
    model = load_model(kind, folder, settings.model, device, settings.dtype)
    words = load_processor(folder, settings.model) if reads_images else load_tokenizer(folder, settings.model)
    tokenizer = words.tokenizer if reads_images else words
    if not (words.chat_template or tokenizer.chat_template):
        raise ModelError(f"{settings.model}: has no chat template; expected an instruction-tuned model.")
    own = model.generation_config
    ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Only the ends of an answer are the checkpoint's; its sampling settings would make captions random.
    model.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=own.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    return model, words
