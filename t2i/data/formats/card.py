"""The card of a data set: what is in it, who wrote its captions, and under which licences, counted and not claimed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from t2i.records import CaptionedImage

UNKNOWN = "unknown"


@dataclass
class DatasetCounts:
    """Counts over records, one at a time."""

    images: int = 0
    captions: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """(kind, source or model@revision, licence of the model, prompt's hash) -> captions."""
    licences: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(data set, licence) -> images."""
    words: Counter[str] = field(default_factory=Counter)
    """kind -> words."""
    cut: int = 0
    reviewed: int = 0

    def add(self, record: CaptionedImage) -> None:
        """Count one record."""
        self.images += 1
        origin = record.origin
        self.licences[(origin.dataset if origin else "") or UNKNOWN, licence_of(record) or UNKNOWN] += 1
        for caption in record.captions:
            made = caption.origin
            model = f"{made.model}@{made.revision[:12]}" if made and made.revision else made.model if made else ""
            licence = (made.licence or UNKNOWN) if made else "-"
            prompt = made.prompt_sha256[:12] if made else ""
            self.captions[caption.kind, model or caption.source or UNKNOWN, licence, prompt or "-"] += 1
            self.words[caption.kind] += len(caption.text.split())
            self.cut += bool(made and made.finish_reason == "length")
            self.reviewed += caption.review is not None


def licence_of(record: CaptionedImage) -> str:
    """The licence that is stated of an image, empty if none is.

    The users' own column `license` or `licence` comes first: it is of the image, where an origin's is of a data set.
    """
    own = record.extra.get("license") or record.extra.get("licence")
    return str(own) if own else record.origin.licence if record.origin else ""


def count_records(records: Iterable[CaptionedImage]) -> DatasetCounts:
    """Counts over all records."""
    counts = DatasetCounts()
    for record in records:
        counts.add(record)
    return counts


def dataset_card(counts: DatasetCounts, title: str, formats: Iterable[str], notes: Iterable[str]) -> str:
    """The card as Markdown. notes: one sentence each, such as what a format could not hold."""
    kinds = sorted({kind for kind, _, _, _ in counts.captions})
    per_kind = {kind: sum(number for key, number in counts.captions.items() if key[0] == kind) for kind in kinds}
    lines = [
        f"# {title}",
        "",
        f"{counts.images} images, {sum(per_kind.values())} captions; formats: {', '.join(formats)}.",
        "",
        "| kind | captions | words, mean | written by | licence of the model | prompt (SHA-256) |",
        "|---|---:|---:|---|---|---|",
    ]
    for (kind, model, licence, prompt), number in sorted(counts.captions.items()):
        mean = counts.words[kind] / per_kind[kind]
        lines.append(f"| {_cell(kind)} | {number} | {mean:.1f} | {_cell(model)} | {_cell(licence)} | {prompt} |")
    lines += ["", "| images from | licence | images |", "|---|---|---:|"]
    for (name, licence), number in sorted(counts.licences.items()):
        lines.append(f"| {_cell(name)} | {_cell(licence)} | {number} |")
    lines += ["", f"Captions cut at a token limit: {counts.cut}. Captions that a person reviewed: {counts.reviewed}."]
    if any(key[2] == UNKNOWN for key in counts.captions) or any(key[1] == UNKNOWN for key in counts.licences):
        lines.append("Where a licence is unknown, nobody has stated one: find out before you share this.")
    return "\n".join([*lines, "", *notes]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
