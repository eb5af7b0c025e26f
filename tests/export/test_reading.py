"""LoRA files of others: the layout is found out from the keys, and what is broken is refused in one line."""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import adapter, family, layers, saved
from torch import Tensor

from t2i import lora
from t2i.commands import export
from t2i.errors import ModelError
from t2i.export.factors import Factors, largest_error
from t2i.export.layouts import to_layout, to_tensors
from t2i.export.reading import read_adapter

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = f"lora_unet_{LAYER.replace('.', '_')}"


def write(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata)
    return path


def one_layer(down: Tensor | None = None, up: Tensor | None = None) -> dict[str, Tensor]:
    """A kohya file of one layer."""
    down, up = torch.ones(2, 32) if down is None else down, torch.ones(32, 2) if up is None else up
    return {f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_up.weight": up}


def peft_folder(folder: Path, **values: object) -> Path:
    """The adapter of one layer as peft writes it. values: of its configuration."""
    folder.mkdir(parents=True)
    stem = f"base_model.model.{LAYER}"
    state = {f"{stem}.lora_A.weight": torch.ones(2, 32), f"{stem}.lora_B.weight": torch.ones(32, 2)}
    write(folder / "adapter_model.safetensors", state)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **values}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


NATIVE = LAYER.replace("mid_block.attentions.0", "middle_block.1")


@pytest.mark.parametrize(
    ("stem", "down", "up", "layout"),
    [
        (f"unet.{LAYER}", "lora_A", "lora_B", "diffusers"),
        (KOHYA, "lora_down", "lora_up", "kohya"),
        (f"lora_unet_{NATIVE.replace('.', '_')}", "lora_down", "lora_up", "kohya, with the layers' native names"),
        (f"diffusion_model.{NATIVE}", "lora_A", "lora_B", "comfyui"),
        (f"diffusion_model.{LAYER}", "lora_A", "lora_B", "comfyui, with the layers' diffusers names"),
    ],
)
def test_the_layout_is_found_out(tmp_path: Path, stem: str, down: str, up: str, layout: str) -> None:
    a, b = torch.randn(2, 32), torch.randn(32, 2)
    path = write(tmp_path / "a.safetensors", {f"{stem}.{down}.weight": a, f"{stem}.{up}.weight": b})
    found = read_adapter(path, layers("sd1"))
    assert found.layout == layout
    assert list(found.adapter) == [f"unet.{LAYER}"]
    assert torch.equal(found.adapter[f"unet.{LAYER}"].delta(), b.double() @ a.double())


@pytest.mark.parametrize(("alpha", "strength"), [(1.0, 0.5), (4.0, 2.0), (0.0, 1.0), (None, 1.0)])
def test_alpha_over_rank_is_the_strength_and_none_or_zero_means_the_rank(
    tmp_path: Path, alpha: float | None, strength: float
) -> None:
    state = one_layer() | ({} if alpha is None else {f"{KOHYA}.alpha": torch.tensor(alpha)})
    [factors] = read_adapter(write(tmp_path / "a.safetensors", state), layers("sd1")).adapter.values()
    assert factors.strength == strength


