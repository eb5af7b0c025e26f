"""Models that answer a request about an image or a text: on this machine, or behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeAlias

from pydantic import Field, field_validator

from t2i.captioners.base import Refusal
from t2i.config import FrozenModel, LocalPath, ModelPath, speed_only
from t2i.credentials import credential_in
from t2i.records import Origin

MAX_SIDE_PX = 1024


@dataclass(frozen=True)
class Request:
    """What is asked. image: shown before the text."""

    text: str
    image: Path | None = None


@dataclass(frozen=True)
class Reply:
    """What was answered. finish_reason: `stop`, `length` for a cut one; view: what the model saw of the image."""

    text: str
    finish_reason: str
    view: str = ""


Replies: TypeAlias = Iterator[tuple[int, Reply | Refusal]]


class Chat(Protocol):
    """An opened model."""

    origin: Origin
    """Of its replies, without prompt, finish_reason and view."""

    def reply(self, requests: Sequence[Request]) -> Replies:
        """(number of a request, its reply), each once, as they come."""
        ...


class LocalModel(FrozenModel):
    """A checkpoint of transformers, image-text or text alone, with a chat template; greedy."""

    type: Literal["local"] = "local"
    model: ModelPath
    """Hub id or folder."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    adapter: LocalPath | None = None
    """A LoRA over it: a folder in peft's layout, such as `adapter/` of a tune_captioner stage."""
    licence: str = ""
    """Licence of the model (SPDX), kept with every caption: some bind what is trained on them."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Precision of the weights."""
    device: str = speed_only("auto")
    """`auto` for a GPU where there is one, else a torch device."""
    batch_size: int = Field(default=8, ge=1)
    """Images at once. Part of the result: batches of other sizes differ in the last bits."""
    max_tokens: int = Field(default=256, ge=1)
    """Length of an answer, at most."""
    max_side_px: int = Field(default=MAX_SIDE_PX, ge=16)
    """Images are scaled down to this longer side before the model's own preprocessing."""

    def open(self) -> Chat:
        """The model, loaded."""
        from t2i.captioners.local import LocalChat

        return LocalChat(self)


class EndpointModel(FrozenModel):
    """A model behind an OpenAI-compatible server (vLLM, SGLang, llama.cpp, a hosted one)."""

    type: Literal["endpoint"] = "endpoint"
    url: str
    """Address up to and with the version: http://localhost:8000/v1."""
    model: str
    """Its name there."""
    revision: str = ""
    """What the server runs under that name, for the record; it cannot be asked for."""
    licence: str = ""
    """As for a local model."""
    key_env: str | None = speed_only("OPENAI_API_KEY")
    """Environment variable that holds the key, which is never written anywhere; null for a server without one."""
    parallel: int = speed_only(16, ge=1, le=512)
    """Requests at once."""
    requests_per_minute: int | None = speed_only(None, gt=0)
    """Rate limit of this process; none if absent."""
    timeout_s: float = speed_only(120.0, gt=0)
    """Of one request."""
    attempts: int = speed_only(4, ge=1)
    """Requests per image before it is given up: for answers 408, 409, 429 and 5xx, broken connections and rubbish."""
    backoff_s: float = speed_only(1.0, ge=0)
    """First pause, doubled each time, unless the server says how long, and a minute at most."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Of the sampling."""
    max_tokens: int = Field(default=256, ge=1)
    """Length of an answer, at most."""
    max_side_px: int = Field(default=MAX_SIDE_PX, ge=16)
    """Images are scaled down to this longer side before they are sent."""

    @field_validator("url")
    @classmethod
    def _no_password(cls, url: str) -> str:
        if found := credential_in(url):
            raise ValueError(f"holds {found}, which would be written down; use key_env")
        return url

    @field_validator("key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        # Names of variables are in capitals, keys are not: who writes the key itself here must not find it in a lock.
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError("expected the name of an environment variable in capitals, not the key itself")
        return name

    def open(self) -> Chat:
        """The client."""
        from t2i.captioners.remote import EndpointChat

        return EndpointChat(self)


ChatModel = Annotated[LocalModel | EndpointModel, Field(discriminator="type")]


class Pace:
    """Lets calls through at most so often."""

    def __init__(self, per_minute: int | None) -> None:
        self._interval_s = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when it is this call's turn."""
        if not self._interval_s:
            return
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._interval_s
        time.sleep(max(0.0, turn - time.monotonic()))
