"""A reward model: a head on a CLIP or SigLIP, on preference pairs, judged on pairs it does not see."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rewards
from rewards.checkpoints import settings_files
from rewards.clip_encoder import ClipEncoder
from rewards.clip_source import TransformersClip
from rewards.devices import no_progress_bar
from rewards.preference_head import PreferenceHead
from rewards.reward_config import CONFIG_FILE, WEIGHTS_FILE, RewardModelConfig
from t2i import devices, lora
from t2i.data.images import open_image
from t2i.data.pairs import check_apart, hold_out
from t2i.data.reward_examples import EncoderInputs, PairExamples, embed
from t2i.errors import ConfigError, DataError
from t2i.families.loading import locate_checkpoint
from t2i.files import write_tensors, write_text
from t2i.objectives.bradley_terry import BradleyTerry
from t2i.randomness import seeded_global
from t2i.records import PreferencePair
from t2i.training.loop import Trainable
from t2i.training.outputs import MODEL_FOLDER, forget_origin
from t2i.training.reward_evaluation import evaluate, summary
from t2i.training.reward_module import RewardModule
from t2i.training.settings import FullSettings, LoraSettings

if TYPE_CHECKING:
    from t2i.training.tasks import TaskSettings

EVALUATION_FILE = "evaluation.json"
COMPONENTS = ("encoder", "head")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "fc1", "fc2")
"""Of a CLIP or SigLIP. Not out_proj: the pooling of SigLIP reads the weights of its own past any adapter."""


class RewardTask:
    """A head that is always trained, on an encoder that is frozen, carries a LoRA, or is trained whole."""

    def __init__(self, settings: TaskSettings, objective: BradleyTerry) -> None:
        _check_trained(settings, objective)
        self.settings, self.objective = settings, objective
        self.pairs, self.held_out = settings.pairs, settings.held_out_pairs
        if not self.held_out:
            self.pairs, self.held_out = hold_out(self.pairs, objective.held_out_share, settings.seed)
        check_apart(self.pairs, self.held_out)
        heads = head_numbers(objective, self.pairs)
        _check_held_out(objective, self.held_out, self.pairs[0].aspect)
        self.source = locate_checkpoint(settings.model, settings.revision)
        self.encoder = ClipEncoder(
            TransformersClip(str(self.source)), str(devices.compute_device()), settings.encode_batch_size
        )
        model: Any = self.encoder.model
        dimension = self.encoder.encode_images([open_image(Path(self.pairs[0].chosen))]).shape[-1]
        self.config = _head_config(objective, self.pairs, dimension)
        with seeded_global(settings.seed, "initialisation", 0):
            self.head = PreferenceHead(self.config)
        if _is_frozen(settings.trained):
            inputs, encoder = embed(self.encoder, self.pairs, reads_prompt=objective.reads_prompt), None
        else:
            inputs, encoder = EncoderInputs(self.encoder, objective.reads_prompt), model
            _prepare_encoder(model, settings.trained, objective, settings.seed)
        self.examples = PairExamples(self.pairs, heads, inputs)
        rates = _learning_rates(settings.trained, objective)
        ratio = settings.trained.b_learning_rate_ratio if isinstance(settings.trained, LoraSettings) else 1.0
        self.trainable = Trainable(
            RewardModule(encoder, self.head, objective), rates, learning_rate_ratios={".lora_B.": ratio}
        )

    def facts(self) -> dict[str, Any]:
        return {
            "pairs": len(self.pairs),
            "ties": sum(pair.is_tie for pair in self.pairs),
            "trained_parameters": sum(value.numel() for value in self.trainable.parameters().values()),
        }

    def save(self, metadata: dict[str, str]) -> dict[str, Any]:
        """Also scores the held-out pairs with the model as it was saved, and writes the figures to a file."""
        target = self.settings.folder / MODEL_FOLDER
        self._write_model(target, metadata)
        found = {name or "held_out": self._evaluate(target, name) for name in self.objective.aspects or ("",)}
        write_text(self.settings.folder / EVALUATION_FILE, json.dumps(found, indent=2, sort_keys=True) + "\n")
        short = {name: {key: row[key] for key in row if key != "reliability"} for name, row in found.items()}
        return {"model": MODEL_FOLDER, **short, "summary": [line for item in found.items() for line in summary(*item)]}

    def _evaluate(self, model: Path, aspect: str) -> dict[str, Any]:
        device = str(next(self.head.parameters()).device)
        options = {"aspect": aspect} if aspect else {}
        scorer = rewards.load({"name": "reward_model", "model": str(model), **options}, device)
        own = [pair for pair in self.held_out if not aspect or pair.aspect == aspect]
        return evaluate(scorer, own)

    def _write_model(self, target: Path, metadata: dict[str, str]) -> None:
        temporary = target.with_name(f".{target.name}.tmp")
        for folder in (temporary, target):
            shutil.rmtree(folder, ignore_errors=True)
        model: Any = self.encoder.model
        lora.merge_adapters(model)
        with no_progress_bar():
            model.save_pretrained(temporary)
        forget_origin(temporary)
        for path in settings_files(self.source):
            if path.name != "config.json":
                (temporary / path.name).write_bytes(path.read_bytes())
        write_text(temporary / CONFIG_FILE, self.config.to_json())
        weights = {name: value.detach().cpu() for name, value in self.head.state_dict().items()}
        write_tensors(temporary / WEIGHTS_FILE, weights, metadata)
        temporary.rename(target)


def head_numbers(objective: BradleyTerry, pairs: Sequence[PreferencePair]) -> list[int]:
    """Which head each pair is for. Raises DataError for pairs of several aspects or of one that has no head."""
    found = sorted({pair.aspect for pair in pairs})
    known = list(objective.aspects) or found[:1]
    strangers = [aspect for aspect in found if aspect not in known]
    if strangers:
        expected = f"{'expected' if objective.aspects else 'and also'} {_listed(known)}"
        raise DataError(f"pairs of the aspects {_listed(strangers)}, {expected}; name all in objective.aspects.")
    lacking = [aspect for aspect in objective.aspects if aspect not in found]
    if lacking:
        raise DataError(f"objective.aspects: no pair of {', '.join(lacking)} to train on; leave it out.")
    return [known.index(pair.aspect) for pair in pairs]


def _check_held_out(objective: BradleyTerry, held_out: Sequence[PreferencePair], aspect: str) -> None:
    """Raise DataError for pairs that no head is for, and unless an interval of every head's accuracy can be given."""
    known = objective.aspects or (aspect,)
    strangers = sorted({pair.aspect for pair in held_out} - set(known))
    if strangers:
        raise DataError(
            f"held-out pairs of the aspects {_listed(strangers)}, expected {_listed(known)}; leave them out, or name "
            "all in objective.aspects and give pairs of each to train on."
        )
    for wanted in known:
        groups = {pair.group for pair in held_out if pair.aspect == wanted and not pair.is_tie}
        if len(groups) < 2:
            of_aspect = f" of aspect {wanted!r}" if wanted else ""
            raise DataError(
                f"held-out pairs{of_aspect}: {len(groups)} prompts with a preference, expected 2 at least; "
                "give more pairs, a larger objective.held_out_share, or held_out_pairs."
            )


