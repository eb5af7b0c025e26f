"""What a run will do, stage by stage, before it is begun: facts from names, headers, tokenizers and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import JsonValue

from t2i.data.preview import Preview
from t2i.engine import PlannedStage
from t2i.files import write_text
from t2i.stages.base import InspectContext

SHOWN = 10
"""Names of a list that go to the screen; longer lists go to a file as a whole."""
LISTS_FOLDER = "inspect"
"""Where these files are, in the recipe's folder of runs."""


def inspect_stages(planned: Sequence[PlannedStage], *, is_probed: bool) -> Iterator[tuple[str, dict[str, JsonValue]]]:
    """Name and facts of each stage in turn. Raises what a run would raise about its data, settings and model."""
    previews: dict[str, Preview | None] = {}
    for item in planned:
        read = {field: [previews.get(name) for name, _ in pairs] for field, pairs in item.inputs.items()}
        context = InspectContext(read, item.seed, is_probed)
        yield item.name, item.stage.inspect(context)
        previews[item.name] = _finished(item) or item.stage.preview(context)


def _finished(item: PlannedStage) -> Preview | None:
    """The images, or the pairs, of a stage that has run."""
    from t2i.data.pairs import PAIRS_FILE
    from t2i.data.rows import RecordTable
    from t2i.data.sources import RECORDS_FILE

    if item.status != "skip":
        return None
    records, pairs = item.folder / RECORDS_FILE, item.folder / PAIRS_FILE
    if records.is_file():
        return Preview(RecordTable(records))
    return Preview([], pairs=pairs) if pairs.is_file() else None


def fact_lines(stage: str, facts: dict[str, JsonValue], folder: Path) -> Iterator[str]:
    """Lines for the screen: `stage.name: value`, mappings as `stage.name.key: value`, lists one name a line.

    Of a list of more than 10 names, all go into a file in the folder, and the screen shows the first and the file.
    """
    for name, fact in facts.items():
        if isinstance(fact, dict):
            yield from (f"  {stage}.{name}.{key}: {value}" for key, value in fact.items())
        elif isinstance(fact, list):
            yield f"  {stage}.{name}: {len(fact)}"
            yield from (f"    {value}" for value in fact[:SHOWN])
            if len(fact) > SHOWN:
                path = folder / LISTS_FOLDER / f"{stage.replace('/', '.')}.{name.replace(' ', '_')}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text(path, "".join(f"{value}\n" for value in fact))
                yield f"    ... and {len(fact) - SHOWN} more: {path}"
        else:
            yield f"  {stage}.{name}: {fact}"
