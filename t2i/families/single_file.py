"""Checkpoints in one `.safetensors` file, in the layouts of the models' authors.

Such a file holds weights without their configs or tokenizers. These come from a folder in diffusers layout (weights are
not needed in it) that stands beside the file and has its name without the suffix: `dream.safetensors` and `dream/`;
where there is none, from the published base of the family, at a pinned revision. Components that the file does not
hold, as the text encoders and the VAE of many Flux files, are taken from that folder with their weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.errors import ModelError
from t2i.families.location import download
from t2i.families.safetensor_files import TensorHeader, check_weights

if TYPE_CHECKING:
    import torch

PUBLISHED_CONFIGS: dict[str, tuple[str, str]] = {
    "sd1": ("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b"),
}
"""Family -> hub id and revision whose configs fit all its single files. Those of sd3 and flux differ by version."""

_OTHER_NOISE = {"edm_mean": "Playground 2.5", "edm_vpred.sigma_max": "an EDM model with v-prediction, as CosXL"}
"""Tensor by which authors mark a model with noise of another kind, and what it is called."""
_SD1_TEXT_WIDTH = 768
"""Width of the text encoder's states in 1.x; 2.x files do not say what their U-Net predicts."""
_INPUT = "model.diffusion_model.input_blocks.0.0.weight"
_SCALES = ("scaled_fp8", ".scale_weight", ".weight_scale")
"""Endings of the names of tensors by which others are to be multiplied."""
_VAE = ("first_stage_model.", "vae.")
_PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "sd1": {"vae": _VAE, "text_encoder": ("cond_stage_model.",)},
    "sdxl": {
        "vae": _VAE,
        "text_encoder": ("conditioner.embedders.0.transformer.",),
        "text_encoder_2": ("conditioner.embedders.1.model.",),
    },
    "sd3": {
        "vae": _VAE,
        "text_encoder": ("text_encoders.clip_l.",),
        "text_encoder_2": ("text_encoders.clip_g.",),
        "text_encoder_3": ("text_encoders.t5xxl.",),
    },
    "flux": {"vae": _VAE, "text_encoder": ("text_encoders.clip_l.",), "text_encoder_2": ("text_encoders.t5xxl.",)},
}
"""Family -> component that some files lack -> beginnings of the names of its tensors."""

Tensors = Mapping[str, TensorHeader]


def family_of(path: Path, tensors: Tensors) -> str:
    """The family of a single file, by names and shapes of its tensors, never by its own name.

    Raises ModelError for a LoRA, a part of a model, a model of another task or an unknown layout.
    """
    if any(".lora_" in name or name.startswith("lora_") for name in tensors):
        raise ModelError(f"{path}: a LoRA, not a model; give the model that it belongs to.")
    scaled = next((name for name in tensors if name.endswith(_SCALES)), None)
    if scaled is not None:
        # diffusers would take the numbers without their scale.
        raise ModelError(
            f"{path}: its weights are in scaled fp8 ({scaled}), which is not read; expected bf16, fp16 or fp32. "
            "Give the file in one of these."
        )
    if _INPUT in tensors:
        return _stable_diffusion(path, tensors)
    bare = {name.removeprefix("model.diffusion_model.") for name in tensors}
    if "joint_blocks.0.context_block.adaLN_modulation.1.bias" in bare:
        return "sd3"
    if any(name.startswith("distilled_guidance_layer.") for name in bare):
        raise ModelError(f"{path}: a Chroma model, whose family is not supported.")
    if "double_blocks.0.img_attn.norm.key_norm.scale" in bare:
        return "flux"
    if any(name.startswith(("down_blocks.", "transformer_blocks.", "text_model.", "encoder.")) for name in bare):
        raise ModelError(f"{path}: one component of a diffusers folder; give the folder that holds model_index.json.")
    raise ModelError(
        f"{path}: not recognised by its tensors; expected the original layout of Stable Diffusion 1, 2, XL, 3 or Flux, "
        "or a folder in diffusers layout."
    )


