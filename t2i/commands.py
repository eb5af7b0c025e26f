"""Single steps from the command line: each runs one stage, or one function, without a recipe file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from t2i.errors import ConfigError, DataError
from t2i.resources import resolve_path

if TYPE_CHECKING:
    from rewards.score_table import ScoreTable


def generate(
    prompts: str | None,
    suite: str | None,
    model: str,
    adapter: str | None,
    *,
    steps: int,
    guidance: float,
    images: int,
    seed: int,
    root: Path,
) -> Path:
    """Run a generate stage under `root/generate`, on a file of prompts or a suite (NAME or NAME=SOURCE); returns its
    folder."""
    from t2i.data.prompts import PromptFile, SuitePrompts
    from t2i.engine import run
    from t2i.recipe import Recipe
    from t2i.sampling import SamplingSettings
    from t2i.stages.generate import Generate

    if (prompts is None) == (suite is None):
        raise ConfigError("give a file of prompts, or --suite: one of them.")
    for path in (prompts, adapter):
        if path is not None and not resolve_path(path).is_file():
            raise ConfigError(f"{path}: no such file.")
    if min(steps, images) < 1 or guidance < 0 or seed < 0:
        raise ConfigError("--steps and --images must be at least 1, --guidance and --seed at least 0.")
    name, _, source = (suite or "").partition("=")
    stage = Generate(
        model=model,
        adapter=adapter,
        prompts=SuitePrompts(name=name, source=source or None) if prompts is None else PromptFile(path=prompts),
        images_per_prompt=images,
        sampling=SamplingSettings(steps=steps, guidance_scale=float(guidance)),
    )
    [planned] = run(Recipe("generate", seed, (stage,)), root)
    return planned.folder


def score(
    generations: Path, scorers: Sequence[str], options: Sequence[str], output: Path, report: Path | None
) -> ScoreTable:
    """Score the images of a generate stage into `output`, going on past those that are broken or lack a prompt.

    options: "scorer.key=value". Writes what a score stage writes, with a row's missing scores left out, and a cache
    from which an interrupted run goes on; report: an HTML page.
    """
    from rewards.folder import score_folder
    from rewards.options import scorer_specs
    from rewards.prompts import Pairing
    from rewards.score_files import describe_all
    from rewards.scoring import load_all
    from t2i.records import GeneratedImage, read_jsonl
    from t2i.stages.generate import GENERATIONS_FILE
    from t2i.stages.score import write_scores

    if not (generations / GENERATIONS_FILE).is_file():
        raise DataError(
            f"{generations}: holds no {GENERATIONS_FILE}; expected the folder of a finished generate stage."
        )
    rows = list(read_jsonl(generations / GENERATIONS_FILE, GeneratedImage))
    output.mkdir(parents=True, exist_ok=True)
    loaded = load_all(scorer_specs(",".join(scorers), options))
    pairing = Pairing(
        images=tuple(generations / row.image for row in rows),
        prompts=tuple(row.prompt.strip() or None for row in rows),
        categories=tuple(row.category for row in rows),
    )
    table = score_folder(
        generations.resolve().name, pairing, loaded, describe_all(loaded), cache=output / "scores.cache"
    )
    write_scores(rows, loaded, [row.scores for row in table.rows], generations, output)
    if report is not None:
        from rewards.report import collect, write_report

        write_report(collect([table]), report)
    return table


def label(sources: Sequence[Path], output: Path, *, port: int, seed: int) -> Iterator[str]:
    """Serve the page of a study until it is interrupted; yields lines for the terminal as they come up."""
    from t2i.label.collect import collect
    from t2i.label.serving import held, listen, require_server, serve, summary
    from t2i.label.study import open_study

    require_server()
    if seed < 0:
        raise ConfigError("--seed must be at least 0.")
    collected = collect(sources)
    if collected.equal:
        yield f"{collected.equal} pairs of equal images are left out: there is nothing to choose."
    with held(output), listen(port) as listener:
        study, log = open_study(output, collected, seed)
        if log.note:
            yield log.note
        yield from summary(log.ballots, len(study.pairs))
        yield f"{len(study.pairs)} pairs; votes go to {log.path}. Ctrl-C ends it, the same command goes on."
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        serve(study, log, listener)
        log.close()
        yield from summary(log.ballots, len(study.pairs))


def export(weights: Path, model: str, to: str, output: Path, *, precision: str) -> str:
    """Write a LoRA file of any layout in another one; returns what was found and how the new file was proved."""
    from t2i.export.adapter import Layout, Precision, export_lora
    from t2i.families.loading import load_family, public_model_name
    from t2i.training.outputs import ADAPTER_FOLDER, trained_adapter

    for option, value, known in (("--to", to, get_args(Layout)), ("--precision", precision, get_args(Precision))):
        if value not in known:
            raise ConfigError(f"{option}: {value!r} is not known; expected one of {', '.join(known)}.")
    if (output.suffix == ".safetensors") == (to == "peft"):
        expected = "a folder, without a suffix" if to == "peft" else "a file that ends in .safetensors"
        raise ConfigError(f"--output: {output}: layout {to} is {expected}.")
    source = trained_adapter(weights) if (weights / ADAPTER_FOLDER).is_dir() else weights
    if not source.exists():
        raise DataError(f"{source}: no such LoRA file.")
    output.parent.mkdir(parents=True, exist_ok=True)
    family = load_family(model)
    layout, chosen = cast("Layout", to), cast("Precision", precision)
    metadata = {"t2i_family": family.facts.name, "t2i_model": public_model_name(model), "t2i_layout": to}
    exported = export_lora(source, output, family, layout=layout, precision=chosen, metadata=metadata)
    return f"{exported.read_from} -> {exported}"
