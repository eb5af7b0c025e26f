"""The rows that stages hand to each other, and how they are written.

One JSON object a line (JSONL), UTF-8, keys as the dataclass fields. A file is written whole under a temporary name and
renamed, so a reader never sees half of it. Image paths are relative to the folder of the file that names them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from t2i.errors import DataError
from t2i.files import write_parts
from t2i.json_values import unwritable

if TYPE_CHECKING:
    pass

Row = TypeVar("Row", "CaptionedImage", "ExpandedPrompt", "GeneratedImage", "PreferencePair", "Prompt", "ScoredImage")


@dataclass(frozen=True)
class Origin:
    """How a model came to a caption. Empty: unknown, or there is none."""

    model: str = ""
    """Hub id, folder, or name at an endpoint."""
    revision: str = ""
    """Commit of the hub, or SHA-256 of the weights."""
    licence: str = ""
    """Of the model: some bind what is trained on its captions."""
    engine: str = ""
    """What ran it, with its version."""
    prompt: str = ""
    prompt_sha256: str = ""
    decoding: dict[str, float] = field(default_factory=dict)
    """temperature, max_tokens, ..."""
    finish_reason: str = ""
    """`stop`, or `length` where the text was cut."""
    view: str = ""
    """What it saw of the image: `512x384 of 1024x768`."""
    parents: tuple[str, ...] = ()
    """Ids of the captions it was made from."""
    adapter: str = ""
    """SHA-256 of the LoRA that the model wore."""


@dataclass(frozen=True)
class Review:
    """What a person made of a caption. status: `accepted`, `edited` or `rejected`; edited_from: the text before."""

    status: str
    by: str = ""
    at: str = ""
    edited_from: str = ""


@dataclass(frozen=True)
class Caption:
    """One description of one image. kind: `alt`, `short`, `dense`, ...; source: the captioner, file or person."""

    kind: str
    text: str
    source: str = ""
    origin: Origin | None = None
    language: str = ""
    tokens: dict[str, int] = field(default_factory=dict)
    """Its length for each text encoder it was counted for."""
    scores: dict[str, float] = field(default_factory=dict)
    checks: tuple[str, ...] = ()
    """Checks it failed, or what was done to it: `refusal`, `trimmed`, ..."""
    review: Review | None = None

    @property
    def id(self) -> str:
        """First 32 hex digits of a hash of the kind, text, source and origin."""
        origin = dataclasses.asdict(self.origin) if self.origin else None
        if origin is not None and not origin["adapter"]:
            del origin["adapter"]  # captions that know of none keep their ids
        body = json.dumps([self.kind, self.text, self.source, origin], sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class ImageOrigin:
    """Where an image came from. licence: SPDX, or empty for unknown; times: ISO 8601."""

    url: str = ""
    dataset: str = ""
    licence: str = ""
    attribution: str = ""
    retrieved_at: str = ""
    opt_out_checked_at: str = ""


@dataclass(frozen=True)
class CaptionedImage:
    """An image and everything said about it. id: SHA-256 of the file's bytes, first 32 hex digits."""

    id: str
    image: str
    width: int
    height: int
    captions: tuple[Caption, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    """The user's own columns, carried along unread."""
    origin: ImageOrigin | None = None
    scores: dict[str, float] = field(default_factory=dict)
    checks: tuple[str, ...] = ()
    """Checks it failed and was kept with."""

    def caption(self, kind: str) -> str | None:
        """Text of the first caption of that kind, or None."""
        return next((c.text for c in self.captions if c.kind == kind), None)

    def texts(self, kind: str) -> tuple[str, ...]:
        """Texts of all captions of that kind, in their order."""
        return tuple(c.text for c in self.captions if c.kind == kind)


@dataclass(frozen=True)
class Prompt:
    """What to generate. id: unique within its set, stable across runs; category groups prompts in tables."""

    id: str
    text: str
    category: str = ""


@dataclass(frozen=True)
class ExpandedPrompt:
    """A prompt, what it was written out to, and by whom. refused: why it was not, and is painted as it is."""

    prompt_id: str
    prompt: str
    expanded: str = ""
    source: str = ""
    origin: dict[str, Any] = field(default_factory=dict)
    """The fields of `Origin`, for a model's."""
    refused: str = ""


@dataclass(frozen=True)
class GeneratedImage:
    """One generated image: enough to make the same pixels again with plain diffusers."""

    prompt_id: str
    prompt: str
    seed: int
    """Given to a CPU torch.Generator."""
    image: str
    sample: int = 0
    """Number of the image among those of the same prompt."""
    category: str = ""
    expanded: str = ""
    """What the prompt was written out to before it was painted; empty if it was painted as it is."""

    @property
    def painted(self) -> str:
        """What the model was given, or those of its text encoders that `expand_for` names."""
        return self.expanded or self.prompt

    @property
    def key(self) -> tuple[str, int, int]:
        """What two arms are paired by: prompt, sample and seed."""
        return (self.prompt_id, self.sample, self.seed)


@dataclass(frozen=True)
class ScoredImage:
    """A generated image with its raw scores, by scorer name, in each scorer's own published scale."""

    prompt_id: str
    prompt: str
    seed: int
    image: str
    sample: int = 0
    category: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    expanded: str = ""
    """As of the generated image."""

    @property
    def key(self) -> tuple[str, int, int]:
        """What two arms are paired by: prompt, sample and seed."""
        return (self.prompt_id, self.sample, self.seed)


@dataclass(frozen=True)
class PreferencePair:
    """Two images for one prompt, and which of them somebody prefers. Only the first three keys must be in a file."""

    prompt: str
    chosen: str
    """Path of the preferred image; of a tie, of either."""
    rejected: str
    prompt_id: str = ""
    preference: float = 1.0
    """Probability that `chosen` is preferred, 0.5 (a tie) to 1 (sure)."""
    aspect: str = ""
    """What was judged, `aesthetic` or `fidelity`; empty for the images as a whole."""
    source: str = ""
    """Who judged: a scorer's name, a data set, people."""
    chosen_id: str = ""
    """Id of the image's bytes, as that of a `CaptionedImage`; empty where nobody has computed it yet."""
    rejected_id: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further columns, such as the scores that the preference comes from."""

    @property
    def is_tie(self) -> bool:
        """Whether neither image is preferred."""
        return self.preference == 0.5

    @property
    def group(self) -> str:
        """What counts as one observation: the prompt's words, or of pairs without a prompt, its id or the chosen image.

        Not the id first: two rows of one prompt may have ids of their own, and two lists both begin with 0000.
        """
        return " ".join(self.prompt.split()).casefold() or self.prompt_id or self.chosen_id


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Write rows, one JSON object a line, atomically. Raises DataError for what JSON in UTF-8 cannot hold."""
    write_parts(path, (_line(row) for row in rows))


def _line(row: Row) -> bytes:
    values = record_values(row) if isinstance(row, CaptionedImage) else dataclasses.asdict(row)
    try:
        return (json.dumps(values, ensure_ascii=False, sort_keys=True) + "\n").encode()
    except (TypeError, UnicodeEncodeError) as error:
        problem = next((f"{name} is {why}" for name, value in values.items() if (why := unwritable(value))), str(error))
        raise DataError(f"a {type(row).__name__} cannot be written: {problem}.") from error


def record_values(row: CaptionedImage) -> dict[str, Any]:
    """A record as JSON values, without what is not known about its image and captions."""
    values = _known(row) | {"extra": row.extra}
    return values | {"captions": [caption_values(caption) for caption in row.captions]}


def caption_values(caption: Caption) -> dict[str, Any]:
    """A caption as JSON values, without what is not known about it."""
    return _known(caption) | {"source": caption.source}


def _known(value: Any) -> dict[str, Any]:
    """Fields that are not empty; those of an origin or review likewise."""
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {
        name: _known(inner) if isinstance(inner, Origin | Review | ImageOrigin) else inner
        for name, inner in fields.items()
        if inner not in ("", None, (), {}) or name in ("id", "image", "kind", "text")
    }


def record_from(values: Mapping[str, Any]) -> CaptionedImage:
    """The record that `record_values` gave. Raises TypeError for unknown or missing keys."""
    known = _rebuilt(values, {"origin": ImageOrigin}, ("checks",))
    known["captions"] = tuple(caption_from(caption) for caption in values.get("captions", ()))
    return CaptionedImage(**known)


def caption_from(values: Mapping[str, Any]) -> Caption:
    """The caption that `caption_values` gave. Raises TypeError for unknown or missing keys."""
    known = _rebuilt(values, {"review": Review}, ("checks",))
    if values.get("origin") is not None:
        known["origin"] = Origin(**_rebuilt(values["origin"], {}, ("parents",)))
    return Caption(**known)


def _rebuilt(values: Mapping[str, Any], nested: Mapping[str, type[Any]], tuples: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise TypeError(f"{type(values).__name__} instead of a JSON object")
    found = dict(values)
    for name in found.keys() & nested.keys():
        found[name] = None if found[name] is None else nested[name](**found[name])
    return found | {name: tuple(found[name]) for name in tuples if name in found}


def read_jsonl(path: Path, row_type: type[Row]) -> Iterator[Row]:
    """Yield the rows of a file. Raises DataError with file and line for bad JSON, unknown or missing keys."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    with file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield parse_row(line, row_type, f"{path}:{number}")


def parse_row(line: bytes, row_type: type[Row], where: str) -> Row:
    """One row of a file.

    Raises DataError that begins with `where` for bad JSON, unknown or missing keys, or a record's text that is none.
    """
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text ({error.reason}).") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}); expected one object a line.") from error
    if not isinstance(values, dict):
        raise DataError(f"{where}: found {type(values).__name__}, expected a JSON object.")
    try:
        if row_type is CaptionedImage:
            values["captions"] = tuple(caption_from(caption) for caption in values.get("captions", ()))
            values = _rebuilt(values, {"origin": ImageOrigin}, ("checks",))
        row = row_type(**values)
    except (TypeError, AttributeError) as error:
        names = ", ".join(f.name for f in dataclasses.fields(row_type))
        raise DataError(f"{where}: not a {row_type.__name__} ({error}); its keys are {names}.") from error
    if isinstance(row, CaptionedImage):
        _check_texts(row, where)
    return row


def _check_texts(row: CaptionedImage, where: str) -> None:
    texts: dict[str, object] = {"id": row.id, "image": row.image}
    for number, caption in enumerate(row.captions, 1):
        texts |= {f"kind of caption {number}": caption.kind, f"text of caption {number}": caption.text}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: {name} is {value!r}, expected text.")
