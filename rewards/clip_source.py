"""Where a CLIP model comes from: a transformers checkpoint, or an open_clip file beside a base model's settings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from rewards.checkpoints import (
    content_hash,
    files_hash,
    fill,
    local_file,
    local_folder,
    read_state,
    settings_files,
    settings_folder,
    weight_files,
)
from rewards.devices import no_progress_bar
from rewards.errors import ModelError
from rewards.open_clip import clip_weights
from rewards.preprocess import Preprocessor, TensorPadding, read_preprocessor

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, SiglipConfig, SiglipModel

MODEL_TYPES = ("clip", "siglip")


@dataclass(frozen=True)
class TransformersClip:
    """Folder or hub id of a transformers CLIPModel or SiglipModel."""

    model: str
    revision: str | None = None

    @property
    def label(self) -> str:
        """How errors name it."""
        return self.model

    @cached_property
    def folder(self) -> Path:
        """Folder of the configuration and the tokenizer."""
        return local_folder(self.model, self.revision)

    @cached_property
    def config(self) -> CLIPConfig | SiglipConfig:
        """Configuration of both towers."""
        return read_config(self.folder, self.model)

    @cached_property
    def preprocessor(self) -> Preprocessor:
        """From images to the model's input."""
        return read_preprocessor(self.folder, self.config.model_type)

    @cached_property
    def _hash(self) -> str:
        return content_hash(self.folder)

    def facts(self) -> dict[str, str]:
        """What an embedding depends on: the hash of the files, and any option of the preprocessing."""
        return {"weights": self._hash}

    def load(self) -> CLIPModel | SiglipModel:
        """The model in float32, on the CPU. Raises ModelError."""
        import torch
        from safetensors import SafetensorError
        from transformers import CLIPModel, SiglipModel

        weight_files(self.folder)
        model_class = SiglipModel if self.config.model_type == "siglip" else CLIPModel
        try:
            with no_progress_bar():
                loaded = model_class.from_pretrained(str(self.folder), dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{self.model}: weights cannot be read ({str(error).splitlines()[0]}).") from error
        # The return type is not annotated for output_loading_info=True: a pair.
        model, report = cast("tuple[CLIPModel | SiglipModel, dict[str, set[str]]]", loaded)
        # transformers would go on with random numbers in their place.
        missing = sorted({*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])})
        if missing:
            raise ModelError(f"{self.model}: {len(missing)} weights are missing or misshapen, first {missing[0]}.")
        return model


@dataclass(frozen=True)
class OpenClip:
    """An open_clip checkpoint, mapped onto CLIPModel; architecture and tokenizer are those of `base`.

    model: the file, or a folder or hub id that holds `file`; base: a transformers CLIP of the same architecture, of
    which only the settings are read.
    """

    model: str
    file: str
    base: str
    revision: str | None = None
    base_revision: str | None = None
    antialias: bool = True

    @property
    def label(self) -> str:
        """How errors name it."""
        return self.model

    @cached_property
    def folder(self) -> Path:
        """Folder of the configuration and the tokenizer."""
        return settings_folder(self.base, self.base_revision)

    @cached_property
    def config(self) -> CLIPConfig | SiglipConfig:
        """Configuration of both towers."""
        return read_config(self.folder, self.base)

    @cached_property
    def preprocessor(self) -> TensorPadding:
        """From images to the model's input."""
        vision_config = cast("CLIPVisionConfig", self.config.vision_config)
        side = vision_config.image_size
        if not isinstance(side, int):
            raise ModelError(f"{self.base}: image_size is {side}; expected one number, for a square.")
        return TensorPadding(side, self.antialias)

    @cached_property
    def _file(self) -> Path:
        return local_file(self.model, self.file, self.revision)

    @cached_property
    def _hash(self) -> str:
        return files_hash([self._file, *settings_files(self.folder)])

    def facts(self) -> dict[str, str]:
        """What an embedding depends on: the hash of the files, and any option of the preprocessing."""
        return {"weights": self._hash, "antialias": str(self.antialias)}

    def load(self) -> CLIPModel | SiglipModel:
        """The model in float32, on the CPU. Raises ModelError."""
        from transformers import CLIPConfig, CLIPModel

        if not isinstance(self.config, CLIPConfig):
            raise ModelError(f"{self.base}: model_type is {self.config.model_type!r}; expected 'clip'.")
        model = CLIPModel(self.config)
        fill(model, clip_weights(read_state(self._file), str(self._file)), str(self._file))
        return model


ClipSource: TypeAlias = TransformersClip | OpenClip
"""Files of one CLIP model with its preprocessing. Equal sources give equal embeddings."""


def read_config(folder: Path, label: str) -> CLIPConfig | SiglipConfig:
    """config.json of a CLIP or SigLIP checkpoint. Raises ModelError for none, or another kind of model."""
    from transformers import CLIPConfig, SiglipConfig

    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{label}: no readable config.json; expected a transformers CLIPModel.") from error
    kind = values.get("model_type")
    if kind not in MODEL_TYPES:
        raise ModelError(f"{label}: model_type is {kind!r}; expected 'clip' or 'siglip'.")
    if not (isinstance(values.get("text_config"), dict) and isinstance(values.get("vision_config"), dict)):
        raise ModelError(f"{label}: config.json lacks text_config or vision_config; expected a model of both towers.")
    return SiglipConfig.from_dict(values) if kind == "siglip" else CLIPConfig.from_dict(values)
