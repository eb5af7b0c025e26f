"""Small stages that write small files, for the tests of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue

from t2i.config import FrozenModel, LocalPath, ModelPath, speed_only
from t2i.errors import DataError
from t2i.recipe import Recipe, load_recipe
from t2i.stages.base import InspectContext, Stage, StageContext


class Lora(FrozenModel):
    type: Literal["lora"] = "lora"
    rank: int = Field(default=16, gt=0)
    threads: int = speed_only(1)


class Full(FrozenModel):
    type: Literal["full"] = "full"


class Read(Stage):
    """Lists a folder of files."""

    produces: ClassVar[str] = "captioned_images"
    type: Literal["read"] = "read"
    images: LocalPath
    batch_size: int = speed_only(8, gt=0)

    def run(self, context: StageContext) -> dict[str, Any]:
        names = sorted(path.name for path in Path(self.images).iterdir())
        if not names:
            raise DataError(f"{self.images}: no images")
        (context.folder / "names.txt").write_text("\n".join(names))
        return {"images": len(names)}

    def inspect(self, context: InspectContext) -> dict[str, JsonValue]:
        return {"files": len(list(Path(self.images).iterdir()))}


class Train(Stage):
    """Writes its seed and steps; `fail` makes it stop half-way."""

    produces: ClassVar[str] = "weights"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"data_from": ("captioned_images",), "model_from": ("weights",)}
    type: Literal["train"] = "train"
    data_from: str | None = None
    model: ModelPath | None = None
    model_from: str | None = None
    revision: str | None = None
    steps: int = Field(gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    trained: Annotated[Lora | Full, Field(discriminator="type")] = Lora()
    fail: Literal["no", "interrupt", "error"] = speed_only("no")

    def run(self, context: StageContext) -> dict[str, Any]:
        (context.folder / "half.txt").write_text("half")
        if self.fail == "interrupt":
            raise KeyboardInterrupt
        if self.fail == "error":
            raise ZeroDivisionError("nothing planned for this")
        (context.folder / "weights.txt").write_text(f"{context.seed} {self.steps}")
        return {"steps": self.steps}


class Table(Stage):
    """Reads any number of stages."""

    produces: ClassVar[str] = "table"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"arms_from": ("weights",)}
    type: Literal["table"] = "table"
    arms_from: tuple[str, ...] = Field(min_length=1)

    def run(self, context: StageContext) -> dict[str, Any]:
        (context.folder / "table.txt").write_text("\n".join(name for name, _ in context.inputs["arms_from"]))
        return {}


class Choose(Stage):
    """Reads rounds, and has read enough after some."""

    produces: ClassVar[str] = "weights"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {"arms_from": ("weights",)}
    may_stop_rounds: ClassVar[bool] = True
    type: Literal["choose"] = "choose"
    arms_from: tuple[str, ...] = Field(min_length=1)
    enough: int

    def run(self, context: StageContext) -> dict[str, Any]:
        (context.folder / "chosen.txt").write_text("\n".join(name for name, _ in context.inputs["arms_from"]))
        return {}

    def decided(self, inputs: Mapping[str, Sequence[tuple[str, Path]]]) -> str:
        read = [(name, (folder / "weights.txt").read_text()) for name, folder in inputs["arms_from"]]
        return f"not needed: {self.enough} are enough" if len(read) >= self.enough else ""


class Fill(Stage):
    """Writes a file of any size in 64 KiB pieces."""

    produces: ClassVar[str] = "bytes"
    type: Literal["fill"] = "fill"
    size: int

    def run(self, context: StageContext) -> dict[str, Any]:
        with (context.folder / "big.bin").open("wb") as file:
            for _ in range(0, self.size, 65536):
                file.write(bytes(65536))
        return {}


STAGE_TYPES: dict[str, type[Stage]] = {"read": Read, "train": Train, "table": Table, "fill": Fill, "choose": Choose}


def load(folder: Path, text: str, *overrides: str) -> Recipe:
    """Read a recipe from text; `IMAGES` in it stands for a folder with two files."""
    images = folder / "images"
    if not images.exists():
        images.mkdir()
        for name in ("a.txt", "b.txt"):
            (images / name).write_text(name)
    path = folder / "demo.yaml"
    path.write_text(text.replace("IMAGES", str(images)))
    return load_recipe(path, overrides, STAGE_TYPES)
