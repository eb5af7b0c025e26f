"""CLIP score against an independent calculation, its tensor path, its text limit, and the checkpoints it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, SiglipImageProcessorPil, SiglipModel

from rewards.clip_score import ClipScore
from rewards.errors import InputError, ModelError
from rewards.preprocess import read_preprocessor


def _cosines(folder: Path, images: list[Image.Image], prompts: list[str]) -> np.ndarray:
    """The score from its parts: PIL resize and crop, tokens cut by hand, the model one pair at a time."""
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    cosines = []
    for image, prompt in zip(images, prompts, strict=True):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"][:14]
        tokens = torch.tensor([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            output = model(input_ids=tokens, pixel_values=_pixels(image))
        cosines.append(torch.nn.functional.cosine_similarity(output.text_embeds, output.image_embeds).item())
    return np.array(cosines)


def _pixels(image: Image.Image) -> torch.Tensor:
    width, height = image.size
    factor = 32 / min(width, height)
    resized = image.resize((max(32, int(width * factor)), max(32, int(height * factor))), Image.Resampling.BICUBIC)
    left, top = (resized.width - 32) // 2, (resized.height - 32) // 2
    values = np.asarray(resized.crop((left, top, left + 32, top + 32)), dtype=np.float32) / 255.0
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    return torch.from_numpy((values - mean) / std).float().permute(2, 0, 1)[None]


@pytest.mark.parametrize("scale", ["cosine", "cosine_x100", "hessel"])
def test_score_equals_an_independent_calculation(tiny_clip: Path, images: list, prompts: list[str], scale: str):
    scorer = ClipScore(str(tiny_clip), scale=scale)
    prefix = "A photo depicts " if scale == "hessel" else ""
    cosines = _cosines(tiny_clip, images, [prefix + prompt for prompt in prompts])
    expected = {"cosine": cosines, "cosine_x100": 100 * cosines, "hessel": 2.5 * np.maximum(cosines, 0)}[scale]
    np.testing.assert_allclose(scorer.score(images, prompts), expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(expected) > 0.05 * np.abs(expected).max()


def test_each_scale_has_its_own_name(tiny_clip: Path):
    names = {ClipScore(str(tiny_clip), scale=scale).name for scale in ("cosine", "cosine_x100", "hessel")}
    assert names == {"clip_score", "clip_score_cosine", "clip_score_hessel"}


def test_a_long_prompt_loses_its_end_but_not_its_end_token(tiny_clip: Path, images: list):
    scorer = ClipScore(str(tiny_clip))
    # One token a letter here: 14 letters fit between start and end token.
    exact, longer, longest = "abcdefghijklmn", "abcdefghijklmno", "abcdefghijklmnopq and much more"
    assert scorer.token_limit == 16
    assert scorer.count_truncated([exact, longer, longest]) == 2
    assert scorer.count_truncated([]) == 0
    scores = scorer.score(images[:1] * 2, [longer, longest])
    # To rounding: with several threads, rows of a batch may be summed in different orders.
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)
    assert scores[0] == pytest.approx(100 * _cosines(tiny_clip, images[:1], [longest])[0], rel=1e-4)


def test_configs_of_the_first_clip_releases_are_understood(tiny_clip: Path, tmp_path: Path, images: list):
    # Sizes as single numbers, and the end token 2 that stands for "the highest id".
    def age(folder: Path) -> None:
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"size": 32, "crop_size": 32}))
        _set_end_token(folder, 2)

    old = _changed(tiny_clip, tmp_path / "old", age)
    np.testing.assert_array_equal(
        old.score(images, ["a cat"] * 7), ClipScore(str(tiny_clip)).score(images, ["a cat"] * 7)
    )


def test_the_prefix_counts_against_the_limit(tiny_clip: Path):
    assert ClipScore(str(tiny_clip)).count_truncated(["cat"]) == 0
    assert ClipScore(str(tiny_clip), scale="hessel").count_truncated(["cat"]) == 1


@pytest.mark.parametrize(("width", "height"), [(40, 40), (32, 32), (97, 33), (33, 97), (20, 24), (300, 200), (1, 1)])
def test_tensor_preprocessing_is_the_image_preprocessing(
    tiny_clip: Path, make_image: Callable[..., Image.Image], width: int, height: int
):
    image = make_image(3, width, height)
    preprocessor = read_preprocessor(tiny_clip)
    pixels = torch.from_numpy(np.asarray(image) / 255.0).float().permute(2, 0, 1)[None]
    difference = (preprocessor.from_tensor(pixels) - preprocessor.from_images([image])).abs()
    levels = difference * torch.tensor(preprocessor.std).view(1, 3, 1, 1) * 255.0
    # PIL rounds to 8 bits after each of its two passes.
    assert levels.max() <= 2.0
    assert levels.mean() <= 0.5


def test_square_resize_without_a_crop_is_rebuilt_too(tmp_path: Path, make_image: Callable[..., Image.Image]):
    CLIPImageProcessorPil(
        size={"height": 24, "width": 28}, do_center_crop=False, resample=Image.Resampling.BILINEAR
    ).save_pretrained(tmp_path)
    preprocessor = read_preprocessor(tmp_path)
    image = make_image(1, 70, 50)
    expected = preprocessor.from_images([image])
    pixels = torch.from_numpy(np.asarray(image) / 255.0).float().permute(2, 0, 1)[None]
    assert expected.shape == (1, 3, 24, 28)
    assert (preprocessor.from_tensor(pixels) - expected).abs().max() < 2 / 255 / 0.26


def test_preprocessing_that_is_not_rebuilt_is_refused(tmp_path: Path):
    CLIPImageProcessorPil(resample=Image.Resampling.LANCZOS, do_normalize=False).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a step is switched off; resample 1 is not bicubic or bilinear"):
        read_preprocessor(tmp_path)


def test_values_are_those_of_transformers_own_processors(tiny_clip: Path, tiny_siglip: Path, images: list):
    for folder, processor, kind in (
        (tiny_clip, CLIPImageProcessorPil.from_pretrained(tiny_clip), "clip"),
        (tiny_siglip, SiglipImageProcessorPil.from_pretrained(tiny_siglip), "siglip"),
    ):
        expected = processor(images=list(images), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(read_preprocessor(folder, kind).from_images(images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", ["cosine_x100", "probability"])
def test_siglip_scores_equal_the_models_own_output(tiny_siglip: Path, images: list, scale: str):
    texts = ["cat", "dog", "a big red photo of a dog", "", "blue", "x", "cat"]
    model = SiglipModel.from_pretrained(tiny_siglip).eval()
    processor = SiglipImageProcessorPil.from_pretrained(tiny_siglip)
    expected = []
    for image, text in zip(images, texts, strict=True):
        # By hand: letters of the fixture's vocabulary, spaces unknown, end token kept, padded to all 12 positions.
        letters = [3 + ord(letter) - ord("a") if letter != " " else 2 for letter in text]
        ids = [*letters[:11], 1]
        tokens = torch.tensor([ids + [0] * (12 - len(ids))])
        pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            output = model(input_ids=tokens, pixel_values=pixels)
        cosine = torch.nn.functional.cosine_similarity(output.text_embeds, output.image_embeds).item()
        probability = torch.sigmoid(output.logits_per_image).item()
        expected.append(100 * cosine if scale == "cosine_x100" else probability)
    scorer = ClipScore(str(tiny_siglip), scale=scale)
    np.testing.assert_allclose(scorer.score(images, texts), expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(expected) > 0.05 * np.abs(expected).max()
    assert scorer.token_limit == 12
    assert scorer.count_truncated(texts) == 1


def test_clip_has_no_siglip_probability(tiny_clip: Path, images: list):
    with pytest.raises(ModelError, match="expected a SigLIP model"):
        ClipScore(str(tiny_clip), scale="probability").score(images[:1], ["a"])


def test_embeddings_score_as_their_images_do(tiny_clip: Path, images: list, prompts: list[str]):
    scorer = ClipScore(str(tiny_clip))
    embeddings = 3.0 * scorer.encoder.encode_images(images)
    expected = torch.from_numpy(scorer.score(images, prompts))
    torch.testing.assert_close(scorer.score_embeddings(embeddings, prompts), expected, rtol=1e-5, atol=1e-4)
    with pytest.raises(InputError, match="embeddings have 8 numbers, its encoder's have 16"):
        scorer.score_embeddings(torch.ones(1, 8), ["a"])


def test_pixels_outside_zero_to_one_are_refused(tiny_clip: Path):
    with pytest.raises(InputError, match="range from -1 to -1"):
        ClipScore(str(tiny_clip)).score_tensor(torch.full((1, 3, 8, 8), -1.0), ["a"])


def test_gradient_points_uphill_and_the_model_gets_none(tiny_clip: Path, images: list):
    scorer = ClipScore(str(tiny_clip))
    pixels = torch.from_numpy(np.asarray(images[0]) / 255.0).float().permute(2, 0, 1)[None].requires_grad_()
    before = scorer.score_tensor(pixels, ["a cat"])
    before.sum().backward()
    assert pixels.grad is not None
    step = 0.002 * pixels.grad.sign()
    assert scorer.score_tensor((pixels.detach() + step).clamp(0, 1), ["a cat"]) > before
    assert all(p.grad is None for p in scorer.encoder.model.parameters())


def test_autocast_of_the_caller_changes_nothing(tiny_clip: Path, images: list):
    scorer = ClipScore(str(tiny_clip))
    expected = scorer.score(images, ["a cat"] * 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(scorer.score(images, ["a cat"] * 7), expected)


def test_fingerprint_changes_with_anything_that_changes_a_score(tiny_clip: Path, tmp_path: Path):
    base = ClipScore(str(tiny_clip)).fingerprint()
    assert ClipScore(str(tiny_clip), batch_size=5).fingerprint() == base
    assert ClipScore(str(tiny_clip), scale="hessel").fingerprint() != base
    copy = tmp_path / "copy"
    shutil.copytree(tiny_clip, copy)
    assert ClipScore(str(copy)).fingerprint() == base
    for name in ("model.safetensors", "preprocessor_config.json", "tokenizer.json"):
        changed = tmp_path / name.replace(".", "_")
        shutil.copytree(tiny_clip, changed)
        data = (changed / name).read_bytes()
        (changed / name).write_bytes(data + b" ")
        assert ClipScore(str(changed)).fingerprint() != base


def _changed(folder: Path, target: Path, change: Callable[[Path], object]) -> ClipScore:
    shutil.copytree(folder, target)
    change(target)
    return ClipScore(str(target))


def _edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


def _drop_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _set_end_token(folder: Path, number: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = number
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"torn"), "weights cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "no readable config.json"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "no readable preprocessor_config.json"),
        (lambda folder: _edit_config(folder, model_type="blip"), "model_type is 'blip'; expected 'clip'"),
        (_drop_a_weight, "1 weights are missing or misshapen, first visual_projection.weight"),
        (lambda folder: _set_end_token(folder, 49407), "eos_token_id is 49407"),
    ],
)
def test_a_broken_checkpoint_is_refused_in_one_line(
    tiny_clip: Path, tmp_path: Path, images: list, change: Callable[[Path], object], message: str
):
    scorer = _changed(tiny_clip, tmp_path / "broken", change)
    with pytest.raises(ModelError, match=message) as caught:
        scorer.score(images[:1], ["a cat"])
    assert "\n" not in str(caught.value)


def test_a_model_that_is_nowhere_is_refused(tmp_path: Path, tiny_clip: Path, images: list):
    with pytest.raises(ModelError, match="there is no such folder"):
        ClipScore(str(tmp_path / "absent")).score(images[:1], ["a"])
    with pytest.raises(InputError, match="it has no revision 'main'"):
        ClipScore(str(tmp_path), revision="main").score(images[:1], ["a"])
    with pytest.raises(InputError, match="not a torch device"):
        ClipScore(str(tiny_clip), device="gpu").score(images[:1], ["a"])
