"""Load a checkpoint of whatever family it is of."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.errors import ModelError
from t2i.families import single_file
from t2i.families.base import Dtypes, FamilyFacts, ModelFamily
from t2i.families.location import locate_checkpoint, public_model_name, read_model_index
from t2i.families.recognise import (
    FAMILIES,
    SAME_COMPONENTS,
    Checkpoint,
    Component,
    describe_checkpoint,
    read_checkpoint,
)
from t2i.families.safetensor_files import check_weights
from t2i.randomness import seeded_global

if TYPE_CHECKING:
    import torch

__all__ = [
    "describe_checkpoint",
    "facts_of",
    "family_class",
    "load_family",
    "load_pipeline",
    "locate_checkpoint",
    "public_model_name",
    "random_components",
]

_LIBRARIES = ("diffusers", "transformers")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model")


def load_family(
    model: str,
    *,
    expected: str | None = None,
    revision: str | None = None,
    dtype: Dtypes | None = None,
    random_seed: int | None = None,
) -> ModelFamily:
    """Load a model of whatever family it is, recognised from its files and never from its name.

    model: a diffusers folder, a single `.safetensors` file, a `pkg:` resource or a hub id. expected: name of the family
    that it must be of. random_seed: ignore weights, initialise from the configs. Raises ModelError if there is no such
    checkpoint, it is broken or pickled, or of a family that is not expected or not supported.
    """
    import torch

    checkpoint = describe_checkpoint(model, revision=revision, expected=expected)
    path = checkpoint.path
    if random_seed is None and path.is_dir():
        path = locate_checkpoint(model, revision)
    return family_class(checkpoint).load(str(path), dtype=dtype or torch.float32, random_seed=random_seed)


def family_class(checkpoint: Checkpoint) -> type[ModelFamily]:
    """The adapter class of a checkpoint's family."""
    module, _, name = FAMILIES[checkpoint.pipeline_class].partition(":")
    return getattr(importlib.import_module(module), name)


def facts_of(pipeline: object) -> FamilyFacts:
    """The facts of the family that a pipeline is of. Raises ModelError if it is of none."""
    name = type(pipeline).__name__
    target = FAMILIES.get(SAME_COMPONENTS.get(name, name))
    if target is None:
        raise ModelError(f"pipeline class {name} is not supported; supported: {', '.join(FAMILIES)}.")
    module, _, family = target.partition(":")
    return getattr(importlib.import_module(module), family).facts


def load_pipeline(folder: str, facts: FamilyFacts, *, dtype: Dtypes, random_seed: int | None) -> Any:
    """The diffusers pipeline of a folder or single file, all components in evaluation mode.

    Components that the facts call unused are left out, and optional ones where the checkpoint has none. Raises
    ModelError if the checkpoint is of another family, incomplete or broken.
    """
    import diffusers
    import transformers
    from safetensors import SafetensorError

    # Their bars would run through ours; loading takes seconds.
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    checkpoint = read_checkpoint(Path(folder))
    if checkpoint.family != facts.name:
        raise ModelError(f"{folder} is of family {checkpoint.family}; expected {facts.name}.")
    pipeline_class = getattr(diffusers, checkpoint.pipeline_class)
    given = absent_components(checkpoint, facts, pipeline_class)
    check_files(checkpoint, facts, weights=random_seed is None)
    try:
        if random_seed is not None:
            given |= random_components(checkpoint, facts, random_seed, dtype)
        else:
            is_file = checkpoint.path != checkpoint.configs
            models = [name for name, part in used_components(checkpoint, facts).items() if part.is_model]
            names = checkpoint.beside if is_file else models
            given |= {name: _from_folder(checkpoint, name, dtype_of(name, dtype)) for name in names}
            if is_file:
                return _quiet(_from_file(pipeline_class, checkpoint, dtype, given))
        # Pickled weights can run code; diffusers would fall back to them where safetensors are missing.
        named = {**dtype, "default": dtype_of("", dtype)} if isinstance(dtype, Mapping) else dtype
        return _quiet(pipeline_class.from_pretrained(checkpoint.configs, dtype=named, use_safetensors=True, **given))
    except ModelError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{folder}: cannot be loaded as {checkpoint.pipeline_class} ({reason}).") from error


def dtype_of(component: str, dtypes: Dtypes) -> torch.dtype:
    """The dtype of a component's weights."""
    import torch

    return dtypes.get(component, torch.float32) if isinstance(dtypes, Mapping) else dtypes


