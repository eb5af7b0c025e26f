"""What a reward model's folder says about its head, in `reward_model.json`, and how it is read back."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from rewards.errors import ModelError

CONFIG_FILE = "reward_model.json"
WEIGHTS_FILE = "reward_head.safetensors"


@dataclass(frozen=True)
class RewardModelConfig:
    """The head on a CLIP or SigLIP that lies in the same folder."""

    dimension: int
    """Of the encoder's embeddings."""
    hidden: int = 0
    """Width of the hidden layer; 0 for a linear head."""
    reads_prompt: bool = True
    aspects: tuple[str, ...] = ()
    """Names of the head's outputs; empty for one without a name."""
    trained_on: str = "unknown"
    """In words."""

    def __post_init__(self) -> None:
        whole = all(type(value) is int for value in (self.dimension, self.hidden))
        if not whole or self.dimension < 1 or self.hidden < 0 or type(self.reads_prompt) is not bool:
            raise TypeError("dimension and hidden must be whole numbers, reads_prompt true or false")
        if not all(isinstance(text, str) for text in (*self.aspects, self.trained_on)):
            raise TypeError("aspects and trained_on must be text")

    def to_json(self) -> str:
        """What `from_file` reads."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_file(cls, path: Path) -> RewardModelConfig:
        """Raises ModelError for a file that is missing, or says something else."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "aspects": tuple(values.get("aspects", ()))})
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror}); expected a trained reward model.") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: not the config of a reward model ({error}); train it again.") from error
