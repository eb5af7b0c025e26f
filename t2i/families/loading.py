"""Find out which family a checkpoint belongs to, from the checkpoint itself, and load its pipeline."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.errors import ModelError
from t2i.families.base import FamilyFacts, ModelFamily
from t2i.randomness import seeded_global
from t2i.resources import resolve_path

if TYPE_CHECKING:
    import torch

FAMILIES: dict[str, str] = {"StableDiffusionPipeline": "t2i.families.sd1:SD1"}
"""Pipeline class in model_index.json -> module:class. Imported only when needed."""


def load_family(
    model: str, *, revision: str | None = None, dtype: torch.dtype | None = None, random_seed: int | None = None
) -> ModelFamily:
    """Load a model of whatever family its model_index.json declares.

    model: a diffusers folder, `pkg:` resource or hub id. random_seed: ignore weights, initialise from the configs.
    Raises ModelError if there is no such checkpoint or its family is not supported.
    """
    import torch

    folder = locate_checkpoint(model, revision)
    family = family_class(folder)
    return family.load(str(folder), dtype=dtype or torch.float32, random_seed=random_seed)


def locate_checkpoint(model: str, revision: str | None = None) -> Path:
    """The local folder of a model; a hub id is downloaded (or found in the hub's cache) at its revision."""
    local = resolve_path(model)
    if local.is_dir():
        return local
    if model.startswith(("pkg:", "/", ".", "~")) or model.count("/") != 1:
        raise ModelError(
            f"model {model!r}: no such folder ({local}); expected a diffusers folder or a hub id 'owner/name'."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(model, revision=revision, ignore_patterns=["*.bin", "*.ckpt", "*.pt", "*.msgpack"])
        )
    except Exception as error:  # the hub client raises a dozen unrelated classes
        reason = str(error).splitlines()[0]
        raise ModelError(f"model {model!r}: neither a local folder nor to be had from the hub ({reason}).") from error


def public_model_name(model: str) -> str:
    """What a file that is passed on says of its model: a hub id or `pkg:` name; of a local folder, its name alone."""
    path = resolve_path(model)
    return path.name if path.exists() and not model.startswith("pkg:") else model


def family_class(folder: Path) -> type[ModelFamily]:
    """The family a checkpoint folder says it is of. Raises ModelError naming the supported ones otherwise."""
    index = read_model_index(folder)
    class_name = index.get("_class_name")
    if class_name not in FAMILIES:
        raise ModelError(f"{folder}: pipeline class {class_name!r} is not supported; supported: {', '.join(FAMILIES)}.")
    module, _, name = FAMILIES[class_name].partition(":")
    return getattr(importlib.import_module(module), name)


def read_model_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a diffusers folder. Raises ModelError if it is missing or not JSON."""
    path = folder / "model_index.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no model_index.json; expected a folder in diffusers layout.") from error
    except ValueError as error:
        raise ModelError(f"{path}: not JSON ({error}).") from error


def load_pipeline(folder: str, facts: FamilyFacts, *, dtype: torch.dtype, random_seed: int | None) -> Any:
    """The diffusers pipeline of a folder, without a safety checker.

    The safety checker is left out on purpose: it would replace training samples by black images without a word.
    """
    import diffusers
    import transformers
    from safetensors import SafetensorError

    # Their bars would run through ours; loading takes seconds.
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    pipeline_class = getattr(diffusers, facts.pipeline_class)
    optional: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    _check_complete(Path(folder), optional=set(optional))
    components = {} if random_seed is None else random_components(Path(folder), random_seed)
    try:
        # Pickled weights can run code; diffusers would fall back to them where safetensors are missing.
        pipeline = pipeline_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, **components, **optional)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: cannot be loaded as {facts.pipeline_class} ({str(error).splitlines()[0]})."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _check_complete(folder: Path, *, optional: set[str]) -> None:
    """Raise ModelError for a component without its files: transformers makes an empty tokenizer of a missing one."""
    for name, value in read_model_index(folder).items():
        if name in optional or not isinstance(value, list) or value[1] is None:
            continue
        needed = [("tokenizer.json", "vocab.json"), ("tokenizer_config.json",)] if "Tokenizer" in value[1] else [("",)]
        for names in needed:
            if not any((folder / name / file).exists() for file in names):
                raise ModelError(f"{folder}: lacks {name}/{' or '.join(names)}; the checkpoint is incomplete.")


def random_components(folder: Path, seed: int) -> dict[str, Any]:
    """Every neural component of a diffusers folder, built from its config.json with keyed random weights."""
    components: dict[str, Any] = {}
    for number, (name, value) in enumerate(sorted(read_model_index(folder).items())):
        config = folder / name / "config.json"
        if isinstance(value, list) and value[0] in ("diffusers", "transformers") and config.exists():
            model_class = getattr(importlib.import_module(value[0]), value[1])
            with seeded_global(seed, "initialisation", number):
                components[name] = _from_config(model_class, config, library=value[0])
    return components


def _from_config(model_class: Any, config: Path, *, library: str) -> Any:
    if library == "diffusers":
        return model_class.from_config(model_class.load_config(config.parent))
    return model_class(model_class.config_class.from_pretrained(config.parent))
