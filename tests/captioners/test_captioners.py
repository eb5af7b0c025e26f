"""Captioners answer for every record, with a caption or with the reason why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from PIL import Image

from t2i.captioners import FilesCaptioner, Refusal, ShapesCaptioner
from t2i.data.sources import FolderSource
from t2i.errors import DataError
from t2i.records import Caption, CaptionedImage


def record(path: Path) -> CaptionedImage:
    return CaptionedImage(path.name, str(path), 8, 8)


def read(folder: Path, data: bytes | None, **fields: object) -> Caption | Refusal:
    """What the sidecar of one picture says, one caption or none."""
    if data is not None:
        (folder / "a.b.txt").write_bytes(data)
    captioner = tiny.from_recipe(FilesCaptioner, {"type": "files", **fields})
    [answer] = tiny.captions(captioner, [record(folder / "a.b.jpg")])
    if isinstance(answer, Refusal):
        return answer
    [caption] = answer
    return caption


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a cat", "a cat"),
        (b"  a cat\r\n\n", "a cat"),
        (b"\xef\xbb\xbfa cat\n", "a cat"),
        ("eine Katze, Größe 3, 猫\n".encode(), "eine Katze, Größe 3, 猫"),
    ],
)
def test_sidecar_is_the_caption(tmp_path: Path, data: bytes, text: str) -> None:
    assert read(tmp_path, data) == Caption("caption", text, "file:.txt")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, r"no caption file a\.b\.txt"),
        (b"", r"a\.b\.txt is empty"),
        (b" \n\t\n", r"a\.b\.txt is empty"),
        (b"a cat\na dog\n", r"a\.b\.txt: 2 lines, which tools read differently"),
        (b"a cat\ra dog", r"a\.b\.txt: 2 lines"),
        (b"caf\xe9", r"a\.b\.txt: not UTF-8 text (byte 3 is 0xe9)"),
    ],
)
def test_sidecar_that_is_no_caption_is_refused(tmp_path: Path, data: bytes | None, reason: str) -> None:
    answer = read(tmp_path, data)
    assert isinstance(answer, Refusal)
    assert reason.replace("\\", "") in answer.reason


DIALECTS = [
    ("first_line", ["a cat, black"]),
    ("line_each", ["a cat, black", "on  a mat ,"]),
    ("whole_file", ["a cat, black\n\n on  a mat ,"]),
    ("tags", ["a cat, black, on  a mat"]),
]


@pytest.mark.parametrize(("dialect", "texts"), DIALECTS)
def test_several_lines_mean_what_the_dialect_says(tmp_path: Path, dialect: str, texts: list[str]) -> None:
    (tmp_path / "a.b.txt").write_bytes(b" a cat, black\r\n\n on  a mat ,\n")
    captioner = tiny.from_recipe(FilesCaptioner, {"type": "files", "dialect": dialect})
    [answer] = tiny.captions(captioner, [record(tmp_path / "a.b.jpg")])
    assert answer == tuple(Caption("caption", text, "file:.txt") for text in texts)


def test_several_lines_without_a_dialect_show_the_choices(tmp_path: Path) -> None:
    answer = read(tmp_path, b"a cat\na dog\n")
    assert isinstance(answer, Refusal)
    assert all(dialect in answer.reason for dialect, _ in DIALECTS)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a\x00cat", "control character U+0000"),
        (b"a \x1b[31mcat", "control character U+001B"),
        (b"\xff\xfea\x00", "UTF-16"),
        (b"a" * 10_000_000, "10000000 bytes; expected a caption"),
        (b"a" * 100_001, "has 100001 characters"),
    ],
)
def test_what_is_no_text_of_a_person_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    answer = read(tmp_path, data)
    assert isinstance(answer, Refusal)
    assert reason in answer.reason


def test_a_caption_of_two_images_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("a wall")
    captioner = tiny.from_recipe(FilesCaptioner, {"type": "files"})
    with pytest.raises(DataError, match=r"a\.txt: 2 images are called a; rename all but one"):
        captioner.check(sorted(tmp_path.glob("*.??g")))
    (tmp_path / "a.jpg").unlink()
    captioner.check(sorted(tmp_path.glob("*.??g")))


@pytest.mark.parametrize("suffix", [".heic", ".AVIF", ".gif"])
def test_the_caption_of_a_picture_that_is_not_read_is_left_with_it(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / f"b{suffix}").write_bytes(b"a picture")
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("a wall")
    captioner = tiny.from_recipe(FilesCaptioner, {"type": "files"})
    rows = list(FolderSource(path=str(tmp_path)).read(tmp_path / "run", 0))
    captioner.check([Path(row.image) for row in rows])
    [answer] = tiny.captions(captioner, rows)
    assert answer == (Caption("caption", "a wall", "file:.txt"),)


def test_linked_images_have_the_captions_beside_the_link_and_linked_folders_count(tmp_path: Path) -> None:
    for place in ("store/deep", "mine"):
        (tmp_path / place).mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "store/a.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "store/deep/b.png")
    for name, text in (("store/a", "theirs"), ("store/deep/b", "a blue wall"), ("mine/a", "mine")):
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "mine/a.png").symlink_to(tmp_path / "store/a.png")
    (tmp_path / "mine/linked").symlink_to(tmp_path / "store/deep")
    rows = list(FolderSource(path=str(tmp_path / "mine")).read(tmp_path / "run", 0))
    assert [Path(row.image).relative_to(tmp_path).as_posix() for row in rows] == ["mine/a.png", "mine/linked/b.png"]
    answers = tiny.captions(tiny.from_recipe(FilesCaptioner, {"type": "files"}), rows)
    assert [answer[0].text for answer in answers if isinstance(answer, tuple)] == ["mine", "a blue wall"]


def test_sidecar_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.b.txt").mkdir()
    assert isinstance(read(tmp_path, None), Refusal)


def test_kind_and_ending_are_the_recipes(tmp_path: Path) -> None:
    (tmp_path / "a.b.caption").write_text("a cat")
    assert read(tmp_path, None, kind="dense", extension=".caption") == Caption("dense", "a cat", "file:.caption")


def test_answers_come_in_the_order_of_the_records(tmp_path: Path) -> None:
    tiny.write_photographs(tmp_path)
    rows = [record(tmp_path / f"{name}.png") for name in ("moon", "none", "chelsea")]
    moon, none, cat = tiny.captions(FilesCaptioner(), rows)
    assert (moon, cat) == ((Caption("caption", "the moon", "file:.txt"),), (Caption("caption", "a cat", "file:.txt"),))
    assert isinstance(none, Refusal)


def test_shapes_captioner_reads_the_picture_not_the_record(tmp_path: Path) -> None:
    from t2i.shapes import describe, render, sample_scene

    scenes = [sample_scene(3, index, "train", max_objects=2) for index in range(4)]
    for index, scene in enumerate(scenes):
        render(scene).save(tmp_path / f"{index}.png")
    Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / "noise.png")
    rows = [record(tmp_path / f"{name}.png") for name in (2, 0, "noise")]
    second, first, noise = tiny.captions(ShapesCaptioner(kind="dense"), rows)
    assert second == (Caption("dense", describe(scenes[2], "dense"), "shapes-judge"),)
    assert first == (Caption("dense", describe(scenes[0], "dense"), "shapes-judge"),)
    assert isinstance(noise, Refusal)
    assert noise.reason.startswith("the judge is unsure")