def _listed(aspects: Sequence[str]) -> str:
    return ", ".join(aspect or "(none)" for aspect in aspects)


def _check_trained(settings: TaskSettings, objective: BradleyTerry) -> None:
    if settings.random_seed is not None:
        raise ConfigError("init: a reward model stands on a trained encoder; leave `init: random` out.")
    trained = settings.trained
    if isinstance(trained, FullSettings) and (
        set(trained.components) - set(COMPONENTS) or "head" not in trained.components
    ):
        raise ConfigError(
            f"trained.components: {list(trained.components)}; expected [head] (a frozen encoder) or [encoder, head]."
        )
    if isinstance(trained, LoraSettings) and trained.text_encoder and not objective.reads_prompt:
        raise ConfigError("trained.text_encoder: a model that reads no prompt does not use it; leave it out.")


def _is_frozen(trained: LoraSettings | FullSettings) -> bool:
    return isinstance(trained, FullSettings) and "encoder" not in trained.components


def _learning_rates(trained: LoraSettings | FullSettings, objective: BradleyTerry) -> dict[str, float]:
    """Prefix of parameters of a RewardModule -> learning rate, where it is not the optimizer's."""
    rates = {"head.": objective.head_learning_rate}
    if isinstance(trained, LoraSettings):
        rates["encoder.text_model."] = trained.text_encoder_learning_rate
    return {prefix: rate for prefix, rate in rates.items() if rate is not None}


def _prepare_encoder(model: Any, trained: LoraSettings | FullSettings, objective: BradleyTerry, seed: int) -> None:
    """Make what is to be trained of the encoder ask for gradients."""
    if isinstance(trained, LoraSettings):
        lora.inject_module(model.vision_model, "vision_model", LORA_TARGETS, trained, seed)
        if trained.text_encoder:
            own = trained.of_text_encoder()
            lora.inject_module(model.text_model, "text_model", LORA_TARGETS, own, seed, number=1)
        return
    # logit_scale has no part in a score.
    parts = (
        "vision_model.",
        "visual_projection.",
        *(("text_model.", "text_projection.") if objective.reads_prompt else ()),
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(parts))


def _head_config(objective: BradleyTerry, pairs: Sequence[PreferencePair], dimension: int) -> RewardModelConfig:
    sources = ", ".join(sorted({pair.source for pair in pairs} - {""})) or "a source that is not named"
    return RewardModelConfig(
        dimension, objective.hidden, objective.reads_prompt, objective.aspects, f"{len(pairs)} pairs of {sources}"
    )
