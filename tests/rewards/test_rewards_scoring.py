"""Scoring with several scorers at once, and the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rewards
from rewards.__main__ import main
from rewards.errors import ImageError, InputError, ScoringError
from rewards.prompts import find_images
from rewards.score_files import describe_all, facts_of, read_table


class Faulty:
    """Returns whatever it was told to, right or wrong."""

    name = "faulty"
    version = "1"
    scale = "none, 0 to 0"
    needs_prompt = False
    differentiable = False
    higher_is_better = True

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def score(self, images: Sequence, prompts: Sequence[str] | None = None) -> np.ndarray:
        return np.array(self.values)


def test_scores_of_several_scorers_equal_each_alone(tiny_clip: Path, images: list, prompts: list[str]):
    clip = rewards.load({"name": "clip_score", "model": str(tiny_clip)})
    scores = rewards.score(images, prompts, [clip, "brightness", {"name": "jpeg_size"}], batch_size=2)
    assert scores.names == ("clip_score", "brightness", "jpeg_size")
    assert len(scores) == 7
    np.testing.assert_allclose(scores["clip_score"], clip.score(images, prompts), rtol=1e-5)
    np.testing.assert_array_equal(scores["brightness"], rewards.load("brightness").score(images))
    assert scores.values["jpeg_size"].dtype == np.float32
    assert scores.truncated == {"clip_score": 1}
    assert scores.scales["clip_score"] == clip.scale
    with pytest.raises(FrozenInstanceError):
        scores.names = ()  # pyright: ignore[reportAttributeAccessIssue]


def test_rows_are_json_and_keep_every_bit(images: list, prompts: list[str]):
    scores = rewards.score(images, prompts, ["brightness", "saturation"])
    rows = json.loads(json.dumps(scores.to_rows()))
    assert rows[3]["image"] == "images[3]"
    assert rows[3]["prompt"] == prompts[3]
    again = np.array([row["scores"]["saturation"] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(again, scores["saturation"])
    assert "prompt" not in rewards.score(images, rewards=["brightness"]).to_rows()[0]


def test_no_images_give_no_scores():
    assert rewards.score([], [], ["brightness"])["brightness"].shape == (0,)


def test_wrong_use_is_an_error(images: list, prompts: list[str], tmp_path: Path):
    with pytest.raises(InputError, match="may not be empty"):
        rewards.score(images, prompts)
    with pytest.raises(InputError, match="there twice"):
        rewards.score(images, prompts, ["brightness", "brightness"])
    with pytest.raises(InputError, match="clip_score scores an image against a prompt"):
        rewards.score(images, rewards=["clip_score"])
    with pytest.raises(InputError, match="2 prompts for 7 images"):
        rewards.score(images, prompts[:2], ["brightness"])
    with pytest.raises(ImageError, match=r"absent\.png"):
        rewards.score([images[0], tmp_path / "absent.png"], rewards=["brightness"])
    with pytest.raises(InputError, match="batch_size is 0"):
        rewards.score(images, rewards=["brightness"], batch_size=0)


@pytest.mark.parametrize(
    ("values", "message"), [([float("nan")], "returned nan for image 0"), ([1.0, 2.0], "shape"), ([[1.0]], "shape")]
)
def test_a_scorer_that_returns_no_score_is_named(images: list, values: list, message: str):
    with pytest.raises(ScoringError, match=f"faulty.*{message}"):
        rewards.score(images[:1], rewards=[Faulty(values)])


@pytest.fixture
def folder(images: list[Image.Image], tmp_path: Path) -> Path:
    """1.png ... 12.png in a folder of the test's own."""
    made = tmp_path / "images"
    made.mkdir()
    for number in range(1, 13):
        images[number % 5].save(made / f"{number}.png")
    return made


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, output.out, output.err


