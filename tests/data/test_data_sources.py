"""Where images and prompts come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
from PIL import Image
from pydantic import ValidationError

from t2i.data.images import content_id
from t2i.data.prompts import PromptFile, PromptList, ShapesPrompts
from t2i.data.sources import FolderSource, RecordsSource, ShapesSource, load_records, save_records
from t2i.errors import DataError
from t2i.records import Caption, CaptionedImage
from t2i.shapes import parse_caption, questions


def test_folder_gives_a_record_per_image_with_its_size_as_seen(tmp_path: Path) -> None:
    source = tiny.write_photographs(tmp_path / "photographs", count=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(source / "turned.jpg", exif=exif)
    rows = FolderSource(path=str(source)).materialize(tmp_path, 0)
    assert [Path(row.image).name for row in rows] == ["astronaut.png", "chelsea.png", "coffee.png", "turned.jpg"]
    assert (rows[3].width, rows[3].height) == (20, 30)
    assert rows[0].id == content_id(source / "astronaut.png")
    assert len(rows[0].id) == 32


def test_folder_names_all_unreadable_images_at_once(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    for name in ("bad1.png", "bad2.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"(?s)bad1\.png.*\n.*bad2\.jpg"):
        FolderSource(path=str(tmp_path)).materialize(tmp_path, 0)


def test_records_of_another_run_are_read_with_absolute_paths(tmp_path: Path) -> None:
    rows = RecordsSource(path=str(tiny.captioned_photographs() / "records.jsonl")).materialize(tmp_path, 0)
    assert len(rows) == len(tiny.PHOTOGRAPHS)
    assert all(Path(row.image).is_absolute() for row in rows)
    assert all(Path(row.image).is_file() for row in rows)


def test_empty_and_missing_record_files_are_errors(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no record"):
        RecordsSource(path=str(tmp_path / "records.jsonl")).materialize(tmp_path, 0)
    with pytest.raises(DataError, match="cannot be read"):
        RecordsSource(path=str(tmp_path / "none.jsonl")).materialize(tmp_path, 0)


def test_record_whose_image_is_missing_is_named(tmp_path: Path) -> None:
    row = '{"id": "1", "image": "gone.png", "width": 8, "height": 8}\n'
    (tmp_path / "records.jsonl").write_text(row)
    with pytest.raises(DataError, match=r"gone\.png"):
        RecordsSource(path=str(tmp_path / "records.jsonl")).materialize(tmp_path, 0)


def test_runs_folder_can_be_moved(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stage in ("make", "filter"):
        (run / stage).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(run / "make/a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    images = [str(run / "make/a.png"), str(tmp_path / "outside.png")]
    save_records(run / "filter", [CaptionedImage("1", image, 8, 8) for image in images])
    moved = Path(shutil.move(run, tmp_path / "moved"))
    inside, outside = load_records(moved / "filter/records.jsonl")
    assert Path(inside.image).resolve() == moved / "make/a.png"
    assert Path(outside.image) == tmp_path / "outside.png"


def test_shapes_source_makes_the_same_bytes_again_and_other_images_for_other_numbers(tmp_path: Path) -> None:
    def made(name: str, seed: int, first: int) -> list[CaptionedImage]:
        (tmp_path / name).mkdir(exist_ok=True)
        return ShapesSource(count=4, captions=("alt", "dense"), first=first).materialize(tmp_path / name, seed)

    rows = made("a", 3, 0)
    assert [[caption.kind for caption in row.captions] for row in rows] == [["alt", "dense"]] * 4
    assert all(row.extra["scene"] for row in rows)
    (tmp_path / "a/images/000002.png").unlink()
    assert made("a", 3, 0) == made("b", 3, 0) == rows
    later = made("c", 3, 2)
    assert [row.id for row in later[:2]] == [row.id for row in rows[2:]]
    assert not {row.id for row in made("d", 4, 0)} & {row.id for row in rows}


def test_prompts_of_the_recipe_are_numbered() -> None:
    prompts = PromptList(prompts=("a cat", "a dog")).read(0)
    assert [(prompt.id, prompt.text) for prompt in prompts] == [("0000", "a cat"), ("0001", "a dog")]


def prompt_file(folder: Path, text: str, name: str = "prompts.txt") -> PromptFile:
    (folder / name).write_text(text, encoding="utf-8")
    return PromptFile(path=str(folder / name))


def test_prompts_are_read_line_by_line(tmp_path: Path) -> None:
    prompts = prompt_file(tmp_path, "\ufeffa cat\r\n\n  a dog \n").read(0)
    assert [prompt.text for prompt in prompts] == ["a cat", "a dog"]
    assert len({prompt.id for prompt in prompts}) == 2


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_only_line_ends_end_lines(tmp_path: Path, name: str) -> None:
    text = "a cat\u2028and\x85a\x0bdog"
    line = text if name.endswith("txt") else json.dumps({"prompt": text}, ensure_ascii=False)
    assert [prompt.text for prompt in prompt_file(tmp_path, line + "\n", name).read(0)] == [text]


def test_prompts_of_a_jsonl_file_keep_their_ids_and_categories(tmp_path: Path) -> None:
    lines = '{"prompt": "a cat", "id": 7, "category": "animals"}\n{"prompt": "a cup", "more": 1}\n'
    first, second = prompt_file(tmp_path, lines, "prompts.jsonl").read(0)
    assert (first.id, first.text, first.category) == ("7", "a cat", "animals")
    assert (second.text, second.category) == ("a cup", "")
    lines = '{"prompt": "a cat", "id": null, "category": null}\n{"prompt": "a cup", "category": 2}\n'
    prompts = prompt_file(tmp_path, lines, "prompts.JSONL").read(0)
    assert [(prompt.id, prompt.category) for prompt in prompts] == [("000001", ""), ("000002", "2")]


@pytest.mark.parametrize("name", ["prompts.json", "prompts.csv", "prompts"])
def test_a_prompt_file_of_another_kind_is_no_prompts(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValidationError, match=f"'.*{name}': expected a .txt with a prompt a line, or a .jsonl"):
        prompt_file(tmp_path, '["a cat"]', name)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"prompt": "a"}\n{"prompt": ', r"prompts\.jsonl:2: expected a JSON object with a 'prompt'"),
        ('{"text": "a"}\n', r"prompts\.jsonl:1: expected"),
        ("[]\n", r"prompts\.jsonl:1: expected"),
        ('{"prompt": " "}\n', r"prompts\.jsonl:1: the prompt is empty"),
        ('{"prompt": 3}\n', r"prompts\.jsonl:1: the prompt is empty or not text"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}\n', r"prompts\.jsonl: prompt ids repeat"),
        ('{"prompt": "a", "category": ["b"]}\n', r"prompts\.jsonl:1: the category is \['b'\]; expected text"),
        ('{"prompt": "a", "id": true}\n', r"prompts\.jsonl:1: the id is True; expected text"),
        ("\n\n", r"prompts\.jsonl: no prompt"),
    ],
)
def test_bad_prompt_files_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        prompt_file(tmp_path, text, "prompts.jsonl").read(0)


def test_missing_and_undecodable_prompt_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: cannot be read"):
        PromptFile(path=str(tmp_path / "none.txt")).read(0)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"latin\.txt: cannot be read as UTF-8"):
        PromptFile(path=str(tmp_path / "latin.txt")).read(0)


def test_shapes_prompts_differ_and_are_the_same_every_time() -> None:
    prompts = ShapesPrompts(count=30).read(3)
    assert len({prompt.text for prompt in prompts}) == len({prompt.id for prompt in prompts}) == 30
    assert ShapesPrompts(count=30).read(3) == prompts
    assert ShapesPrompts(count=10).read(3) == prompts[:10]
    assert all(prompt.category for prompt in prompts)


@pytest.mark.parametrize("skill", ["colour", "counting", "spatial"])
def test_shapes_prompts_of_a_skill_ask_for_it(skill: str) -> None:
    prompts = ShapesPrompts(count=40, skill=skill, max_objects=3).read(3)  # pyright: ignore[reportArgumentType]
    assert {prompt.category for prompt in prompts} == {skill}
    for prompt in prompts:
        scene = parse_caption(prompt.text)
        assert scene is not None
        assert skill in {question.category for question in questions(scene)}
        numbers = [group.number for group in scene.groups]
        assert {"colour": numbers == [1, 1], "counting": max(numbers) > 1, "spatial": len(numbers) == 2}[skill]


def test_a_skill_takes_more_than_one_object() -> None:
    with pytest.raises(ValidationError, match="max_objects: the skill counting takes 2 objects or more"):
        ShapesPrompts(count=4, skill="counting", max_objects=1)


def test_captions_survive_saving(tmp_path: Path) -> None:
    row = CaptionedImage("1", "/x/a.png", 8, 8, (Caption("alt", "é", "web"),), {"k": [1]})
    save_records(tmp_path, [row])
    assert load_records(tmp_path / "records.jsonl") == [row]
