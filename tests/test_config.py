"""Strict models, YAML with places, overrides, and the messages for every kind of mistake."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from t2i.config import (
    FrozenModel,
    LocalPath,
    ModelPath,
    PathMark,
    Written,
    explain,
    known_keys,
    output_fields,
    speed_only,
    with_default_kinds,
)
from t2i.document import Key, apply_overrides, parse_value, raise_problems, read_document, set_value
from t2i.errors import ConfigError, DataError
from t2i.resources import ContentHashes, hash_path, local_path, resolve_path


class Lora(FrozenModel):
    type: Literal["lora"] = "lora"
    rank: int = Field(default=16, gt=0)
    cache: LocalPath | None = speed_only(None)


class Full(FrozenModel):
    type: Literal["full"] = "full"
    modules: tuple[str, ...] = ()


class Settings(FrozenModel):
    steps: int = Field(gt=0)
    learning_rate: float = 1e-4
    mode: Literal["fast", "slow"] = "fast"
    trained: Annotated[Lora | Full, Field(discriminator="type")] = Lora()
    folders: tuple[LocalPath, ...] = ()
    by_name: dict[str, LocalPath] = Field(default_factory=dict)
    model: ModelPath | None = None
    workers: int = speed_only(0)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return path


def messages(tmp_path: Path, text: str) -> list[str]:
    """What a person reads for a YAML text that is not valid Settings, without the file's name."""
    document = read_document(written(tmp_path, text))
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate_json(json.dumps(document.data))
    problems = explain(caught.value, Settings, Written(document.data, document.place))
    with pytest.raises(ConfigError) as error:
        raise_problems(problems)
    return [line.removeprefix(f"{tmp_path}/a.yaml:") for line in str(error.value).split("\n")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("5000", 5000),
        ("20_000", 20000),
        ("-3", -3),
        ("1.", 1.0),
        ("no", "no"),
        ("true", True),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-01-31", "2024-01-31"),
        ("~", None),
        ("", None),
        ("'3'", "3"),
        ("[1, a]", [1, "a"]),
        ("{8: x}", {"8": "x"}),
        ("pkg:t2i.shapes/assets", "pkg:t2i.shapes/assets"),
    ],
)
def test_yaml_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


def test_a_list_fills_a_tuple_and_a_whole_number_fills_a_float() -> None:
    settings = Settings.model_validate_json('{"steps": 1, "learning_rate": 1, "folders": ["a"]}')
    assert (settings.learning_rate, settings.folders) == (1.0, ("a",))


def test_every_mistake_is_reported_at_once_with_its_line(tmp_path: Path) -> None:
    text = """
steps: "3"
learning_rat: 1e-4
mode: fats
trained:
  type: lora
  rank: 0
  rnak: 8
folders: [a, 3]
model: [x]
"""
    assert messages(tmp_path, text) == [
        "2  steps: input should be a valid integer (got '3')",
        "3  learning_rat: unknown key 'learning_rat'; did you mean 'learning_rate'?",
        "4  mode: unknown value 'fats'; did you mean 'fast'?",
        "7  trained.rank: input should be greater than 0 (got 0)",
        "8  trained.rnak: unknown key 'rnak'; did you mean 'rank'?",
        "9  folders.1: input should be a valid string (got 3)",
        "10  model: input should be a valid string (got ['x'])",
    ]


def test_an_unknown_key_without_a_near_one_lists_the_known_ones(tmp_path: Path) -> None:
    [line] = messages(tmp_path, "steps: 1\ntrained: {type: full, zzz: 1}\n")
    assert line == "2  trained.zzz: unknown key 'zzz'; known keys: type, modules"


def test_a_missing_key_is_reported_where_its_mapping_stands(tmp_path: Path) -> None:
    assert messages(tmp_path, "# nothing\nmode: slow\n") == ["1  steps: required, but missing"]


def test_an_unknown_or_missing_tag_is_reported(tmp_path: Path) -> None:
    assert messages(tmp_path, "steps: 1\ntrained: {type: lroa}\n") == [
        "2  trained.type: unknown value 'lroa'; did you mean 'lora'?"
    ]
    assert messages(tmp_path, "steps: 1\ntrained: {rank: 3}\n") == [
        "2  trained: needs a key 'type' that says which kind it is"
    ]


def test_infinity_is_not_a_number_for_a_recipe(tmp_path: Path) -> None:
    assert messages(tmp_path, "steps: 1\nlearning_rate: 1e999\n") == [
        "2  learning_rate: input should be a finite number (got inf)"
    ]


