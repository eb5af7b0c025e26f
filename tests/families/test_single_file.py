"""A single file is recognised by its tensors and is the same model as the folder that it was made of."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import original_layout
import pytest
import tiny
import torch
from checkpoints import CLASSES, all_weights, assert_refused, assert_same_weights, change, copied, state_of
from safetensors.torch import save_file

from t2i.families import describe_checkpoint, load_family
from t2i.families.safetensor_files import read_header
from t2i.families.single_file import family_of
from t2i.families.unpickle import main as unpickle

WRITERS = {"sd1": original_layout.write_sd1, "sdxl": original_layout.write_sdxl}
INPUT = "model.diffusion_model.input_blocks.0.0.weight"
PARTS = {
    "sd1": {"vae": ("first_stage_model.",), "text_encoder": ("cond_stage_model.",)},
    "sdxl": {"vae": ("first_stage_model.",), "text_encoder": ("conditioner.embedders.0.",)},
}
"""Family -> component -> beginnings of the names of its tensors."""


@pytest.fixture(params=CLASSES)
def single(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Family and single file in its authors' layout, named after another family; its configs beside it."""
    family = load_family(str(tiny.FAMILIES_TINY[request.param]()))
    copied(tmp_path, "flux-dev.v2", request.param, weights=False)
    return request.param, WRITERS[request.param](family.pipeline, tmp_path / "flux-dev.v2.safetensors")


@torch.no_grad()
def test_single_file_is_the_same_model_as_the_folder(single: tuple[str, Path]) -> None:
    name, path = single
    ours, theirs = load_family(str(path), expected=name), load_family(str(tiny.FAMILIES_TINY[name]()))
    assert_same_weights(ours, theirs)
    assert isinstance(ours, CLASSES[name])
    prompts = ["a cat", "the moon"]
    one, other = ours.encode_prompts(prompts), theirs.encode_prompts(prompts)
    torch.testing.assert_close(one.prompt_embeds, other.prompt_embeds)
    assert not any(part.training for part in ours.pipeline.components.values() if isinstance(part, torch.nn.Module))
    description = describe_checkpoint(str(path))
    assert (description.family, description.path, description.configs) == (name, path, path.with_suffix(""))


def test_single_file_in_half_precision_is_loaded_in_the_one_asked_for(single: tuple[str, Path]) -> None:
    _, path = single
    save_file({key: value.half() for key, value in state_of(path).items()}, path)
    assert {value.dtype for value in all_weights(load_family(str(path))).values()} == {torch.float32}


def test_single_file_holds_some_components_in_another_precision(single: tuple[str, Path]) -> None:
    name, path = single
    held = load_family(str(path), dtype={"unet": torch.bfloat16}).pipeline.components
    expected = load_family(str(path)).pipeline.components
    for part in ("unet", *PARTS[name]):
        dtype = torch.bfloat16 if part == "unet" else torch.float32
        weights = held[part].state_dict()
        assert all(torch.equal(weights[key], value.to(dtype)) for key, value in expected[part].state_dict().items())


def test_single_file_of_another_family_than_expected_names_its_own(single: tuple[str, Path]) -> None:
    name, path = single
    assert_refused(f"is of family {name}; expected flux", path, expected="flux")


def test_configs_of_another_family_than_the_file_are_refused(single: tuple[str, Path], tmp_path: Path) -> None:
    name, path = single
    other = "sd1" if name == "sdxl" else "sdxl"
    shutil.rmtree(path.with_suffix(""))
    copied(tmp_path, path.stem, other, weights=False)
    assert_refused(f"is of family {name}, but its configs in .* are of {other}", path)


def test_single_file_without_configs_says_where_to_put_them(tmp_path: Path) -> None:
    path = original_layout.write_sd1(tiny.load_sd1().pipeline, tmp_path / "a.safetensors")
    assert_refused("does not hold its configs", path)
    state = state_of(path)
    widened = {key: value.repeat(1, 24) if key.endswith("attn2.to_k.weight") else value for key, value in state.items()}
    save_file(widened, path)
    assert_refused("put them into .*/a/ .* or allow the download of those of stable-diffusion-v1-5", path)


def without(path: Path, prefix: str) -> None:
    save_file({key: value for key, value in state_of(path).items() if not key.startswith(prefix)}, path)


def test_incomplete_single_file_is_refused(single: tuple[str, Path]) -> None:
    _, path = single
    without(path, "model.diffusion_model.out.2.")
    assert_refused("lacks weights of unet: conv_out|cannot be loaded", path)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_components_that_the_file_lacks_are_taken_from_beside_it(single: tuple[str, Path], part: str) -> None:
    name, path = single
    for prefix in PARTS[name][part]:
        without(path, prefix)
    assert_refused(f"holds no {part}; put its weights into .*/{part}/", path)
    shutil.copytree(tiny.FAMILIES_TINY[name]() / part, path.with_suffix("") / part, dirs_exist_ok=True)
    assert describe_checkpoint(str(path)).beside == (part,)
    assert_same_weights(load_family(str(path)), load_family(str(tiny.FAMILIES_TINY[name]())))


