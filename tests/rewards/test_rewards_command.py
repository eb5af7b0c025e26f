"""`rewards score` and `rewards compare` as a user runs them: suites, gaps, interruption, reports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rewards
from rewards.__main__ import main
from rewards.errors import InputError
from rewards.score_files import describe_all, read_table, write_table
from rewards.suites import load_suite
from rewards.suites.pairing import pair_suite

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """command(argument, ...) -> exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return caught.value.code, output.out, output.err

    return run


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_thousand_images_with_all_that_can_be_wrong_finish_and_say_so(
    tiny_clip: Path, tmp_path: Path, command: Command
):
    folder = tmp_path / "images"
    folder.mkdir()
    rows: list[dict] = []
    for number in range(1000):
        pixels = np.full((8, 8, 3), number % 250, dtype=np.uint8)
        pixels[0, 0] = 255
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "prompt": f"{number // 2}", "category": "ab"[number % 2]})
    (folder / "3.png").write_bytes(b"broken")
    Image.new("RGB", (8, 8)).save(folder / "10.png")
    (folder / "phone.heic").touch()
    rows[5]["prompt"] = None
    rows[20]["prompt"] = "much too long " * 20
    prompts, output, page = tmp_path / "prompts.jsonl", tmp_path / "scores.jsonl", tmp_path / "page.html"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"image": "absent.png", "prompt": "x"}]))
    arguments = [
        "score", folder, "--prompts", prompts, "--rewards", "clip_score,brightness", "--output", output,
        "--report", page, "--option", f"clip_score.model={tiny_clip}",
    ]  # fmt: skip
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    counts = {line.partition(":")[0]: line.partition(":")[2].split()[0] for line in out.splitlines()[3:]}
    assert counts == {
        "images": "1000",
        "unreadable images": "1",
        "pictures of formats that are not read": "1",
        "images without a prompt": "1",
        "prompts without an image": "1",
        "blank images": "1",
        "prompts cut by clip_score": "1",
    }
    written = rows_of(output)
    assert len(written) == 1000
    assert sum("clip_score" in row["scores"] for row in written) == 998
    assert (written[3]["scores"], written[5]["scores"].keys()) == ({}, {"brightness"})
    assert written[10]["blank"]
    assert written[20]["truncated_by"] == ["clip_score"]
    assert "prompts cut by clip_score" in page.read_text()
    table = read_table(output)
    assert [finding.count for finding in table.findings] == [1] * 6
    assert [(row.group, row.images) for row in table.by_category("clip_score")] == [("a", 500), ("b", 498)]
    assert command(*arguments, "--strict")[0] == 1


def test_images_of_a_suite_are_found_by_id_place_or_folder(
    tmp_path: Path, command: Command, make_image: Callable[..., Image.Image]
):
    suite = load_suite("compositional")
    folder, output = tmp_path / "images", tmp_path / "scores.jsonl"
    (folder / suite.prompts[2].id).mkdir(parents=True)
    names = {
        f"{suite.prompts[0].id}.png": 0,
        f"{suite.prompts[1].id}-01.png": 1,
        f"{suite.prompts[2].id}/any.png": 2,
        "00017.png": 17,
        "00198-03.png": 198,
        # As GenEval lays them out: the file's own name is the number of the sample.
        "00012/samples/00001.png": 12,
        f"{suite.prompts[3].id}/samples/0000.png": 3,
        "notes.png": None,
        "00200.png": None,
        "batch/00005.png": None,
    }
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make_image(number).save(folder / name)
    pairing = pair_suite(folder, suite)
    found = {
        path.relative_to(folder).as_posix(): prompt
        for path, prompt in zip(pairing.images, pairing.prompts, strict=True)
    }
    assert found == {name: None if at is None else suite.prompts[at].prompt for name, at in names.items()}
    assert len(pairing.missing_images) == 193
    code, out, _ = command(
        "score", folder, "--suite", "compositional", "--rewards", "dsg,brightness", "--output", output,
        "--option", "dsg.vqa=asking:Guessing",
    )  # fmt: skip
    assert code == 0
    assert "images without a prompt: 3" in out
    assert "prompts without an image: 193" in out
    written = {Path(row["image"]).name: row for row in rows_of(output)}
    assert written["00198-03.png"]["category"] == suite.prompts[198].category
    assert written["notes.png"]["scores"].keys() == {"brightness"}
    assert 0.0 <= written["00017.png"]["scores"]["dsg"] <= 1.0


