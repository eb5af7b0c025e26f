"""Where a recipe's prompts come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from t2i.config import FrozenModel, LocalPath, ModelPath
from t2i.errors import DataError
from t2i.records import Prompt
from t2i.resources import resolve_path


class PromptList(FrozenModel):
    """Prompts written in the recipe."""

    type: Literal["list"] = "list"
    prompts: tuple[str, ...] = Field(min_length=1)
    """The prompts, in order."""

    def read(self, seed: int) -> list[Prompt]:
        """Prompts numbered from 0."""
        return [Prompt(f"{number:04d}", text) for number, text in enumerate(self.prompts)]


class PromptFile(FrozenModel):
    """A .txt file with one prompt a line, or a .jsonl file with `prompt` and optionally `id` and `category`."""

    type: Literal["file"] = "file"
    path: LocalPath
    """The file."""

    @field_validator("path")
    @classmethod
    def _is_of_a_known_kind(cls, path: str) -> str:
        if Path(path).suffix.lower() not in (".txt", ".jsonl"):
            raise ValueError(f"{path!r}: expected a .txt with a prompt a line, or a .jsonl with `prompt`")
        return path

    def read(self, seed: int) -> list[Prompt]:
        """The file's prompts. Raises DataError for an empty file, bad rows and repeated ids."""
        path = resolve_path(self.path)
        try:
            # Not splitlines(): prompts may hold characters that Unicode also calls line ends.
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as UTF-8 text ({error}).") from error
        parse = _parse_object if path.suffix.lower() == ".jsonl" else _parse_line
        prompts = [parse(line.strip(), number, path) for number, line in enumerate(lines, 1) if line.strip()]
        if not prompts:
            raise DataError(f"{path}: no prompt.")
        if len({prompt.id for prompt in prompts}) < len(prompts):
            raise DataError(f"{path}: prompt ids repeat; each must be unique.")
        return prompts


class ShapesPrompts(FrozenModel):
    """Descriptions of scenes of the embedded shapes world, whose faithfulness its judge can grade."""

    type: Literal["shapes"] = "shapes"
    count: int = Field(gt=0)
    """Number of prompts."""
    split: Literal["train", "heldout"] = "heldout"
    """Held-out scenes share no object-attribute-relation tuple with training scenes."""
    max_objects: int = Field(default=4, ge=1, le=4)
    """Objects in a scene, at most."""
    kind: Literal["dense", "short", "spatial"] = "dense"
    """How much the prompts say."""
    skill: Literal["colour", "counting", "spatial"] | None = None
    """Only scenes that test this skill: two single objects of different shapes and colours, a group of more than one
    object, or two groups somewhere to each other. It is the prompts' category then."""

    @model_validator(mode="after")
    def _skill_has_scenes(self) -> ShapesPrompts:
        if self.skill is not None and self.max_objects == 1:
            raise ValueError(f"max_objects: the skill {self.skill} takes 2 objects or more")
        return self

    def read(self, seed: int) -> list[Prompt]:
        """Prompts of different texts; category: the skill, or else the relation between two groups of objects."""
        from t2i.shapes import needs_skill, sample_scene, write_caption

        prompts: dict[str, Prompt] = {}
        index = 0
        while len(prompts) < self.count:
            scene = sample_scene(seed, index, self.split, max_objects=self.max_objects)
            if self.skill is None or needs_skill(scene, self.skill):
                text = write_caption(scene, self.kind, seed, index)
                prompts.setdefault(text, Prompt(f"{index:06d}", text, self.skill or scene.relation or "one group"))
            index += 1
            if index > 50 * self.count + 1000:
                raise DataError(f"shapes prompts: only {len(prompts)} different prompts exist; asked for {self.count}.")
        return list(prompts.values())


class SuitePrompts(FrozenModel):
    """A published set of prompts, or the one that is shipped, with their categories."""

    type: Literal["suite"] = "suite"
    name: str = "compositional"
    """compositional (shipped), partiprompts, drawbench, t2i_compbench, geneval, dsg1k or tifa."""
    source: ModelPath | None = None
    """The published file or folder, or `hub:owner/name/path`; none for the shipped suite."""
    revision: str | None = None
    """Commit or tag of a hub source."""

    def read(self, seed: int) -> list[Prompt]:
        """The suite's prompts, in order of its file. Raises DataError for an unknown suite or another kind of file."""
        from rewards.errors import InputError
        from rewards.suites import load_suite

        local = resolve_path(self.source) if self.source is not None else None
        try:
            suite = load_suite(self.name, local if local and local.exists() else self.source, self.revision)
        except InputError as error:
            raise DataError(str(error)) from error
        return [Prompt(one.id, one.prompt, one.category) for one in suite.prompts]


PromptSource = Annotated[PromptList | PromptFile | ShapesPrompts | SuitePrompts, Field(discriminator="type")]


def _parse_line(line: str, number: int, path: Path) -> Prompt:
    return Prompt(f"{number:06d}", line)


def _parse_object(line: str, number: int, path: Path) -> Prompt:
    try:
        row = json.loads(line)
        text = row["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}:{number}: expected a JSON object with a 'prompt'; found {line[:60]!r}.") from error
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{path}:{number}: the prompt is empty or not text.")
    where = f"{path}:{number}"
    return Prompt(_word(row, "id", where) or f"{number:06d}", text, _word(row, "category", where))


def _word(row: dict[str, object], key: str, where: str) -> str:
    """Text or a whole number as text; empty where there is none."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise DataError(f"{where}: the {key} is {value!r}; expected text.")
    return "" if value is None else str(value)