def _stable_diffusion(path: Path, tensors: Tensors) -> str:
    """sd1 or sdxl, by the inputs of the U-Net."""
    channels = tensors[_INPUT].shape[1]
    if channels != 4:
        raise ModelError(f"{path}: its U-Net takes {channels} channels: for inpainting or editing, not text-to-image.")
    for mark, name in _OTHER_NOISE.items():
        if mark in tensors:
            raise ModelError(f"{path}: {name}, whose noise is not DDPM's, is not supported.")
    if _has(tensors, "conditioner.embedders.0.model."):
        raise ModelError(f"{path}: the SDXL refiner, not a text-to-image model; give the base model.")
    # Only XL's U-Net is told sizes.
    return "sdxl" if "model.diffusion_model.label_emb.0.0.weight" in tensors else "sd1"


def _has(tensors: Tensors, *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in tensors)


def config_folder(path: Path, family: str, tensors: Tensors) -> Path:
    """The folder with model_index.json, configs and tokenizers for a single file; see the module's docstring."""
    beside = path.with_suffix("")
    if (beside / "model_index.json").is_file():
        return beside
    widths = {header.shape[-1] for name, header in tensors.items() if name.endswith("attn2.to_k.weight")}
    if family not in PUBLISHED_CONFIGS or (family == "sd1" and widths != {_SD1_TEXT_WIDTH}):
        raise ModelError(
            f"{path}: a single file does not hold its configs, and those of {family} checkpoints differ. "
            f"Put model_index.json, configs and tokenizers of its base model into {beside}/ (no weights needed)."
        )
    repository, revision = PUBLISHED_CONFIGS[family]
    try:
        return download(repository, revision, weights=False)
    except ModelError as error:
        raise ModelError(
            f"{path}: needs the configs of its base model: put them into {beside}/ (no weights needed), or allow the "
            f"download of those of {repository}: {error}"
        ) from error


def check_agreement(path: Path, tensors: Tensors, scheduler: Mapping[str, Any]) -> None:
    """Raise ModelError if the file is marked for other noise than the scheduler's config has.

    `v_pred` and `ztsnr` are empty tensors by which authors mark v-prediction and zero-terminal SNR.
    """
    if "v_pred" in tensors and scheduler.get("prediction_type") != "v_prediction":
        wanted = '"prediction_type": "v_prediction"'
    elif "ztsnr" in tensors and not scheduler.get("rescale_betas_zero_snr"):
        wanted = '"rescale_betas_zero_snr": true'
    else:
        return
    raise ModelError(
        f"{path}: marked as a model of other noise than its configs have; put the configs into {path.with_suffix('')}/ "
        f"with {wanted} in scheduler/scheduler_config.json."
    )


def absent_parts(family: str, tensors: Tensors, components: Iterable[str]) -> list[str]:
    """Those of the components that the file does not hold."""
    parts = _PARTS[family]
    return [name for name in components if name in parts and not _has(tensors, *parts[name])]


def check_parts(path: Path, configs: Path, absent: Iterable[str]) -> None:
    """Raise ModelError unless the folder with the configs holds the weights of what the file lacks."""
    for name in absent:
        try:
            check_weights(configs / name)
        except ModelError as error:
            raise ModelError(
                f"{path}: holds no {name}; put its weights into {path.with_suffix('') / name}/ ({error})"
            ) from error


def load(pipeline_class: Any, path: Path, configs: Path, dtype: torch.dtype, given: Mapping[str, Any]) -> Any:
    """The diffusers pipeline of a single file. given: arguments of the pipeline that are not to be taken from it.

    Raises ModelError if weights that the configs ask for are not in the file.
    """
    from torch import nn

    pipeline = pipeline_class.from_single_file(
        str(path), config=str(configs), local_files_only=True, dtype=dtype, **given
    )
    for name, component in pipeline.components.items():
        if isinstance(component, nn.Module):
            # Weights that were not found stay without memory.
            lost = [key for key, value in component.state_dict().items() if value.is_meta]
            if lost:
                raise ModelError(f"{path}: lacks weights of {name}: {', '.join(lost[:3])}; are the configs its own?")
            component.eval()
    return pipeline
