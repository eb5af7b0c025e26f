"""Low-rank adapters: where they go, putting them in, switching them off, writing and reading their files.

Weight change of a module = s B A (Hu et al. 2021, arXiv:2106.09685, section 4.1), A: [rank, in], B: [out, rank], B zero
at first. The strength s is alpha / rank; rsLoRA's is alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732). DoRA
(Liu et al. 2024, arXiv:2402.09353, equation 5) trains a magnitude m per output beside it: the weight is
m (W + s B A) / |W + s B A|, the norm that of each row. The mechanism is peft's.
"""

from t2i.lora.adapters import adapter_components, adapters_off, check_restorable, freeze, inject, learning_rates
from t2i.lora.files import (
    adapter_of,
    adapter_state,
    load_into,
    load_through_diffusers,
    put_into,
    save,
    set_strength,
    start_from,
    unload,
)
from t2i.lora.modules import inject_module, merge_adapters
from t2i.lora.quantize import quantize_linears

__all__ = [
    "adapter_components",
    "adapter_of",
    "adapter_state",
    "adapters_off",
    "check_restorable",
    "freeze",
    "inject",
    "inject_module",
    "learning_rates",
    "load_into",
    "load_through_diffusers",
    "merge_adapters",
    "put_into",
    "quantize_linears",
    "save",
    "set_strength",
    "start_from",
    "unload",
]
