"""Tiny random checkpoints of the real classes: BLIP-VQA, Qwen2.5-VL, Idefics3, a text encoder, a language model."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch

LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE_MARKS = {"qwen": "<|vision_start|><|image_pad|><|vision_end|>", "idefics": "<image>"}
TEMPLATE = (
    "{% for m in messages %}{{m['role']}}:{% if m['content'] is string %}{{m['content']}}{% else %}"
    "{% for c in m['content'] %}{% if c['type']=='image' %}IMAGE{% else %}{{c['text']}}{% endif %}{% endfor %}"
    "{% endif %}<eos>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def prompt_text(kind: str, question: str) -> str:
    """What `TEMPLATE` makes of one question about an image, written out by hand."""
    return f"user:{IMAGE_MARKS[kind]}{question}<eos>assistant:"


def _save(model: Any, folder: Path, scale: float = 0.3) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            # Larger than the usual 0.02, and norms left alone, so that different inputs get clearly different numbers.
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * scale)
    model.save_pretrained(folder)


def word_tokenizer() -> Any:
    from transformers import BertTokenizer

    words = ["yes", "no", "is", "the", "a", "there", "red", "blue", "cat", "dog", "are", "two", "how", "many", "what"]
    letters = [*string.ascii_lowercase, *("##" + letter for letter in string.ascii_lowercase), "?", '"', ".", ","]
    tokens = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, "color", *letters, "[DEC]"])
    return BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=48)


def byte_tokenizer(special: list[str], image_mark: str = "") -> Any:
    """Bytes, and Yes and No as tokens of their own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in ("Yes", "No"):
        for end in range(2, len(word) + 1):
            vocab.setdefault(word[:end], len(vocab))
            merges.append((word[: end - 1], word[end - 1]))
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", additional_special_tokens=special
    )
    tokenizer.chat_template = TEMPLATE.replace("IMAGE", image_mark)
    return tokenizer


def blip(folder: Path) -> Path:
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipImageProcessorPil, BlipProcessor

    tokenizer = word_tokenizer()
    end = tokenizer.convert_tokens_to_ids("[SEP]")
    text = {"vocab_size": len(tokenizer), "encoder_hidden_size": 32, "max_position_embeddings": 48, "is_decoder": True}
    text |= {"bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"), "pad_token_id": 0}
    config = BlipConfig(
        text_config=LAYERS | text | {"sep_token_id": end, "eos_token_id": end},
        vision_config=LAYERS | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _save(BlipForQuestionAnswering(config), folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def qwen(folder: Path) -> Path:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    marks = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = byte_tokenizer(marks, IMAGE_MARKS["qwen"])
    image, video, start, end = tokenizer.convert_tokens_to_ids(marks)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config=_language(tokenizer) | {"rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            "temporal_patch_size": 2,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _save(Qwen2_5_VLForConditionalGeneration(config), folder)
    Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def idefics(folder: Path) -> Path:
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )

    tokenizer = byte_tokenizer(["<image>", "<fake_token_around_image>", "<global-img>"], IMAGE_MARKS["idefics"])
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        text_config=_language(tokenizer) | {"model_type": "llama"},
        vision_config=LAYERS | {"image_size": 32, "patch_size": 8},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _save(Idefics3ForConditionalGeneration(config), folder)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template).save_pretrained(folder)
    return folder


def encoder(folder: Path) -> Path:
    from transformers import BertConfig, BertModel

    tokenizer = word_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _save(BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=48, **LAYERS)), folder)
    tokenizer.save_pretrained(folder)
    return folder


def language_model(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer([])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _save(LlamaForCausalLM(LlamaConfig(**_language(tokenizer))), folder)
    tokenizer.save_pretrained(folder)
    return folder


def _language(tokenizer: Any) -> dict[str, Any]:
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    return LAYERS | ends | {"vocab_size": len(tokenizer), "num_key_value_heads": 2, "max_position_embeddings": 512}


class Counting:
    """A VQA backend for tests: answers by the mean brightness of the image, and remembers what it was asked."""

    def __init__(self, version: str = "1") -> None:
        self.version = version
        self.asked: list[list[str]] = []

    def answer(self, images: list[Any], questions: list[str]) -> list[str]:
        self.asked.append(list(questions))
        return ["yes" if _mean(image) > 127 else "no" for image in images]

    def yes_no(self, images: list[Any], questions: list[str]) -> list[Any]:
        from rewards.faithfulness.backends import YesNo

        self.asked.append(list(questions))
        return [YesNo(0.8 * _mean(image) / 255, 0.8 - 0.8 * _mean(image) / 255) for image in images]

    def fingerprint(self) -> dict[str, str]:
        return {"backend": "counting", "version": self.version}


def _mean(image: Any) -> float:
    values = list(image.convert("L").resize((1, 1)).tobytes())
    return float(values[0])
