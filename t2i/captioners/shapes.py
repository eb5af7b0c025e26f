"""The shapes world's captioner: looks at the picture through the judge and says what it sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from t2i.captioners.base import Answer, Describe, Refusal
from t2i.config import FrozenModel
from t2i.records import Caption, CaptionedImage


class ShapesCaptioner(FrozenModel):
    """Describe pictures of the embedded shapes world from their pixels alone."""

    type: Literal["shapes"] = "shapes"
    kind: Literal["short", "dense", "spatial"] = "dense"
    """How much to say."""

    def check(self, images: Iterable[Path]) -> None:
        """Any picture may be looked at."""

    def load(self) -> Describe:
        """Nothing to open."""
        return self.caption

    def caption(self, records: Sequence[CaptionedImage]) -> Iterator[tuple[int, Answer]]:
        """Read each picture; refuse where the judge is unsure."""
        for number, record in enumerate(records):
            yield number, self._look(record)

    def _look(self, record: CaptionedImage) -> Answer:
        from t2i.data.images import open_image
        from t2i.errors import DataError
        from t2i.shapes import describe, read_scene

        reading = read_scene(open_image(Path(record.image)))
        if reading.scene is None:
            return Refusal(f"the judge is unsure: {reading.reason}")
        try:
            return (Caption(self.kind, describe(reading.scene, self.kind), "shapes-judge"),)
        except DataError as error:
            return Refusal(str(error))