def _from_file(pipeline_class: Any, checkpoint: Checkpoint, dtypes: Dtypes, given: dict[str, Any]) -> Any:
    """Diffusers gives all that it reads from a single file one dtype, so components of another are cast afterwards."""
    from torch import nn

    pipeline = single_file.load(pipeline_class, checkpoint.path, checkpoint.configs, dtype_of("", dtypes), given)
    for name in dtypes if isinstance(dtypes, Mapping) else ():
        nn.Module.to(pipeline.components[name], dtype_of(name, dtypes))
    return pipeline


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def absent_components(checkpoint: Checkpoint, facts: FamilyFacts, pipeline_class: Any) -> dict[str, Any]:
    """Arguments that tell the pipeline what it goes without. Raises ModelError if it cannot go without something."""
    parameters = dict(inspect.signature(pipeline_class.__init__).parameters)
    parameters.pop("self")
    strangers = [name for name in checkpoint.components if name not in parameters]
    if strangers:
        raise ModelError(
            f"{checkpoint.configs}: holds {', '.join(strangers)}, which no {checkpoint.pipeline_class} has; "
            "is its model_index.json that of another model?"
        )
    optional = [name for name in facts.optional_components if name not in checkpoint.components]
    absent: dict[str, Any] = {name: None for name in (*facts.unused_components, *optional) if name in parameters}
    required = [name for name, value in parameters.items() if value.default is value.empty and name not in absent]
    missing = [name for name in required if name not in checkpoint.components]
    if missing:
        raise ModelError(f"{checkpoint.configs}: lacks {', '.join(missing)}, which {facts.name} needs.")
    if "requires_safety_checker" in parameters:
        absent["requires_safety_checker"] = False
    return absent


def check_files(checkpoint: Checkpoint, facts: FamilyFacts, *, weights: bool) -> None:
    """Raise ModelError for a component without its files: transformers makes an empty tokenizer of a missing one.

    weights: whether those of a folder are needed too; they are then read as far as their headers.
    """
    for name, component in used_components(checkpoint, facts).items():
        folder = checkpoint.configs / name
        if component.library not in _LIBRARIES:
            raise ModelError(f"{checkpoint.configs}: {name} is of {component.library!r}; expected diffusers classes.")
        for names in _needed_files(component):
            if not any((folder / file).is_file() for file in names):
                raise ModelError(
                    f"{checkpoint.configs}: lacks {name}/{' or '.join(names)}; the checkpoint is incomplete."
                )
        if weights and component.is_model and checkpoint.path == checkpoint.configs:
            check_weights(folder)


def used_components(checkpoint: Checkpoint, facts: FamilyFacts) -> dict[str, Component]:
    """What is loaded of a checkpoint."""
    return {name: value for name, value in checkpoint.components.items() if name not in facts.unused_components}


def _needed_files(component: Component) -> list[tuple[str, ...]]:
    """Files that a component's folder must hold, each with its alternatives."""
    if "Tokenizer" in component.class_name:
        return [_TOKENIZER_FILES, ("tokenizer_config.json",)]
    return [("config.json",)] if component.is_model else []


def random_components(checkpoint: Checkpoint, facts: FamilyFacts, seed: int, dtype: Dtypes) -> dict[str, Any]:
    """Every used component that has weights, built from its config with keyed random ones, in evaluation mode."""
    from torch import nn

    models: dict[str, Any] = {}
    used = used_components(checkpoint, facts)
    for number, name in enumerate(sorted(read_model_index(checkpoint.configs))):
        if name in used and used[name].is_model:
            with seeded_global(seed, "initialisation", number):
                model = component_from_config(checkpoint, name)
            models[name] = nn.Module.to(model, dtype_of(name, dtype)).eval()
    return models


def component_from_config(checkpoint: Checkpoint, name: str) -> Any:
    """A component with the weights that its class starts from."""
    component, folder = checkpoint.components[name], checkpoint.configs / name
    model_class = _model_class(component)
    if component.library == "diffusers":
        return model_class.from_config(model_class.load_config(folder))
    return model_class(model_class.config_class.from_pretrained(folder))


def _from_folder(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> Any:
    """Raises ModelError if weights are not in the files: transformers would draw them, with no more than a log line."""
    folder, model_class = checkpoint.configs / name, _model_class(checkpoint.components[name])
    model, found = model_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder}: lacks {len(missing)} of the tensors that its config asks for: {', '.join(missing[:3])}; the "
            "checkpoint is incomplete or the config is another's."
        )
    return model.eval()


def _model_class(component: Component) -> Any:
    return getattr(importlib.import_module(component.library), component.class_name)
