"""ImageReward on a random checkpoint, against the authors' formulas written out on the weights as they name them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_scorers
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import BertTokenizer

from rewards.errors import ModelError
from rewards.image_reward import ImageReward
from rewards.preprocess import CLIP_MEAN, CLIP_STD

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image_reward")
    tiny_scorers.write_image_reward(folder)
    tiny_scorers.write_bert_tokenizer(folder / "bert")
    return folder


@pytest.fixture(scope="module")
def scorer(folder: Path) -> ImageReward:
    return ImageReward(str(folder), tokenizer=str(folder / "bert"))


def _linear(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(x: torch.Tensor, state: State, name: str, epsilon: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=epsilon)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """[T, D], [S, D], [S, D] -> [T, D]."""
    split = [x.reshape(len(x), heads, -1).transpose(0, 1) for x in (query, key, value)]
    weights = (split[0] @ split[1].transpose(1, 2) / split[0].shape[-1] ** 0.5).softmax(-1)
    return (weights @ split[2]).transpose(0, 1).reshape(len(query), -1)


def _see(state: State, pixels: torch.Tensor) -> torch.Tensor:
    """timm's pre-norm vision transformer, its parameters' names after "blip.visual_encoder."."""
    name = "blip.visual_encoder"
    patches = (
        F.conv2d(pixels, state[f"{name}.patch_embed.proj.weight"], state[f"{name}.patch_embed.proj.bias"], stride=8)[0]
        .flatten(1)
        .T
    )
    x = torch.cat([state[f"{name}.cls_token"][0], patches]) + state[f"{name}.pos_embed"][0]
    for number in range(tiny_scorers.LAYERS):
        block = f"{name}.blocks.{number}"
        joint = _linear(_norm(x, state, f"{block}.norm1", 1e-6), state, f"{block}.attn.qkv")
        x = x + _linear(_attend(*joint.split(tiny_scorers.WIDTH, -1), heads=1), state, f"{block}.attn.proj")
        inner = F.gelu(_linear(_norm(x, state, f"{block}.norm2", 1e-6), state, f"{block}.mlp.fc1"))
        x = x + _linear(inner, state, f"{block}.mlp.fc2")
    return _norm(x, state, f"{name}.norm", 1e-6)


def _read(state: State, ids: list[int], patches: torch.Tensor) -> torch.Tensor:
    """BERT with cross attention after each self attention; norms after the sums."""
    name = "blip.text_encoder"
    x = state[f"{name}.embeddings.word_embeddings.weight"][ids]
    x = x + state[f"{name}.embeddings.position_embeddings.weight"][: len(ids)]
    x = _norm(x, state, f"{name}.embeddings.LayerNorm", 1e-12)
    for number in range(tiny_scorers.LAYERS):
        block = f"{name}.encoder.layer.{number}"
        for kind, source in (("attention", None), ("crossattention", patches)):
            seen = x if source is None else source
            parts = [_linear(x, state, f"{block}.{kind}.self.query")]
            parts += [_linear(seen, state, f"{block}.{kind}.self.{part}") for part in ("key", "value")]
            mixed = _linear(_attend(*parts, heads=tiny_scorers.TEXT_HEADS), state, f"{block}.{kind}.output.dense")
            x = _norm(mixed + x, state, f"{block}.{kind}.output.LayerNorm", 1e-12)
        inner = _linear(F.gelu(_linear(x, state, f"{block}.intermediate.dense")), state, f"{block}.output.dense")
        x = _norm(inner + x, state, f"{block}.output.LayerNorm", 1e-12)
    return x[0]


def _reward(state: State, image: Image.Image, ids: list[int]) -> float:
    vector = _read(state, ids, _see(state, _pixels(image)))
    for position in (0, 2, 4, 6, 7):
        vector = _linear(vector, state, f"mlp.layers.{position}")
    return (vector.item() - 0.16717362830052426) / 1.0333394966054072


def _pixels(image: Image.Image) -> torch.Tensor:
    """Resize and CenterCrop of torchvision on PIL images, 32 pixels."""
    factor = 32 / min(image.size)
    width, height = (max(32, int(side * factor)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - 32) / 2.0), round((height - 32) / 2.0)
    values = np.asarray(resized.crop((left, top, left + 32, top + 32)), dtype=np.float32) / 255.0
    return torch.from_numpy((values - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).float().permute(2, 0, 1)[None]


def test_reward_equals_the_authors_formulas(folder: Path, scorer: ImageReward, images: list, prompts: list[str]):
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    tokenizer = BertTokenizer.from_pretrained(folder / "bert")
    texts = [*prompts[:6], "x" * 50]
    expected = []
    for image, text in zip(images, texts, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:33]
        expected.append(_reward(state, image, [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]))
    np.testing.assert_allclose(scorer.score(images, texts), expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 0.1


def test_prompts_over_35_tokens_are_counted(scorer: ImageReward):
    assert scorer.count_truncated(["x" * 33, "x" * 34, "y" * 90]) == 2
    assert scorer.count_truncated([]) == 0


def test_the_file_itself_may_be_named(folder: Path, scorer: ImageReward, images: list):
    named = ImageReward(str(folder / "ImageReward.pt"), tokenizer=str(folder / "bert"))
    assert named.score(images[:1], ["a"]) == scorer.score(images[:1], ["a"])
    assert named.fingerprint() == scorer.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blip.visual_encoder.norm.bias"), "1 weights are missing, first post_layernorm.bias"),
        (lambda s: s.pop("blip.visual_encoder.pos_embed"), "not a published ImageReward checkpoint"),
        (lambda s: s.pop("mlp.layers.2.bias"), "its layers do not follow on each other"),
        (lambda s: s.update({"blip.visual_encoder.new": torch.ones(1)}), "'new' is no weight of BLIP's vision"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(folder: Path, tmp_path: Path, images: list, change, message: str):
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "ImageReward.pt")
    (tmp_path / "med_config.json").write_bytes((folder / "med_config.json").read_bytes())
    with pytest.raises(ModelError, match=message):
        ImageReward(str(tmp_path), tokenizer=str(folder / "bert")).score(images[:1], ["a"])
