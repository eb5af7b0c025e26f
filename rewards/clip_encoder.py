"""A CLIP model as two functions, images -> embeddings and prompts -> embeddings, for all scorers built on one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, cast

from PIL import Image

from rewards.checkpoints import content_hash, local_folder, weight_files
from rewards.errors import InputError, ModelError
from rewards.preprocess import Preprocessor, read_preprocessor

if TYPE_CHECKING:
    import torch
    from transformers import CLIPModel, CLIPTextConfig, PreTrainedTokenizerBase
    from transformers.modeling_outputs import BaseModelOutputWithPooling

_LIBRARIES = ("numpy", "pillow", "tokenizers", "torch", "transformers")


class ClipEncoder:
    """A transformers CLIPModel folder or hub id, in fp32 and evaluation mode; opened on first use.

    model: folder or hub id; revision: of a hub id; device: a torch device; batch_size: images or prompts per forward
    pass, which changes speed and memory only.
    """

    def __init__(self, model: str, revision: str | None, device: str, batch_size: int) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1.")
        self.model_id = str(model)
        self.revision = revision
        self.device = device
        self.batch_size = batch_size

    def fingerprint(self) -> dict[str, str]:
        """What an embedding depends on: the files' hash, kind of device and library versions. Opens no model."""
        libraries = {name: version(name) for name in _LIBRARIES}
        return {"weights": self._content_hash, "device": self.device.partition(":")[0], "dtype": "float32"} | libraries

    @property
    def token_limit(self) -> int:
        """Tokens the text encoder reads, start and end token included (77 for the published models)."""
        return min(self._text_config.max_position_embeddings, self._tokenizer.model_max_length)

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """Number of prompts that are longer than `token_limit`."""
        if not prompts:
            return 0
        encoded = self._tokenizer(list(prompts), truncation=False, verbose=False)["input_ids"]
        return sum(len(ids) > self.token_limit for ids in encoded)

    def encode_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """B RGB images -> [B, D] unit vectors, no gradient."""
        import torch

        parts = []
        for start in range(0, len(images), self.batch_size):
            pixels = self._preprocessor.from_images(images[start : start + self.batch_size])
            with torch.no_grad():
                parts.append(self._image_features(pixels.to(self._model.device)))
        return torch.cat(parts)

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, D] unit vectors, with gradient to the pixels."""
        if pixels.device != self._model.device:
            raise InputError(f"pixels are on {pixels.device}, the scorer is on {self._model.device}.")
        return self._image_features(self._preprocessor.from_tensor(pixels))

    def encode_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """B prompts -> [B, D] unit vectors, no gradient. Too long ones lose their end, but keep the end token.

        The embedding is read at the end token: cutting it off (as some libraries do) changes the score by a third.
        Equal prompts are encoded once.
        """
        import torch

        distinct = list(dict.fromkeys(prompts))
        parts = []
        for start in range(0, len(distinct), self.batch_size):
            inputs = self._tokenizer(
                distinct[start : start + self.batch_size],
                truncation=True,
                max_length=self.token_limit,
                padding=True,
                return_tensors="pt",
            ).to(self._model.device)
            with torch.no_grad(), _full_precision(self._model.device.type):
                features = self._model.get_text_features(
                    input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
                )
                parts.append(_unit(features))
        position = {prompt: index for index, prompt in enumerate(distinct)}
        return torch.cat(parts)[[position[prompt] for prompt in prompts]]

    def _image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        with _full_precision(self._model.device.type):
            return _unit(self._model.get_image_features(pixel_values=pixel_values))

    @cached_property
    def _folder(self) -> Path:
        return local_folder(self.model_id, self.revision)

    @cached_property
    def _content_hash(self) -> str:
        return content_hash(self._folder)

    @cached_property
    def _preprocessor(self) -> Preprocessor:
        return read_preprocessor(self._folder)

    @cached_property
    def _text_config(self) -> CLIPTextConfig:
        from transformers import CLIPConfig, CLIPTextConfig

        try:
            values = json.loads((self._folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.model_id}: no readable config.json; expected a transformers CLIPModel.") from error
        if values.get("model_type") != "clip":
            raise ModelError(f"{self.model_id}: model_type is {values.get('model_type')!r}; expected 'clip'.")
        text_config = CLIPConfig.from_dict(values).text_config
        if not isinstance(text_config, CLIPTextConfig):
            raise ModelError(f"{self.model_id}: config.json has no text_config; expected a transformers CLIPModel.")
        return text_config

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(str(self._folder))
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{self.model_id}: no readable tokenizer ({str(error).splitlines()[0]}).") from error

    @cached_property
    def _model(self) -> CLIPModel:
        import torch
        from safetensors import SafetensorError
        from transformers import CLIPModel

        device = _device(self.device)
        weight_files(self._folder)
        _check_end_token(self.model_id, self._text_config.eos_token_id, self._tokenizer)
        try:
            with _no_progress_bar():
                loaded = CLIPModel.from_pretrained(str(self._folder), dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{self.model_id}: weights cannot be read ({str(error).splitlines()[0]}).") from error
        # The return type is not annotated for output_loading_info=True: a pair.
        model, report = cast("tuple[CLIPModel, dict[str, set[str]]]", loaded)
        if report["missing_keys"]:
            # transformers would go on with random numbers in their place.
            first = sorted(report["missing_keys"])[0]
            raise ModelError(f"{self.model_id}: {len(report['missing_keys'])} weights are missing, first {first}.")
        model.eval().requires_grad_(False)
        torch.nn.Module.to(model, device)
        return model


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar for the second that a scorer takes to load."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is not a torch device; expected cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r}: this torch sees no CUDA device; use cpu.")
    # "cuda" alone means the current one; tensors say which.
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def _check_end_token(model_id: str, configured: int | list[int] | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ModelError unless the model will read the embedding where the tokenizer puts the end token.

    The model looks for the configured id, or, when that is the historical value 2, for the highest id of the prompt. If
    it finds neither it reads the start token, and all prompts get one embedding.
    """
    end = tokenizer.eos_token_id
    if configured != end and not (configured == 2 and end == len(tokenizer) - 1):
        raise ModelError(
            f"{model_id}: the config's eos_token_id is {configured}, the tokenizer's {end}; correct the config."
        )


@contextlib.contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    """No autocast and no TF32, whatever the caller trains in: scores must not depend on it."""
    import torch

    # The module is replaced by an object at import, which type checkers do not see.
    convolution = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    settings = (convolution, torch.backends.cuda.matmul) if device_type == "cuda" else ()
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for setting, precision in zip(settings, before, strict=True):
            setting.fp32_precision = precision


def _unit(output: tuple[object, ...] | BaseModelOutputWithPooling) -> torch.Tensor:
    """Embeddings of a transformers 5 output object, scaled to length 1."""
    vectors = None if isinstance(output, tuple) else output.pooler_output
    if vectors is None:
        raise ModelError("the CLIP model returned no pooled embedding; expected transformers 5 or newer.")
    return vectors / vectors.norm(dim=-1, keepdim=True)
