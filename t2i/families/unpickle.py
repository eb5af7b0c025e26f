"""Convert a pickled checkpoint to safetensors: `python -m t2i.families.unpickle model.ckpt model.safetensors`.

Opened with `weights_only=True`: torch then builds tensors and plain containers and refuses anything that could run.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from t2i.errors import ModelError
from t2i.files import write_tensors


def convert(source: Path, target: Path) -> int:
    """Write the tensors of a pickled checkpoint, whole or not at all. Returns how many there are.

    Raises ModelError if the file cannot be opened safely, holds no tensors, or the target exists.
    """
    import pickle

    import torch

    if target.suffix != ".safetensors" or target.exists():
        raise ModelError(f"{target}: expected the name of a new .safetensors file.")
    try:
        # As an open file: torch chooses the reader of a named one by its suffix.
        with source.open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{source}: cannot be opened as tensors alone ({reason}).") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    # Tensors that share memory are written one by one.
    tensors = {name: value.clone().contiguous() for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ModelError(f"{source}: holds no named tensors; expected a checkpoint of weights.")
    write_tensors(target, tensors, {"format": "pt"})
    return len(tensors)


def main(arguments: Sequence[str]) -> int:
    """Command line: the pickled file and the file to write."""
    if len(arguments) != 2:
        print("usage: python -m t2i.families.unpickle model.ckpt model.safetensors", file=sys.stderr)
        return 2
    try:
        count = convert(Path(arguments[0]), Path(arguments[1]))
    except ModelError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{arguments[1]}: {count} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