def _write_rows(path: Path, rows: Sequence[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_images_are_found_in_natural_order(folder: Path):
    (folder / ".hidden.png").touch()
    (folder / "notes.txt").touch()
    (folder / "sub").mkdir()
    Image.new("RGB", (2, 2)).save(folder / "sub" / "X.PNG")
    names = [path.relative_to(folder).as_posix() for path in find_images(folder)]
    assert names == [*(f"{number}.png" for number in range(1, 13)), "sub/X.PNG"]


def test_pictures_that_are_not_read_are_a_gap_that_is_told_and_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "sub").mkdir()
    for name in ("phone.HEIC", "sub/raw.dng", ".hidden.avif"):
        (folder / name).touch()
    Image.new("RGB", (4, 4), "white").save(folder / "13.jfif", format="jpeg")
    output = tmp_path / "scores.jsonl"
    asked = ("score", folder, "--rewards", "brightness", "--output", output)
    code, out, _ = _run(capsys, *asked)
    assert code == 0
    assert "pictures of formats that are not read: 2" in out
    assert _run(capsys, *asked, "--strict")[0] != 0
    table = read_table(output)
    assert table.not_read == (str(folder / "phone.HEIC"), str(folder / "sub/raw.dng"))
    assert table.is_incomplete
    assert len(table.rows) == 13
    for path in folder.glob("1*"):
        path.unlink()
    for path in folder.glob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match=r"There are 2 of formats that are not read: .*phone\.HEIC"):
        find_images(folder)


def test_command_line_scores_a_folder(
    folder: Path, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    texts = [f"prompt {number % 4}" for number in range(1, 13)]
    prompts = _write_rows(
        tmp_path / "prompts.jsonl",
        [{"image": f"images/{number}.png", "prompt": text, "seed": 3} for number, text in enumerate(texts, 1)],
    )
    output = tmp_path / "scores.jsonl"
    code, out, err = _run(
        capsys, "score", folder, "--prompts", prompts, "--rewards", "clip_score,brightness", "--output", output,
        "--option", f"clip_score.model={tiny_clip}", "--batch-size", 5, "--strict", "--cache", tmp_path / "cache.jsonl",
    )  # fmt: skip
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    scorer = rewards.load({"name": "clip_score", "model": str(tiny_clip)})
    paths = [folder / f"{number}.png" for number in range(1, 13)]
    np.testing.assert_allclose([r["scores"]["clip_score"] for r in rows], scorer.score(paths, texts), rtol=1e-5)
    assert [row["image"] for row in rows] == [f"images/{number}.png" for number in range(1, 13)]
    assert rows[0].keys() == {"image", "prompt", "scores", "scorers"}
    cards = json.loads((tmp_path / "scores.jsonl.scorers.json").read_text())
    assert cards["clip_score"]["scale"] == scorer.scale
    assert len(cards["clip_score"]["fingerprint"]["weights"]) == 64
    assert "unreadable images: 0" in out
    assert "clip_score" in out


def test_command_line_counts_what_is_missing_and_goes_on(
    folder: Path, tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "3.png").write_bytes(b"broken")
    Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "4.png")
    rows: list[dict] = [{"image": f"{number}.png", "prompt": "a cat"} for number in range(1, 12)]
    rows[0]["prompt"] = "a prompt that is much too long for it"
    rows[1]["prompt"] = None
    prompts = _write_rows(tmp_path / "p.jsonl", [*rows, {"image": "absent.png", "prompt": "x"}])
    output = tmp_path / "scores.jsonl"
    arguments = [
        "score", folder, "--prompts", prompts, "--rewards", "clip_score,saturation", "--output", output,
        "--option", f"clip_score.model={tiny_clip}",
    ]  # fmt: skip
    code, out, _ = _run(capsys, *arguments)
    assert code == 0
    for line in (
        "images: 12",
        "unreadable images: 1 (first: " + str(folder / "3.png"),
        "images without a prompt: 2 (first: " + str(folder / "2.png"),
        "prompts without an image: 1 (first: absent.png)",
        "blank images: 1 (first: " + str(folder / "4.png"),
        "prompts cut by clip_score: 1",
    ):
        assert line in out
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(written) == 12
    assert written[2]["scores"] == {}
    assert "3.png" in written[2]["problem"]
    assert written[1]["scores"].keys() == {"saturation"}
    assert written[3]["scores"].keys() == {"clip_score", "saturation"}
    assert _run(capsys, *arguments, "--strict")[0] == 1


