"""Score generated images with one or several scorers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from t2i.config import CodeName, FrozenModel, ModelPath, Options, PathMark
from t2i.files import write_text
from t2i.records import GeneratedImage, ScoredImage, read_jsonl, write_jsonl
from t2i.stages.base import Stage, StageContext, StageNames
from t2i.stages.generate import GENERATIONS_FILE, SAMPLING_FILE

if TYPE_CHECKING:
    from rewards import Reward

SCORES_FILE = "scores.jsonl"
SCORERS_FILE = "scorers.json"
Role = Literal["held_out", "train", "control"]


class Scorer(FrozenModel):
    """One scorer of images."""

    name: CodeName
    """A name that `rewards list` shows, or `module:Class`, whose file is watched."""
    label: str = ""
    """Column name in tables; the scorer's own name if empty."""
    model: ModelPath | None = None
    """Weights, for scorers that take some."""
    revision: str | None = None
    """Commit or tag of hub weights."""
    options: Options = Field(default_factory=dict)
    """Further options of the scorer. Files and classes in them are watched, but for `answers`, which it fills."""
    role: Role = "held_out"
    """`train` if something was optimised against it, which tables then say; `control` for brightness and the like."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        from rewards import available
        from t2i.suggestions import did_you_mean

        if ":" not in name and name not in available():
            raise ValueError(f"unknown scorer {name!r}{did_you_mean(name, available())}")
        return name

    @field_validator("options")
    @classmethod
    def _are_no_fields(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in ("name", "model", "revision"):
            if name in options:
                raise ValueError(f"{name!r} is a field of the scorer; write it beside `options`")
        return options

    def load(self) -> Reward:
        """The scorer; its model is opened when it scores. Raises errors of the rewards package; see `reward_errors`."""
        import rewards

        spec: dict[str, object] = {"name": self.name, **{key: _found(value) for key, value in self.options.items()}}
        if self.model is not None:
            spec["model"] = _found(self.model)
        if self.revision is not None:
            spec["revision"] = self.revision
        return rewards.load(spec)


def _found(value: str | int | float | bool) -> str | int | float | bool:
    """An option's value; a path that is written as only recipes write it (`pkg:`, `~`) as what it leads to."""
    from t2i.resources import local_path

    local = local_path(value, PathMark(may_be_hub_id=True)) if isinstance(value, str) else None
    return value if local is None else str(local)


class Score(Stage):
    """Write `scores.jsonl`, a row per image with every scorer's raw number, and `scorers.json`: what these are."""

    version: ClassVar[int] = 1
    produces: ClassVar[str] = "scores"
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {
        "generations_from": ("generations",),
        "reward_models_from": ("weights",),
    }
    shows_names_of: ClassVar[tuple[str, ...]] = ("reward_models_from",)

    type: Literal["score"] = "score"
    generations_from: str
    """A generate stage."""
    scorers: tuple[Scorer, ...] = ()
    """What to score with."""
    reward_models_from: StageNames = None
    """Train stages with the objective bradley_terry: every aspect of their models is one more scorer, labelled by the
    stage and the aspect."""
    batch_size: int = Field(default=32, ge=1)
    """Images scored at once."""

    @field_validator("scorers")
    @classmethod
    def _labels_are_unique(cls, scorers: tuple[Scorer, ...]) -> tuple[Scorer, ...]:
        labels = [scorer.label or scorer.name for scorer in scorers]
        if len(set(labels)) < len(labels):
            raise ValueError(f"labels repeat: {', '.join(labels)}; give each scorer a `label` of its own")
        return scorers

    @model_validator(mode="after")
    def _has_a_scorer(self) -> Score:
        if not self.scorers and self.reward_models_from is None:
            raise ValueError("nothing to score with; give `scorers`, or `reward_models_from` (train stages)")
        return self

    def check(self) -> None:
        with reward_errors():
            _check_labels(self.scorers)

    def misfit(self, earlier: Mapping[str, Stage]) -> tuple[str, str]:
        for name in self.references.get("reward_models_from", ()):
            objective = getattr(earlier.get(name), "objective", None)
            if objective is not None and objective.type != "bradley_terry":
                return "reward_models_from", f"{name} trains no reward model; its objective is {objective.type}"
        return "", ""

    def run(self, context: StageContext) -> dict[str, Any]:
        with reward_errors():
            return self._run(context)

    def _run(self, context: StageContext) -> dict[str, Any]:
        trained = [one for item in context.inputs.get("reward_models_from", []) for one in _trained_scorers(*item)]
        scorers = (*self.scorers, *trained)
        _check_labels(scorers)
        source = context.input("generations_from")
        rows = list(read_jsonl(source / GENERATIONS_FILE, GeneratedImage))
        parts = context.folder / "parts"
        parts.mkdir(exist_ok=True)
        columns: dict[str, list[float]] = {}
        described: list[dict[str, Any]] = []
        for number, scorer in enumerate(scorers):
            values, description = self._column(scorer, number, rows, source, parts)
            columns[description["label"]] = values
            described.append(description)
        scores = [{label: column[position] for label, column in columns.items()} for position in range(len(rows))]
        _write(rows, scores, described, source, context.folder)
        means = {label: sum(values) / len(values) for label, values in columns.items()}
        return {"images": len(rows), "means": means}

    def _column(
        self, scorer: Scorer, number: int, rows: Sequence[GeneratedImage], source: Path, parts: Path
    ) -> tuple[list[float], dict[str, Any]]:
        """One scorer's numbers for all rows; finished batches are read back from `parts`."""
        from t2i.training.progress import progress_bar

        reward = scorer.load()
        values: list[float] = []
        with progress_bar(f"scoring: {reward.name}", 0, len(rows)) as advance:
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                path = parts / f"{number:02d}-{start:07d}.json"
                if not path.exists():
                    write_text(path, json.dumps(_score_batch(reward, batch, source)))
                values += json.loads(path.read_text())
                advance(min(start + self.batch_size, len(rows)))
        return values, _describe(scorer.label, scorer.role, reward, rows)


