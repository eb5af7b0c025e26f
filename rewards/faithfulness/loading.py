"""Opening transformers checkpoints of any class: whole, in evaluation mode, with a hash of what decides an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.checkpoints import files_hash, reason, settings_files, weight_files
from rewards.devices import no_progress_bar, torch_device
from rewards.errors import InputError, ModelError

if TYPE_CHECKING:
    import torch

_CHAT_FILES = ("chat_template.jinja", "chat_template.json")
DTYPES = ("float32", "bfloat16", "float16")


def checkpoint_hash(folder: Path) -> str:
    """SHA-256 over weights, configuration, tokenizer and chat template."""
    chat = [folder / name for name in _CHAT_FILES if (folder / name).is_file()]
    return files_hash([*settings_files(folder), *chat, *weight_files(folder)])


def load_model(model_class: Any, folder: Path, model_id: str, device: str, dtype: str = "float32") -> Any:
    """A model of a transformers class (or Auto class) from a folder, without gradients.

    Raises ModelError when files are missing or broken, are of another architecture, or leave weights unfilled, which
    transformers would make up at random; InputError for a dtype or device there is not.
    """
    import torch
    from safetensors import SafetensorError

    if dtype not in DTYPES:
        raise InputError(f"{model_id}: dtype {dtype!r}; expected {', '.join(DTYPES)}.")
    target = torch_device(device)
    weight_files(folder)
    try:
        with no_progress_bar():
            model, report = model_class.from_pretrained(
                str(folder), dtype=getattr(torch, dtype), output_loading_info=True, trust_remote_code=False
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{model_id}: cannot be opened as {model_class.__name__} ({reason(error)}).") from error
    if report["missing_keys"]:
        first = sorted(report["missing_keys"])[0]
        raise ModelError(f"{model_id}: {len(report['missing_keys'])} weights are missing, first {first}.")
    model.eval().requires_grad_(False)
    torch.nn.Module.to(model, target)
    return model


def load_tokenizer(folder: Path, model_id: str) -> Any:
    """The checkpoint's tokenizer. Raises ModelError for none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{model_id}: no readable tokenizer ({reason(error)}).") from error


def load_config(folder: Path, model_id: str) -> Any:
    """The checkpoint's configuration. Raises ModelError for none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{model_id}: no readable config.json ({reason(error)}).") from error


def load_processor(folder: Path, model_id: str) -> Any:
    """The checkpoint's image-text processor, without its video slot if it has one.

    Video processors need torchvision; without it a processor that has the slot cannot be built, or AutoProcessor gives
    the bare tokenizer, which drops images in silence. The class is therefore taken from the model type. Raises
    ModelError when there is none, or it reads no images.
    """
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    model_type = load_config(folder, model_id).model_type
    class_name = PROCESSOR_MAPPING_NAMES.get(model_type)
    if not class_name:
        raise ModelError(f"{model_id}: transformers has no processor for {model_type!r}; expected an image-text model.")
    processor_class = getattr(transformers, str(class_name))
    slots = list(processor_class.get_attributes())
    if "image_processor" not in slots:
        raise ModelError(f"{model_id}: {class_name} has no image processor; expected an image-text model.")
    if "video_processor" in slots:
        kept = [slot for slot in slots if slot != "video_processor"]
        processor_class = type(
            processor_class.__name__, (processor_class,), {"get_attributes": classmethod(lambda cls: list(kept))}
        )
    try:
        return processor_class.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise ModelError(f"{model_id}: {class_name} cannot be built ({reason(error)}).") from error


def single_token(tokenizer: Any, word: str, model_id: str) -> int:
    """Id of a word that is one token. Raises ModelError if it is several, or unknown to the tokenizer."""
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    # Some tokenizers put a mark for "start of word" before it: the word is the last token then.
    shown = [token for token in ids if tokenizer.decode([token]).strip()]
    if len(shown) != 1 or shown[0] == tokenizer.unk_token_id:
        raise ModelError(f"{model_id}: {word!r} is {len(shown)} known tokens; its probability needs exactly one.")
    return int(shown[0])


def own_marks(tokenizer: Any) -> list[str]:
    """A model's special tokens as they are written, longest first, since one may begin another."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted((token.content for token in added if token.special), key=len, reverse=True)


def as_text(text: str, marks: Sequence[str]) -> str:
    """A text with each of the model's own marks in it broken: "<image>" is text there, no second image.

    The processors' own `sanitize_control_tokens` fails in Idefics and SmolVLM (transformers 5.23).
    """
    for mark in marks:
        text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    return text


def to_device(inputs: Any, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Model inputs on a device, pixels in the model's precision."""
    return {
        key: value.to(device, dtype) if value.is_floating_point() else value.to(device) for key, value in inputs.items()
    }
