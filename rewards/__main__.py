"""Command line: `rewards score FOLDER --rewards a,b`, `compare A B`, `suite`, `questions` and `list`."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewards.base import Reward
from rewards.catalogue import markdown_table
from rewards.console import comparison_lines, defect_lines, finding_lines, mean_lines
from rewards.errors import InputError, RewardError
from rewards.failures import ReportingGroup
from rewards.folder import score_folder
from rewards.options import scorer_specs
from rewards.prompts import Pairing, pair_prompts, read_prompts
from rewards.registry import available, load, required_options
from rewards.score_files import describe_all, read_table, write_table
from rewards.score_table import ScoreTable
from rewards.scoring import load_all

if TYPE_CHECKING:
    from rewards.suites import Suite

app = typer.Typer(
    cls=ReportingGroup,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Score images with published scorers.",
)

ReportOption = Annotated[Path | None, typer.Option(help="HTML page to write, with everything in one file.")]
_ASKING = ("dsg", "pn_vqa", "tifa")


@app.callback()
def _options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error arose in the code.")] = False,
) -> None:
    """`traceback` is read by ReportingGroup."""


@app.command("list")
def list_command(
    markdown: Annotated[bool, typer.Option("--markdown", help="A table with weights, licences and scales.")] = False,
) -> None:
    """Print the scorers that are built in, each with its scale."""
    if markdown:
        typer.echo(markdown_table(), nl=False)
        return
    for name in available():
        if required := required_options(name):
            typer.echo(f"{name:<12} {'':<11} a model of your own; needs the option {', '.join(required)}")
            continue
        scorer = load(name)
        typer.echo(f"{name:<12} {'prompt' if scorer.needs_prompt else 'image only':<11} {scorer.scale}")


@app.command("score")
def score_command(
    folder: Annotated[Path, typer.Argument(help="Folder of images, read with its subfolders.")],
    rewards: Annotated[str, typer.Option(help="Scorers, separated by commas: names, or module:Class.")],
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSONL of image, prompt, perhaps category; or a text file with one prompt per image."),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="Prompts by the images' names: compositional, or a published suite as NAME=FILE."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of a scorer, as clip_score.model=PATH. Repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSONL to write, a row per image. An interrupted run goes on from its cache.")
    ] = None,
    report: ReportOption = None,
    cache: Annotated[
        Path | None, typer.Option(help="File of scores to reuse and extend; OUTPUT.cache if not given.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at once; changes speed only.", min=1)] = 32,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1, mps.")] = "cpu",
    strict: Annotated[
        bool, typer.Option(help="Exit 1 if an image, a prompt or the end of a prompt is missing.")
    ] = False,
) -> None:
    """Score every image of a folder and print a mean with its interval for each scorer."""
    _check_writable("--output", output, prompts)
    _check_writable("--report", report, prompts, output)
    _check_writable("--cache", cache, prompts, output, report)
    if prompts is not None and suite is not None:
        raise InputError("--prompts and --suite both say what the prompts are; give one of them.")
    opened = _open_suite(suite) if suite is not None else None
    scorers = load_all(_with_questions(scorer_specs(rewards, option or []), opened), device)
    pairing = _pair(folder, prompts, opened)
    if prompts is None and opened is None and (needing := next((s.name for s in scorers if s.needs_prompt), None)):
        raise InputError(f"{needing} scores images against prompts; give --prompts or --suite.")
    if cache is None and output is not None:
        cache = output.with_name(output.name + ".cache")
    descriptions = describe_all(scorers)
    expects_prompts = prompts is not None or opened is not None
    table = _score(folder, pairing, scorers, descriptions, batch_size, cache, expects_prompts)
    if output is not None:
        write_table(table, descriptions, output)
    if report is not None:
        _write_report(report, [table])
    for line in [*mean_lines(table), *finding_lines(table), *(defect_lines(opened) if opened is not None else ())]:
        typer.echo(line)
    if strict and table.is_incomplete:
        raise typer.Exit(1)


@app.command("compare")
def compare_command(
    a: Annotated[Path, typer.Argument(metavar="A", help="JSONL that `rewards score --output` wrote.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another, of the same prompts.")],
    report: ReportOption = None,
) -> None:
    """Say what A and B differ by, scorer by scorer, prompt by prompt, corrected for the number of scorers."""
    _check_writable("--report", report, a, b)
    tables = read_table(a), read_table(b)
    for line in comparison_lines(*tables):
        typer.echo(line)
    if report is not None:
        _write_report(report, tables)


@app.command("suite")
def suite_command(
    suite: Annotated[str, typer.Argument(help="compositional, or a published suite as NAME=FILE.")],
    output: Annotated[Path | None, typer.Option(help="JSONL of id, prompt and category to write.")] = None,
) -> None:
    """Say what is in a suite of prompts, and everything that is wrong in its file, by id."""
    from rewards.suites import write_prompts

    _check_new("--output", output)
    opened = _open_suite(suite)
    typer.echo(f"{opened.name}: {len(opened)} prompts, from {opened.source}; licence: {opened.licence}")
    for category, count in opened.count_categories().items():
        typer.echo(f"  {category or 'no category'}: {count}")
    for line in defect_lines(opened, with_all=True):
        typer.echo(line)
    if output is not None:
        write_prompts(opened, output)


@app.command("questions")
def questions_command(
    prompts: Annotated[Path, typer.Argument(help="A .txt with a prompt a line, or a .jsonl with prompt.")],
    output: Annotated[Path, typer.Option(help="JSONL of questions to write, for dsg, pn_vqa or tifa.")],
    model: Annotated[str, typer.Option(help="Folder or hub id of a language model, or its name at --endpoint.")],
    endpoint: Annotated[
        str | None, typer.Option(help="Address of an OpenAI-compatible server, such as http://localhost:8000/v1.")
    ] = None,
    key_env: Annotated[
        str, typer.Option(help="Environment variable with the endpoint's key; empty for a server without one.")
    ] = "OPENAI_API_KEY",
    style: Annotated[str, typer.Option(help="yes_no (dsg, pn_vqa) or choices (tifa).")] = "yes_no",
    device: Annotated[str, typer.Option(help="Torch device, without --endpoint.")] = "cpu",
) -> None:
    """Let a language model write questions about prompts; what it writes is checked before it is believed."""
    from rewards.faithfulness.readers import write_questions
    from rewards.faithfulness.writer import load_writer

    _check_new("--output", output)
    texts = read_prompts(prompts)
    book = load_writer(model, endpoint, key_env or None, style, device).write(texts)
    write_questions(book, output)
    typer.echo(f"{sum(len(item.questions) for item in book.items)} questions about {len(book)} prompts")
    for kind, count in book.count_defects().items():
        first = next(defect for defect in book.defects if defect.kind == kind)
        typer.echo(f"{kind}: {count} (first: {first.item}, {first.detail})")


def _open_suite(text: str) -> Suite:
    from rewards.suites import load_suite

    name, equals, source = text.partition("=")
    return load_suite(name, source if equals else None)


def _pair(folder: Path, prompts: Path | None, suite: Suite | None) -> Pairing:
    from rewards.suites.pairing import pair_suite

    return pair_suite(folder, suite) if suite is not None else pair_prompts(folder, prompts)


def _score(
    folder: Path,
    pairing: Pairing,
    scorers: Sequence[Reward],
    descriptions: dict[str, dict[str, object]],
    batch_size: int,
    cache: Path | None,
    expects_prompts: bool,
) -> ScoreTable:
    with typer.progressbar(
        length=len(pairing.images), label="scoring", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        return score_folder(
            folder.resolve().name,
            pairing,
            scorers,
            descriptions,
            batch_size=batch_size,
            cache=cache,
            expects_prompts=expects_prompts,
            on_image=lambda: bar.update(1),
        )


def _write_report(path: Path, tables: Sequence[ScoreTable]) -> None:
    from rewards.report import collect, write_report

    write_report(collect(tables), path)


def _with_questions(specs: list[dict[str, object]], suite: Suite | None) -> list[dict[str, object]]:
    """Scorers that ask questions take those of the suite, where it has some and no others are given."""
    if suite is None or suite.questions is None:
        return specs
    return [{"questions": suite.questions} | spec if spec["name"] in _ASKING else spec for spec in specs]


def _check_writable(option: str, path: Path | None, *others: Path | None) -> None:
    """Fail before scoring, not after it. others: files that the same command reads, or writes something else to."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{option} {path}: {path.parent} must be a folder that exists, {path.name} a file in it.")
    if path.resolve() in [other.resolve() for other in others if other is not None]:
        raise InputError(f"{option} {path}: another file of this command has that name; write elsewhere.")


def _check_new(option: str, path: Path | None) -> None:
    _check_writable(option, path)
    if path is not None and path.exists():
        raise InputError(f"{option} {path}: it exists; move it away, or write elsewhere.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed or incomplete under --strict, 2 wrong input, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        # A prompt or a file's name may hold a lone surrogate, which UTF-8 has no bytes for.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="rewards", standalone_mode=False)
    except RewardError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except typer.TyperException as error:
        typer.echo(f"Error: {error.format_message()}", err=True)
        sys.exit(2)
    if code == 130:
        typer.echo("interrupted; with --output or --cache the same command goes on from here.", err=True)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
