"""Replies of a transformers checkpoint: batches, greedy, with the reason why each ended."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from t2i.captioners.base import Refusal
from t2i.captioners.chat import LocalModel, Replies, Reply, Request
from t2i.errors import DataError, ModelError
from t2i.records import Origin

if TYPE_CHECKING:
    from PIL import Image


class LocalChat:
    """A `Chat` of one loaded model; images only for one that reads them."""

    def __init__(self, settings: LocalModel) -> None:
        """Raises ModelError for a checkpoint that is missing, broken, or has no chat template."""
        from rewards.errors import RewardError
        from rewards.faithfulness.loading import checkpoint_hash

        self.settings = settings
        try:
            folder = _folder(settings)
            self.reads_images = _reads_images(folder)
            self._model, self._words = _opened(folder, settings, self.reads_images)
            revision = settings.revision or checkpoint_hash(folder)
        except RewardError as error:
            raise ModelError(str(error)) from error
        decoding = {"temperature": 0.0, "max_tokens": float(settings.max_tokens)}
        engine = f"transformers {version('transformers')}, {settings.dtype}"
        self.origin = Origin(settings.model, revision, settings.licence, engine, decoding=decoding)

    def reply(self, requests: Sequence[Request]) -> Replies:
        """As `Chat.reply`; an image that cannot be read is a refusal."""
        ready: list[tuple[int, Request, Image.Image | None, str]] = []
        for number, request in enumerate(requests):
            try:
                ready.append((number, request, *self._image(request)))
            except DataError as error:
                yield number, Refusal(str(error))
            if len(ready) == self.settings.batch_size:
                yield from self._batch(ready)
                ready = []
        if ready:
            yield from self._batch(ready)

    def _image(self, request: Request) -> tuple[Image.Image | None, str]:
        from t2i.captioners.view import shown

        if request.image is None:
            return None, ""
        if not self.reads_images:
            raise ModelError(f"{self.settings.model}: reads no images; expected an image-text model.")
        return shown(request.image, self.settings.max_side_px)

    def _batch(self, ready: Sequence[tuple[int, Request, Image.Image | None, str]]) -> Replies:
        import torch

        inputs = self._inputs([(request.text, image) for _, request, image, _ in ready])
        with torch.no_grad():
            tokens = self._model.generate(**inputs, max_new_tokens=self.settings.max_tokens)
        fresh = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self._tokenizer.batch_decode(fresh, skip_special_tokens=True)
        ends = torch.isin(fresh, torch.tensor(self._ends, device=fresh.device)).any(dim=1).tolist()
        for (number, _, _, view), text, ended in zip(ready, texts, ends, strict=True):
            yield number, Reply(text, "stop" if ended else "length", view)

    def _inputs(self, asked: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        from rewards.faithfulness.loading import to_device

        conversations = [[{"role": "user", "content": self._content(text, image)}] for text, image in asked]
        padding = {"padding": True, "padding_side": "left"}
        options: dict[str, Any] = {"processor_kwargs": padding} if self.reads_images else padding
        inputs = self._words.apply_chat_template(
            conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
        )
        if any(image is not None for _, image in asked) and "pixel_values" not in inputs:
            raise ModelError(f"{self.settings.model}: its processor dropped the image; captions would be inventions.")
        length = inputs["input_ids"].shape[1] + self.settings.max_tokens
        limit = int(self._model.config.get_text_config().max_position_embeddings)
        if length > limit:
            raise ModelError(
                f"{self.settings.model}: a request and its answer take {length} tokens of at most {limit}; lower "
                "max_side_px or max_tokens."
            )
        return to_device(inputs, self._model.device, self._model.dtype)

    def _content(self, text: str, image: Any) -> Any:
        from rewards.faithfulness.loading import as_text, own_marks

        # Alt texts are anybody's: a mark such as "<image>" in one is text.
        text = as_text(text, own_marks(self._tokenizer))
        if not self.reads_images:
            return text
        shown = [] if image is None else [{"type": "image", "image": image}]
        return [*shown, {"type": "text", "text": text}]

    @property
    def _tokenizer(self) -> Any:
        return self._words.tokenizer if self.reads_images else self._words

    @property
    def _ends(self) -> list[int]:
        ends = self._model.generation_config.eos_token_id
        return list(ends) if isinstance(ends, list | tuple) else [ends]


def _folder(settings: LocalModel) -> Any:
    from rewards.checkpoints import local_folder
    from t2i.resources import resolve_path

    path = resolve_path(settings.model)
    return local_folder(str(path) if path.exists() else settings.model, settings.revision)


def _reads_images(folder: Any) -> bool:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    try:
        return AutoConfig.from_pretrained(str(folder)).model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: no readable config.json ({error}).") from error


def _opened(folder: Any, settings: LocalModel, reads_images: bool) -> tuple[Any, Any]:
    """The model, and its processor or tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

    from rewards.faithfulness.loading import load_model, load_processor, load_tokenizer

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
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
