"""Key maps of LoRA files, applied from family facts.

diffusers  `unet.<module>.lora_A.weight`, `.lora_B.weight`; strength 1 (alpha / rank is folded into B)
kohya      `lora_unet_<module with _>.lora_down.weight`, `.lora_up.weight`, `.alpha` = rank (strength 1 again)
"""

from __future__ import annotations

from torch import Tensor, tensor

from t2i.errors import ModelError
from t2i.families.base import FamilyFacts

_SIDES = {"lora_A": "lora_down", "lora_B": "lora_up"}


def to_kohya(state: dict[str, Tensor], facts: FamilyFacts) -> dict[str, Tensor]:
    """A diffusers-layout LoRA of strength 1 in kohya's layout. Raises ModelError for keys that are not plain LoRA."""
    prefixes = dict(facts.kohya_prefixes)
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        component, module, side = split_key(key)
        if component not in prefixes:
            raise ModelError(f"{key}: component {component!r} has no kohya prefix in family {facts.name}.")
        name = f"{prefixes[component]}_{module.replace('.', '_')}"
        converted[f"{name}.{_SIDES[side]}.weight"] = value
        if side == "lora_A":
            converted[f"{name}.alpha"] = tensor(float(value.shape[0]))
    return converted


def split_key(key: str) -> tuple[str, str, str]:
    """`unet.mid.to_q.lora_A.weight` -> (`unet`, `mid.to_q`, `lora_A`)."""
    parts = key.split(".")
    if len(parts) < 4 or parts[-1] != "weight" or parts[-2] not in _SIDES:
        raise ModelError(f"{key}: not a plain LoRA key (<component>.<module>.lora_A|lora_B.weight).")
    return parts[0], ".".join(parts[1:-2]), parts[-2]
