"""What a recipe says can neither give a secret away nor write outside of its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from t2i import cli
from t2i.credentials import credential_in
from t2i.errors import ConfigError
from t2i.recipe import Recipe

RECIPE = """\
model: MODEL
stages:
  - type: generate
    prompts: {type: list, prompts: [a cat]}
  - type: caption
    data: {type: folder, path: .}
    captioner: CHAT
"""
TOKEN = "hf_" + "abcdefghij" * 3 + "abcd"
CREDENTIALS = [
    "https://me:hunter2@example.org/v1",
    "https://:hunter2@example.org/v1",
    "http://example.org/v1?api_key=hunter2",
    TOKEN,
    "sk-proj-" + "hunter2_" * 4,
    "github_pat_" + "hunter2_" * 5,
    "AIza" + "hunter2_" * 5,
    "ASIA" + "HUNTER2Z" * 2,
    "https://bucket.example.org/x?X-Amz-Signature=hunter2",
]


@pytest.mark.parametrize("text", CREDENTIALS)
def test_a_credential_in_a_recipe_is_refused_without_being_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("MODEL", "a/b").replace("CHAT", f"{{type: endpoint, url: '{text}', model: m}}"))
    with pytest.raises(ConfigError) as caught:
        Recipe.load(path)
    [line] = str(caught.value).split("\n")
    assert line.startswith(f"{path}:7  stages.1.captioner.url: holds an a")
    assert "hunter2" not in line
    assert TOKEN not in line


def test_a_credential_in_an_override_or_a_key_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE.replace("MODEL", "a/b").replace("CHAT", "{type: vlm, model: c/d}"))
    for override in (f"model={TOKEN}", f"{TOKEN}=1", TOKEN, f"generate.sampling={{{TOKEN}", f"generate.{TOKEN}=1"):
        with pytest.raises(ConfigError, match="an argument holds an access token") as caught:
            Recipe.load(path, [override])
        assert TOKEN not in str(caught.value)
    for line in (f"stages: !{TOKEN} []", f"model: *{TOKEN}", f"stages: []\n{TOKEN}: [", f"{TOKEN}"):
        path.write_text(line)
        with pytest.raises(ConfigError) as caught:
            Recipe.load(path)
        assert TOKEN not in str(caught.value)
    path.write_text(f"{TOKEN}: 1\nstages: []\n")
    with pytest.raises(ConfigError, match="holds an access token") as caught:
        Recipe.load(path)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "http://localhost:8000/v1",
        "http://[::1]:8000/v1",
        "a person @home, see https://example.org/about?page=2",
        "write to me@example.org",
        "hf_transfer",
        "sk-learn",
        "0123456789abcdef0123456789abcdef01234567",
    ],
)
def test_ordinary_texts_are_no_credentials(text: str) -> None:
    assert credential_in(text) == ""


def test_a_key_in_the_place_of_its_variable_is_refused_without_being_told(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    chat = "{type: endpoint, url: 'http://localhost:1/v1', model: m, key_env: hunter2key}"
    path.write_text(RECIPE.replace("MODEL", "a/b").replace("CHAT", chat))
    with pytest.raises(ConfigError, match="key_env: expected the name of an environment variable") as caught:
        Recipe.load(path)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("http://me:hunter2@localhost:1/v1=m", "an address with a user name or password"),
        ("https://me:hunter2@localhost:1/v1", "an address with a user name or password"),
        ("https://localhost:1/v1?api_key=hunter2", "an address with a key"),
    ],
)
def test_a_password_on_the_command_line_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, found: str
) -> None:
    monkeypatch.setenv("T2I_RUNS", str(tmp_path / "runs"))
    prompts = tmp_path / "p.txt"
    prompts.write_text("a cat\n")
    words = ["generate", str(prompts), "--model", "pkg:t2i.shapes/assets/pipeline"]
    result = CliRunner().invoke(cli.app, [*words, "--expand", address])
    assert result.exit_code == 2
    assert f"--expand: holds {found}" in result.output
    assert "hunter2" not in result.output
    assert not any(b"hunter2" in file.read_bytes() for file in (tmp_path / "runs").rglob("*") if file.is_file())


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", "../a"])
def test_an_exported_file_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"stages:\n  - {{type: train}}\n  - {{type: export, weights_from: train, file_name: '{name}'}}\n")
    with pytest.raises(ConfigError, match=r"export\.file_name: "):
        Recipe.load(path)