def _check_labels(scorers: Sequence[Scorer]) -> None:
    """Load every scorer: one without a label is called as it calls itself, and wrong options of any show only then."""
    from t2i.errors import ConfigError

    loaded = [scorer.load() for scorer in scorers]
    labels = [scorer.label or reward.name for scorer, reward in zip(scorers, loaded, strict=True)]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"scorers: labels repeat: {', '.join(labels)}; give each scorer a `label` of its own.")


def _trained_scorers(stage: str, folder: Path) -> list[Scorer]:
    """A scorer for each aspect of the reward model that a train stage left. Raises ConfigError if it left none."""
    from rewards.reward_config import CONFIG_FILE, RewardModelConfig
    from t2i.errors import ConfigError
    from t2i.training.outputs import MODEL_FOLDER

    model = folder / MODEL_FOLDER
    if not (model / CONFIG_FILE).is_file():
        raise ConfigError(f"reward_models_from: stage {stage} trained no reward model; its objective is another.")
    aspects = RewardModelConfig.from_file(model / CONFIG_FILE).aspects
    if not aspects:
        return [Scorer(name="reward_model", label=stage, model=str(model))]
    return [
        Scorer(name="reward_model", label=f"{stage} {aspect}", model=str(model), options={"aspect": aspect})
        for aspect in aspects
    ]


def shared_scorer(folders: Sequence[Path], label: str, field: str) -> list[dict[str, Any]]:
    """What each of several score stages says of the scorer with a label. field: of the recipe, for errors.

    Raises ConfigError for a stage without it, DataError unless it is the same in all: numbers of other weights or
    options cannot be compared.
    """
    from t2i.errors import ConfigError, DataError
    from t2i.suggestions import did_you_mean

    found: list[dict[str, Any]] = []
    for folder in folders:
        known = {row["label"]: row for row in json.loads((folder / SCORERS_FILE).read_text())}
        if label not in known:
            raise ConfigError(f"{field}: {folder.name} has no scorer {label!r}{did_you_mean(label, known)}")
        found.append(known[label])
    identities = [tuple(row.get(key) for key in ("id", "name", "version", "higher_is_better")) for row in found]
    other = next((number for number, identity in enumerate(identities) if identity != identities[0]), None)
    if other is not None:
        raise DataError(
            f"{field}: {label!r} is another scorer in {folders[other].name} than in {folders[0].name} "
            f"({identities[other]} and {identities[0]}); score both with the same weights and options."
        )
    return found


@contextlib.contextmanager
def reward_errors() -> Iterator[None]:
    """Errors of the rewards package inside the block become the toolkit's own."""
    from rewards import errors as theirs
    from t2i import errors as ours

    try:
        yield
    except theirs.ModelError as error:
        raise ours.ModelError(str(error)) from error
    except theirs.MissingDependencyError as error:
        raise ours.MissingDependencyError(str(error)) from error
    except theirs.InputError as error:
        raise ours.DataError(str(error)) from error
    except theirs.RewardError as error:
        raise ours.RunError(str(error)) from error


def _score_batch(reward: Reward, batch: Sequence[GeneratedImage], source: Path) -> list[float]:
    from rewards.base import check_scores

    prompts = [row.prompt for row in batch] if reward.needs_prompt else None
    # A scorer of one's own may break its promise.
    scores = check_scores(reward.name, reward.score([source / row.image for row in batch], prompts), len(batch))
    # As float64 of the float32 score: JSON then gives back the same bits.
    return [float(value) for value in scores]


def _describe(label: str, role: Role, reward: Reward, rows: Sequence[GeneratedImage]) -> dict[str, Any]:
    from rewards.base import TextLimited
    from rewards.score_files import scorer_id
    from rewards.scoring import describe

    prompts = list(dict.fromkeys(row.prompt for row in rows))
    truncated = reward.count_truncated(prompts) if isinstance(reward, TextLimited) else None
    return {
        "label": label or reward.name,
        "name": reward.name,
        "id": scorer_id(describe(reward)),
        "version": reward.version,
        "scale": reward.scale,
        "higher_is_better": reward.higher_is_better,
        "role": role,
        "truncated_prompts": truncated,
    }


def write_scores(
    rows: Sequence[GeneratedImage],
    scorers: Sequence[Reward],
    scores: Sequence[Mapping[str, float]],
    source: Path,
    folder: Path,
) -> None:
    """Write what a score stage writes into `folder`. scores: of each row; those that could not be had are absent."""
    described = [_describe("", "held_out", scorer, rows) for scorer in scorers]
    _write(rows, scores, described, source, folder)


def _write(
    rows: Sequence[GeneratedImage],
    scores: Sequence[Mapping[str, float]],
    described: list[dict[str, Any]],
    source: Path,
    folder: Path,
) -> None:
    scored = [_row(row, own, source, folder) for row, own in zip(rows, scores, strict=True)]
    if (source / SAMPLING_FILE).is_file():
        write_text(folder / SAMPLING_FILE, (source / SAMPLING_FILE).read_text())
    write_text(folder / SCORERS_FILE, json.dumps(described, indent=2, sort_keys=True) + "\n")
    write_jsonl(folder / SCORES_FILE, scored)


def _row(row: GeneratedImage, scores: Mapping[str, float], source: Path, folder: Path) -> ScoredImage:
    import os

    values = dataclasses.asdict(row)
    values["image"] = os.path.relpath(source / row.image, folder)
    return ScoredImage(**values, scores=dict(scores))
