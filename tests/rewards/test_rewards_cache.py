"""A cached score is the score of exactly this image, prompt and scorer, or it is not served."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rewards
from rewards.cache import ScoreCache, image_digest, score_key
from rewards.errors import ImageError, InputError


class Counting:
    """Brightness plus an offset, counting the images it was asked for."""

    name = "counting"
    scale = "mean pixel plus offset, 0 and up"
    needs_prompt = True
    differentiable = False
    higher_is_better = True

    def __init__(self, offset: float = 0.0, version: str = "1") -> None:
        self.offset, self.version, self.scored = offset, version, 0

    def fingerprint(self) -> dict[str, str]:
        return {"name": self.name, "version": self.version, "offset": str(self.offset)}

    def score(self, images: Sequence, prompts: Sequence[str] | None = None) -> np.ndarray:
        self.scored += len(images)
        return np.array(
            [np.asarray(i).mean() / 3 + self.offset + len(p) for i, p in zip(images, prompts or (), strict=True)]
        )


class Uncacheable(Counting):
    """As Counting, without a fingerprint."""

    fingerprint = None  # pyright: ignore[reportAssignmentType]


@pytest.fixture
def files(images: list[Image.Image], tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    return paths


def test_a_second_run_scores_nothing_and_returns_the_same_bits(files: list[Path], prompts: list[str], tmp_path: Path):
    first, second = Counting(), Counting()
    cold = rewards.score(files, prompts, [first], batch_size=3, cache=tmp_path / "cache.jsonl")
    warm = rewards.score(files, prompts, [second], batch_size=4, cache=tmp_path / "cache.jsonl")
    assert (first.scored, second.scored) == (7, 0)
    np.testing.assert_array_equal(warm["counting"], cold["counting"])
    np.testing.assert_array_equal(warm["counting"], rewards.score(files, prompts, [Counting()])["counting"])


def test_anything_changed_is_scored_anew(
    files: list[Path], prompts: list[str], tmp_path: Path, make_image: Callable[..., Image.Image]
):
    cache = ScoreCache(tmp_path / "cache.jsonl")

    def scored_anew(scorer: Counting, texts: list[str]) -> int:
        expected = rewards.score(files, texts, [type(scorer)(scorer.offset, scorer.version)])["counting"]
        found = rewards.score(files, texts, [scorer], cache=cache)["counting"]
        np.testing.assert_array_equal(found, expected)
        return scorer.scored

    assert scored_anew(Counting(), prompts) == 7
    assert scored_anew(Counting(), prompts) == 0
    assert scored_anew(Counting(), ["other", *prompts[1:]]) == 1
    assert scored_anew(Counting(offset=1.0), prompts) == 7
    assert scored_anew(Counting(version="2"), prompts) == 7
    make_image(99).save(files[0])  # same name, other bytes
    assert scored_anew(Counting(), prompts) == 1


def test_a_scorer_without_a_fingerprint_is_never_served_from_the_cache(
    files: list[Path], prompts: list[str], tmp_path: Path
):
    scorer = Uncacheable()
    for _ in range(2):
        rewards.score(files, prompts, [scorer], cache=tmp_path / "cache.jsonl")
    assert scorer.scored == 14


def test_a_fully_cached_run_opens_no_model(tiny_clip: Path, files: list[Path], prompts: list[str], tmp_path: Path):
    spec = {"name": "clip_score", "model": str(tiny_clip)}
    cold = rewards.score(files, prompts, [spec], cache=tmp_path / "cache.jsonl")
    scorer = rewards.load(spec)
    warm = rewards.score(files, prompts, [scorer], cache=tmp_path / "cache.jsonl")
    np.testing.assert_array_equal(warm["clip_score"], cold["clip_score"])
    assert "_model" not in vars(vars(scorer)["_encoder"])


def test_a_torn_last_line_is_skipped_and_its_score_written_again(files: list[Path], prompts: list[str], tmp_path: Path):
    path = tmp_path / "cache.jsonl"
    expected = rewards.score(files, prompts, [Counting()], cache=path)["counting"]
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for end in range(last + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        scorer = Counting()
        cache = ScoreCache(path)
        assert cache.torn_lines == 1
        np.testing.assert_array_equal(rewards.score(files, prompts, [scorer], cache=cache)["counting"], expected)
        assert scorer.scored == 1
        assert len(ScoreCache(path)) == 7


def test_a_whole_last_line_without_its_line_end_counts(tmp_path: Path):
    path = tmp_path / "cache.jsonl"
    path.write_bytes(b'{"key": "a", "scorer": "s", "score": 0.5}')
    cache = ScoreCache(path)
    cache.put({"b": 1.5}, "s")
    again = ScoreCache(path)
    assert (again.get("a"), again.get("b"), again.torn_lines) == (0.5, 1.5, 0)


def test_a_killed_writer_leaves_a_cache_that_goes_on(tmp_path: Path):
    path = tmp_path / "cache.jsonl"
    code = (
        "import sys; from rewards.cache import ScoreCache\n"
        "cache = ScoreCache(sys.argv[1]); print('ready', flush=True)\n"
        "for n in range(10**9): cache.put({f'{n}': float(n), f'{n}b': n / 7}, 'scorer')"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    while not path.exists() or path.stat().st_size < 5000:
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    cache = ScoreCache(path)
    assert len(cache) > 10
    assert cache.torn_lines <= 1
    assert cache.get("7b") == 1.0
    cache.put({"new": 1.0}, "scorer")
    assert ScoreCache(path).get("new") == 1.0


def test_keys_differ_in_every_part():
    keys = {
        score_key(digest, prompt, fingerprint)
        for digest in ("a", "b")
        for prompt in (None, "", "p")
        for fingerprint in ({"name": "x"}, {"name": "y"}, {"name": "x", "weights": "1"})
    }
    assert len(keys) == 18
    assert score_key("a", "p", {"x": "1", "y": "2"}) == score_key("a", "p", {"y": "2", "x": "1"})


def test_digest_of_pixels_sees_size_and_content_and_of_files_every_byte(tmp_path: Path):
    flat = np.zeros((4, 6, 3), dtype=np.uint8)
    assert image_digest(flat) == image_digest(Image.fromarray(flat))
    assert image_digest(flat) != image_digest(flat.reshape(6, 4, 3))
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    Image.fromarray(flat).save(one)
    two.write_bytes(one.read_bytes() + b" ")
    assert image_digest(one) != image_digest(two)
    with pytest.raises(ImageError, match=r"absent\.png"):
        image_digest(tmp_path / "absent.png")


def test_files_that_are_no_cache_are_left_alone(tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"image": "a.png", "prompt": "a"}) + "\n")
    with pytest.raises(InputError, match=r"prompts\.jsonl:1: not a line of a score cache"):
        ScoreCache(path)
    with pytest.raises(InputError, match="cannot be written"):
        ScoreCache(tmp_path / "absent" / "cache.jsonl").put({"a": 1.0}, "s")
    with pytest.raises(InputError, match="only finite scores"):
        ScoreCache(tmp_path / "cache.jsonl").put({"a": float("nan")}, "s")
