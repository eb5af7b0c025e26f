"""The command line: reads arguments, calls one function each, and turns every error into one readable message."""

from __future__ import annotations

import os
import shlex
import sys
import traceback as tracebacks
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from rewards.errors import RewardError
from t2i.errors import ConfigError, T2IError

if TYPE_CHECKING:
    from t2i.engine import PlannedStage
    from t2i.recipe import Recipe

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to it, such as seed=1 or train.loop.steps=200."),
]


class _ReportingGroup(TyperGroup):
    """Prints errors as messages; exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except KeyboardInterrupt as error:
            typer.echo("interrupted; what is finished is kept, the same command goes on from here.", err=True)
            raise typer.Exit(130) from error
        except BrokenPipeError:
            raise
        except Exception as error:
            if ctx.params.get("traceback"):
                tracebacks.print_exc()
            typer.echo(_message(error), err=True)
            raise typer.Exit(error.exit_code if isinstance(error, T2IError | RewardError) else 1) from error


def _message(error: Exception) -> str:
    if isinstance(error, T2IError | RewardError):
        return f"{type(error).__name__}: {error}" if "\n" not in str(error) else f"{type(error).__name__}:\n{error}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{type(error).__name__}: {error.filename2 or error.filename}: {error.strerror}"
    first = str(error).strip().split("\n")[0]
    return f"unexpected {type(error).__name__}: {first or 'no message'} (t2i --traceback ... shows where)"


app = typer.Typer(
    cls=_ReportingGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune and align text-to-image diffusion models from one recipe, and prove that they got better.",
)
recipes_app = typer.Typer(help="List, show and tidy up after recipes.", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")


@app.callback()
def _options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error arose in the code.")] = False,
) -> None:
    """`traceback` is read by _ReportingGroup."""


@app.command("run")
def run_command(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Run a recipe: what is finished is skipped, what was interrupted goes on. Files go to ./runs, or to $T2I_RUNS."""
    from t2i.engine import run

    run(_load(recipe, overrides), runs_root())


