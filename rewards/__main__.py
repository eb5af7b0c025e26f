"""Command line: `rewards score FOLDER --rewards a,b` and `rewards list`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from rewards.base import Reward
from rewards.errors import InputError, RewardError
from rewards.prompts import Pairing, pair_prompts
from rewards.registry import available, load, required_options
from rewards.scoring import ScoredImage, count_truncated, describe, load_all, plain_float, score_each
from rewards.statistics import bootstrap_interval

app = typer.Typer(add_completion=False, rich_markup_mode=None, help="Score images with published scorers.")


@app.command("list")
def list_command() -> None:
    """Print the scorers that are built in, each with its scale."""
    for name in available():
        needed = required_options(name)
        if needed:
            typer.echo(f"{name:<12} your own    needs --option {name}.{needed[0]}=...")
            continue
        scorer = load(name)
        typer.echo(f"{name:<12} {'prompt' if scorer.needs_prompt else 'image only':<11} {scorer.scale}")


@app.command("score")
def score_command(
    folder: Annotated[Path, typer.Argument(help="Folder of images, read with its subfolders.")],
    rewards: Annotated[str, typer.Option(help="Scorers, separated by commas: names, or module:Class.")],
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL of image and prompt, or a text file with one prompt per image.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of a scorer, as clip_score.model=PATH. Repeatable.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSONL to write, one row per image.")] = None,
    cache: Annotated[Path | None, typer.Option(help="File of scores to reuse and extend.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at once; changes speed only.", min=1)] = 32,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1, mps.")] = "cpu",
    strict: Annotated[
        bool, typer.Option(help="Exit 1 if an image, a prompt or the end of a prompt is missing.")
    ] = False,
) -> None:
    """Score every image of a folder and print a mean with its interval for each scorer."""
    scorers = load_all(_with_options(rewards, option or []), device)
    _check_output(output)
    pairing = pair_prompts(folder, prompts)
    if prompts is None and (needing := next((s.name for s in scorers if s.needs_prompt), None)):
        raise InputError(f"{needing} scores images against prompts; give --prompts.")
    blank = load("blank")
    all_scorers = scorers if any(s.name == "blank" for s in scorers) else [*scorers, blank]
    rows = list(score_each(pairing.images, pairing.prompts, all_scorers, batch_size, cache))
    if output is not None:
        _write(output, rows, scorers, folder)
    findings = _findings(rows, pairing, scorers, has_prompts=prompts is not None)
    for line in [*_table(rows, scorers), *findings.lines]:
        typer.echo(line)
    if strict and findings.is_incomplete:
        raise typer.Exit(1)


def _with_options(rewards: str, options: Sequence[str]) -> list[dict[str, object]]:
    """Turn "a,b" and ["a.key=value"] into specs for `load`. A value is JSON where it can be, else text."""
    specs: dict[str, dict[str, object]] = {}
    for name in filter(None, (part.strip() for part in rewards.split(","))):
        if name in specs:
            raise InputError(f"--rewards: {name} is there twice.")
        specs[name] = {"name": name}
    if not specs:
        raise InputError(f"--rewards names no scorer; available: {', '.join(available())}.")
    for text in options:
        target, equals, value = text.partition("=")
        name, dot, key = target.rpartition(".")
        if not (equals and dot and key):
            raise InputError(f"--option {text!r}: expected scorer.key=value, such as clip_score.model=PATH.")
        if name not in specs:
            raise InputError(f"--option {text!r}: {name!r} is not among --rewards ({', '.join(specs)}).")
        specs[name][key] = _value(value)
    return list(specs.values())


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check_output(output: Path | None) -> None:
    """Fail before scoring, not after it."""
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise InputError(
            f"--output {output}: {output.parent} must be a folder that exists, {output.name} a file in it."
        )


def _write(output: Path, rows: Iterable[ScoredImage], scorers: Sequence[Reward], folder: Path) -> None:
    """Write the rows, image paths relative to the output, and beside them what each score is: OUTPUT.scorers.json."""
    names = [scorer.name for scorer in scorers]
    base = output.resolve().parent
    lines = []
    for row in rows:
        values: dict[str, object] = {"image": Path(os.path.relpath(Path(row.image).resolve(), base)).as_posix()}
        values |= {"prompt": row.prompt, "scores": {n: plain_float(row.scores[n]) for n in names if n in row.scores}}
        if row.problem is not None:
            values["problem"] = row.problem
        lines.append(json.dumps(values, ensure_ascii=False) + "\n")
    cards = {scorer.name: describe(scorer) for scorer in scorers}
    _replace(output.with_name(output.name + ".scorers.json"), json.dumps(cards, indent=2, ensure_ascii=False) + "\n")
    _replace(output, "".join(lines))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from error


def _table(rows: Sequence[ScoredImage], scorers: Sequence[Reward]) -> list[str]:
    """One line per scorer: mean over prompts with its 95 % interval. Images without a prompt are a prompt each."""
    lines = [f"{'scorer':<20} {'mean':>10}  {'95 % interval by prompt':<25} {'images':>6}  scale"]
    for scorer in scorers:
        groups: dict[str, list[float]] = {}
        for row in rows:
            if scorer.name in row.scores:
                groups.setdefault(f"prompt {row.prompt}" if row.prompt else row.image, []).append(
                    row.scores[scorer.name]
                )
        images = sum(map(len, groups.values()))
        if len(groups) > 1:
            found = bootstrap_interval(groups)
            mean, interval = f"{found.value:.4f}", f"{found.low:.4f} to {found.high:.4f}"
        else:
            values = [value for group in groups.values() for value in group]
            mean, interval = (f"{sum(values) / images:.4f}" if values else "-"), "needs 2 prompts"
        lines.append(f"{scorer.name:<20} {mean:>10}  {interval:<25} {images:>6}  {scorer.scale}")
    return lines


@dataclass(frozen=True)
class _Findings:
    lines: list[str] = field(default_factory=list)
    is_incomplete: bool = False


def _findings(
    rows: Sequence[ScoredImage], pairing: Pairing, scorers: Sequence[Reward], *, has_prompts: bool
) -> _Findings:
    """Count what could not be scored, or not wholly. A blank image is told, but has its scores."""
    unreadable = [row.problem for row in rows if row.problem is not None]
    missing = [row.image for row in rows if row.prompt is None] if has_prompts else []
    truncated = count_truncated(scorers, [row.prompt for row in rows if row.prompt is not None])
    blank = [row.image for row in rows if row.scores.get("blank") == 1.0]
    counts = [
        ("unreadable images", unreadable),
        ("images without a prompt", missing),
        ("prompts without an image", pairing.missing_images),
        ("blank images", blank),
    ]
    lines = [f"{label}: {len(found)}" + (f" (first: {found[0]})" if found else "") for label, found in counts]
    lines += [f"prompts cut by {name}: {count}" for name, count in truncated.items()]
    incomplete = bool(unreadable or missing or pairing.missing_images or any(truncated.values()))
    return _Findings([f"images: {len(rows)}", *lines], incomplete)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed or incomplete under --strict, 2 wrong input."""
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="rewards", standalone_mode=False)
    except RewardError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        typer.echo(f"Error: {error.format_message()}", err=True)
        sys.exit(2)
    except typer.Abort:
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