def test_images_of_equal_names_in_several_folders_are_images_of_their_own(
    tmp_path: Path, make_image: Callable[..., Image.Image], command: Callable
):
    names = ("a/0.png", "b/0.png", "b/1.png")
    for number, name in enumerate(names):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        make_image(number).save(tmp_path / "set" / name)
    code, _, _ = command("score", tmp_path / "set", "--rewards", "brightness", "--output", tmp_path / "s.jsonl")
    assert code == 0
    table = read_table(tmp_path / "s.jsonl")
    assert table.keys == tuple((name, 0) for name in names)
    mean = table.mean("brightness")
    assert mean is not None
    assert mean.mean == pytest.approx(np.mean([row.scores["brightness"] for row in table.rows]))
    write_table(
        replace(table, missing_images=("c.png",)), describe_all([rewards.load("brightness")]), tmp_path / "t.jsonl"
    )
    assert read_table(tmp_path / "t.jsonl").missing_images == ("c.png",)


def test_a_folder_that_has_nothing_of_the_suite_is_refused(tmp_path: Path, make_image: Callable[..., Image.Image]):
    make_image(1).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="no image is named after a prompt of suite compositional"):
        pair_suite(tmp_path, load_suite("compositional"))


def test_a_published_suite_brings_its_own_questions(
    tmp_path: Path, command: Command, make_image: Callable[..., Image.Image]
):
    questions = tmp_path / "dsg.csv"
    questions.write_text(
        "item_id,text,proposition_id,dependency,category_broad,question_natural_language\n"
        "x_1,a red cat,1,0,entity,Is there a cat?\nx_1,a red cat,2,1,attribute,Is the cat red?\n"
    )
    folder, output = tmp_path / "images", tmp_path / "scores.jsonl"
    folder.mkdir()
    make_image(1).save(folder / "x_1.png")
    code, _, err = command(
        "score", folder, "--suite", f"dsg1k={questions}", "--rewards", "dsg", "--output", output,
        "--option", "dsg.vqa=asking:Guessing",
    )  # fmt: skip
    assert (code, err) == (0, "")
    [row] = rows_of(output)
    assert row["prompt"] == "a red cat"
    assert row["scores"]["dsg"] in (0.0, 0.5, 1.0)


def test_what_a_terminal_cannot_encode_is_escaped(
    tmp_path: Path, command: Command, make_image: Callable[..., Image.Image]
):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "scores.jsonl"
    make_image(1).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "prompt": "a \ud800 cat"}, {"image": "\ud800.png", "prompt": "a dog"}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = command("score", tmp_path, "--prompts", prompts, "--rewards", "brightness", "--output", output)
    assert (code, err) == (0, "")
    assert r"prompts without an image: 1 (first: \ud800.png)" in out
    assert rows_of(output)[0]["prompt"] == "a \ud800 cat"


class Mortal:
    """Brightness of the first pixel; kills its process in the third batch, unless the file REWARDS_TEST_LIVE is there.
    Notes each image that it scores."""

    name = "mortal"
    version = "1"
    scale = "level, 0 to 255"
    needs_prompt = False
    differentiable = False
    higher_is_better = True
    _batches = 0

    def fingerprint(self) -> dict[str, str]:
        return {"name": self.name, "version": self.version}

    def score(self, images: Sequence, prompts: Sequence[str] | None = None) -> np.ndarray:
        log = Path(os.environ["REWARDS_TEST_LOG"])
        self._batches += 1
        if self._batches == 3 and not log.with_suffix(".live").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        values = np.array([np.asarray(image)[0, 0, 0] for image in images], dtype=np.float32)
        with log.open("a") as file:
            file.writelines(f"{value:.0f}\n" for value in values)
        return values


