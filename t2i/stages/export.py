"""Write what was trained as files that other tools load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from t2i.config import ModelPath
from t2i.stages.base import Stage, StageContext
from t2i.stages.trained_kind import is_whole

if TYPE_CHECKING:
    from t2i.export.adapter import Exported
    from t2i.families.base import ModelFamily

_CONVERTED = ("kohya", "comfyui")
"""Layouts for which `dora_rank` converts a DoRA."""
_WHOLE = "trained a whole model, which is written as the folder that it is; leave out what is for adapters"


class Export(Stage):
    """Write LoRA files, each loaded through plain diffusers and compared before it gets its name, or a whole model."""

    version: ClassVar[int] = 1
    produces: ClassVar[str] = "files"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"weights_from": ("weights",), "compare_from": ("comparison",)}

    type: Literal["export"] = "export"
    model: ModelPath | None = None
    """The model that the adapter belongs to; the recipe's `model` if absent."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    weights_from: str
    """A train stage."""
    layouts: tuple[Literal["diffusers", "peft", "kohya", "comfyui", "merged"], ...] = Field(
        default=("diffusers",), min_length=1
    )
    """`diffusers`, or `peft` for PixArt; `kohya` is what most interfaces read, `comfyui` has the authors' names;
    `merged` is the whole model with the adapter in its weights, as a diffusers folder."""
    dora_rank: int | None = Field(default=None, ge=1, le=4096)
    """Convert a DoRA to the nearest plain LoRA of this rank, for `kohya` and `comfyui`, which have no DoRA for every
    model; the error is reported."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Of the written weights; fp32 keeps every bit."""
    compare_from: str | None = None
    """A compare stage, whose scores without and with the adapter go into the files and the model card."""
    file_name: str = Field(default="", pattern=r"^([\w-][\w.-]*)?$")
    """Stem of the files; the recipe's name if empty."""

    @model_validator(mode="after")
    def _rank_is_used(self) -> Export:
        if self.dora_rank is not None and not set(self.layouts) & set(_CONVERTED):
            raise ValueError(
                f"dora_rank: layouts {', '.join(self.layouts)} take a DoRA as it is; "
                f"leave it out, or add {' or '.join(_CONVERTED)}"
            )
        return self

    def misfit(self, earlier: Mapping[str, Stage]) -> tuple[str, str]:
        source = self.weights_from
        used = self._for_adapters() if is_whole(earlier.get(source)) else []
        return (used[0], f"{source} {_WHOLE}") if used else ("", "")

    def run(self, context: StageContext) -> dict[str, Any]:
        from t2i.stages.lineage import trained_over
        from t2i.training.outputs import trained_adapter, trained_model

        source = context.input("weights_from")
        model = trained_model(source)
        if model is not None:
            self._check_whole(source)
            return self._export_model(model, context.folder)
        return self._export_adapter(trained_adapter(source), trained_over([source]), context)

    def _check_whole(self, source: Path) -> None:
        """For what `misfit` could not see through. Raises ConfigError for fields that a whole model passes over."""
        from t2i.errors import ConfigError

        if used := self._for_adapters():
            raise ConfigError(f"stage {self.label}: {', '.join(used)}: {source.name} {_WHOLE}.")

    def _for_adapters(self) -> list[str]:
        """Fields that say something and that a whole model would pass over."""
        fields = ("layouts", "dora_rank", "compare_from")
        return [name for name in fields if getattr(self, name) != type(self).model_fields[name].default]

    def _export_adapter(self, source: Path, base_folder: Path | None, context: StageContext) -> dict[str, Any]:
        """base_folder: of the model that an earlier stage trained and the adapter belongs to; None for `model`."""
        from t2i.errors import ConfigError
        from t2i.export.card import Base, card, header
        from t2i.export.layouts import ModelLayers
        from t2i.export.reading import read_adapter
        from t2i.families.loading import load_family, public_model_name
        from t2i.files import write_text
        from t2i.resources import hash_path

        if self.model is None and base_folder is None:
            raise ConfigError(f"stage {self.label}: no model; set `model` here or at the top of the recipe.")
        if base_folder is not None:
            family = load_family(str(base_folder))
            base = Base(
                family.facts.name, f"{base_folder.parent.name} of {context.recipe_name}", hash_path(base_folder)
            )
        else:
            family = load_family(str(self.model), revision=self.revision)
            base = Base(family.facts.name, public_model_name(str(self.model)), self._model_hash(context))
        imported = read_adapter(source, ModelLayers.of(family.facts, family.pipeline))
        title, scores = self.file_name or context.recipe_name, self._scores(context)
        facts: dict[str, Any] = {}
        strings: dict[str, str] = {}
        for layout in self.layouts:
            strings = header(imported.adapter, base, layout, title, imported.metadata, scores)
            exported = self._export_layout(source, context.folder / f"{title}.{layout}", family, layout, strings)
            facts[exported.path.name] = str(exported)
        files = [context.folder / name for name in facts]
        write_text(context.folder / "README.md", card(title, base, strings, files))
        return facts

    def _model_hash(self, context: StageContext) -> str:
        """Of a local model; the engine has it already, in the stage's configuration."""
        path = context.folder / "config.json"
        if not path.is_file():
            return ""
        return json.loads(path.read_text()).get("files", {}).get("model", {}).get("sha256", "")

    def _scores(self, context: StageContext) -> list[dict[str, Any]]:
        from t2i.stages.compare import COMPARISON_FILE

        if self.compare_from is None:
            return []
        return json.loads((context.input("compare_from") / COMPARISON_FILE).read_text())["overall"]

    def _export_layout(
        self, source: Path, stem: Path, family: ModelFamily, layout: str, metadata: dict[str, str]
    ) -> Exported:
        from t2i.export.adapter import export_lora

        is_folder = layout in ("peft", "merged")
        if is_folder:
            _remove_leftover(stem)
        return export_lora(
            source,
            stem if is_folder else stem.with_name(f"{stem.name}.safetensors"),
            family,
            layout=layout,  # pyright: ignore[reportArgumentType]
            precision=self.precision,
            metadata=metadata,
            dora_rank=self.dora_rank if layout in _CONVERTED else None,
        )

    def _export_model(self, source: Path, folder: Path) -> dict[str, Any]:
        from t2i.export.model import export_model

        target = folder / (self.file_name or "model")
        _remove_leftover(target)
        return export_model(source, target, precision=self.precision)


def _remove_leftover(folder: Path) -> None:
    """Remove what an interrupted run of the stage wrote, which has no mark of being finished."""
    shutil.rmtree(folder, ignore_errors=True)
