"""An OpenAI-compatible chat endpoint (a hosted model, vLLM, llama.cpp, ...), with time limits and retries."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http.client import HTTPException, HTTPMessage
from typing import IO, TypeAlias, TypeVar
from urllib.parse import urlsplit

from PIL import Image

from rewards.errors import InputError, ModelError

Messages: TypeAlias = list[dict[str, object]]
_Found = TypeVar("_Found")

_RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
_NOT_ABOUT_THE_REQUEST = frozenset({401, 402, 403, 404})
_LONGEST_WAIT_S = 60.0


class ChatEndpoint:
    """Chat completions of one model, greedy (temperature 0).

    url: up to and with the version, such as "http://localhost:8000/v1"; model: its name there; key_env: environment
    variable that holds the key, or None for a server without one (the key itself is never kept, printed or written);
    timeout_s: of one request; attempts: requests per question, for answers 408, 409, 429 and 5xx, broken
    connections and answers that are no chat completion; backoff_s: first pause, doubled each time, unless the server
    says how long, and a minute at most; parallel: requests at once.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_env: str | None = "OPENAI_API_KEY",
        timeout_s: float = 60.0,
        attempts: int = 4,
        backoff_s: float = 1.0,
        parallel: int = 4,
    ) -> None:
        parts = urlsplit(url)
        is_plain = not ("@" in parts.netloc or parts.query or parts.fragment)
        if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
            raise InputError(
                f"endpoint {parts.hostname or 'without a host'}: expected an address such as http://localhost:8000/v1, "
                "without user name, password or query."
            )
        if attempts < 1 or parallel < 1 or timeout_s <= 0 or backoff_s < 0:
            raise InputError("endpoint: attempts, parallel and timeout_s must be positive, backoff_s not negative.")
        self.url = url.rstrip("/")
        self.model = model
        self._key_env = key_env
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._backoff_s = backoff_s
        self._parallel = parallel

    def fingerprint(self) -> dict[str, str]:
        """Address and name of the model. What a server runs under that name cannot be told from outside."""
        return {"url": self.url, "model": self.model}

    def complete(self, conversations: Sequence[Messages], **options: object) -> list[dict[str, object]]:
        """First choice of each of B conversations, as the server's JSON. options: further fields of the request.

        Raises ModelError when a request fails for good (NoAnswerError where nothing was said about it), InputError when
        the environment has no key.
        """
        headers = self._headers()
        return self._each(conversations, lambda messages: self._one(messages, options, headers))

    def try_complete(self, conversations: Sequence[Messages]) -> list[dict[str, object] | ModelError]:
        """As `complete`, but a request that fails for good gives its error in place of a choice.

        Raises NoAnswerError where nobody listens, or not to this key or model, or without credit; InputError as
        `complete`.
        """
        headers = self._headers()

        def ask(messages: Messages) -> dict[str, object] | ModelError:
            try:
                return self._one(messages, {}, headers)
            except ModelError as error:
                if isinstance(error, NoAnswerError) and error.is_down:
                    raise
                return error

        return self._each(conversations, ask)

    def _each(self, conversations: Sequence[Messages], ask: Callable[[Messages], _Found]) -> list[_Found]:
        with ThreadPoolExecutor(self._parallel) as pool:
            waiting = [pool.submit(ask, messages) for messages in conversations]
            try:
                return [future.result() for future in waiting]
            finally:
                for future in waiting:
                    future.cancel()

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key_env is None:
            return headers
        key = os.environ.get(self._key_env)
        if not key:
            raise InputError(
                f"endpoint: the environment variable {self._key_env} is not set; set it, or key_env: null."
            )
        if not key.isascii() or not key.isprintable() or key != key.strip():
            # http.client would show the key in its own message.
            raise InputError(
                f"endpoint: the value of {self._key_env} has spaces, line ends or other characters no key has."
            )
        return headers | {"Authorization": f"Bearer {key}"}

    def _one(self, messages: Messages, options: dict[str, object], headers: dict[str, str]) -> dict[str, object]:
        body = {"model": self.model, "messages": messages, "temperature": 0, **options}
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        reason, is_down = "", False
        for attempt in range(1, self._attempts + 1):
            wait_s = self._backoff_s * 2 ** (attempt - 1)
            try:
                with _OPENER.open(request, timeout=self._timeout_s) as response:
                    return _first_choice(response.read(), self.url)
            except urllib.error.HTTPError as error:
                reason, is_down = f"{error.code} {_excerpt(error, headers)}", False
                if error.code in _NOT_ABOUT_THE_REQUEST:
                    told = f"{self.url}: refused ({reason}); check url, model, key and credit."
                    raise NoAnswerError(told, is_down=True) from None
                if error.code not in _RETRIED:
                    raise ModelError(f"{self.url}: refused ({reason}); check url, model and key.") from None
                wait_s = _retry_after(error.headers, wait_s)
            except (OSError, HTTPException, _NoCompletionError) as error:
                reason, is_down = str(error) or type(error).__name__, _is_unreachable(error)
            if attempt < self._attempts:
                time.sleep(min(wait_s, _LONGEST_WAIT_S))
        raise NoAnswerError(f"{self.url}: no answer in {self._attempts} attempts ({reason}).", is_down=is_down)


class NoAnswerError(ModelError):
    """Nothing was said about the request itself. is_down: nobody listens, or not to this key, model or account."""

    def __init__(self, message: str, *, is_down: bool) -> None:
        super().__init__(message)
        self.is_down = is_down


def _is_unreachable(error: Exception) -> bool:
    """A connection that was never made; one that hangs or breaks may be about the request."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return isinstance(reason, ConnectionRefusedError | socket.gaierror)


class _NoCompletionError(ModelError):
    """An answer that is none; servers under load send such, so it is asked for again."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are errors: urllib would send the key along to wherever they point."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def text_of(choice: dict[str, object]) -> str:
    """Text of a choice. Raises ModelError when it has none."""
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str):
        raise ModelError(f"the endpoint answered without text (finish_reason {choice.get('finish_reason')!r}).")
    return content


def say(text: str, image: Image.Image | None = None) -> Messages:
    """A conversation of one turn, with an image (as PNG, lossless) before the text."""
    if image is None:
        return [{"role": "user", "content": text}]
    file = io.BytesIO()
    image.save(file, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
        }
    ]


def _first_choice(data: bytes, url: str) -> dict[str, object]:
    try:
        choice = json.loads(data)["choices"][0]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _NoCompletionError(f"{url}: not a chat completion ({type(error).__name__}); expected choices.") from error
    if not isinstance(choice, dict):
        raise _NoCompletionError(f"{url}: not a chat completion; a choice is {type(choice).__name__}.")
    return choice


def _excerpt(error: urllib.error.HTTPError, headers: dict[str, str]) -> str:
    """The beginning of what a server says to an error, without the key, which some repeat."""
    key = headers.get("Authorization", "").removeprefix("Bearer ")
    try:
        text = error.read(65_536).decode("utf-8", "replace")
    except (OSError, HTTPException):
        return ""
    # Cut afterwards: half a key would not be recognised.
    return " ".join((text.replace(key, "***") if key else text)[:300].split())


def _retry_after(headers: Message, otherwise: float) -> float:
    value = headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else otherwise