def test_a_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_file(tmp_path: Path):
    folder, log = tmp_path / "images", tmp_path / "log.txt"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{number}.png")
    arguments = [
        sys.executable, "-m", "rewards", "score", str(folder), "--rewards", f"{__name__}:Mortal", "--batch-size", "4",
    ]  # fmt: skip
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2]), *sys.path])
    environment = os.environ | {"REWARDS_TEST_LOG": str(log), "PYTHONPATH": paths}

    def run(output: str) -> int:
        command = [*arguments, "--output", str(tmp_path / output)]
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    assert run("scores.jsonl") == -signal.SIGKILL
    assert log.read_text().split() == [str(number) for number in range(8)]
    assert not (tmp_path / "scores.jsonl").exists()
    log.with_suffix(".live").touch()
    assert run("scores.jsonl") == 0
    assert log.read_text().split() == [str(number) for number in range(20)]
    assert run("whole.jsonl") == 0
    assert (tmp_path / "scores.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


class Interrupted(Mortal):
    """What Ctrl-C looks like to a scorer."""

    def score(self, images: Sequence, prompts: Sequence[str] | None = None) -> np.ndarray:
        raise KeyboardInterrupt


def test_an_interruption_says_how_to_go_on(tmp_path: Path, command: Command, make_image: Callable[..., Image.Image]):
    make_image(1).save(tmp_path / "a.png")
    code, out, err = command("score", tmp_path, "--rewards", f"{__name__}:Interrupted")
    assert (code, out) == (130, "")
    assert "the same command goes on from here" in err


class Failing(Mortal):
    """A scorer of one's own that has a fault."""

    def score(self, images: Sequence, prompts: Sequence[str] | None = None) -> np.ndarray:
        raise ZeroDivisionError("nothing planned for this\nand a second line")


def test_a_fault_in_a_scorer_is_one_line_unless_its_traceback_is_wanted(
    tmp_path: Path, command: Command, make_image: Callable[..., Image.Image]
):
    make_image(1).save(tmp_path / "a.png")
    arguments = ("score", tmp_path, "--rewards", f"{__name__}:Failing")
    assert command(*arguments) == (
        1,
        "",
        "Error: unexpected ZeroDivisionError: nothing planned for this (rewards --traceback ... shows where)\n",
    )
    code, out, err = command("--traceback", *arguments)
    assert (code, out) == (1, "")
    assert "Traceback" in err


class Picky(Mortal):
    """A scorer of one's own that does not say of what type its option is."""

    def __init__(self, level="1") -> None:
        self._level = int(level)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("clip_iqa.batch_size=abc", "clip_iqa: option 'batch_size' is 'abc', expected int"),
        (f"{__name__}:Picky.level=abc", "Picky cannot be made with level='abc': invalid literal for int()"),
        ("clip_iqa.name=brightness", "'name' is no option, it says what scores"),
    ],
)
def test_an_option_of_the_wrong_kind_is_wrong_input(
    tmp_path: Path, command: Command, make_image: Callable[..., Image.Image], option: str, message: str
):
    make_image(1).save(tmp_path / "a.png")
    code, out, err = command("score", tmp_path, "--rewards", option.rpartition(".")[0], "--option", option)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err


