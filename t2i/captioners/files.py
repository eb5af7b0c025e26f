"""Captions from text files that lie beside the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from t2i.captioners.base import Answer, Describe, Refusal
from t2i.config import FrozenModel
from t2i.data.formats.texts import Dialect, captions_in, read_text
from t2i.errors import DataError
from t2i.records import Caption, CaptionedImage


class FilesCaptioner(FrozenModel):
    """Read `picture.txt` beside `picture.jpg`, in the dialect of the tool that wrote it."""

    type: Literal["files"] = "files"
    kind: str = Field(default="caption", min_length=1)
    """Kind under which the captions are stored."""
    extension: str = Field(default=".txt", pattern=r"^\.\w+$")
    """Ending of the caption files."""
    dialect: Dialect = "one_line"
    """What several lines mean: `one_line` (an error), `first_line`, `line_each`, `whole_file`, or comma `tags`."""

    def check(self, images: Iterable[Path]) -> None:
        """Raise DataError for caption files beside the images that belong to none, or to two: a misspelt name loses two
        halves, and `a.png` beside `a.jpg` need not show the same."""
        from t2i.data.images import IMAGE_SUFFIXES, NOT_READ

        problems: list[str] = []
        for folder in sorted({image.parent for image in images}):
            files = [path for path in folder.iterdir() if not path.name.startswith(".")]
            # A picture of a format that is not read is left out with its caption; the source says so.
            pictured = {path.stem for path in files if path.suffix.lower() in IMAGE_SUFFIXES | NOT_READ}
            captions = sorted(path for path in files if path.suffix == self.extension)
            problems += [str(path) for path in captions if path.stem not in pictured]
            owners = Counter(path.stem for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
            shared = next((path for path in captions if owners[path.stem] > 1), None)
            if shared:
                raise DataError(f"{shared}: {owners[shared.stem]} images are called {shared.stem}; rename all but one.")
        if problems:
            shown = ", ".join(problems[:5]) + (", ..." if len(problems) > 5 else "")
            raise DataError(
                f"{len(problems)} caption files have no image of their name: {shown}; rename or remove them."
            )

    def load(self) -> Describe:
        """Nothing to open."""
        return self.caption

    def caption(self, records: Sequence[CaptionedImage]) -> Iterator[tuple[int, Answer]]:
        """Read the sidecar of every record."""
        for number, record in enumerate(records):
            yield number, self._read(Path(record.image).with_suffix(self.extension))

    def _read(self, path: Path) -> Answer:
        try:
            texts = captions_in(read_text(path), self.dialect, path.name)
        except FileNotFoundError:
            return Refusal(f"no caption file {path.name}")
        except OSError as error:
            return Refusal(f"{path.name} cannot be read ({error.strerror})")
        except DataError as error:
            return Refusal(str(error))
        if not texts:
            return Refusal(f"{path.name} is empty")
        return tuple(Caption(self.kind, text, f"file:{self.extension}") for text in texts)
