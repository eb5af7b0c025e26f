"""Single steps from the command line: each runs one stage, or one function, without a recipe file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from pydantic import ValidationError

from t2i.credentials import credential_in
from t2i.errors import ConfigError, DataError
from t2i.files import check_file, check_folder, check_new
from t2i.resources import PACKAGE_PREFIX, resolve_path

if TYPE_CHECKING:
    from rewards.score_table import ScoreTable


def generate(
    prompts: str | None,
    suite: str | None,
    model: str,
    adapter: str | None,
    expand: str | None,
    *,
    steps: int,
    guidance: float | None,
    images: int,
    seed: int,
    root: Path,
    precision: str = "fp32",
    offload: str = "none",
) -> Path:
    """Run a generate stage under `root/generate`, on a file of prompts or a suite (NAME or NAME=SOURCE); returns its
    folder. expand: what writes the prompts out first (`shapes`, a model, or URL=MODEL of an endpoint)."""
    from t2i.data.prompts import PromptFile, SuitePrompts
    from t2i.engine import run
    from t2i.recipe import Recipe
    from t2i.sampling import Offload, SamplingPrecision, SamplingSettings
    from t2i.stages.generate import Generate

    if (prompts is None) == (suite is None):
        raise ConfigError("give a file of prompts, or --suite: one of them.")
    for path in (prompts, adapter):
        if path is not None and not resolve_path(path).is_file():
            raise ConfigError(f"{path}: no such file.")
    if min(steps, images) < 1 or (guidance or 0) < 0 or seed < 0:
        raise ConfigError("--steps and --images must be at least 1, --guidance and --seed at least 0.")
    _check_choice("--precision", precision, SamplingPrecision)
    _check_choice("--offload", offload, Offload)
    name, _, source = (suite or "").partition("=")
    with _mistakes_as_config_errors("generate"):
        stage = Generate(
            model=model,
            adapter=adapter,
            seed=seed,
            prompts=SuitePrompts(name=name, source=source or None) if prompts is None else PromptFile(path=prompts),
            expand=_upsampler(expand),
            images_per_prompt=images,
            sampling=SamplingSettings.model_validate(
                {"steps": steps, "guidance_scale": guidance, "precision": precision, "offload": offload}
            ),
        )
    [planned] = run(Recipe("generate", seed, (stage,)), root)
    return planned.folder


def _upsampler(text: str | None) -> Any:
    """The `expand` field that `--expand` stands for."""
    if text is None:
        return None
    if found := credential_in(text):
        raise ConfigError(
            f"--expand: holds {found}, which would be copied into config.json; expected URL=MODEL. Take it out and put "
            "the key into the environment variable OPENAI_API_KEY."
        )
    if text == "shapes":
        return {"type": "shapes"}
    if not text.startswith(("http://", "https://")):
        return {"type": "model", "model": {"type": "local", "model": text}}
    url, _, name = text.rpartition("=")
    if not url or not name:
        raise ConfigError(f"--expand {text}: expected URL=MODEL, with the model's name at that endpoint.")
    key_env = "OPENAI_API_KEY" if "OPENAI_API_KEY" in os.environ else None
    return {"type": "model", "model": {"type": "endpoint", "url": url, "model": name, "key_env": key_env}}


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
    check_folder("--output", output)
    if report is not None:
        check_file("--report", report)
    specs = scorer_specs(",".join(scorers), options)
    loaded = load_all([{key: _installed(value) for key, value in spec.items()} for spec in specs])
    output.mkdir(parents=True, exist_ok=True)
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

        report.parent.mkdir(parents=True, exist_ok=True)
        write_report(collect([table]), report)
    return table


def _installed(value: object) -> object:
    """An option's value; package data as the file or folder it is."""
    if isinstance(value, str) and value.startswith(PACKAGE_PREFIX):
        return str(resolve_path(value))
    return value


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


