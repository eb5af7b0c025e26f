"""`t2i generate --suite` and `t2i score`: from a suite to scores, past everything that is broken on the way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from t2i import cli
from t2i.data.prompts import SuitePrompts
from t2i.errors import DataError
from t2i.records import GeneratedImage, ScoredImage, read_jsonl, write_jsonl

CLIP = "clip_score.model=pkg:t2i.shapes/assets/clip"


def t2i(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_prompts_of_a_suite_keep_its_ids_and_categories(tmp_path: Path) -> None:
    shipped = SuitePrompts().read(0)
    assert (len(shipped), shipped[0].id, shipped[0].category) == (200, "colour_01", "colour")
    table = tmp_path / "PartiPrompts.tsv"
    table.write_text("Prompt\tCategory\tChallenge\tNote\na dog\tAnimals\tBasic\t\n")
    [found] = SuitePrompts(name="partiprompts", source=str(table)).read(0)
    assert (found.id, found.text, found.category) == ("partiprompts_0", "a dog", "Animals")
    with pytest.raises(DataError, match="did you mean 'drawbench'"):
        SuitePrompts(name="drawbank").read(0)


def test_a_suite_is_generated_and_scored_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = ["a large red circle on a white background", "two small blue squares on a black background"]
    (tmp_path / "bench.txt").write_text("\n".join(prompts))
    pipeline = "pkg:t2i.shapes/assets/pipeline"
    made = t2i("generate", "--suite", "drawbench=bench.txt", "--model", pipeline, "--steps", 1, "--images", 2)
    assert made.exit_code == 0, made.output
    folder = Path(made.stdout.strip().splitlines()[-1])
    assert [row.prompt_id for row in read_jsonl(folder / "generations.jsonl", GeneratedImage)] == [
        "drawbench_0", "drawbench_0", "drawbench_1", "drawbench_1"
    ]  # fmt: skip
    scored = t2i("score", folder, "--scorers", "clip_score,brightness", "--option", CLIP, "--output", "scores")
    assert scored.exit_code == 0, scored.output
    rows = list(read_jsonl(tmp_path / "scores/scores.jsonl", ScoredImage))
    assert [row.scores.keys() for row in rows] == [{"clip_score", "brightness"}] * 4
    assert "images: 4" in scored.stdout


@pytest.mark.parametrize("arguments", [(), ("a.txt", "--suite", "compositional")])
def test_generate_takes_a_file_or_a_suite(arguments: tuple[str, ...]) -> None:
    found = t2i("generate", *arguments, "--model", "somebody/model")
    assert found.exit_code == 2
    assert "one of them" in found.output


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--steps", "1001", "steps: Input should be less than or equal to 1000"),
        ("--guidance", "nan", "guidance_scale: Input should be a finite number"),
        ("--seed", str(2**63), "seed: Input should be less than 9223372036854775808"),
        ("--precision", "fp16", "--precision: 'fp16' is not known; expected one of fp32, bf16"),
        ("--offload", "cpu", "--offload: 'cpu' is not known; expected one of none, model, layers"),
    ],
)
def test_what_the_generate_stage_refuses_is_bad_input(tmp_path: Path, option: str, value: str, message: str) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n")
    found = t2i("generate", tmp_path / "prompts.txt", "--model", "somebody/model", option, value)
    assert (found.exit_code, message in found.output) == (2, True), found.output


def test_scoring_finishes_past_all_that_is_broken_and_strict_says_no(tmp_path: Path) -> None:
    folder = tmp_path / "generate"
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(200):
        pixels = np.full((8, 8, 3), number, dtype=np.uint8)
        pixels[0, 0] = 255
        Image.fromarray(pixels).save(folder / f"images/{number}.png")
        prompt = "" if number == 5 else "a red circle " * 60 if number == 20 else f"a red circle {number // 2}"
        rows.append(GeneratedImage(f"{number // 2:04d}", prompt, number, f"images/{number}.png", number % 2, "red"))
    (folder / "images/3.png").write_bytes(b"broken")
    Image.new("RGB", (8, 8)).save(folder / "images/10.png")
    write_jsonl(folder / "generations.jsonl", rows)
    output, page = tmp_path / "scores", tmp_path / "page.html"
    arguments = (
        "score", folder, "--scorers", "clip_score,brightness", "--option", CLIP, "--output", output, "--report", page,
    )  # fmt: skip
    found = t2i(*arguments)
    assert found.exit_code == 0, found.output
    counts = {line.partition(":")[0]: line.partition(":")[2].split()[0] for line in found.stdout.splitlines()[3:]}
    assert counts == {
        "images": "200",
        "unreadable images": "1",
        "pictures of formats that are not read": "0",
        "images without a prompt": "1",
        "prompts without an image": "0",
        "blank images": "1",
        "prompts cut by clip_score": "1",
    }
    written = list(read_jsonl(output / "scores.jsonl", ScoredImage))
    assert [written[number].scores.keys() for number in (3, 5, 10)] == [
        set(), {"brightness"}, {"clip_score", "brightness"}
    ]  # fmt: skip
    assert {one["name"]: one["truncated_prompts"] for one in json.loads((output / "scorers.json").read_text())} == {
        "clip_score": 1, "brightness": None
    }  # fmt: skip
    assert "prompts cut by clip_score" in page.read_text()
    assert t2i(*arguments, "--strict").exit_code == 1


def test_generate_refuses_a_prompt_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text('["a cat"]')
    found = t2i("generate", tmp_path / "prompts.json", "--model", "somebody/model")
    assert found.exit_code == 2
    assert found.stderr.endswith("prompts.json': expected a .txt with a prompt a line, or a .jsonl with `prompt`\n")


@pytest.fixture
def generations(tmp_path: Path) -> Path:
    """The folder of a finished generate stage with one image."""
    folder = tmp_path / "generate"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8), (9, 0, 0)).save(folder / "images/0.png")
    write_jsonl(folder / "generations.jsonl", [GeneratedImage("0", "a red circle", 0, "images/0.png", 0, "")])
    return folder


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--scorers", "brightnes"), "unknown scorer 'brightnes'; did you mean 'brightness'?"),
        (("--option", "brightness.size=1"), "brightness has no option 'size'"),
        (("--output", "a file"), "--output: a file is no folder"),
        (("--output", "a file/scores"), "--output: a file is no folder"),
        (("--report", "."), "--report: . is a folder; expected a file"),
        (("--report", "a file/page.html"), "--report: a file is no folder"),
    ],
)
def test_score_makes_nothing_before_all_is_known_to_be_right(
    tmp_path: Path, generations: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    before = sorted(tmp_path.rglob("*"))
    # The last of several values of an option counts.
    found = t2i("score", generations, "--scorers", "brightness", "--output", "scores", *arguments)
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1), found.output
    assert complaint in found.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_score_makes_the_folders_that_it_writes_to(tmp_path: Path, generations: Path) -> None:
    output, page = tmp_path / "new/scores", tmp_path / "new/pages/page.html"
    found = t2i("score", generations, "--scorers", "brightness", "--output", output, "--report", page)
    assert found.exit_code == 0, found.output
    assert (output / "scores.jsonl").is_file()
    assert page.is_file()
