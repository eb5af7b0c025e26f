"""One way to a suite of prompts, wherever its file lies: the shipped one, a local path, or a data set on the hub."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from rewards.errors import InputError
from rewards.faithfulness.questions import Defect, QuestionBook
from rewards.faithfulness.readers import OWN_SUITE, load_questions
from rewards.score_files import replace_text
from rewards.suites import formats
from rewards.suites.formats import Row

HUB = "hub:"
"""A source `hub:owner/name/path` is a file, or a folder, of a data set on the hub."""


@dataclass(frozen=True)
class SuitePrompt:
    """One prompt. id: unique in its suite, stable as long as the published file is."""

    id: str
    prompt: str
    category: str
    facts: Mapping[str, object] = field(default_factory=dict)
    """What else the file says of it: challenge, note, what to detect."""


@dataclass(frozen=True)
class Suite:
    """Prompts in the order of their file."""

    name: str
    source: str
    licence: str
    """Of the prompts, as their publishers state it."""
    prompts: tuple[SuitePrompt, ...]
    questions: QuestionBook | None = None
    defects: tuple[Defect, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    def count_categories(self) -> dict[str, int]:
        """Category -> number of prompts, in order of first appearance."""
        return dict(Counter(prompt.category for prompt in self.prompts))


@dataclass(frozen=True)
class _Published:
    licence: str
    read: Callable[[Path], list[Row]]
    expects: str
    has_questions: bool = False


_PUBLISHED: Mapping[str, _Published] = MappingProxyType(
    {
        "drawbench": _Published(
            "not stated", formats.drawbench, "a .txt of prompts, or a .csv of Prompts and Category"
        ),
        "dsg1k": _Published("Apache-2.0", formats.dsg, "dsg-1k-anns.csv", has_questions=True),
        "geneval": _Published("MIT", formats.geneval, "evaluation_metadata.jsonl"),
        "partiprompts": _Published("Apache-2.0", formats.partiprompts, "PartiPrompts.tsv"),
        "t2i_compbench": _Published("MIT", formats.compbench, "a folder of *_val.txt, or one of them"),
        "tifa": _Published("Apache-2.0; COCO captions CC-BY-4.0", formats.tifa, "tifa_v1.0_text_inputs.json"),
    }
)
SUITES = tuple(sorted((OWN_SUITE, *_PUBLISHED)))


def load_suite(name: str, source: str | Path | None = None, revision: str | None = None) -> Suite:
    """A suite by name.

    source: the published file or folder, or `hub:owner/name/path`; none for the shipped suite, "compositional".
    revision: of a hub source. Raises InputError for an unknown name or a file of another format. Repeated prompts and
    whatever the question reader finds are told as defects; all prompts are kept.
    """
    if name == OWN_SUITE:
        if source is not None or revision is not None:
            raise InputError(f"suite {OWN_SUITE} is shipped; it takes no source and no revision.")
        return _own()
    published = _PUBLISHED.get(name)
    if published is None:
        close = difflib.get_close_matches(name, SUITES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise InputError(f"unknown suite {name!r}{hint} Known: {', '.join(SUITES)}.")
    if source is None:
        raise InputError(
            f"suite {name} needs its published file: {published.expects}, as a path or {HUB}owner/name/path."
        )
    path = _find(str(source), revision)
    book = load_questions(path) if published.has_questions else None
    prompts = tuple(SuitePrompt(row.id, row.prompt, row.category, row.facts) for row in published.read(path))
    if not prompts:
        raise InputError(f"{source}: there are no prompts in it; expected {published.expects}.")
    defects = book.defects if book is not None else tuple(_repeated(prompts))
    return Suite(name, str(source), published.licence, prompts, book, defects)


def write_prompts(suite: Suite, path: Path) -> None:
    """Write id, prompt and category of each prompt as JSONL, at once or not at all."""
    rows = [{"id": one.id, "prompt": one.prompt, "category": one.category} for one in suite.prompts]
    replace_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _own() -> Suite:
    book = load_questions(OWN_SUITE)
    prompts = tuple(SuitePrompt(item.id, item.prompt, item.category) for item in book.items)
    return Suite(OWN_SUITE, "shipped", "Apache-2.0", prompts, book, book.defects)


def _repeated(prompts: tuple[SuitePrompt, ...]) -> list[Defect]:
    first: dict[str, str] = {}
    found = []
    for one in prompts:
        if one.prompt in first:
            found.append(Defect("repeated_prompt", one.id, "", f"prompt of {first[one.prompt]}"))
        first.setdefault(one.prompt, one.id)
    return found


def _find(source: str, revision: str | None) -> Path:
    if not source.startswith(HUB):
        if revision is not None:
            raise InputError(f"{source} is a local path; it has no revision {revision!r}. Leave revision out.")
        if not Path(source).exists():
            raise InputError(f"{source}: there is no such file or folder.")
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RevisionResolutionError

    owner, _, rest = source.removeprefix(HUB).partition("/")
    name, _, inner = rest.partition("/")
    if not (owner and name and inner) or ".." in inner.split("/"):
        raise InputError(f"{source}: expected {HUB}owner/name/path of a file or folder in the data set.")
    try:
        root = snapshot_download(
            f"{owner}/{name}", repo_type="dataset", revision=revision, allow_patterns=[inner, f"{inner}/*"]
        )
    except (OSError, ValueError, HfHubHTTPError, RevisionResolutionError) as error:
        [reason, *_] = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{source}: cannot be had from the hub ({reason}).") from error
    if not (Path(root) / inner).exists():
        raise InputError(f"{source}: the data set has no {inner}.")
    return Path(root) / inner
