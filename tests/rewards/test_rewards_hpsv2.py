"""HPS v2 on a random open_clip checkpoint, against open_clip's formulas written out on its own names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_scorers
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPTokenizer

from rewards.errors import InputError, ModelError
from rewards.hpsv2 import HpsV2
from rewards.preprocess import CLIP_MEAN, CLIP_STD, TensorPadding

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def checkpoint(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    path = tmp_path_factory.mktemp("hps") / "hps.pt"
    return path, tiny_scorers.write_open_clip(path, tiny_clip)


def _norm(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _blocks(x: torch.Tensor, state: State, prefix: str, mask: torch.Tensor | None) -> torch.Tensor:
    """x: [T, 32]; 4 heads of 8, as the base model's configuration says; quick GELU."""
    for number in range(2):
        name = f"{prefix}transformer.resblocks.{number}"
        normed = _norm(x, state, f"{name}.ln_1")
        joint = normed @ state[f"{name}.attn.in_proj_weight"].T + state[f"{name}.attn.in_proj_bias"]
        query, key, value = (part.reshape(len(x), 4, 8).transpose(0, 1) for part in joint.split(32, dim=-1))
        logits = query @ key.transpose(1, 2) / 8**0.5
        logits = logits if mask is None else logits + mask
        mixed = (logits.softmax(-1) @ value).transpose(0, 1).reshape(len(x), 32)
        x = x + mixed @ state[f"{name}.attn.out_proj.weight"].T + state[f"{name}.attn.out_proj.bias"]
        inner = _norm(x, state, f"{name}.ln_2") @ state[f"{name}.mlp.c_fc.weight"].T + state[f"{name}.mlp.c_fc.bias"]
        inner = inner * torch.sigmoid(1.702 * inner)
        x = x + inner @ state[f"{name}.mlp.c_proj.weight"].T + state[f"{name}.mlp.c_proj.bias"]
    return x


def _image_vector(state: State, pixels: torch.Tensor) -> torch.Tensor:
    patches = F.conv2d(pixels, state["visual.conv1.weight"], stride=8)[0].flatten(1).T
    x = torch.cat([state["visual.class_embedding"][None], patches]) + state["visual.positional_embedding"]
    x = _blocks(_norm(x, state, "visual.ln_pre"), state, "visual.", None)
    return F.normalize(_norm(x[0], state, "visual.ln_post") @ state["visual.proj"], dim=0)


def _text_vector(state: State, ids: list[int]) -> torch.Tensor:
    x = state["token_embedding.weight"][ids] + state["positional_embedding"][: len(ids)]
    mask = torch.full((len(ids), len(ids)), float("-inf")).triu(1)
    x = _norm(_blocks(x, state, "", mask), state, "ln_final")
    return F.normalize(x[int(np.argmax(ids))] @ state["text_projection"], dim=0)


def _pixels(image: Image.Image, *, antialias: bool) -> torch.Tensor:
    tensor = torch.from_numpy(np.asarray(image) / 255.0).float().permute(2, 0, 1)[None]
    height, width = tensor.shape[2:]
    new = (32, max(1, round(width * 32 / height))) if height >= width else (max(1, round(height * 32 / width)), 32)
    resized = F.interpolate(tensor, size=new, mode="bicubic", antialias=antialias) if new != (height, width) else tensor
    canvas = torch.zeros(1, 3, 32, 32)
    top, left = (32 - new[0]) // 2, (32 - new[1]) // 2
    canvas[..., top : top + new[0], left : left + new[1]] = resized
    return (canvas - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


@pytest.mark.parametrize("antialias", [True, False])
def test_score_equals_open_clips_formulas(
    tiny_clip: Path, checkpoint: tuple[Path, State], images: list, prompts: list[str], antialias: bool
):
    path, state = checkpoint
    tokenizer = CLIPTokenizer.from_pretrained(tiny_clip)
    expected = []
    for image, prompt in zip(images, prompts, strict=True):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"][:14]
        text = _text_vector(state, [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id])
        expected.append(float(_image_vector(state, _pixels(image, antialias=antialias)) @ text))
    scorer = HpsV2(model=str(path), base=str(tiny_clip), antialias=antialias)
    np.testing.assert_allclose(scorer.score(images, prompts), expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(expected) > 0.1


def test_releases_and_antialiasing_are_different_scores(tiny_clip: Path, checkpoint: tuple[Path, State]):
    path, _ = checkpoint
    made = [
        HpsV2(model=str(path), base=str(tiny_clip), release=release, antialias=antialias)
        for release in ("2.0", "2.1")
        for antialias in (True, False)
    ]
    assert len({str(scorer.fingerprint()) for scorer in made}) == 4
    assert {scorer.name for scorer in made} == {"hpsv2_0", "hpsv2"}
    # As YAML reads a release without quotation marks.
    assert [HpsV2(release=release).name for release in (2.0, 2.1)] == ["hpsv2_0", "hpsv2"]
    with pytest.raises(InputError, match=r"unknown release '3'; expected one of 2\.0, 2\.1"):
        HpsV2(release="3")


def test_padding_is_black_and_half_a_pixel_more_goes_below():
    white = Image.new("RGB", (20, 5), (255, 255, 255))
    found = TensorPadding(20).from_images([white]) * torch.tensor(CLIP_STD).view(3, 1, 1)
    rows = (found + torch.tensor(CLIP_MEAN).view(3, 1, 1))[0, 0, :, 0]
    assert [round(value, 4) for value in rows.tolist()] == [0.0] * 7 + [1.0] * 5 + [0.0] * 8


def test_tensors_and_images_get_the_same_values_to_rounding(images: list):
    for image in images:
        pixels = torch.from_numpy(np.asarray(image) / 255.0).float().permute(2, 0, 1)[None]
        padding = TensorPadding(24)
        torch.testing.assert_close(padding.from_tensor(pixels), padding.from_images([image]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("visual.proj"), "1 weights are missing, first visual_projection.weight"),
        (lambda state: state.update({"visual.extra": torch.ones(1)}), "'visual.extra' is no weight of an open_clip"),
        (lambda state: state.update({"visual.proj": torch.ones(32, 8)}), r"has shape \(8, 32\), the model \(16, 32\)"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(
    tiny_clip: Path, checkpoint: tuple[Path, State], images: list, tmp_path: Path, change, message: str
):
    state = dict(checkpoint[1])
    change(state)
    torch.save({"state_dict": state}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match=message):
        HpsV2(model=str(tmp_path / "other.pt"), base=str(tiny_clip)).score(images[:1], ["a"])


def test_a_folder_without_the_release_is_refused(tiny_clip: Path, tmp_path: Path, images: list):
    with pytest.raises(ModelError, match=r"there is no HPS_v2_compressed\.pt"):
        HpsV2(release="2.0", model=str(tmp_path), base=str(tiny_clip)).score(images[:1], ["a"])