@pytest.mark.parametrize(
    ("values", "strength"),
    [
        ({"lora_alpha": 6}, 3.0),
        ({"lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 1}}, 0.5),
        ({"lora_alpha": 6, "use_rslora": True}, 6 / math.sqrt(2)),
    ],
)
def test_alphas_in_the_header_of_diffusers_count(tmp_path: Path, values: dict, strength: float) -> None:
    state = {f"unet.{LAYER}.lora_A.weight": torch.ones(2, 32), f"unet.{LAYER}.lora_B.weight": torch.ones(32, 2)}
    config = {"r": 2, "target_modules": [LAYER]} | values
    header = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}
    path = write(tmp_path / "a.safetensors", state, header)
    [factors] = read_adapter(path, layers("sd1")).adapter.values()
    assert factors.strength == pytest.approx(strength)
    # diffusers itself applies the same one.
    pipeline = family("sd1").pipeline
    lora.load_through_diffusers(pipeline, path)
    [arrived] = lora.adapter_of({"unet": pipeline.unet}).values()
    lora.unload(pipeline)
    assert arrived.strength == pytest.approx(strength)


def test_a_file_in_the_layout_of_peft_is_read_under_the_name_that_peft_gives_it(tmp_path: Path) -> None:
    own = peft_folder(tmp_path / "mine") / "adapter_model.safetensors"
    other = write(own.with_name("other.safetensors"), load_file(own))
    assert read_adapter(own, layers("sd1")).layout == "peft"
    with pytest.raises(ModelError, match=r"other\.safetensors: has peft's layout; call it adapter_model\.safetensors"):
        read_adapter(other, layers("sd1"))


def test_a_folder_with_two_adapters_of_one_component_is_refused(tmp_path: Path) -> None:
    for name in ("checkpoint-500", "checkpoint-1000"):
        peft_folder(tmp_path / name)
    with pytest.raises(ModelError, match="checkpoint-1000 and checkpoint-500 are both adapters of unet"):
        read_adapter(tmp_path, layers("sd1"))


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "OLoRA", "corda", "loftq", "lora_ga"])
def test_an_adapter_that_holds_a_part_of_its_base_is_refused(tmp_path: Path, init: str) -> None:
    header = {"lora_adapter_metadata": json.dumps({"unet.init_lora_weights": init})}
    state = one_layer() | {f"{KOHYA}.alpha": torch.tensor(2.0)}
    sources = (
        write(tmp_path / "a.safetensors", state, header),
        peft_folder(tmp_path / "peft", init_lora_weights=init),
    )
    for source in sources:
        with pytest.raises(ModelError, match=f"init_lora_weights '{init}': the adapter belongs to a model whose"):
            read_adapter(source, layers("sd1"))


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva", "mica"])
def test_an_adapter_that_began_beside_its_base_is_read(tmp_path: Path, init: bool | str) -> None:
    found = read_adapter(peft_folder(tmp_path / "peft", init_lora_weights=init), layers("sd1"))
    assert list(found.adapter) == [f"unet.{LAYER}"]


def test_the_text_encoder_of_stable_diffusion_2_has_its_own_name_in_comfyui_files(tmp_path: Path) -> None:
    query = "text_model.encoder.layers.0.self_attn.q_proj"
    sd1 = layers("sd1")
    sd2 = replace(sd1, components={**sd1.components, "text_encoder": {query: 1024}})
    sent = {f"text_encoder.{query}": Factors(torch.randn(2, 1024), torch.randn(1024, 2), 2.0)}
    assert list(to_layout(sent, "comfyui", sd1)) == [f"text_encoders.clip_l.transformer.{query}"]
    named = to_layout(sent, "comfyui", sd2)
    assert list(named) == [f"text_encoders.clip_h.transformer.{query}"]
    found = read_adapter(write(tmp_path / "a.safetensors", to_tensors(named, "comfyui")), sd2)
    assert found.layout == "comfyui"
    assert largest_error(sent, found.adapter) == 0


def test_every_layout_loads_into_a_pipeline_and_converts_to_another(tmp_path: Path) -> None:
    source, model = saved(tmp_path / "a.safetensors", "sd3"), str(family_folder("sd3"))
    sent = adapter("sd3")
    for to, read in (("kohya", "diffusers"), ("comfyui", "kohya"), ("peft", "comfyui"), ("diffusers", "peft")):
        target = tmp_path / (to if to == "peft" else f"{to}.safetensors")
        assert export(source, model, to, target, precision="fp32").startswith(f"{read} -> weight deltas arrive within")
        pipeline = family("sd3").pipeline
        assert lora.load_into(pipeline, target) == to
        modules = {name: getattr(pipeline, name) for name in ("transformer", "text_encoder", "text_encoder_2")}
        assert largest_error(sent, lora.adapter_of(modules)) <= 1e-6
        lora.unload(pipeline)
        source = target


def family_folder(name: str) -> Path:
    from tiny_adapters import CHECKPOINTS

    return CHECKPOINTS[name]()


