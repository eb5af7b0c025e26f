"""A reward model's folder becomes a scorer, and what is wrong with one is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_scorers
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

import rewards
from rewards.errors import InputError, ModelError
from rewards.preference_head import PreferenceHead
from rewards.reward_config import CONFIG_FILE, WEIGHTS_FILE, RewardModelConfig


def test_scores_are_those_of_a_calculation_written_out(tiny_clip: Path, images: list, prompts: list, tmp_path: Path):
    folder = tiny_scorers.write_reward_model(tmp_path / "mine", tiny_clip)
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt").pixel_values
    tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
    head = load_file(folder / WEIGHTS_FILE)
    with torch.no_grad():
        output = model(tokens.input_ids, pixels, tokens.attention_mask)
        image, text = (functional.normalize(e, dim=-1) for e in (output.image_embeds, output.text_embeds))
        joined = torch.cat([4 * image, 16 * image * text, 4 * text], dim=-1)
        hidden = functional.gelu(joined @ head["layers.0.weight"].T + head["layers.0.bias"])
        expected = (hidden @ head["layers.2.weight"].T)[:, 0]
    found = rewards.load({"name": "reward_model", "model": str(folder)}).score(images, prompts)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_a_model_that_reads_no_prompt_ignores_it(tiny_clip: Path, images: list, prompts: list, tmp_path: Path):
    folder = tiny_scorers.write_reward_model(tmp_path / "mine", tiny_clip, reads_prompt=False)
    scorer = rewards.load({"name": "reward_model", "model": str(folder)})
    assert not scorer.needs_prompt
    assert scorer.count_truncated(["a cat " * 50]) == 0  # pyright: ignore[reportAttributeAccessIssue]
    np.testing.assert_array_equal(scorer.score(images), scorer.score(images, prompts))


def test_each_aspect_is_a_scorer_of_its_own(tiny_clip: Path, images: list, prompts: list, tmp_path: Path):
    folder = tiny_scorers.write_reward_model(tmp_path / "mine", tiny_clip, aspects=("aesthetic", "fidelity"))
    spec = {"name": "reward_model", "model": str(folder)}
    first, second = (rewards.load(spec | {"aspect": aspect}) for aspect in ("aesthetic", "fidelity"))
    assert (first.name, second.name) == ("reward_model_aesthetic", "reward_model_fidelity")
    assert not np.allclose(first.score(images, prompts), second.score(images, prompts))
    with pytest.raises(InputError, match=r"say which aspect; those of .*: aesthetic, fidelity"):
        rewards.load(spec)
    with pytest.raises(InputError, match="no aspect 'harmlessness'"):
        rewards.load(spec | {"aspect": "harmlessness"})


def test_a_fresh_head_scores_everything_zero():
    for hidden in (0, 4):
        head = PreferenceHead(RewardModelConfig(16, hidden, True, ("a", "b")))
        assert head(torch.randn(3, 16), torch.randn(3, 16)).tolist() == [[0.0, 0.0]] * 3


def test_the_folder_of_a_plain_clip_is_no_reward_model(tiny_clip: Path, tmp_path: Path):
    with pytest.raises(ModelError, match=rf"no {CONFIG_FILE}"):
        rewards.load({"name": "reward_model", "model": str(tiny_clip)})
    with pytest.raises(ModelError, match="no such folder"):
        rewards.load({"name": "reward_model", "model": str(tmp_path / "none")})
    with pytest.raises(InputError, match="needs the option 'model'"):
        rewards.load("reward_model")


@pytest.mark.parametrize(
    "values",
    ["[]", "{", '{"dimension": "16"}', '{"dimension": 0}', '{"dimension": 16, "depth": 3}', '{"dimension": true}'],
)
def test_a_config_that_says_something_else_is_refused(values: str, tiny_clip: Path, tmp_path: Path):
    folder = tiny_scorers.write_reward_model(tmp_path / "mine", tiny_clip)
    (folder / CONFIG_FILE).write_text(values)
    with pytest.raises(ModelError, match="not the config of a reward model"):
        rewards.load({"name": "reward_model", "model": str(folder)})


def test_a_head_of_another_size_is_refused(tiny_clip: Path, images: list, tmp_path: Path):
    folder = tiny_scorers.write_reward_model(tmp_path / "mine", tiny_clip, reads_prompt=False)
    values = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(values | {"hidden": 9}))
    with pytest.raises(ModelError, match="has shape"):
        rewards.load({"name": "reward_model", "model": str(folder)}).score(images)
    (folder / CONFIG_FILE).write_text(json.dumps(values | {"dimension": 32}))
    with pytest.raises(InputError, match="embeddings have 16 numbers, its head reads 32"):
        rewards.load({"name": "reward_model", "model": str(folder)}).score(images)


def test_another_head_is_another_fingerprint(tiny_clip: Path, tmp_path: Path):
    folder = tiny_scorers.write_reward_model(tmp_path / "mine", tiny_clip)
    before = rewards.load({"name": "reward_model", "model": str(folder)}).fingerprint()  # pyright: ignore
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert rewards.load({"name": "reward_model", "model": str(moved)}).fingerprint() == before  # pyright: ignore
    data = bytearray((folder / WEIGHTS_FILE).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(data)
    assert rewards.load({"name": "reward_model", "model": str(folder)}).fingerprint() != before  # pyright: ignore
