"""Replies of a transformers checkpoint: batches, greedy, with the reason why each ended."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from t2i.captioners.adapters import adapter_hash
from t2i.captioners.base import Refusal
from t2i.captioners.chat import LocalModel, Replies, Reply, Request
from t2i.captioners.opened import open_model
from t2i.errors import DataError, ModelError
from t2i.records import Origin
from t2i.resources import resolve_path

if TYPE_CHECKING:
    from PIL import Image


class LocalChat:
    """A `Chat` of one loaded model; images only for one that reads them."""

    def __init__(self, settings: LocalModel) -> None:
        """Errors as `open_model`."""
        from rewards.faithfulness.loading import checkpoint_hash

        self.settings = settings
        self._opened = open_model(settings)
        decoding = {"temperature": 0.0, "max_tokens": float(settings.max_tokens)}
        self.origin = Origin(
            settings.model,
            settings.revision or checkpoint_hash(self._opened.folder),
            settings.licence,
            f"transformers {version('transformers')}, {settings.dtype}",
            decoding=decoding,
            adapter=adapter_hash(resolve_path(settings.adapter)) if settings.adapter else "",
        )

    def reply(self, requests: Sequence[Request]) -> Replies:
        """As `Chat.reply`; an image that cannot be read is a refusal."""
        ready: list[tuple[int, Request, Image.Image | None, str]] = []
        for number, request in enumerate(requests):
            try:
                ready.append((number, request, *self._image(request)))
            except DataError as error:
                yield number, Refusal(str(error))
            if len(ready) == self.settings.batch_size:
                yield from self._batch(ready)
                ready = []
        if ready:
            yield from self._batch(ready)

    def _image(self, request: Request) -> tuple[Image.Image | None, str]:
        from t2i.captioners.view import shown

        if request.image is None:
            return None, ""
        if not self._opened.reads_images:
            raise ModelError(f"{self.settings.model}: reads no images; expected an image-text model.")
        return shown(request.image, self.settings.max_side_px)

    def _batch(self, ready: Sequence[tuple[int, Request, Image.Image | None, str]]) -> Replies:
        import torch

        inputs = self._opened.inputs([(request.text, image) for _, request, image, _ in ready])
        asked = inputs["input_ids"].shape[1]
        if asked + self.settings.max_tokens > self._opened.limit:
            raise ModelError(
                f"{self.settings.model}: a request and its answer take {asked + self.settings.max_tokens} tokens of at "
                f"most {self._opened.limit}; lower max_side_px or max_tokens."
            )
        with torch.no_grad():
            tokens = self._opened.model.generate(**inputs, max_new_tokens=self.settings.max_tokens)
        fresh = tokens[:, asked:]
        texts = self._opened.tokenizer.batch_decode(fresh, skip_special_tokens=True)
        ends = torch.isin(fresh, torch.tensor(self._opened.ends, device=fresh.device)).any(dim=1).tolist()
        for (number, _, _, view), text, ended in zip(ready, texts, ends, strict=True):
            yield number, Reply(text, "stop" if ended else "length", view)