def refused(path: Path, name: str = "sd1") -> str:
    """The one line with which a file is refused, by reading it and by converting it; nothing is written."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(ModelError) as caught:
        read_adapter(path, layers(name))
    with pytest.raises(ModelError) as again:
        export(path, str(family_folder(name)), "diffusers", path.parent / "out.safetensors", precision="fp32")
    assert again.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert sorted(path.parent.iterdir()) == before
    return str(caught.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", one_layer())
    path.write_bytes(path.read_bytes()[:-8])
    assert "truncated" in refused(path)


def test_a_header_of_a_gigabyte_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 10**9) + b"{" + b" " * 100)
    assert "its header alone would have 1000000000" in refused(path)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f'{{"a.lora_A.weight":{entry},"a.lora_A.weight":{entry}}}'.encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    assert "names a.lora_A.weight twice" in refused(path)


def test_two_spellings_of_one_factor_are_refused(tmp_path: Path) -> None:
    state = one_layer() | {f"{KOHYA}.lora_A.weight": torch.ones(2, 32)}
    assert "a second key for the same factor" in refused(write(tmp_path / "a.safetensors", state))


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        (one_layer(down=torch.full((2, 32), math.nan)), "not finite"),
        (one_layer(up=torch.full((32, 2), math.inf)), "not finite"),
        (one_layer() | {f"{KOHYA}.alpha": torch.tensor(math.nan)}, "not finite"),
        (one_layer(down=torch.ones(3, 32)), r"A \[3, 32\], B \[32, 2\] do not fit"),
        (one_layer(up=torch.ones(64, 2)), "changes 64 outputs, the layer has 32"),
        (one_layer() | {f"{KOHYA}.alpha": torch.ones(3)}, r"its alpha has shape \[3\]"),
        (one_layer() | {f"{KOHYA}.dora_scale": torch.ones(1, 32)}, r"magnitudes \[1, 32\]; expected one per output"),
        ({f"{KOHYA}.lora_down.weight": torch.ones(2, 32)}, "one of its two factors A and B is missing"),
        ({f"{KOHYA}.hada_w1_a": torch.ones(2, 2)}, "part of a LoHa"),
        ({"model.weight": torch.ones(2, 2)}, "not a key of a LoRA"),
        (
            one_layer()
            | {"lora_unet_strange.lora_down.weight": torch.ones(2, 3)}
            | {"lora_unet_strange.lora_up.weight": torch.ones(3, 2)},
            "the model has no lora_unet_strange",
        ),
    ],
)
def test_files_that_make_no_sense_are_refused(tmp_path: Path, state: dict[str, Tensor], complaint: str) -> None:
    assert re.search(complaint, refused(write(tmp_path / "a.safetensors", state)))


@pytest.mark.parametrize(("own", "other"), [("sd1", "flux"), ("sdxl", "sd1"), ("flux", "sd3"), ("sd3", "pixart")])
def test_a_file_of_another_family_is_refused(tmp_path: Path, own: str, other: str) -> None:
    assert "is of another model" in refused(saved(tmp_path / "a.safetensors", own), other)


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin", "a.pt"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path, name: str) -> None:
    torch.save({"unet.x.lora_A.weight": torch.ones(2)}, tmp_path / name)
    assert "python -m t2i.families.unpickle" in refused(tmp_path / name)


def test_a_dora_of_lycoris_is_read_with_its_magnitudes(tmp_path: Path) -> None:
    state = one_layer() | {f"{KOHYA}.dora_scale": torch.arange(1.0, 33).reshape(32, 1)}
    pipeline = tiny.load_sd1().pipeline
    assert lora.load_into(pipeline, write(tmp_path / "a.safetensors", state)) == "kohya"
    magnitude = pipeline.unet.get_submodule(LAYER).lora_magnitude_vector["default"].weight
    assert magnitude.tolist() == list(range(1, 33))


def test_old_layouts_of_diffusers_are_left_to_diffusers(tmp_path: Path) -> None:
    stem = f"unet.{LAYER.replace('attn1.to_q', 'attn1.processor')}.to_q_lora"
    state = {f"{stem}.down.weight": torch.ones(2, 32), f"{stem}.up.weight": torch.ones(32, 2)}
    pipeline = tiny.load_sd1().pipeline
    assert "diffusers" in lora.load_into(pipeline, write(tmp_path / "a.safetensors", state))
    assert list(lora.adapter_of({"unet": pipeline.unet})) == [f"unet.{LAYER}"]


def test_written_tensors_are_the_ones_that_are_read(tmp_path: Path) -> None:
    state = load_file(saved(tmp_path / "a.safetensors", "sd1"))
    found = read_adapter(tmp_path / "a.safetensors", layers("sd1")).adapter
    assert len(state) == 2 * len(found)
    assert all(torch.equal(state[f"{name}.lora_A.weight"], factors.down) for name, factors in found.items())
