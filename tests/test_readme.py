"""What the READMEs show is what happens: their examples run as they stand, and the table of scorers is the cards'."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from PIL import Image

from rewards.__main__ import app as rewards_app
from rewards.catalogue import markdown_table
from t2i.cli import app as t2i_app

REPOSITORY = Path(__file__).parent.parent
REWARDS_README = REPOSITORY / "rewards" / "README.md"
READMES = [REPOSITORY / "README.md", REWARDS_README]
HUB_MODELS = ("yuvalkirstain/PickScore_v1", "openai/clip-vit-large-patch14")


def runnable(text: str) -> list[str]:
    """The fenced Python blocks of a Markdown text that are marked `runnable`, in order."""
    return re.findall(r"^```python runnable\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache in which the models of the examples are tiny random ones."""
    root = tmp_path_factory.mktemp("hub")
    for name in HUB_MODELS:
        model = root / f"models--{name.replace('/', '--')}"
        _write_clip(model / "snapshots" / "0000")
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text("0000")
    return root


def _write_clip(folder: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77, pad_token="<|endoftext|>").save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    text = layers | ends | {"vocab_size": len(tokens), "max_position_embeddings": 77}
    vision = layers | {"image_size": 32, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_the_examples_run_as_they_stand(readme: Path, hub: Path, tmp_path: Path) -> None:
    blocks = runnable(readme.read_text(encoding="utf-8"))
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.effect_noise((40, 48), 60 + number).convert("RGB").save(tmp_path / f"images/{number}.png")
    environment = os.environ | {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{REPOSITORY}:."}
    command = [sys.executable, "-W", "error", "-c", "\n".join(blocks)]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("\n") >= len(blocks)


def test_the_examples_of_rewards_are_there_and_end_as_they_say() -> None:
    blocks = runnable(REWARDS_README.read_text(encoding="utf-8"))
    assert len(blocks) == 6
    assert 'rewards.load("pickscore")' in blocks[0]


def test_only_marked_blocks_are_run() -> None:
    text = "```python\nfirst\n```\n```python runnable\nsecond\n\nthird\n```\n```yaml\nfourth\n```\n"
    assert runnable(text) == ["second\n\nthird\n"]


def commands(text: str) -> list[str]:
    """The command lines of `t2i` and `rewards` in code of a Markdown text; no bare names, and no summaries with |."""
    blocks = re.findall(r"^    ((?:t2i|rewards) .*)$", text, flags=re.MULTILINE)
    spans = re.findall(r"`((?:t2i|rewards)\s[^`]*)`", text)
    return [line for line in (*blocks, *(" ".join(span.split()) for span in spans)) if len(line.split()) > 2]


SHOWN = [line for readme in READMES for line in commands(readme.read_text(encoding="utf-8")) if " | " not in line]


@pytest.mark.parametrize("line", SHOWN)
def test_the_commands_that_are_shown_are_understood(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    command: Any = typer.main.get_command({"t2i": t2i_app, "rewards": rewards_app}[program])
    while hasattr(command, "commands"):
        program = words.pop(0)
        command = command.commands[program]
    command.make_context(program, words)


def test_commands_are_found_in_blocks_and_in_lines() -> None:
    text = "`t2i run` and `t2i export a.safetensors\n--to kohya`:\n\n    rewards list --markdown    # a table\n"
    assert commands(text) == ["rewards list --markdown    # a table", "t2i export a.safetensors --to kohya"]
    assert len(SHOWN) >= 10


def test_the_table_of_scorers_is_that_of_their_cards() -> None:
    text = REWARDS_README.read_text(encoding="utf-8")
    shown = text.partition("<!-- scorers:begin -->\n")[2].partition("<!-- scorers:end -->")[0]
    assert shown == markdown_table(), "write it anew with: rewards list --markdown"
    assert shown.count("| unverified |") == 2