def export(weights: Path, model: str, to: str, output: Path, *, precision: str, dora_rank: int | None = None) -> str:
    """Write a LoRA file of any layout in another one; returns what was found and how the new file was proved."""
    from t2i.export.adapter import Precision, Target, check_dora_rank, export_lora
    from t2i.families.loading import load_family, public_model_name

    _check_choice("--to", to, Target)
    _check_choice("--precision", precision, Precision)
    if (output.suffix == ".safetensors") == (to in ("peft", "merged")):
        expected = "a folder, without a suffix" if to in ("peft", "merged") else "a file that ends in .safetensors"
        raise ConfigError(f"--output: {output}: layout {to} is {expected}.")
    layout, chosen = cast("Target", to), cast("Precision", precision)
    check_dora_rank("--dora-rank", dora_rank, layout)
    check_new("--output", output)
    source = _lora_source(weights)
    family = load_family(model)
    metadata = {"t2i_family": family.facts.name, "t2i_model": public_model_name(model), "t2i_layout": to}
    exported = export_lora(
        source, output, family, layout=layout, precision=chosen, metadata=metadata, dora_rank=dora_rank
    )
    return f"{exported.read_from} -> {exported}"


def merge(
    adapters: Sequence[Path],
    model: str,
    output: Path,
    *,
    kind: str,
    weights: str | None,
    rank: int | None,
    energy: float | None,
) -> str:
    """Merge LoRA files of any layout into one, resize one, or extract one from a model; returns what became of it."""
    from t2i.export.adapter import write_adapter
    from t2i.export.merge import Size, extract
    from t2i.export.whole import base_weights
    from t2i.families.loading import load_family, public_model_name
    from t2i.stages.merge import Merge, merged_files

    if output.suffix != ".safetensors":
        raise ConfigError(f"--output: {output} must end in .safetensors.")
    check_new("--output", output)
    names = ["adapter"] if kind == "extract" else []
    fields = {
        "model": model,
        "kind": kind,
        "weights_from": names or None,
        "adapters": [] if names else [str(path) for path in adapters],
        "weights": None if weights is None else [_number(part) for part in weights.split(",")],
        "rank": rank,
        "energy": energy,
    }
    with _mistakes_as_config_errors("merge"):
        stage = Merge.model_validate_json(json.dumps(fields))
    if kind == "extract" and len(adapters) != 1:
        raise ConfigError(f"merge --kind extract: {len(adapters)} models are given; expected one, a whole model.")
    sources = [] if kind == "extract" else [_lora_source(path) for path in adapters]
    family = load_family(model)
    if kind == "extract":
        tuned = load_family(str(adapters[0]), expected=family.facts.name)
        merged = extract(base_weights(family), base_weights(tuned), Size(rank, energy or 1.0))
    else:
        merged = merged_files(stage, sources, family)
    metadata = {"t2i_family": family.facts.name, "t2i_model": public_model_name(model), "t2i_merge": kind}
    exported = write_adapter(merged.adapter, output, family, layout="diffusers", precision="fp32", metadata=metadata)
    ranks = [factors.rank for factors in merged.adapter.values()]
    return f"rank {min(ranks)} to {max(ranks)}, {100 * merged.error:.2g} % of the change cut off; {exported}"


@contextmanager
def _mistakes_as_config_errors(command: str) -> Iterator[None]:
    """What a stage finds wrong with its fields is what is wrong with the command line."""
    try:
        yield
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]
        where = ".".join(map(str, reason["loc"])) or command
        raise ConfigError(f"{where}: {reason['msg'].removeprefix('Value error, ')}") from error


def _lora_source(weights: Path) -> Path:
    """The LoRA file of a train stage's folder, or what is one itself."""
    from t2i.training.outputs import ADAPTER_FOLDER, trained_adapter

    source = trained_adapter(weights) if (weights / ADAPTER_FOLDER).is_dir() else weights
    if not source.exists():
        raise DataError(f"{source}: no such LoRA file.")
    return source


def _check_choice(option: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{option}: {value!r} is not known; expected one of {', '.join(get_args(choices))}.")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--weights: {text!r} is not a number; write 0.5,0.5.") from error