def test_known_keys_follow_the_tag() -> None:
    assert known_keys(Settings, ("trained", "full")) == ["type", "modules"]
    assert known_keys(Settings, ()) == list(Settings.model_fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\n", "a.yaml:3  not YAML: while parsing a flow sequence, expected ',' or ']'"),
        ("a:\n\t- 1\n", "a.yaml:2  not YAML: while scanning for the next token, found character '\\t'"),
        ("", "a.yaml:1  found nothing"),
        ("- a\n", "a.yaml:1  found a list"),
    ],
)
def test_what_is_not_a_mapping_is_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_document(written(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read \\(No such file"):
        read_document(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        read_document(tmp_path / "latin.yaml")


def test_a_duplicate_key_an_endless_alias_and_a_python_tag_are_problems(tmp_path: Path) -> None:
    document = read_document(written(tmp_path, "a: 1\nb: {c: 1, c: 2}\nd: &x [*x]\ne: !!python/name:os.system 1\n"))
    assert [str(problem).partition("a.yaml:")[2] for problem in document.problems] == [
        "2  b.c: key appears twice (first in line 2)",
        "3  d.0: refers to itself",
        "4  e: tag 'tag:yaml.org,2002:python/name:os.system' is not allowed",
    ]
    assert document.data["a"] == 1


@pytest.mark.parametrize("text", ["[" * 5000, "a: " + "[" * 60 + "]" * 60, "a: " + "[" * 5000 + "]" * 5000])
def test_what_is_nested_too_deeply_is_a_mistake(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="nested more than 50 levels deep"):
        raise_problems(read_document(written(tmp_path, text)).problems)
    with pytest.raises(ValueError, match="nested more than 50 levels deep"):
        parse_value(text.removeprefix("a: "))


def test_aliases_of_aliases_cannot_fill_the_memory(tmp_path: Path) -> None:
    tenfold = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 30)]
    with pytest.raises(ConfigError, match="more than 1,000,000 values"):
        read_document(written(tmp_path, "\n".join(["a0: &a0 1", *tenfold])))


ROOTS: dict[str, Key] = {"seed": ("seed",), "stages": ("stages",), "train": ("stages", 0)}


def overridden(tmp_path: Path, *overrides: str) -> tuple[dict[str, object], list[str]]:
    document = read_document(written(tmp_path, "seed: 0\nstages:\n  - {type: train, steps: 1, sizes: [1, 2]}\n"))
    changed = apply_overrides(document, overrides, ROOTS)
    assert document.data["seed"] == 0, "the original stays as it is"
    return dict(changed.data), [str(problem) for problem in changed.problems]


def test_overrides_reach_top_keys_stages_nested_keys_and_list_items(tmp_path: Path) -> None:
    data, problems = overridden(tmp_path, "seed=7", "train.steps=200", "train.trained.rank=8", "train.sizes.1=5")
    assert problems == []
    assert data == {
        "seed": 7,
        "stages": [{"type": "train", "steps": 200, "sizes": [1, 5], "trained": {"rank": 8}}],
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tarin.steps=1", "tarin.steps: no stage or top-level key 'tarin'; did you mean 'train'?"),
        ("train.steps", "train.steps: write an override as path.to.key=value, for example train.steps=200"),
        ("train..steps=1", "train..steps: write an override as path.to.key=value, for example train.steps=200"),
        ("train.steps.x=1", "train.steps.x: stages.0.steps is 1, which has no key 'x'"),
        ("train.sizes.2=1", "stages.0.sizes is a list of 2 items; write an index from 0 to 1, not '2'"),
        ("train.steps=[1", "train.steps: not YAML: while parsing a flow sequence"),
        ("seed={a: 1, a: 2}", "seed: key appears twice"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_typed(tmp_path: Path, override: str, message: str) -> None:
    _, [problem] = overridden(tmp_path, override)
    assert problem.startswith(f"command line: {override}  ")
    assert message in problem


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("seed=1", "seed=2"),
        ("train.trained.rank=8", "train.trained={alpha: 4}"),
        ("train.sizes.0=5", "train.sizes=[3]"),
        ("train.steps=5", "stages.0={type: train}"),
    ],
)
def test_an_override_that_undoes_an_earlier_one_is_a_mistake(tmp_path: Path, first: str, second: str) -> None:
    _, problems = overridden(tmp_path, first, second)
    key = second.partition("=")[0]
    assert problems == [f"command line: {second}  {key}: would undo {first}; give only one of them"]


def test_an_override_may_go_on_from_an_earlier_one(tmp_path: Path) -> None:
    data, problems = overridden(tmp_path, "train.trained={alpha: 4}", "train.trained.rank=8", "train.sizes.0=5")
    assert problems == []
    assert data["stages"] == [{"type": "train", "steps": 1, "sizes": [5, 2], "trained": {"alpha": 4, "rank": 8}}]


def test_the_place_of_an_overridden_value_is_the_command_line(tmp_path: Path) -> None:
    document = read_document(written(tmp_path, "seed: 0\nstages:\n  - {type: train, trained: {rank: 1}}\n"))
    changed = apply_overrides(document, ["train.trained={rank: 2}"], ROOTS)
    assert str(changed.place(("stages", 0, "trained", "rank"))) == "command line: train.trained={rank: 2}"
    assert str(changed.place(("seed",))).endswith("a.yaml:1")


def test_setting_below_an_absent_or_null_value_makes_a_mapping() -> None:
    data = parse_value("{a: null}")
    assert isinstance(data, dict)
    set_value(data, ["a", "b"], 1)
    set_value(data, ["c", "d", "e"], 2)
    assert data == {"a": {"b": 1}, "c": {"d": {"e": 2}}}


def test_output_fields_leave_out_speed_and_show_every_path_to_the_visitor() -> None:
    seen: list[tuple[Key, bool, str]] = []

    def visit(key: Key, mark: PathMark, text: str) -> str:
        seen.append((key, mark.may_be_hub_id, text))
        return text.upper()

    settings = Settings(
        steps=1, folders=("a", "b"), by_name={"x": "c"}, model="org/m", workers=4, trained=Lora(cache="d")
    )
    assert output_fields(settings, visit) == {
        "steps": 1,
        "learning_rate": 1e-4,
        "mode": "fast",
        "trained": {"type": "lora", "rank": 16},
        "folders": ["A", "B"],
        "by_name": {"x": "C"},
        "model": "ORG/M",
    }
    assert seen == [
        (("folders", 0), False, "a"),
        (("folders", 1), False, "b"),
        (("by_name", "x"), False, "c"),
        (("model",), True, "org/m"),
    ]


def test_package_paths_are_found_without_importing_the_package() -> None:
    assert resolve_path("pkg:t2i.stages/base.py").is_file()
    assert resolve_path("a/b") == Path("a/b")
    with pytest.raises(ConfigError, match="no installed package 'nowhere'"):
        resolve_path("pkg:nowhere/x")


def test_a_hub_id_is_local_only_if_it_exists_or_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub = PathMark(may_be_hub_id=True)
    assert local_path("org/model", hub) is None
    assert local_path("./org/model", hub) == Path("org/model")
    (tmp_path / "org/model").mkdir(parents=True)
    assert local_path("org/model", hub) == Path("org/model")


def test_a_folder_hash_follows_names_and_bytes_and_nothing_else(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "a.txt").write_text("a")
    (tmp_path / "two" / ".DS_Store").write_text("noise")
    os.utime(tmp_path / "two" / "inner" / "a.txt", (1_000_000_000, 1_000_000_000))
    first = hash_path(tmp_path / "one")
    assert hash_path(tmp_path / "two") == first
    (tmp_path / "two" / "inner" / "a.txt").rename(tmp_path / "two" / "inner" / "b.txt")
    assert hash_path(tmp_path / "two") != first
    (tmp_path / "one" / "inner" / "a.txt").write_text("b")
    assert hash_path(tmp_path / "one") != first


def test_a_link_to_a_folder_above_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="links to a folder that contains it"):
        hash_path(tmp_path)


def test_a_pipe_in_a_folder_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: neither a file nor a folder"):
        hash_path(tmp_path)


def test_a_young_file_is_never_believed_and_never_remembered(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"1234")
    hashes = ContentHashes(tmp_path / "cache.json")
    first = hashes.hash_path(file)
    stamp = file.stat()
    file.write_bytes(b"4321")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert hashes.hash_path(file) != first
    hashes.save()
    assert not (tmp_path / "cache.json").exists()


def test_an_old_file_is_read_once(tmp_path: Path) -> None:
    package_file = resolve_path("pkg:pydantic/main.py")
    cache = tmp_path / "cache.json"
    hashes = ContentHashes(cache)
    first = hashes.hash_path(package_file)
    hashes.save()
    assert str(package_file) in cache.read_text()
    cache.write_text(cache.read_text().replace(hash_of_bytes(package_file), "0" * 64))
    assert ContentHashes(cache).hash_path(package_file) != first, "the remembered hash is used"
    cache.write_text("{broken")
    assert ContentHashes(cache).hash_path(package_file) == first


def hash_of_bytes(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_mapping_without_a_type_is_of_the_kind_of_the_default() -> None:
    assert with_default_kinds(Settings, {"steps": 1, "trained": {"rank": 8}}) == {
        "steps": 1,
        "trained": {"type": "lora", "rank": 8},
    }
    assert with_default_kinds(Settings, {"trained": {"type": "full"}}) == {"trained": {"type": "full"}}
