"""What answers questions about images, and the probabilities of yes and no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast

from PIL import Image

from rewards.errors import ScoringError
from rewards.faithfulness.plugins import PluginSpec, load_plugin

BACKENDS = {
    "blip_vqa": "rewards.faithfulness.blip:BlipVqa",
    "endpoint": "rewards.faithfulness.endpoint_vqa:EndpointVqa",
    "image_text": "rewards.faithfulness.image_text:ImageTextVqa",
}
DEFAULT_BACKEND = "blip_vqa"


@dataclass(frozen=True)
class YesNo:
    """Probabilities of the answers yes and no among all that the model could say; they sum to at most 1."""

    yes: float
    no: float

    @property
    def p_yes(self) -> float:
        """yes / (yes + no). Raises ScoringError when the model would say neither."""
        total = self.yes + self.no
        if not total > 0:
            raise ScoringError(f"the VQA model gives yes and no together {total}; it does not answer yes or no.")
        return self.yes / total


class VqaBackend(Protocol):
    """A model that answers a question about an image. An answer depends on its own image and question only."""

    def answer(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """Free answers to B questions about B RGB images (the same image may come several times)."""
        ...

    def yes_no(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[YesNo]:
        """Probabilities of yes and no as the answers to B questions about B RGB images."""
        ...

    def fingerprint(self) -> Mapping[str, str]:
        """Everything an answer depends on beside image and question: weights' hash, wording, libraries."""
        ...


VqaSpec: TypeAlias = PluginSpec | VqaBackend


def load_backend(spec: VqaSpec, device: str = "cpu") -> VqaBackend:
    """A backend by name (blip_vqa, image_text, endpoint), as "module:Class" or {"name": ..., option: value}, or itself.

    Models are opened by the first question. Errors as `load_plugin`.
    """
    if isinstance(spec, str | Mapping):
        needs = ("answer", "yes_no", "fingerprint")
        return cast("VqaBackend", load_plugin(spec, BACKENDS, "VQA backend", needs, device))
    return spec
