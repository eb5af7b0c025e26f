"""Find a checkpoint and say what it is, from its JSON files or the header of its weights; nothing heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t2i.errors import ModelError
from t2i.families import single_file
from t2i.families.location import locate_checkpoint, read_json, read_model_index
from t2i.families.safetensor_files import read_header

FAMILIES: dict[str, str] = {
    "StableDiffusionPipeline": "t2i.families.sd1:SD1",
    "StableDiffusionXLPipeline": "t2i.families.sdxl:SDXL",
    "PixArtAlphaPipeline": "t2i.families.pixart:PixArt",
    "PixArtSigmaPipeline": "t2i.families.pixart:PixArt",
    "StableDiffusion3Pipeline": "t2i.families.sd3:SD3",
    "FluxPipeline": "t2i.families.flux:Flux",
}
"""Pipeline class in model_index.json -> module:class. Imported only when needed; the module's name is the family's."""

SAME_COMPONENTS: dict[str, str] = {
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusion3Img2ImgPipeline": "StableDiffusion3Pipeline",
    "FluxImg2ImgPipeline": "FluxPipeline",
}
"""Pipeline classes that some checkpoints declare and that are made of what the family's own class is made of."""

_CONFIG_FILES = ("config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Component:
    """One part of a pipeline."""

    library: str
    """`diffusers` or `transformers`, where its class is."""
    class_name: str
    config: Mapping[str, Any]
    """Its configuration as the checkpoint holds it."""

    @property
    def is_model(self) -> bool:
        """Whether it has weights."""
        return not any(word in self.class_name for word in ("Tokenizer", "Scheduler", "Processor", "Extractor"))


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself."""

    path: Path
    """Its folder, or its single file."""
    configs: Path
    """The folder with model_index.json and the configs: the same, or one that belongs to the single file."""
    family: str
    pipeline_class: str
    """The family's pipeline class for it: a key of FAMILIES."""
    components: Mapping[str, Component]
    """By attribute of the pipeline, without those that the checkpoint leaves empty."""
    settings: Mapping[str, Any]
    """Arguments of the pipeline that are no components, for example `force_zeros_for_empty_prompt`."""
    beside: tuple[str, ...] = ()
    """Components whose weights are not in the single file but in the folder with the configs."""


def describe_checkpoint(model: str, *, revision: str | None = None, expected: str | None = None) -> Checkpoint:
    """Family, classes and configs of a model; of a hub model only these small files are fetched.

    model: as for `load_family`. expected: the family it must be of. Raises ModelError if there is no such checkpoint,
    it is of another family, or its family is not supported.
    """
    checkpoint = read_checkpoint(locate_checkpoint(model, revision, weights=False))
    if expected is not None and checkpoint.family != expected:
        raise ModelError(f"model {model!r} is of family {checkpoint.family}; expected {expected}.")
    return checkpoint


def read_checkpoint(path: Path) -> Checkpoint:
    """The same of a local folder or single file."""
    if path.is_dir():
        return _read_folder(path, path)
    tensors = read_header(path)
    family = single_file.family_of(path, tensors)
    configs = single_file.config_folder(path, family, tensors)
    checkpoint = _read_folder(path, configs)
    if checkpoint.family != family:
        raise ModelError(f"{path} is of family {family}, but its configs in {configs} are of {checkpoint.family}.")
    absent = single_file.absent_parts(family, tensors, checkpoint.components)
    single_file.check_parts(path, configs, absent)
    if "scheduler" in checkpoint.components:
        single_file.check_agreement(path, tensors, checkpoint.components["scheduler"].config)
    return replace(checkpoint, beside=tuple(absent))


def _read_folder(path: Path, configs: Path) -> Checkpoint:
    index = read_model_index(configs)
    declared = index.get("_class_name")
    pipeline_class = SAME_COMPONENTS.get(str(declared), str(declared))
    if pipeline_class not in FAMILIES:
        raise ModelError(f"{configs}: pipeline class {declared!r} is not supported; supported: {', '.join(FAMILIES)}.")
    components, settings = {}, {}
    for name, value in index.items():
        if name.startswith("_"):
            continue
        if not (isinstance(value, list) and len(value) == 2):
            settings[name] = value
        elif isinstance(value[0], str) and isinstance(value[1], str):
            components[name] = Component(value[0], value[1], _config(configs / name))
    family = FAMILIES[pipeline_class].partition(":")[0].rpartition(".")[2]
    return Checkpoint(path, configs, family, pipeline_class, components, settings)


def _config(folder: Path) -> dict[str, Any]:
    """Configuration of a component, empty if there is none."""
    return next((read_json(folder / name) for name in _CONFIG_FILES if (folder / name).is_file()), {})
