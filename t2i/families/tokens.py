"""Prompts as tokens of a length that the family sets, whatever the tokenizer's own limit is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def padded_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], limit: int) -> tuple[Tensor, Tensor]:
    """Token ids and their mask (1 = token, 0 = padding), both [B, limit]; a prompt that is cut keeps its end token."""
    tokens = tokenizer(list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
    return tokens.input_ids, tokens.attention_mask


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on an encoder's device, without making the host wait for what that is still computing."""
    return tensor.to(device, non_blocking=True)
