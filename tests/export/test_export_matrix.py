"""Every family x layout x kind of adapter: written and read back by whom its users read it with, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_adapters import CHECKPOINTS, KINDS, adapter, family, layers
from torch import Tensor

from t2i import lora
from t2i.errors import ModelError
from t2i.export.adapter import TOLERANCES, Layout, Precision, write_adapter
from t2i.export.layouts import LAYOUTS
from t2i.export.reading import read_adapter

READERS = {
    "sd1": {"diffusers": "diffusers", "peft": "peft", "kohya": "diffusers", "comfyui": "t2i"},
    "sdxl": {"diffusers": "diffusers", "peft": "peft", "kohya": "diffusers", "comfyui": "t2i"},
    "pixart": {"diffusers": "t2i", "peft": "peft", "kohya": None, "comfyui": "t2i"},
    "sd3": {"diffusers": "diffusers", "peft": "peft", "kohya": "t2i", "comfyui": "t2i"},
    # diffusers splits Flux's linear1 at the widths of the published models: see test_native_names.
    "flux": {"diffusers": "diffusers", "peft": "peft", "kohya": "t2i", "comfyui": "t2i"},
}
"""Family -> layout -> who reads the file back; None where no tool reads such files."""
DORA_READERS = {("sd1", "kohya"): "t2i", ("sdxl", "kohya"): "t2i"}
"""Where kohya and comfyui files carry a DoRA: diffusers drops its magnitudes, LyCORIS reads them (see below)."""


def reader(name: str, layout: str, kind: str) -> str | None:
    if kind == "dora" and layout in ("kohya", "comfyui"):
        return DORA_READERS.get((name, layout))
    return READERS[name][layout]


def target(folder: Path, layout: Layout) -> Path:
    return folder / ("out" if layout == "peft" else "out.safetensors")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_adapter_arrives_or_is_refused(tmp_path: Path, name: str, layout: Layout, kind: str) -> None:
    sent, expected = adapter(name, kind), reader(name, layout, kind)
    for precision in TOLERANCES if kind == "lora" else ("fp32",):
        folder = tmp_path / precision
        folder.mkdir()
        options: dict = {"layout": layout, "precision": precision, "metadata": {"who": "test"}}
        if expected is None:
            with pytest.raises(ModelError, match=r"no tool reads kohya files of pixart|dora_rank"):
                write_adapter(sent, target(folder, layout), family(name), **options)
            assert list(folder.iterdir()) == []
            continue
        exported = write_adapter(sent, target(folder, layout), family(name), **options)
        assert exported.read_by == expected
        assert exported.error <= TOLERANCES[precision]
        found = read_adapter(target(folder, layout), layers(name))
        assert found.layout == layout
        assert found.adapter.keys() == sent.keys()
        assert {factors.rank for factors in found.adapter.values()} == {4}
        assert [path.name for path in folder.iterdir()] == [target(folder, layout).name]


def paint(name: str) -> Tensor:
    pipeline = family(name).pipeline
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    sizes = {"height": 32, "width": 32, "num_inference_steps": 2}
    if name == "pixart":
        sizes["use_resolution_binning"] = False
    return pipeline(["a cat", "the moon"], generator=generators, output_type="pt", **sizes).images


@pytest.mark.parametrize(
    ("name", "layout", "kind"),
    # A strength of 3/4 stays bit for bit the same only where the file has an alpha; folded into B it rounds.
    [
        *((name, "diffusers", kind) for name in ("sd1", "sdxl", "sd3", "flux") for kind in ("rslora", "dora")),
        *((name, "kohya", kind) for name in ("sd1", "sdxl") for kind in ("lora", "rslora")),
    ],
)
def test_plain_diffusers_paints_the_same_pixels_from_the_file(
    tmp_path: Path, name: str, layout: Layout, kind: str
) -> None:
    pipeline = family(name).pipeline
    path = tmp_path / "out.safetensors"
    write_adapter(adapter(name, kind), path, family(name), layout=layout, precision="fp32", metadata={})
    try:
        lora.put_into(pipeline, adapter(name, kind))
        trained = paint(name)
        lora.unload(pipeline)
        pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
        assert pipeline.get_list_adapters()
        assert torch.equal(paint(name), trained)
        pipeline.unload_lora_weights()
        assert not torch.equal(paint(name), trained)
    finally:
        lora.unload(pipeline)


def test_pixart_paints_the_same_pixels_through_peft(tmp_path: Path) -> None:
    from peft import PeftModel

    pipeline, sent = family("pixart").pipeline, adapter("pixart", "rslora")
    write_adapter(sent, tmp_path / "out", family("pixart"), layout="peft", precision="fp32", metadata={})
    try:
        lora.put_into(pipeline, sent)
        trained = paint("pixart")
        lora.unload(pipeline)
        PeftModel.from_pretrained(pipeline.transformer, str(tmp_path / "out/transformer"))
        assert torch.equal(paint("pixart"), trained)
    finally:
        lora.unload(pipeline)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_lycoris_reads_kohya_files(tmp_path: Path, name: str, kind: str) -> None:
    lycoris = pytest.importorskip("lycoris.wrapper")
    pipeline = family(name).pipeline
    sent, path = adapter(name, kind), tmp_path / "out.safetensors"
    write_adapter(sent, path, family(name), layout="kohya", precision="fp32", metadata={})
    state, layer = lycoris_state(path), "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    network, _ = lycoris.create_lycoris_from_weights(1.0, "", pipeline.unet, state)
    [module] = [part for part in network.loras if part.lora_name == f"lycoris_{layer.replace('.', '_')}"]
    weight = pipeline.unet.get_submodule(layer).weight
    factors = sent[f"unet.{layer}"]
    expected = weight.double() + factors.delta()
    if factors.magnitude is not None:
        expected = expected * (factors.magnitude.double()[:, None] / expected.norm(dim=1, keepdim=True))
    torch.testing.assert_close(module.get_merged_weight()[0].double(), expected, atol=1e-6, rtol=1e-5)


def lycoris_state(path: Path) -> dict[str, Tensor]:
    """Its own prefix, and diffusers' names, are all that LyCORIS asks for."""
    from safetensors.torch import load_file

    return {
        key.replace("lora_unet_middle_block_1_", "lora_unet_mid_block_attentions_0_").replace(
            "lora_unet", "lycoris"
        ): value
        for key, value in load_file(path).items()
        if key.startswith("lora_unet")
    }


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_rounding_is_measured_against_the_unrounded_adapter(tmp_path: Path, precision: Precision) -> None:
    path = tmp_path / "out.safetensors"
    exported = write_adapter(adapter("sd1"), path, family("sd1"), layout="kohya", precision=precision, metadata={})
    assert 2**-14 < exported.error <= TOLERANCES[precision]