def test_command_line_takes_one_prompt_a_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    texts = tmp_path / "prompts.txt"
    # Windows editors put a byte-order mark first.
    texts.write_text("".join(f"prompt {number}\n" for number in range(1, 13)), encoding="utf-8-sig")
    output = tmp_path / "scores.jsonl"
    code, _, _ = _run(capsys, "score", folder, "--prompts", texts, "--rewards", "brightness", "--output", output)
    assert code == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["image"], row["prompt"]) for row in rows] == [
        (f"images/{number}.png", f"prompt {number}") for number in range(1, 13)
    ]


def test_links_to_one_image_are_images_of_their_own(
    images: list[Image.Image], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    blob, folder, output = tmp_path / "blobs" / "0a1b.png", tmp_path / "images", tmp_path / "scores.jsonl"
    blob.parent.mkdir()
    folder.mkdir()
    images[0].save(blob)
    for name in ("a.png", "b.png"):
        (folder / name).symlink_to(blob)
    prompts = _write_rows(
        tmp_path / "prompts.jsonl",
        [{"image": "images/a.png", "prompt": "a cat"}, {"image": "b.png", "prompt": "a dog"}],
    )
    code, _, err = _run(capsys, "score", folder, "--prompts", prompts, "--rewards", "brightness", "--output", output)
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["image"], row["prompt"]) for row in rows] == [("images/a.png", "a cat"), ("images/b.png", "a dog")]


def test_the_id_of_a_scorer_without_a_fingerprint_is_the_same_in_rows_and_in_its_description():
    description = describe_all([Faulty([1.0])])["faulty"]
    assert facts_of(description).id == description["id"]


def test_command_line_errors_are_one_line_and_exit_2(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "few.txt").write_text("one\n")
    (tmp_path / "bad.jsonl").write_text('{"image": "1.png", "prompt": "a"}\n{"image": 1.png}\n')
    (tmp_path / "twice.jsonl").write_text('{"image": "1.png", "prompt": "a"}\n' * 2)
    (tmp_path / "few.csv").write_text("one\n")
    (tmp_path / "empty").mkdir()
    cases = [
        (["score", folder], "Missing option"),
        (["score", folder, "--rewards", "brightness", "--batch"], "No such option"),
        (["score", folder, "--rewards", "brightness", "--batch-size", "0"], "greater than or equal to 1"),
        (["scor"], "No such command"),
        ([], "Missing command"),
        (["score", folder, "--rewards", "brightnes"], "did you mean 'brightness'?"),
        (["score", folder, "--rewards", " , "], "names no scorer"),
        (["score", folder, "--rewards", "clip_score"], "give --prompts"),
        (["score", tmp_path / "absent", "--rewards", "brightness"], "no such folder"),
        (["score", tmp_path / "empty", "--rewards", "brightness"], "no images"),
        (["score", folder, "--rewards", "brightness", "--option", "clip_score.model=x"], "not among --rewards"),
        (["score", folder, "--rewards", "brightness", "--option", "model"], "expected scorer.key=value"),
        (["score", folder, "--rewards", "brightness", "--output", tmp_path / "no" / "x.jsonl"], "must be a folder"),
        (["score", folder, "--rewards", "brightness", "--prompts", tmp_path / "few.txt"], "1 lines for 12 images"),
        (["score", folder, "--rewards", "brightness", "--prompts", tmp_path / "bad.jsonl"], "bad.jsonl:2: not JSON"),
        (["score", folder, "--rewards", "brightness", "--prompts", tmp_path / "twice.jsonl"], "named twice"),
        (["score", folder, "--rewards", "brightness", "--prompts", tmp_path / "absent.jsonl"], "cannot be read"),
        (["score", folder, "--rewards", "brightness", "--prompts", tmp_path / "few.csv"], "expected a .jsonl"),
    ]  # fmt: skip
    for arguments, message in cases:
        code, out, err = _run(capsys, *arguments)
        assert (code, out) == (2, ""), arguments
        assert err.startswith("Error: "), err
        assert message in err
        assert err.count("\n") == 1, err


def test_command_line_lists_the_scorers(capsys: pytest.CaptureFixture[str]):
    code, out, _ = _run(capsys, "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(rewards.available())
