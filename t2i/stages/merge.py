"""Make one adapter of several, or of one another: merged, resized, or extracted from a whole model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from t2i.config import FrozenModel, LocalPath, ModelPath
from t2i.stages.base import Stage, StageContext, StageNames
from t2i.stages.trained_kind import misfit_of

if TYPE_CHECKING:
    from t2i.export.factors import Adapter
    from t2i.export.merge import Merged, Size, WeightOf
    from t2i.families.base import ModelFamily


class ModuleWeights(FrozenModel):
    """Weights of the adapters in some modules."""

    match: str = Field(min_length=1)
    """Regular expression that is searched for in module names, such as `unet\\.up_blocks` or `text_encoder`."""
    weights: tuple[float, ...] = Field(min_length=1)
    """One per adapter."""

    @field_validator("match")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


class Merge(Stage):
    """Write an adapter as a train stage does, from those of earlier stages or from LoRA files of any layout."""

    version: ClassVar[int] = 1
    produces: ClassVar[str] = "weights"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"weights_from": ("weights",)}

    type: Literal["merge"] = "merge"
    model: ModelPath | None = None
    """The model that the adapters belong to; the recipe's `model` if absent."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    weights_from: StageNames = None
    """Train or merge stages, in order; for `extract` one that trained a whole model."""
    adapters: tuple[LocalPath, ...] = ()
    """LoRA files, after those stages."""
    kind: Literal["linear", "cat", "svd", "factors", "extract"] = "linear"
    """`linear`: sum of weight changes in the smallest rank that holds it. `cat`: the same with all ranks side by side.
    `svd`: its nearest adapter of `rank` or `energy`, which of a single adapter resizes it. `factors`: A and B averaged
    each for itself, for adapters of equal shape that are near each other. `extract`: what lies between `model` and a
    whole trained model."""
    weights: tuple[float, ...] | None = None
    """One per adapter; 1 / their number if absent."""
    modules: tuple[ModuleWeights, ...] = ()
    """Other weights for some modules; the first that matches counts."""
    rank: int | None = Field(default=None, ge=1, le=4096)
    """For `svd` and `extract`: the rank of every module."""
    energy: float | None = Field(default=None, gt=0, lt=1)
    """For `svd` and `extract`: keep this share of the squared norm of every module's change, for example 0.99."""

    @model_validator(mode="after")
    def _consistent(self) -> Merge:
        count = self._count()
        if not count:
            raise ValueError("nothing to merge; name stages in `weights_from` or files in `adapters`")
        if self.kind in ("svd", "extract") and self.rank is None and self.energy is None:
            raise ValueError(f"kind {self.kind}: give a `rank`, an `energy`, or both")
        if self.kind not in ("svd", "extract") and (self.rank or self.energy):
            raise ValueError(f"rank and energy: kind {self.kind} keeps the whole; use svd to cut it down")
        if self.kind == "extract" and (count != 1 or self.adapters or self.weights or self.modules):
            raise ValueError("kind extract: takes exactly one stage in `weights_from`, and no weights")
        for weights in (self.weights, *(rule.weights for rule in self.modules)):
            if weights is not None and len(weights) != count and "*" not in str(self.weights_from):
                raise ValueError(f"weights: {len(weights)} of them for {count} adapters")
        return self

    def _count(self) -> int:
        stages = (self.weights_from,) if isinstance(self.weights_from, str) else self.weights_from or ()
        return len(stages) + len(self.adapters)

    def misfit(self, earlier: Mapping[str, Stage]) -> tuple[str, str]:
        if self.model is None and self.weights_from is None:
            return "model", "no model; set `model` here or at the top of the recipe"
        names = self.references.get("weights_from", ())
        message = misfit_of(names, earlier, whole=self.kind == "extract")
        return ("weights_from", message) if message else ("", "")

    def run(self, context: StageContext) -> dict[str, Any]:
        from t2i.errors import ConfigError
        from t2i.export.adapter import write_adapter
        from t2i.families.loading import load_family
        from t2i.stages.lineage import trained_over
        from t2i.training.outputs import ADAPTER_FOLDER, LORA_FILE

        stages = [folder for _, folder in context.inputs.get("weights_from", [])]
        base = trained_over(stages) if self.kind != "extract" else None
        if base is None and self.model is None:
            raise ConfigError(f"stage {self.label}: no model; set `model` here or at the top of the recipe.")
        family = load_family(str(base or self.model), revision=None if base else self.revision)
        merged = self._merged(context, family)
        path = context.folder / ADAPTER_FOLDER / LORA_FILE
        path.parent.mkdir(exist_ok=True)
        metadata = {"t2i_recipe": context.recipe_name, "t2i_merge": self.kind}
        write_adapter(merged.adapter, path, family, layout="diffusers", precision="fp32", metadata=metadata)
        ranks = [factors.rank for factors in merged.adapter.values()]
        return {
            "adapter": path.relative_to(context.folder).as_posix(),
            "merged": len(stages) + len(self.adapters),
            "kind": self.kind,
            "ranks": f"{min(ranks)} to {max(ranks)}",
            "relative_error": float(f"{merged.error:.3g}"),
        }

    def _merged(self, context: StageContext, family: ModelFamily) -> Merged:
        if self.kind == "extract":
            return self._extracted(context.input("weights_from"), family)
        return merged_files(self, self._files(context), family)

    def _files(self, context: StageContext) -> list[Path]:
        from t2i.resources import resolve_path
        from t2i.training.outputs import trained_adapter

        stages = [trained_adapter(folder) for _, folder in context.inputs.get("weights_from", [])]
        return stages + [resolve_path(path) for path in self.adapters]

    def weights_of(self, count: int) -> list[WeightOf]:
        """For each of so many adapters: module -> weight."""
        default = self.weights or (1 / count,) * count
        return [lambda module, index=index: self._weight(module, index, default) for index in range(count)]

    def _weight(self, module: str, index: int, default: tuple[float, ...]) -> float:
        rules = (rule.weights for rule in self.modules if re.search(rule.match, module))
        return next(rules, default)[index]

    def size(self) -> Size:
        """How large the adapter of `svd` and `extract` may be."""
        from t2i.export.merge import Size

        return Size(self.rank, self.energy or 1.0)

    def _extracted(self, folder: Path, family: ModelFamily) -> Merged:
        from t2i.errors import ConfigError
        from t2i.export.merge import extract
        from t2i.export.whole import base_weights
        from t2i.families.loading import load_family
        from t2i.training.outputs import trained_model

        whole = trained_model(folder)
        if whole is None:
            raise ConfigError(f"stage {self.label}: {folder.name} trained an adapter; extract takes a whole model.")
        tuned = load_family(str(whole), expected=family.facts.name)
        return extract(base_weights(family), base_weights(tuned), self.size())