@app.command("plan")
def plan_command(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Say what `run` would do, stage by stage, and why. Loads no model and changes nothing."""
    _print_plan(_load(recipe, overrides))


@app.command("inspect")
def inspect_command(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    probe: Annotated[bool, typer.Option("--probe", help="Load each model and measure one training step.")] = False,
) -> None:
    """Show the plan, and what each stage will see and take: images, captions, memory, time, disk. Trains nothing."""
    from t2i.inspection import fact_lines, inspect_stages

    loaded = _load(recipe, overrides)
    for stage, facts in inspect_stages(_print_plan(loaded), is_probed=probe):
        for line in fact_lines(stage, facts, runs_root() / loaded.name):
            typer.echo(line)


@app.command("init")
def init_command(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Your pictures, with picture.txt beside picture.jpg.")
    ],
    model: Annotated[str, typer.Option(help="Hub id or folder of the model to teach.")],
    output: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented starter recipe for a folder of your own pictures."""
    from t2i.starter import write_starter

    found = write_starter(folder, model, output)
    typer.echo(f"{found}. Next: read {output}, then t2i plan {shlex.quote(str(output))}.")


@app.command("generate")
def generate_command(
    model: Annotated[str, typer.Option("--model", help="Hub id or folder of the model.")],
    prompts: Annotated[
        str | None, typer.Argument(help="A .txt with a prompt a line, or a .jsonl with `prompt`; or give --suite.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="A suite: compositional, or a published one as NAME=FILE.")
    ] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", help="A LoRA file to put over it.")] = None,
    expand: Annotated[
        str | None,
        typer.Option(
            "--expand",
            help="Write prompts out first: by a language model, one of an endpoint as URL=MODEL (its key in "
            "OPENAI_API_KEY), or `shapes`. They are scored as they were.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Denoising steps.")] = 30,
    guidance: Annotated[
        float | None, typer.Option("--guidance", help="Classifier-free guidance; if left out, as usual for the model.")
    ] = None,
    images: Annotated[int, typer.Option("--images", help="Images per prompt.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Seed that every image's seed comes from.")] = 0,
    precision: Annotated[str, typer.Option("--precision", help="Of the model: fp32 or bf16.")] = "fp32",
    offload: Annotated[
        str, typer.Option("--offload", help="What waits in host memory beside a GPU: none, model or layers.")
    ] = "none",
) -> None:
    """Generate images from a file of prompts or a suite, with or without a LoRA. The same call again is skipped."""
    from t2i.commands import generate

    numbers = {"steps": steps, "images": images, "seed": seed}
    folder = generate(
        *(prompts, suite, model, adapter, expand),
        guidance=guidance,
        precision=precision,
        offload=offload,
        root=runs_root(),
        **numbers,
    )
    typer.echo(str(folder))


@app.command("score")
def score_command(
    generations: Annotated[Path, typer.Argument(help="Folder of a finished generate stage.")],
    scorers: Annotated[str, typer.Option("--scorers", help="Names or module:Class, separated by commas.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write scores.jsonl into.")],
    option: Annotated[
        list[str] | None, typer.Option("--option", help="Option of a scorer, as clip_score.model=PATH. Repeatable.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", help="HTML page to write.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 1 if an image, a prompt or the end of a prompt is missing.")
    ] = False,
) -> None:
    """Score generated images against their prompts; print means with intervals, and counts of what is missing."""
    from rewards.console import finding_lines, mean_lines
    from t2i.commands import score

    table = score(generations, scorers.split(","), option or [], output, report)
    for line in [*mean_lines(table), *finding_lines(table)]:
        typer.echo(line)
    if strict and table.is_incomplete:
        raise typer.Exit(1)


@app.command("label")
def label_command(
    sources: Annotated[list[Path], typer.Argument(help="A generate stage's folder or file of pairs, or two folders.")],
    output: Annotated[
        Path, typer.Option("--output", help="Folder of pairs.jsonl and votes.jsonl, new or to go on in.")
    ],
    port: Annotated[int, typer.Option("--port", help="Port on 127.0.0.1; 0 takes any that is free.")] = 8765,
    seed: Annotated[int, typer.Option("--seed", help="Seed of each rater's order and sides.")] = 0,
) -> None:
    """Let people say on a local web page which of two images is better: blind, by one key. Ctrl-C ends it."""
    from t2i.commands import label

    for line in label(sources, output, port=port, seed=seed):
        typer.echo(line)


@app.command("export")
def export_command(
    weights: Annotated[Path, typer.Argument(help="A LoRA file of any layout, or the folder of a train stage.")],
    model: Annotated[str, typer.Option("--model", help="Hub id or folder of the model it was trained on.")],
    to: Annotated[str, typer.Option("--to", help="Layout: diffusers, peft, kohya, comfyui or merged.")],
    output: Annotated[Path, typer.Option("--output", help="File to write; a folder for peft and merged.")],
    precision: Annotated[str, typer.Option("--precision", help="fp32, fp16 or bf16.")] = "fp32",
    dora_rank: Annotated[int | None, typer.Option("--dora-rank", help="Convert a DoRA to a LoRA of this rank.")] = None,
) -> None:
    """Write a LoRA in another layout; the file is loaded into the model and compared before it gets its name."""
    from t2i.commands import export

    typer.echo(f"{output}: {export(weights, model, to, output, precision=precision, dora_rank=dora_rank)}")


@app.command("merge")
def merge_command(
    adapters: Annotated[list[Path], typer.Argument(help="LoRA files of any layout; for extract a whole model.")],
    model: Annotated[str, typer.Option("--model", help="Hub id or folder of the model they belong to.")],
    output: Annotated[Path, typer.Option("--output", help="File to write, in diffusers layout.")],
    kind: Annotated[str, typer.Option("--kind", help="linear, cat, svd, factors or extract.")] = "linear",
    weights: Annotated[str | None, typer.Option("--weights", help="One per file, such as 0.7,0.3.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="Rank for svd and extract.")] = None,
    energy: Annotated[float | None, typer.Option("--energy", help="Share of the energy for svd and extract.")] = None,
) -> None:
    """Merge LoRAs into one, resize a single one (--kind svd), or extract one from a fine-tuned model."""
    from t2i.commands import merge

    what = merge(adapters, model, output, kind=kind, weights=weights, rank=rank, energy=energy)
    typer.echo(f"{output}: {what}")


@app.command("doctor")
def doctor_command(
    model: Annotated[str, typer.Argument(help="Hub id or folder of the model that is to be trained.")],
) -> None:
    """Check on this machine, in a minute, that preference training of a model does what it should."""
    from t2i.doctor import examine

    failed = 0
    for check in examine(model):
        verdict = "ok    " if check.passed else "FAILED"
        typer.echo(f"{verdict}  {check.name}: off by {check.error:.2g}, at most {check.limit:.2g} is allowed")
        failed += not check.passed
    if failed:
        raise typer.Exit(1)


@app.command("reproduce")
def reproduce_command(
    lock: Annotated[Path, typer.Argument(metavar="RUN.LOCK.JSON", help="The lock in the folder of a finished run.")],
    accept: Annotated[bool, typer.Option("--accept", help="Run although something differs; it is listed.")] = False,
) -> None:
    """Do a finished run again from its lock, in a folder of its own, and say whether every file is the same."""
    from t2i.runlock import reproduce

    verdict, accepted = reproduce(lock, runs_root() / "reproduced", accept=accept)
    for line in accepted:
        typer.echo(f"accepted: {line}")
    typer.echo(str(verdict))
    if verdict.word == "different":
        raise typer.Exit(1)


@recipes_app.callback()
def _recipes(ctx: typer.Context) -> None:
    """List the shipped recipes (as `t2i recipes list`)."""
    if ctx.invoked_subcommand is None:
        recipes_list()


@recipes_app.command("list")
def recipes_list() -> None:
    """List the shipped recipes with what each shows."""
    from t2i.document import read_document

    for name, path in shipped_recipes().items():
        description = str(read_document(path).data.get("description") or "").strip().split("\n")[0]
        typer.echo(f"{name:24} {description}")


@recipes_app.command("show")
def recipes_show(name: Annotated[str, typer.Argument(help="Name of a shipped recipe.")]) -> None:
    """Print a shipped recipe, to read it or to start one's own: t2i recipes show NAME > mine.yaml."""
    typer.echo(find_recipe(name).read_text(encoding="utf-8"), nl=False)


@recipes_app.command("prune")
def recipes_prune(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Every recipe whose runs are to be kept.")],
    yes: Annotated[bool, typer.Option("--yes", help="Delete them, instead of listing them.")] = False,
) -> None:
    """List (or delete) the folders under the runs root that none of these recipes refers to."""
    from t2i.engine import plan
    from t2i.rundir import prune, unused_folders

    root = runs_root()
    keep = {item.folder for name in recipes for item in plan(_load(name, None), root)}
    unused = unused_folders(root, keep)
    for folder in unused:
        typer.echo(str(folder))
    if yes:
        prune(root, unused)
    typer.echo(f"{len(unused)} folders {'deleted' if yes else 'are not referred to; --yes deletes them'}.")


def runs_root() -> Path:
    """Where runs are kept: the environment variable T2I_RUNS, or ./runs."""
    return Path(os.environ.get("T2I_RUNS") or "runs")


def shipped_recipes() -> dict[str, Path]:
    """Recipes that come with the toolkit, by name: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    folder = next((path for path in (package / "_recipes", package.parent / "recipes") if path.is_dir()), package)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(text: str) -> Path:
    """The file that a command's RECIPE means: a path, or else the bare name of a shipped recipe."""
    from t2i.suggestions import did_you_mean

    path = Path(text).expanduser()
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if text in shipped:
        return shipped[text]
    raise ConfigError(f"{text}: no such file, and no shipped recipe of that name{did_you_mean(text, shipped)}")


def _load(recipe: str, overrides: list[str] | None) -> Recipe:
    from t2i.recipe import Recipe

    return Recipe.load(find_recipe(recipe), overrides or ())


def _print_plan(recipe: Recipe) -> list[PlannedStage]:
    from t2i.engine import plan

    planned = plan(recipe, runs_root())
    width = max(len(item.name) for item in planned)
    for item in planned:
        typer.echo(f"{item.status:6}  {item.name:{width}}  {item.reason}")
    return planned


def main() -> None:
    """Entry point of the console script `t2i`."""
    # Read when they are imported. What they warn of on our way is no trouble (torchvision is not needed, a LoRA need
    # not change the text encoder), or is said in our own words (prompts that are cut).
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    app(args=sys.argv[1:], prog_name="t2i")


if __name__ == "__main__":
    main()
