"""What a stage is: a frozen, tagged part of a recipe that fills one folder from the folders of earlier stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, JsonValue

from t2i.config import FrozenModel
from t2i.config import speed_only as speed_only  # stages import it from here

if TYPE_CHECKING:
    from t2i.data.preview import Preview


@dataclass(frozen=True)
class StageContext:
    """What the engine gives to a running stage.

    folder: the stage's own, already made; the only place it may write. It can hold what an interrupted run left.
    inputs: for every `*_from` field that is set, the finished folders it names, in order.
    seed: the stage's own seed, or else the recipe's.
    """

    folder: Path
    inputs: dict[str, list[tuple[str, Path]]]
    """Field -> [(stage name, finished folder), ...]."""
    seed: int
    recipe_name: str

    def input(self, name: str) -> Path:
        """The one folder that field `name` refers to."""
        [(_, folder)] = self.inputs[name]
        return folder


@dataclass(frozen=True)
class InspectContext:
    """What `t2i inspect` gives to a stage.

    previews: for every `*_from` field that is set, what the stages it names hand on, in order; None for what only a run
    can tell. seed: as for a run. is_probed: whether the stage may load its model and measure a step.
    """

    previews: dict[str, list[Preview | None]]
    seed: int
    is_probed: bool = False


def _name_a_stage(names: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    if names == ():
        raise ValueError("an empty list; name a stage, or leave the field out")
    return names


StageNames = Annotated[str | tuple[str, ...] | None, AfterValidator(_name_a_stage)]
"""One earlier stage or several."""


class Stage(FrozenModel, ABC):
    """Common part of every stage. Fields that end in `_from` name earlier stages (one, or a list with wildcards)."""

    version: ClassVar[int] = 1
    """Bump when `run` would write something else for the same fields."""
    produces: ClassVar[str]
    """What the finished folder holds: captioned_images, adapter, pipeline, generations, scores, ..."""
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {}
    """For each `_from` field, what its stage may produce."""

    shows_names: ClassVar[bool] = False
    """True if what is written contains the names of the stages it reads: renaming those then runs it again."""

    shows_names_of: ClassVar[tuple[str, ...]] = ()
    """Fields of which that is true where it is not of all."""

    may_stop_rounds: ClassVar[bool] = False
    """True if `rounds.stop_by` may name it: it has `decided`."""

    in_all_processes: ClassVar[bool] = False
    """True if every process of a run takes part; else the first one runs the stage and the others wait."""

    type: str
    name: str = ""
    """Label for references and folder names; the stage's type if empty."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Seed of this stage alone; the recipe's if absent."""

    @abstractmethod
    def run(self, context: StageContext) -> dict[str, Any]:
        """Fill `context.folder`; return the facts for done.json. May be called again on a half-filled folder.

        Lines under "summary" are also printed.
        """

    def check(self) -> None:
        """Raise for what is wrong whatever earlier stages find. Called for every stage before the first one runs."""

    def misfit(self, earlier: Mapping[str, Stage]) -> tuple[str, str]:
        """(field, what is wrong with it) where this stage cannot follow the stages it reads; empty if it can.

        earlier: name -> stage, of all before this one. For what the kinds of stages do not tell; see `accepts`.
        """
        return "", ""

    def unmet(self, facts: Mapping[str, JsonValue]) -> str:
        """Why its finished folder, with these facts, is not what it asks for now, in words; empty if it is.

        For fields outside the fingerprint that say whether what was written will do.
        """
        return ""

    def decided(self, inputs: Mapping[str, Sequence[tuple[str, Path]]]) -> str:
        """Why what it reads of the first rounds is all it needs, in words; empty if it needs the next one as well.

        inputs: as in `StageContext`, of finished rounds. More of them must not change an answer once there is one.
        """
        raise NotImplementedError

    def inspect(self, context: InspectContext) -> dict[str, JsonValue]:
        """Facts for `t2i inspect`, such as images in a bucket: reads headers and tokenizers, loads no weights."""
        return {}

    def preview(self, context: InspectContext) -> Preview | None:
        """The images that it will hand on, without reading their pixels; None if only a run can tell."""
        return None

    @property
    def label(self) -> str:
        """What references and folder names call the stage."""
        return self.name or self.type

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        """For each `*_from` field that is set, the names of the stages it reads, in order."""
        values = {field: getattr(self, field) for field in type(self).model_fields if field.endswith("_from")}
        return {field: (value,) if isinstance(value, str) else tuple(value) for field, value in values.items() if value}
