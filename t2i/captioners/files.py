"""Captions from text files that lie beside the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from t2i.captioners.base import Refusal
from t2i.config import FrozenModel
from t2i.records import Caption, CaptionedImage


class FilesCaptioner(FrozenModel):
    """Read `picture.txt` beside `picture.jpg`: one caption, on one line."""

    type: Literal["files"] = "files"
    kind: str = Field(default="caption", min_length=1)
    """Kind under which the captions are stored."""
    extension: str = Field(default=".txt", pattern=r"^\.\w+$")
    """Ending of the caption files."""

    def check(self, images: Sequence[Path]) -> None:
        """Raise DataError for caption files beside the images that belong to none: a misspelt name loses two halves."""
        from t2i.data.images import IMAGE_SUFFIXES
        from t2i.errors import DataError

        problems: list[str] = []
        for folder in sorted({image.parent for image in images}):
            files = [path for path in folder.iterdir() if not path.name.startswith(".")]
            pictured = {path.stem for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
            captions = sorted(path for path in files if path.suffix == self.extension)
            problems += [str(path) for path in captions if path.stem not in pictured]
        if problems:
            shown = ", ".join(problems[:5]) + (", ..." if len(problems) > 5 else "")
            raise DataError(
                f"{len(problems)} caption files have no image of their name: {shown}; rename or remove them."
            )

    def caption(self, records: Sequence[CaptionedImage]) -> list[Caption | Refusal]:
        """Read the sidecar of every record."""
        return [self._read(Path(record.image).with_suffix(self.extension)) for record in records]

    def _read(self, path: Path) -> Caption | Refusal:
        try:
            text = path.read_text(encoding="utf-8-sig").strip()
        except FileNotFoundError:
            return Refusal(f"no caption file {path.name}")
        except (OSError, UnicodeDecodeError) as error:
            return Refusal(f"{path.name} cannot be read as UTF-8 text ({error})")
        if not text:
            return Refusal(f"{path.name} is empty")
        if "\n" in text:
            # Five tools give a second line five meanings; choosing one in silence would drop or join captions.
            return Refusal(f"{path.name} has {len(text.splitlines())} lines; expected one caption on one line")
        return Caption(self.kind, text, f"file:{self.extension}")