def merged_files(stage: Merge, files: Sequence[Path], family: ModelFamily) -> Merged:
    """Merge LoRA files of any layout as a stage says.

    Raises ModelError for files that do not fit the model, ConfigError for weights that do not fit the files.
    """
    from t2i.errors import ConfigError
    from t2i.export.factors import check_adapter
    from t2i.export.layouts import ModelLayers
    from t2i.export.merge import merge
    from t2i.export.reading import read_adapter

    if stage.kind == "extract":
        raise ConfigError("kind extract: takes a whole model, not LoRA files.")
    # With rounds that were not run there are fewer of them than the recipe names.
    for weights in (stage.weights, *(rule.weights for rule in stage.modules)):
        if weights is not None and len(weights) != len(files):
            raise ConfigError(f"stage {stage.label}: weights: {len(weights)} of them for {len(files)} adapters.")
    layers = ModelLayers.of(family.facts, family.pipeline)
    adapters: list[Adapter] = []
    for path in files:
        adapters.append(read_adapter(path, layers).adapter)
        check_adapter(adapters[-1], str(path))
    _check_rules(stage, adapters)
    return merge(adapters, stage.weights_of(len(adapters)), stage.kind, stage.size())


def _check_rules(stage: Merge, adapters: Sequence[Adapter]) -> None:
    """Raise ConfigError for weights of modules that no adapter has."""
    from t2i.errors import ConfigError

    known = list(dict.fromkeys(module for adapter in adapters for module in adapter))
    for rule in stage.modules:
        if not any(re.search(rule.match, module) for module in known):
            near = ", ".join(difflib.get_close_matches(rule.match, known, n=2, cutoff=0))
            raise ConfigError(
                f"stage {stage.label}: modules: {rule.match!r} matches no module of the adapters; nearest: {near}."
            )