def test_weights_beside_a_file_that_has_its_own_are_not_taken(single: tuple[str, Path], tmp_path: Path) -> None:
    name, path = single
    shutil.rmtree(path.with_suffix(""))
    copied(tmp_path, path.stem, name)
    state = state_of(path)
    state["first_stage_model.encoder.conv_in.bias"] += 1
    save_file(state, path)
    theirs: Any = load_family(str(tiny.FAMILIES_TINY[name]())).pipeline.components["vae"]
    ours: Any = load_family(str(path)).pipeline.components["vae"]
    assert torch.equal(ours.encoder.conv_in.bias, theirs.encoder.conv_in.bias + 1)


def test_truncated_single_file_is_refused(single: tuple[str, Path]) -> None:
    _, path = single
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused("truncated", path)


def test_single_file_marked_for_other_noise_than_its_configs_is_refused(tmp_path: Path) -> None:
    copied(tmp_path, "a", weights=False)
    pipeline = tiny.load_sd1().pipeline
    path = original_layout.write_sd1(pipeline, tmp_path / "a.safetensors", v_pred=torch.zeros(0))
    assert_refused('"prediction_type": "v_prediction"', path)
    scheduler = tmp_path / "a/scheduler/scheduler_config.json"
    change(scheduler, prediction_type="v_prediction")
    noise: Any = load_family(str(path)).noise
    assert noise.prediction_type == "v_prediction"
    original_layout.write_sd1(pipeline, path, v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    assert_refused('"rescale_betas_zero_snr": true', path)


def header_of(path: Path, tensors: dict[str, tuple[int, ...]]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    return path


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({INPUT: (8, 9, 3, 3)}, "its U-Net takes 9 channels"),
        ({INPUT: (8, 4, 3, 3), "conditioner.embedders.0.model.ln_final.bias": (4,)}, "the SDXL refiner"),
        ({INPUT: (8, 4, 3, 3), "edm_mean": (4,)}, "Playground 2.5"),
        ({INPUT: (8, 4, 3, 3), "edm_vpred.sigma_max": ()}, "EDM model with v-prediction, as CosXL"),
        ({INPUT: (8, 4, 3, 3), "model.diffusion_model.out.2.scale_weight": ()}, "scaled fp8"),
        ({INPUT: (8, 4, 3, 3), "scaled_fp8": (2,)}, "scaled fp8"),
        ({"double_blocks.0.img_attn.norm.key_norm.scale": (4,), "img_in.weight_scale": ()}, "scaled fp8"),
        ({"unet.down_blocks.0.attn.to_q.lora_A.weight": (4, 8)}, "a LoRA, not a model"),
        ({"lora_unet_mid_block_attn_to_q.lora_down.weight": (4, 8)}, "a LoRA, not a model"),
        ({"down_blocks.0.resnets.0.conv1.weight": (4, 8)}, "one component of a diffusers folder"),
        ({"distilled_guidance_layer.in_proj.weight": (4, 8)}, "a Chroma model"),
        ({"logits": (1,)}, "not recognised by its tensors"),
    ],
)
def test_file_that_is_no_text_to_image_model_is_refused(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], match: str
) -> None:
    assert_refused(match, header_of(tmp_path / "sd1.safetensors", tensors))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_flow_models_are_recognised_by_their_blocks(tmp_path: Path, prefix: str) -> None:
    blocks = {
        "sd3": "joint_blocks.0.context_block.adaLN_modulation.1.bias",
        "flux": "double_blocks.0.img_attn.norm.key_norm.scale",
    }
    for family, name in blocks.items():
        path = header_of(tmp_path / "sdxl.safetensors", {prefix + name: (4,)})
        assert family_of(path, read_header(path)) == family
        assert_refused("does not hold its configs", path)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".safetensors"])
def test_pickled_checkpoint_is_refused_and_can_be_converted(tmp_path: Path, suffix: str) -> None:
    folder = copied(tmp_path, "converted", weights=False)
    plain = original_layout.write_sd1(tiny.load_sd1().pipeline, tmp_path / "plain.safetensors")
    pickled, converted = tmp_path / f"model{suffix}", tmp_path / "converted.safetensors"
    torch.save({"state_dict": state_of(plain), "epoch": 3}, pickled)
    assert_refused(r"pickled .* Convert it: python -m t2i\.families\.unpickle model", pickled)
    assert unpickle([str(pickled), str(converted)]) == 0
    assert folder.is_dir()
    assert_same_weights(load_family(str(converted)), tiny.load_sd1())


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_conversion_runs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Bomb(tmp_path / "ran")}, tmp_path / "bomb.ckpt")
    assert unpickle([str(tmp_path / "bomb.ckpt"), str(tmp_path / "out.safetensors")]) == 2
    assert "cannot be opened as tensors alone" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out.safetensors").exists()
    assert unpickle([str(tmp_path / "none.ckpt"), str(tmp_path / "out.safetensors")]) == 2
    assert unpickle([]) == 2
