"""Images of fixed prompts and seeds while a run trains, made as anyone would make them: from the saved file."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.files import write_bytes
from t2i.randomness import image_seed
from t2i.sampling import Sampler, SamplingSettings
from t2i.training.outputs import trained_adapter, trained_model

if TYPE_CHECKING:
    from t2i.training.settings import SampleSettings


def write_samples(
    folder: Path,
    settings: SampleSettings,
    model: str,
    revision: str | None,
    *,
    save: Callable[[Path], Any],
    working: Path,
) -> None:
    """Write `00.png`, `01.png`, ... into a folder, one for each prompt.

    save(folder): writes the trained adapter or model, as at the end of training. It is loaded over a fresh copy of the
    model and deleted again; both models are in memory meanwhile. working: a folder for it.
    """
    with saved_sampler(model, revision, settings.sampling, save=save, working=working) as sampler:
        folder.mkdir(parents=True, exist_ok=True)
        for number, prompt in enumerate(settings.prompts):
            [image] = sampler.generate([prompt], [image_seed(settings.seed, number)])
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            write_bytes(folder / f"{number:02d}.png", buffer.getvalue())


@contextlib.contextmanager
def saved_sampler(
    model: str, revision: str | None, sampling: SamplingSettings, *, save: Callable[[Path], Any], working: Path
) -> Iterator[Sampler]:
    """A sampler of what `save` writes, see `write_samples`; the files are deleted at the end."""
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    save(working)
    whole = trained_model(working)
    if whole is not None:
        yield Sampler.load(str(whole), sampling)
    else:
        yield Sampler.load(model, sampling, revision=revision, adapter=trained_adapter(working))
    shutil.rmtree(working)
