"""What a step takes, against values worked out by hand and against real tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_flow
import torch
from torch import nn
from torch.nn import functional

from t2i.families import load_family
from t2i.objectives import Denoising, DiffusionDPO
from t2i.training import outline
from t2i.training.arithmetic import step_arithmetic
from t2i.training.outline import TrainingOutline, outline_training
from t2i.training.settings import FullSettings, LoraSettings
from t2i.training.tasks import TaskSettings


def test_two_layers_of_which_the_second_is_frozen_by_hand() -> None:
    with torch.device("meta"):
        first, second, inputs = nn.Linear(3, 5, bias=False), nn.Linear(5, 7, bias=False), torch.zeros(11, 3)
    second.requires_grad_(False)
    both = nn.ModuleList([first, second])
    counted = step_arithmetic(both, lambda: second(first(inputs)))
    forward = 2 * 11 * 3 * 5 + 2 * 11 * 5 * 7
    # Backward: the gradient of the hidden layer through the frozen weight, and of the first weight; none of the inputs.
    assert (counted.forward_flops, counted.flops) == (forward, forward + 2 * 11 * 7 * 5 + 2 * 11 * 5 * 3)
    # At the end: the losses [11, 7], their sum and its gradient, the gradients of the hidden layer and of its weight.
    assert counted.activation_bytes == 4 * (11 * 7 + 1 + 1 + 11 * 5 + 5 * 3)


def test_attention_by_hand_keeps_no_matrix_of_weights() -> None:
    with torch.device("meta"):
        weight = nn.Linear(8, 8, bias=False)
        inputs = torch.zeros(2, 1, 64, 8)

    def losses() -> torch.Tensor:
        query = weight(inputs)
        return functional.scaled_dot_product_attention(query, inputs, inputs)

    counted = step_arithmetic(weight, losses)
    linear, product = 2 * 2 * 64 * 8 * 8, 2 * 2 * 64 * 64 * 8
    assert counted.forward_flops == linear + 2 * product
    # Flash attention computes five products backward: the weights anew, and gradients of weights, query, key, value.
    assert counted.flops == counted.forward_flops + 5 * product + linear
    # Query, output and gradients of query, key and value; the 64 x 64 weights alone would be 32,768 bytes.
    assert 5 * 4 * 2 * 64 * 8 < counted.activation_bytes < 32_768


def outline_of(model: Any, tmp_path: Any, **lora: Any) -> TrainingOutline:
    return outline_training(settings_for(model, tmp_path, LoraSettings(rank=4, **lora)), Denoising())


def settings_for(model: Any, folder: Path, trained: LoraSettings | FullSettings) -> TaskSettings:
    return TaskSettings(
        model=str(model),
        revision=None,
        random_seed=None,
        trained=trained,
        mix=None,
        resolution=tiny.SIZE_PX,
        posterior="sample",
        records=[],
        seed=0,
        folder=folder,
        encode_batch_size=1,
    )


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_trained_parameters_and_layers_are_those_of_the_injected_model(tmp_path: Any, variant: str) -> None:
    from t2i import lora

    outline = outline_of(tiny.sdxl(), tmp_path, variant=variant, text_encoder=True, targets=("to_q", "conv1"))
    settings = LoraSettings(rank=4, variant=variant, text_encoder=True, targets=("to_q", "conv1"))  # type: ignore[arg-type]
    modules = lora.inject(load_family(str(tiny.sdxl())), settings, seed=0)
    trained = [value.numel() for module in modules.values() for value in module.parameters() if value.requires_grad]
    assert outline.trained_parameters() == sum(trained)
    layers = {
        name: sum(path.endswith(".lora_A.default") for path, _ in module.named_modules())
        for name, module in modules.items()
    }
    assert outline.trained_modules() == layers


@pytest.mark.parametrize("model", [tiny.sd1, tiny.sdxl, tiny_flow.pixart, tiny_flow.sd3, tiny_flow.flux])
def test_twice_the_images_are_twice_the_work_and_activations(tmp_path: Any, model: Any) -> None:
    size, dtype = (tiny.SIZE_PX, tiny.SIZE_PX), torch.float32
    one = outline_of(model(), tmp_path).step(size, 1, text_is_cached=True, dtype=dtype)
    two = outline_of(model(), tmp_path).step(size, 2, text_is_cached=True, dtype=dtype)
    assert 1.9 < two.flops / one.flops <= 2
    assert 1.8 < two.activation_bytes / one.activation_bytes < 2.1
    half = outline_of(model(), tmp_path).step(size, 2, text_is_cached=True, dtype=torch.bfloat16)
    assert half.flops == two.flops
    assert half.activation_bytes < 0.75 * two.activation_bytes
    assert 1.5 < two.flops / two.forward_flops < 3.5


@pytest.mark.parametrize("model", [tiny.sd1, tiny.sdxl, tiny_flow.pixart, tiny_flow.sd3, tiny_flow.flux])
def test_a_pair_is_a_step_on_two_images_and_one_forward_pass_of_the_reference(tmp_path: Any, model: Any) -> None:
    size, cached = (tiny.SIZE_PX, tiny.SIZE_PX), {"text_is_cached": True, "dtype": torch.float32}
    denoiser = load_family(str(model())).facts.denoiser
    settings = settings_for(model(), tmp_path, FullSettings(type="full", components=(denoiser,)))
    two = outline_training(settings, Denoising()).step(size, 2, **cached)
    outline = outline_training(settings, DiffusionDPO(beta=2000))
    pair = outline.step(size, 1, **cached)
    assert pair.forward_flops == 2 * two.forward_flops
    assert pair.flops == two.flops + two.forward_flops
    assert pair.activation_bytes < 1.1 * two.activation_bytes
    copies = {name: type(module) for name, module in outline.frozen_copies().items()}
    assert copies == {denoiser: type(outline.family.denoiser)}
    # Adapters are switched off for the reference: no copy, and a pass without their products.
    adapted = outline_training(settings_for(model(), tmp_path, LoraSettings(rank=4)), DiffusionDPO(beta=2000))
    assert adapted.frozen_copies() == {}
    plain = outline_of(model(), tmp_path).step(size, 2, **cached)
    assert 1.8 * plain.forward_flops < adapted.step(size, 1, **cached).forward_flops < 2 * plain.forward_flops


@pytest.mark.parametrize("model", [tiny.sd1, tiny.sdxl, tiny_flow.pixart, tiny_flow.sd3, tiny_flow.flux])
def test_gradient_checkpointing_spares_memory_for_up_to_one_more_forward_pass(tmp_path: Any, model: Any) -> None:
    size, dtype = (tiny.SIZE_PX, tiny.SIZE_PX), torch.float32
    whole = outline_of(model(), tmp_path).step(size, 2, text_is_cached=True, dtype=dtype)
    outline = outline_of(model(), tmp_path)
    denoiser: Any = outline.family.denoiser
    denoiser.enable_gradient_checkpointing()
    spared = outline.step(size, 2, text_is_cached=True, dtype=dtype)
    assert spared.forward_flops == whole.forward_flops
    assert 0.5 * whole.forward_flops < spared.flops - whole.flops <= whole.forward_flops
    assert spared.activation_bytes < 0.9 * whole.activation_bytes


def test_memory_is_a_little_more_than_what_a_real_step_keeps_between_its_passes(tmp_path: Any) -> None:
    """On the CPU with real weights: every storage that the graph holds, attention by its own kernel."""
    from t2i.objectives.base import DiffusionBatch
    from t2i.training.diffusion import diffusion_trainable

    family = load_family(str(tiny.sd1()))
    trainable, _ = diffusion_trainable(family, Denoising(), LoraSettings(rank=4), 0)
    draw = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 16, 16, generator=draw)
    conditioning = family.encode_prompts(["a cat", "the moon"])
    batch = DiffusionBatch(latents, noise, torch.tensor([0.2, 0.7]), ("a cat", "the moon"), None, conditioning)
    kept: dict[int, torch.Tensor] = {}
    fixed = {value.untyped_storage().data_ptr() for part in family.pipeline.components.values()
             if isinstance(part, nn.Module) for value in part.parameters()}  # fmt: skip

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in fixed:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainable.module(batch).loss.sum().backward()
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    counted = outline_of(tiny.sd1(), tmp_path).step((32, 32), 2, text_is_cached=True, dtype=torch.float32)
    assert real < counted.activation_bytes < 1.1 * real


def test_what_equal_outlines_take_is_counted_once_and_what_others_take_is_not_mistaken_for_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.build_pipeline("epsilon")
    model.save_pretrained(tmp_path / "model")
    counted: list[object] = []
    monkeypatch.setattr(outline, "_COUNTED", {})
    monkeypatch.setattr(outline, "step_arithmetic", lambda *given: counted.append(1) or step_arithmetic(*given))

    def taken(objective: Denoising | DiffusionDPO, rank: int = 4, **request: Any) -> int:
        made = outline_training(settings_for(tmp_path / "model", tmp_path, LoraSettings(rank=rank)), objective)
        return made.step((32, 32), 2, **{"text_is_cached": False, "dtype": torch.float32} | request).flops

    different = [
        taken(Denoising()),
        taken(DiffusionDPO(beta=1.0)),
        taken(Denoising(), rank=8),
        taken(Denoising(), text_is_cached=True),
    ]
    assert len(set(different)) == len(counted) == len(different)
    assert taken(Denoising()) == different[0]
    assert len(counted) == len(different)
