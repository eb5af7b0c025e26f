"""The self-check: a sound model passes, and each check can fail."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_pairs import CHECKPOINTS
from typer.testing import CliRunner

from t2i.cli import app
from t2i.doctor import Check, Patient, examine
from t2i.families import load_family
from t2i.training.loop import fit


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_sound_model_passes_every_check(kind: str) -> None:
    checks = list(examine(str(CHECKPOINTS[kind]())))
    assert len(checks) == 6
    assert [check for check in checks if not check.passed] == []


def test_training_is_checked_with_the_kernels_of_a_train_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    strict: list[bool] = []
    seen: list[list[bool]] = []

    @contextlib.contextmanager
    def recorded(**options: bool) -> Iterator[None]:
        strict.append(options["strict"])
        yield
        strict.pop()

    def fit_recorded(*arguments: Any, **options: Any) -> Any:
        seen.append(list(strict))
        return fit(*arguments, **options)

    monkeypatch.setattr("t2i.doctor.deterministic_kernels", recorded)
    monkeypatch.setattr("t2i.doctor.fit", fit_recorded)
    assert all(check.passed for check in examine(str(CHECKPOINTS["epsilon"]())))
    assert seen == [[True]] * 3
    assert strict == []


def test_what_is_not_a_number_does_not_pass() -> None:
    assert not Check("a", math.nan, 1.0).passed
    assert Check("a", 1.0, 1.0).passed


def patient() -> Any:
    return Patient(load_family(str(CHECKPOINTS["epsilon"]())))


def shift_adapter(subject: Any) -> None:
    """As an adapter that is not neutral at first."""
    next(value for name, value in subject.parameters.items() if ".lora_B." in name).data += 0.1


def shift_base(subject: Any) -> None:
    """As an adapter that leaves its mark on the weights below it."""
    subject.module.denoiser.family.denoiser.conv_in.weight.data += 0.01


def scale_beta(subject: Any) -> None:
    subject.module.objective = subject.module.objective.model_copy(update={"beta": 1000.0})


class OtherOrder:
    """Pairs of which the first is always chosen, whatever is said."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective

    def __call__(self, denoiser: Any, noise: Any, batch: Any) -> Any:
        output = self.objective(denoiser, noise, batch)
        output.metrics["logit"].abs_()
        return output


def ignore_labels(subject: Any) -> None:
    shift_adapter(subject)
    subject.module.objective = OtherOrder(subject.module.objective)


@pytest.mark.parametrize(
    ("check", "spoil"),
    [
        ("starts_at_log_two", shift_adapter),
        ("first_gradient", scale_beta),
        ("reference_is_the_model", shift_base),
        ("swapped_labels", ignore_labels),
    ],
)
def test_each_check_finds_what_it_is_for(check: str, spoil: Callable[[Any], None]) -> None:
    subject = patient()
    assert getattr(subject, check)().passed or check == "swapped_labels"
    subject = patient()
    spoil(subject)
    assert not getattr(subject, check)().passed


def test_command_prints_a_line_for_each_check_and_fails_for_an_unsound_model(tmp_path: Any) -> None:
    result = CliRunner().invoke(app, ["doctor", str(CHECKPOINTS["epsilon"]())])
    assert result.exit_code == 0
    assert result.stdout.count("ok ") == 6
    family = load_family(str(CHECKPOINTS["epsilon"]()))
    family.denoiser.conv_out.bias.data.fill_(torch.nan)  # type: ignore[union-attr, operator]
    family.pipeline.save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert result.exit_code != 0
    assert "FAILED" in result.stdout
