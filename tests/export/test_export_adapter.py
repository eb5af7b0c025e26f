"""An exported LoRA arrives as it was trained, in every layout, or is not written at all."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i.errors import ModelError
from t2i.export.adapter import TOLERANCES, Layout, Precision, export_lora
from t2i.stages.export import Export

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained LoRA of rank 4 on U-Net and text encoder."""
    return tiny.write_adapter(tmp_path_factory.mktemp("trained") / "pytorch_lora_weights.safetensors")


def export(source: Path, target: Path, layout: Layout = "diffusers", precision: Precision = "fp32") -> float:
    return export_lora(
        source, target, tiny.load_sd1(), layout=layout, precision=precision, metadata={"who": "test"}
    ).error


def plain(path: Path) -> StableDiffusionPipeline:
    """A fresh pipeline with the file in it, by diffusers alone."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny.sd1(), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    return pipeline


def paint(path: Path) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    images = plain(path)(["a cat", "the moon"], num_inference_steps=2, generator=generators, output_type="pt").images
    return images  # pyright: ignore[reportReturnType]


def deltas(path: Path) -> dict[str, Tensor]:
    """Module -> what diffusers adds to its weight."""
    pipeline = plain(path)
    found = {}
    for component in ("unet", "text_encoder"):
        for name, layer in getattr(pipeline, component).named_modules():
            if isinstance(layer, LoraLayer):
                [adapter] = layer.lora_A
                found[f"{component}.{name}"] = layer.get_delta_weight(adapter).detach().double()
    return found


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_exported_file_paints_the_same_pixels(trained: Path, tmp_path: Path, layout: Layout) -> None:
    assert export(trained, tmp_path / "out.safetensors", layout) <= 1e-6
    assert torch.equal(paint(tmp_path / "out.safetensors"), paint(trained))


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_weight_deltas_arrive_within_the_tolerance(
    trained: Path, tmp_path: Path, layout: Layout, precision: Precision
) -> None:
    error = export(trained, tmp_path / "out.safetensors", layout, precision)
    sent, arrived = deltas(trained), deltas(tmp_path / "out.safetensors")
    errors = [float((arrived[name] - delta).norm() / delta.norm()) for name, delta in sent.items()]
    assert sent.keys() == arrived.keys()
    assert len(sent) == 4 * 2 * 4 + 2 * 4
    assert max(errors) <= TOLERANCES[precision]
    assert error <= TOLERANCES[precision]
    dtypes = {value.dtype for key, value in load_file(tmp_path / "out.safetensors").items() if "alpha" not in key}
    assert dtypes == {{"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]}


def test_keys_of_a_kohya_file_follow_its_convention(trained: Path, tmp_path: Path) -> None:
    export(trained, tmp_path / "out.safetensors", "kohya")
    state = load_file(tmp_path / "out.safetensors")
    block = r"(down_blocks_1_attentions_0|mid_block_attentions_0|up_blocks_0_attentions_[01])_transformer_blocks_0"
    unet = rf"lora_unet_{block}_attn[12]_to_(q|k|v|out_0)"
    text = r"lora_te_text_model_encoder_layers_[01]_self_attn_(q|k|v|out)_proj"
    names = {key.partition(".")[0] for key in state}
    assert all(re.fullmatch(f"{unet}|{text}", name) for name in names)
    assert len(names) == 40
    for name in names:
        assert state[f"{name}.lora_down.weight"].shape[0] == state[f"{name}.lora_up.weight"].shape[1] == 4
        assert float(state[f"{name}.alpha"]) == 4
    assert len(state) == 3 * 40


def test_metadata_is_kept(trained: Path, tmp_path: Path) -> None:
    export(trained, tmp_path / "out.safetensors", "kohya")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "who": "test"}


def test_one_family_serves_several_exports(trained: Path, tmp_path: Path) -> None:
    family = tiny.load_sd1()
    for layout in ("kohya", "diffusers", "kohya"):
        target = tmp_path / f"{layout}.safetensors"
        export_lora(trained, target, family, layout=layout, precision="fp32", metadata={})
    assert torch.equal(paint(tmp_path / "kohya.safetensors"), paint(tmp_path / "diffusers.safetensors"))


def changed(trained: Path, folder: Path, side: str, value: float, *, everywhere: bool) -> Path:
    state = load_file(trained)
    keys = [key for key in state if f".lora_{side}." in key]
    for key in keys if everywhere else keys[:1]:
        state[key] = torch.full_like(state[key], value)
    save_file(state, folder / "changed.safetensors", metadata={"format": "pt"})
    return folder / "changed.safetensors"


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize(
    ("side", "value", "everywhere", "complaint"),
    [
        ("A", math.nan, False, "not finite"),
        ("B", math.inf, False, "not finite"),
        ("B", 0.0, True, "every B is zero"),
    ],
)
def test_adapter_that_is_broken_or_does_nothing_is_refused(
    trained: Path, tmp_path: Path, layout: Layout, side: str, value: float, everywhere: bool, complaint: str
) -> None:
    source = changed(trained, tmp_path, side, value, everywhere=everywhere)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old.safetensors").write_bytes(b"old")
    with pytest.raises(ModelError, match=complaint):
        export(source, tmp_path / "out/old.safetensors", layout)
    assert [path.read_bytes() for path in (tmp_path / "out").iterdir()] == [b"old"]


def test_adapter_that_reaches_some_modules_only_is_exported(trained: Path, tmp_path: Path) -> None:
    source = changed(trained, tmp_path, "B", 0.0, everywhere=False)
    assert export(source, tmp_path / "out.safetensors", "kohya") <= 1e-6


@pytest.mark.parametrize("with_zeros", [False, True])
def test_values_beyond_the_range_of_the_precision_are_refused(trained: Path, tmp_path: Path, with_zeros: bool) -> None:
    state = load_file(trained)
    for key in state:
        state[key] = state[key] * 1e6 if ".lora_B." in key else state[key]
        if with_zeros and ".lora_A." in key:
            state[key][:, 0] = 0  # infinity times zero is not a number, which no comparison catches
    save_file(state, tmp_path / "large.safetensors", metadata={"format": "pt"})
    assert export(tmp_path / "large.safetensors", tmp_path / "fp32.safetensors") <= 1e-6
    with pytest.raises(ModelError, match="nothing was written"):
        export(tmp_path / "large.safetensors", tmp_path / "fp16.safetensors", precision="fp16")
    assert not (tmp_path / "fp16.safetensors").exists()


def test_adapter_of_another_model_is_refused(trained: Path, tmp_path: Path) -> None:
    state = {key.replace("down_blocks.1", "down_blocks.2"): value for key, value in load_file(trained).items()}
    save_file(state, tmp_path / "other.safetensors", metadata={"format": "pt"})
    for layout in ("diffusers", "kohya"):
        with pytest.raises(ModelError):
            export(tmp_path / "other.safetensors", tmp_path / "out.safetensors", layout)
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


def test_export_stage_writes_every_layout(trained: Path, tmp_path: Path) -> None:
    train = tmp_path / "train"
    (train / "adapter").mkdir(parents=True)
    (train / "adapter/pytorch_lora_weights.safetensors").write_bytes(trained.read_bytes())
    fields = {"model": str(tiny.sd1()), "layouts": ["diffusers", "peft", "kohya", "comfyui"], "precision": "fp16"}
    facts = tiny.run_stage(Export, tmp_path / "export", fields, {"weights_from": train})
    names = {"test.diffusers.safetensors", "test.peft", "test.kohya.safetensors", "test.comfyui.safetensors"}
    assert set(facts) == names
    assert {path.name for path in (tmp_path / "export").iterdir()} == names | {"README.md"}
    again = tiny.run_stage(Export, tmp_path / "export", {**fields, "file_name": "mine"}, {"weights_from": train})
    assert set(again) == {name.replace("test.", "mine.") for name in names}


def test_export_stage_casts_a_whole_model(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny.sd1(), tmp_path / "train/model")
    facts = tiny.run_stage(Export, tmp_path / "export", {"precision": "bf16"}, {"weights_from": tmp_path / "train"})
    assert facts["model"] == "model"
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "export/model", safety_checker=None, dtype="auto")
    original = tiny.load_sd1().pipeline
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(original, part).state_dict()
        for name, value in getattr(pipeline, part).state_dict().items():
            assert torch.equal(value.bfloat16(), expected[name].bfloat16())
    for name in ("model_index.json", "tokenizer/tokenizer.json", "unet/config.json"):
        assert (tmp_path / "export/model" / name).read_bytes() == (tiny.sd1() / name).read_bytes()


def test_whole_model_beyond_the_range_of_the_precision_is_refused(tmp_path: Path) -> None:
    from t2i.export.model import export_model

    (tmp_path / "model").mkdir()
    save_file({"a": torch.tensor([1.0, 1e6]), "b": torch.tensor([3])}, tmp_path / "model/x.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"a is not finite in torch\.float16"):
        export_model(tmp_path / "model", tmp_path / "out/model", precision="fp16")
    assert list((tmp_path / "out").iterdir()) == []
    export_model(tmp_path / "model", tmp_path / "out/model", precision="bf16")
    assert load_file(tmp_path / "out/model/x.safetensors")["b"].dtype == torch.int64
