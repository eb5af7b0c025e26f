"""Code that lies in a model's folder is never run, whatever a person at the keyboard would answer."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rewards import errors as rewards_errors
from rewards.faithfulness.loading import load_config, load_model, load_processor, load_tokenizer
from t2i.captioners.chat import LocalModel
from t2i.captioners.describe import TokenBudget, token_counters
from t2i.captioners.opened import open_model
from t2i.errors import ModelError

REPOSITORY = Path(__file__).parent.parent
CODE = """
from pathlib import Path

Path({marker!r}).touch()

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizer


class Config(PretrainedConfig):
    model_type = "strange"


class Model(PreTrainedModel):
    config_class = Config


class Tokenizer(PreTrainedTokenizer):
    vocab_size = 1
"""


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A checkpoint whose classes come with it, and the file that its code would make. All questions get a yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, marker = tmp_path / "strange", tmp_path / "ran"
    folder.mkdir()
    (folder / "code_of_it.py").write_text(CODE.format(marker=str(marker)))
    names = {"AutoConfig": "Config", "AutoModelForCausalLM": "Model", "AutoModelForImageTextToText": "Model"}
    auto = {auto: f"code_of_it.{name}" for auto, name in names.items()}
    (folder / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": auto}))
    tokenizer = {"tokenizer_class": "Strange", "auto_map": {"AutoTokenizer": ["code_of_it.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder, marker


def _auto_model(folder: Path) -> object:
    from transformers import AutoModelForCausalLM

    return load_model(AutoModelForCausalLM, folder, "strange", "cpu")


OPENERS: dict[str, Callable[[Path], object]] = {
    "config": lambda folder: load_config(folder, "strange"),
    "tokenizer": lambda folder: load_tokenizer(folder, "strange"),
    "processor": lambda folder: load_processor(folder, "strange"),
    "model": _auto_model,
    "captioner": lambda folder: open_model(LocalModel(model=str(folder))),
    "budget": lambda folder: token_counters({"it": TokenBudget(tokenizer=str(folder), max_tokens=9)}),
}


@pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)
def test_code_in_a_checkpoint_is_not_run(strange: tuple[Path, Path], opener: Callable[[Path], object]) -> None:
    folder, marker = strange
    with pytest.raises((ModelError, rewards_errors.ModelError)) as caught:
        opener(folder)
    assert "brings code of its own, which is never run" in str(caught.value)
    assert not marker.exists()


def test_the_code_would_run_if_it_were_trusted(strange: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the test above can fail."""
    from transformers import AutoConfig

    folder, marker = strange
    monkeypatch.setattr(sys, "path", list(sys.path))
    AutoConfig.from_pretrained(str(folder), trust_remote_code=True)
    assert marker.exists()


FILES = sorted(path for part in ("t2i", "rewards") for path in (REPOSITORY / part).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_class_is_chosen_by_a_checkpoint_without_distrust(path: Path) -> None:
    """Auto classes ask at the keyboard unless they are told; and nothing says True."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False
        if isinstance(node, ast.Call) and re.match(r"Auto\w+\.from_", ast.unparse(node.func)):
            assert any(word.arg == "trust_remote_code" for word in node.keywords), ast.unparse(node)