def test_two_sets_are_compared_from_their_files(tmp_path: Path, command: Command):
    for name, level in (("dark", 40), ("light", 90)):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(6):
            Image.new("RGB", (8, 8), (level + number, 0, 0)).save(folder / f"{number}.png")
        (tmp_path / f"{name}.txt").write_text("".join(f"prompt {number // 2}\n" for number in range(6)))
        output = tmp_path / f"{name}.jsonl"
        assert command(
            "score", folder, "--prompts", tmp_path / f"{name}.txt", "--rewards", "brightness,saturation",
            "--output", output,
        )[0] == 0  # fmt: skip
    page = tmp_path / "page.html"
    code, out, _ = command("compare", tmp_path / "light.jsonl", tmp_path / "dark.jsonl", "--report", page)
    assert code == 0
    brightness, saturation = out.splitlines()
    assert "light is better (light minus dark is 0.04169" in brightness
    assert "6/0/0 won/tied/lost" in brightness
    assert "(Holm, 2 scorers)" in brightness
    assert "not distinguishable" in saturation
    assert "light minus dark" in page.read_text()
    assert "absent.jsonl: cannot be read" in command("compare", tmp_path / "absent.jsonl", tmp_path / "dark.jsonl")[2]
    (tmp_path / "light.jsonl.scorers.json").unlink()
    code, _, err = command("compare", tmp_path / "light.jsonl", tmp_path / "dark.jsonl")
    assert (code, err.count("\n")) == (2, 1)
    assert "light.jsonl.scorers.json: cannot be read" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--suite", "composit"), "did you mean 'compositional'"),
        (("--suite", "partiprompts"), "needs its published file"),
        (("--suite", "compositional", "--prompts", "x.txt"), "give one of them"),
        (("--report", "no/page.html"), "must be a folder that exists"),
        (("--rewards", "vqascore"), "give --prompts or --suite"),
    ],
)
def test_wrong_use_is_told_before_anything_is_scored(
    tmp_path: Path, command: Command, make_image: Callable[..., Image.Image], more: tuple[str, ...], message: str
):
    make_image(1).save(tmp_path / "a.png")
    code, out, err = command("score", tmp_path, "--rewards", "brightness", *more)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_no_command_replaces_what_it_reads_or_what_cost_a_model_its_time(tmp_path: Path, command: Command):
    table, prompts = tmp_path / "PartiPrompts.tsv", tmp_path / "prompts.txt"
    table.write_text("Prompt\tCategory\tChallenge\tNote\na dog\tAnimals\tBasic\t\n")
    prompts.write_text("a dog\n")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    scores = tmp_path / "scores.jsonl"
    assert command("score", tmp_path, "--rewards", "brightness", "--output", scores)[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    scoring = ("score", tmp_path, "--rewards", "brightness", "--prompts", prompts)
    for arguments in (
        ("suite", f"partiprompts={table}", "--output", table),
        ("questions", prompts, "--model", "nobody/nothing", "--output", prompts),
        (*scoring, "--output", prompts),
        (*scoring, "--report", prompts),
        (*scoring, "--output", tmp_path / "new.jsonl", "--report", tmp_path / "new.jsonl"),
        (*scoring, "--output", tmp_path / "new.jsonl", "--cache", tmp_path / "new.jsonl"),
        ("compare", scores, scores, "--report", scores),
    ):
        code, out, err = command(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert f"{arguments[-1]}: " in err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_suite_tells_its_prompts_and_every_defect_by_id(
    tmp_path: Path, command: Command, test_data: Callable[[str], Path]
):
    output = tmp_path / "prompts.jsonl"
    code, out, _ = command("suite", f"dsg1k={test_data('dsg/dsg-1k-anns.csv')}", "--output", output)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("dsg1k: 1060 prompts, ")
    cycles = next(at for at, line in enumerate(lines) if line.startswith("suite dsg1k, cycle: 3 "))
    assert {line.split()[0] for line in lines[cycles + 1 : cycles + 4]} == {
        "drawtext_45", "diffusiondb_16", "localized_narratives_50"
    }  # fmt: skip
    at = lines.index("suite dsg1k, missing_parent: 8 (first: tifa160_134)")
    assert all(line.startswith("  tifa160_134 ") for line in lines[at + 1 : at + 9])
    counts = [int(line.split(": ")[1].split()[0]) for line in lines if line.startswith("suite dsg1k, ")]
    assert sum(counts) == 3 + 8 + 10 + 1 + 68 + 44
    assert len(rows_of(output)) == 1060
