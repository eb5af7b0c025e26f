"""Prompts for CLIP text encoders, as the diffusers pipelines prepare them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_PROMPTS_AT_ONCE = 1000


def clip_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Tensor:
    """Token ids [B, limit], padded to the tokenizer's limit or cut to it; a cut prompt keeps its end token."""
    limit = tokenizer.model_max_length
    return tokenizer(
        list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
    ).input_ids


def count_longer(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], limit: int) -> int:
    """How many of the prompts have more than `limit` tokens, begin and end marks included."""
    count = 0
    for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
        part = list(prompts[start : start + _PROMPTS_AT_ONCE])
        count += sum(len(ids) > limit for ids in tokenizer(part, truncation=False, verbose=False).input_ids)
    return count
