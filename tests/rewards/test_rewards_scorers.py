"""What holds for every registered scorer, and how scorers are found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rewards
from rewards.base import Described, DifferentiableReward, Fingerprinted, Reward
from rewards.errors import ImageError, InputError, MissingDependencyError
from rewards.options import scorer_specs
from rewards.registry import required_options
from rewards.scoring import describe

SCORERS = rewards.available()


@pytest.fixture(params=SCORERS, scope="module")
def scorer(request: pytest.FixtureRequest, scorer_options: dict[str, dict[str, object]]) -> Reward:
    return rewards.load({"name": request.param} | scorer_options.get(request.param, {}))


def test_a_scorer_describes_itself(scorer: Reward):
    assert isinstance(scorer, Reward)
    assert scorer.name in SCORERS
    assert scorer.version
    assert any(character.isdigit() for character in scorer.scale)
    assert scorer.differentiable == isinstance(scorer, DifferentiableReward)


@pytest.mark.parametrize("name", SCORERS)
def test_a_card_is_whole_and_opens_nothing(name: str, scorer_options: dict[str, dict[str, object]]):
    own = {"name": name} | scorer_options[name] if required_options(name) else name
    scorer = rewards.load(own)
    assert isinstance(scorer, Described)
    card = scorer.card
    for field in ("name", "version", "scale", "needs_prompt", "differentiable", "higher_is_better"):
        assert getattr(card, field) == getattr(scorer, field)
    assert card.licence
    assert card.trained_on
    assert (card.weights is None) == (card.preprocessing is None)
    assert (card.token_limit is not None) == card.needs_prompt
    assert card.token_limit is None or hasattr(type(scorer), "count_truncated") or name in ("dsg", "pn_vqa", "tifa")
    assert card.low is None or card.high is None or card.low < card.high
    assert json.loads(json.dumps(describe(scorer) if card.weights is None else asdict(card)))
    assert (card.key_map == "unverified") == (name in ("hpsv2", "image_reward"))


def test_scores_keep_within_the_card(scorer: Reward, images: list, prompts: list[str]):
    assert isinstance(scorer, Described)
    values, card = scorer.score(images, prompts), scorer.card
    assert card.low is None or values.min() >= card.low - 1e-6
    assert card.high is None or values.max() <= card.high + 1e-6


def test_scores_are_one_float32_per_image(scorer: Reward, images: list, prompts: list[str]):
    scores = scorer.score(images, prompts)
    assert scores.shape == (7,)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert scorer.score([], []).shape == (0,)


def test_scores_tell_images_and_prompts_apart(scorer: Reward, images: list, prompts: list[str]):
    spread = np.ptp(scorer.score(images[:5], ["a cat"] * 5))
    assert spread > 0 or scorer.name == "blank"
    same_image = scorer.score(images[:1] * 4, prompts[:4])
    assert (np.ptp(same_image) > _rounding(same_image)) == scorer.needs_prompt


def test_scores_do_not_depend_on_the_batch(scorer: Reward, images: list, prompts: list[str]):
    whole = scorer.score(images, prompts)
    parts = [scorer.score(images[:2], prompts[:2]), scorer.score(images[2:], prompts[2:])]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-5, atol=_rounding(whole))
    for position in range(7):
        alone = scorer.score(images[position : position + 1], prompts[position : position + 1])
        np.testing.assert_allclose(alone, whole[position : position + 1], rtol=1e-5, atol=_rounding(whole))


def _rounding(scores: np.ndarray) -> float:
    """1e-5 of the largest: a score that happens to be near 0 is a small difference of larger numbers."""
    return 1e-5 * float(np.abs(scores).max())


def test_an_image_scores_the_same_alone_and_among_32(
    scorer: Reward, make_image: Callable[..., Image.Image], scorer_options: dict[str, dict[str, object]]
):
    # In one forward pass of 32, where the other tests use 3.
    options = {key: value for key, value in scorer_options.get(scorer.name, {}).items() if key != "batch_size"}
    large = rewards.load({"name": scorer.name} | options)
    many = [make_image(100 + number, 30 + number, 50 - number) for number in range(32)]
    texts = [f"a cat and {'a dog ' * (number % 3)}" for number in range(32)]
    whole = large.score(many, texts)
    for position in (0, 13, 31):
        [alone] = large.score([many[position]], [texts[position]])
        np.testing.assert_allclose(alone, whole[position], rtol=1e-5, atol=_rounding(whole))


def test_permuting_images_permutes_scores(scorer: Reward, images: list, prompts: list[str]):
    order = np.random.default_rng(0).permutation(7)
    permuted = scorer.score([images[i] for i in order], [prompts[i] for i in order])
    whole = scorer.score(images, prompts)
    np.testing.assert_allclose(permuted, whole[order], rtol=1e-5, atol=_rounding(whole))


def test_autocast_of_the_caller_changes_no_score(scorer: Reward, images: list, prompts: list[str]):
    expected = scorer.score(images, prompts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scorer.score(images, prompts)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=_rounding(expected))


def test_paths_pil_images_arrays_and_tensors_score_the_same(
    scorer: Reward, images: list[Image.Image], prompts: list[str], tmp_path: Path
):
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    expected = scorer.score(images, prompts)
    arrays = [np.asarray(image) for image in images]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    floats = [array / 255.0 for array in arrays]
    for given in (paths, [str(path) for path in paths], arrays, floats, tensors, [one / 255.0 for one in tensors]):
        np.testing.assert_array_equal(scorer.score(given, prompts), expected)


def test_images_of_every_kind_score_as_the_rgb_they_stand_for(scorer: Reward, images: list, tmp_path: Path):
    base = images[2]
    grey = base.convert("L")
    clear = base.convert("RGBA")
    clear.putalpha(0)
    few = base.quantize(16)
    sixteen = np.asarray(grey).astype(np.uint16) * 257
    inverted = Image.merge(
        "CMYK", [*(band.point(lambda v: 255 - v) for band in base.split()), Image.new("L", base.size)]
    )
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    base.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    pairs = [
        (grey, grey.convert("RGB")),
        (clear, Image.new("RGB", base.size, (255, 255, 255))),
        (few, few.convert("RGB")),
        (sixteen, grey.convert("RGB")),
        (inverted, base),
        (turned, base),
        (Image.new("L", (1, 1), 9), Image.new("RGB", (1, 1), (9, 9, 9))),
    ]
    found = scorer.score([kind for kind, _ in pairs], ["a cat"] * len(pairs))
    expected = scorer.score([meant for _, meant in pairs], ["a cat"] * len(pairs))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=_rounding(expected))


def test_a_broken_image_is_named(scorer: Reward, images: list, tmp_path: Path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG")
    with pytest.raises(ImageError, match=r"broken\.png"):
        scorer.score([images[0], broken], ["a", "b"])


def test_prompts_are_needed_or_ignored_as_declared(scorer: Reward, images: list, prompts: list[str]):
    if scorer.needs_prompt:
        for wrong in (None, prompts[:3], "a cat", [1] * 7):
            with pytest.raises(InputError, match=scorer.name):
                scorer.score(images, wrong)  # pyright: ignore[reportArgumentType]
    else:
        np.testing.assert_array_equal(scorer.score(images), scorer.score(images, prompts))


def test_tensors_score_as_images_do_and_carry_a_gradient(scorer: Reward, images: list, prompts: list[str]):
    if not isinstance(scorer, DifferentiableReward):
        pytest.skip("not differentiable")
    for image, prompt in zip(images[:5], prompts[:5], strict=True):
        pixels = torch.from_numpy(np.asarray(image) / 255.0).float().permute(2, 0, 1)[None].requires_grad_()
        score = scorer.score_tensor(pixels, [prompt])
        assert score.shape == (1,)
        assert score.dtype == torch.float32
        score.sum().backward()
        assert pixels.grad is not None
        assert torch.isfinite(pixels.grad).all()
        assert pixels.grad.abs().sum() > 0
        [expected] = scorer.score([image], [prompt])
        np.testing.assert_allclose(score.item(), expected, rtol=2e-3, atol=2e-3 * max(1.0, abs(expected)))


def test_tensors_of_another_shape_are_refused(scorer: Reward):
    if not isinstance(scorer, DifferentiableReward):
        pytest.skip("not differentiable")
    for wrong in (torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(InputError):
            scorer.score_tensor(wrong, ["a"] * len(wrong))


def test_fingerprint_is_text_and_stable(scorer: Reward):
    assert isinstance(scorer, Fingerprinted)
    fingerprint = scorer.fingerprint()
    assert fingerprint == scorer.fingerprint()
    assert {"name", "version"} <= fingerprint.keys()
    assert all(isinstance(value, str) for value in fingerprint.values())


def test_controls_by_hand():
    black, white = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (255, 255, 255))
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    grey_red = Image.new("RGB", (4, 4), (200, 100, 100))
    given = [black, white, red, grey_red]
    expected = {
        "brightness": [0.0, 1.0, 0.2126, (0.2126 * 200 + 0.7874 * 100) / 255],
        "saturation": [0.0, 0.0, 1.0, 0.5],
        "sharpness": [0.0, 0.0, 0.0, 0.0],
        "blank": [1.0, 1.0, 1.0, 1.0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(rewards.load(name).score(given), values, atol=1e-6)


def test_sharpness_by_hand():
    # One bright pixel of 255 in 3x3: Laplacian -1020 there, 255 at its 4 neighbours, 0 at the corners; mean 0.
    image = np.zeros((3, 3), dtype=np.uint8)
    image[1, 1] = 255
    [value] = rewards.load("sharpness").score([image])
    assert value == pytest.approx((1020**2 + 4 * 255**2) / 9, rel=1e-6)


def test_jpeg_size_tells_noise_from_a_flat_image_and_blank_from_both(images: list):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    flat = np.zeros((64, 64, 3), dtype=np.uint8)
    small, large = rewards.load("jpeg_size").score([flat, noise])
    assert 0 < small < 1.5 < large
    assert rewards.load("blank").score([flat, noise]).tolist() == [1.0, 0.0]


def test_unknown_names_and_options_get_a_suggestion():
    with pytest.raises(
        InputError, match=r"unknown scorer 'clip_scor'; did you mean 'clip_score'\? Available: aesthetic, "
    ):
        rewards.load("clip_scor")
    with pytest.raises(InputError, match=r"no option 'modle'; did you mean 'model'\?"):
        rewards.load({"name": "clip_score", "modle": "x"})
    with pytest.raises(InputError, match=r"brightness has no option 'model'\. Options: none"):
        rewards.load({"name": "brightness", "model": "x"})


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [("batch_size", "8", "int"), ("batch_size", True, "int"), ("scale", 3, "str"), ("revision", 1, "str or None")],
)
def test_an_option_of_another_type_is_refused_before_the_scorer_is_made(option: str, value: object, expected: str):
    with pytest.raises(InputError, match=rf"clip_score: option '{option}' is {value!r}, expected {expected}\."):
        rewards.load({"name": "clip_score", option: value})
    assert rewards.load({"name": "tifa", "min_similarity": 1}).name
    with pytest.raises(InputError, match="unknown scale 'x100'"):
        rewards.load({"name": "clip_score", "scale": "x100"})
    with pytest.raises(InputError, match="'name' is missing"):
        rewards.load({"model": "x"})


def test_what_a_scorer_takes_as_text_stays_text_on_the_command_line():
    options = ["clip_score.revision=1234567", "clip_score.model=2.0", 'clip_score.scale="cosine"']
    options += ["clip_score.batch_size=8", "tifa.min_similarity=1", "tifa.nearest_model=null", "hpsv2.release=2.0"]
    clip, tifa, hps = scorer_specs("clip_score,tifa,hpsv2", options)
    assert clip == {
        "name": "clip_score", "revision": "1234567", "model": "2.0", "scale": "cosine", "batch_size": 8
    }  # fmt: skip
    assert tifa == {"name": "tifa", "min_similarity": 1, "nearest_model": None}
    assert rewards.load(clip).name == "clip_score_cosine"
    assert rewards.load(hps).name == "hpsv2_0"


class Redness:
    """A scorer as a user would write it, with the least it needs."""

    name = "redness"
    version = "1"
    scale = "mean red, 0 to 255"
    needs_prompt = False
    differentiable = False
    higher_is_better = True

    def __init__(self, factor: float, bias: float = 0.0) -> None:
        self.factor, self.bias = factor, bias

    def score(self, images: Sequence, prompts: Sequence[str] | None = None) -> np.ndarray:
        return np.array([self.factor * np.asarray(image)[..., 0].mean() + self.bias for image in images])


class Incomplete:
    """No scorer: it has neither scale nor score."""

    name = "incomplete"
    version = "1"
    needs_prompt = False
    differentiable = False
    higher_is_better = True


def test_a_class_of_ones_own_is_loaded_and_checked(images: list):
    name = f"{__name__}:Redness"
    scorer = rewards.load({"name": name, "factor": 2.0})
    assert scorer.name == "redness"
    with pytest.raises(InputError, match="needs the option 'factor'"):
        rewards.load(name)
    with pytest.raises(InputError, match="lacks scale, score"):
        rewards.load(f"{__name__}:Incomplete")
    with pytest.raises(InputError, match="no class 'Nothing'"):
        rewards.load(f"{__name__}:Nothing")
    with pytest.raises(InputError, match="no module 'absent_module'"):
        rewards.load("absent_module:Scorer")
    with pytest.raises(InputError, match="not a module name"):
        rewards.load("no module:Scorer")


def test_a_missing_package_is_told_with_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "needs_absent.py").write_text("import absent_package.part\nclass Scorer: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"pip install absent_package$"):
        rewards.load("needs_absent:Scorer")


def test_public_names_are_sorted_and_exist():
    assert rewards.__all__ == sorted(rewards.__all__)
    assert all(hasattr(rewards, name) for name in rewards.__all__)
    assert list(SCORERS) == sorted(SCORERS)


def test_importing_and_loading_stay_light():
    code = (
        "import sys, rewards, rewards.statistics, rewards.__main__\n"
        "[rewards.load(name) for name in rewards.available() if not rewards.registry.required_options(name)]\n"
        "import rewards.reward_model\n"
        "print(sorted({'torch', 'transformers', 'scipy', 'diffusers', 't2i', 'pandas'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
