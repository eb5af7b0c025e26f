"""A model without its weights: every tensor has a shape and a dtype and nothing in it (torch's meta device).

Of a checkpoint of any size this takes a second or two and next to no memory. Tokenizers and schedulers are real: facts,
limits and checks that need no weights are those of the loaded model, and a pass through it gives shapes.
"""

from __future__ import annotations

from typing import Any

import torch

from t2i.errors import ModelError
from t2i.families.base import Dtypes, FamilyFacts, ModelFamily
from t2i.families.loading import (
    absent_components,
    check_files,
    component_from_config,
    dtype_of,
    family_class,
    used_components,
)
from t2i.families.recognise import Checkpoint, describe_checkpoint
from t2i.resources import resolve_path


def outline_family(
    model: str, *, revision: str | None = None, dtype: Dtypes = torch.float32, weights: bool = True
) -> ModelFamily:
    """A model of whatever family it is, as `load_family` would give it, without its weights.

    weights: whether those of a local checkpoint must be there and whole, as far as their headers say. Of a hub model
    only the small files are fetched. Raises ModelError as `load_family` does.
    """
    checkpoint = describe_checkpoint(model, revision=revision)
    family = family_class(checkpoint)
    is_local = resolve_path(model).exists()
    check_files(checkpoint, family.facts, weights=weights and is_local)
    return family(_outline_pipeline(checkpoint, family.facts, dtype))  # pyright: ignore[reportCallIssue]


def _outline_pipeline(checkpoint: Checkpoint, facts: FamilyFacts, dtype: Dtypes) -> Any:
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    pipeline_class = getattr(diffusers, checkpoint.pipeline_class)
    given = absent_components(checkpoint, facts, pipeline_class)
    try:
        for name, component in used_components(checkpoint, facts).items():
            if component.is_model:
                with torch.device("meta"):
                    model = component_from_config(checkpoint, name)
                given[name] = torch.nn.Module.to(model, dtype_of(name, dtype)).eval()
                if component.library == "transformers":
                    ignore_mask(model)
        return pipeline_class.from_pretrained(checkpoint.configs, **given)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{checkpoint.configs}: its configs do not make a {checkpoint.pipeline_class} ({reason})."
        ) from error


def ignore_mask(encoder: torch.nn.Module) -> None:
    """Let a text encoder without weights run: it would look into its mask, in which there is nothing."""
    encoder.register_forward_pre_hook(_without_mask, with_kwargs=True)


def _without_mask(_: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The arguments of a text encoder without its mask, on which no shape depends."""
    return args, {name: value for name, value in kwargs.items() if name != "attention_mask"}
