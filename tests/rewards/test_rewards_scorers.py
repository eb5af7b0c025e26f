"""What holds for every registered scorer, and how scorers are found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rewards
from rewards.base import DifferentiableReward, Fingerprinted, Reward
from rewards.errors import ImageError, InputError, MissingDependencyError

SCORERS = rewards.available()


@pytest.fixture(params=SCORERS)
def scorer(request: pytest.FixtureRequest, tiny_clip: Path) -> Reward:
    options = {"clip_score": {"model": str(tiny_clip), "batch_size": 3}}
    return rewards.load({"name": request.param} | options.get(request.param, {}))


def test_a_scorer_describes_itself(scorer: Reward):
    assert isinstance(scorer, Reward)
    assert scorer.name in SCORERS
    assert scorer.version
    assert any(character.isdigit() for character in scorer.scale)
    assert scorer.differentiable == isinstance(scorer, DifferentiableReward)


def test_scores_are_one_float32_per_image(scorer: Reward, images: list, prompts: list[str]):
    scores = scorer.score(images, prompts)
    assert scores.shape == (7,)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert scorer.score([], []).shape == (0,)


def test_scores_do_not_depend_on_the_batch(scorer: Reward, images: list, prompts: list[str]):
    whole = scorer.score(images, prompts)
    parts = [scorer.score(images[:2], prompts[:2]), scorer.score(images[2:], prompts[2:])]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-5)
    for position in range(7):
        alone = scorer.score(images[position : position + 1], prompts[position : position + 1])
        np.testing.assert_allclose(alone, whole[position : position + 1], rtol=1e-5)


def test_permuting_images_permutes_scores(scorer: Reward, images: list, prompts: list[str]):
    order = np.random.default_rng(0).permutation(7)
    permuted = scorer.score([images[i] for i in order], [prompts[i] for i in order])
    np.testing.assert_allclose(permuted, scorer.score(images, prompts)[order], rtol=1e-5)


def test_paths_pil_images_and_arrays_score_the_same(
    scorer: Reward, images: list[Image.Image], prompts: list[str], tmp_path: Path
):
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    expected = scorer.score(images, prompts)
    for given in (paths, [str(path) for path in paths], [np.asarray(image) / 255.0 for image in images]):
        np.testing.assert_array_equal(scorer.score(given, prompts), expected)


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
    with pytest.raises(InputError, match=r"unknown scorer 'clip_scor'; did you mean 'clip_score'\? Available: blank, "):
        rewards.load("clip_scor")
    with pytest.raises(InputError, match=r"no option 'modle'; did you mean 'model'\?"):
        rewards.load({"name": "clip_score", "modle": "x"})
    with pytest.raises(InputError, match=r"brightness has no option 'model'\. Options: none"):
        rewards.load({"name": "brightness", "model": "x"})
    with pytest.raises(InputError, match="unknown scale 'x100'"):
        rewards.load({"name": "clip_score", "scale": "x100"})
    with pytest.raises(InputError, match="'name' is missing"):
        rewards.load({"model": "x"})


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
        "[rewards.load(name) for name in rewards.available()]\n"
        "print(sorted({'torch', 'transformers', 'scipy', 'diffusers', 't2i', 'pandas'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
