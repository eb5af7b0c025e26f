"""Replies of an endpoint: many requests at once, each answer handed on as it comes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from t2i.captioners.base import Refusal
from t2i.captioners.chat import EndpointModel, Pace, Replies, Reply, Request
from t2i.errors import DataError, ModelError
from t2i.records import Origin

PATIENCE = 20
"""Failures in a row, with no answer between, after which the endpoint is taken to be down or misused."""


@dataclass(frozen=True)
class _NoAnswer(Refusal):
    """A failure that says nothing of the request; see `NoAnswerError`."""

    is_down: bool = False


class EndpointChat:
    """A `Chat` over HTTP. A request that fails for good is a refusal; an endpoint that is down, or that fails
    `PATIENCE` times in a row or for all of several requests, is an error."""

    def __init__(self, settings: EndpointModel) -> None:
        """Raises DataError without a key in the environment, or for an address that is none."""
        from rewards.errors import InputError
        from rewards.faithfulness.endpoint import ChatEndpoint

        self.settings = settings
        decoding = {"temperature": settings.temperature, "max_tokens": float(settings.max_tokens)}
        self.origin = Origin(
            settings.model, settings.revision, settings.licence, f"endpoint {settings.url}", decoding=decoding
        )
        try:
            self._endpoint = ChatEndpoint(
                settings.url,
                settings.model,
                settings.key_env,
                settings.timeout_s,
                settings.attempts,
                settings.backoff_s,
                parallel=1,
            )
        except InputError as error:
            raise DataError(str(error)) from error
        self._pace = Pace(settings.requests_per_minute)

    def reply(self, requests: Sequence[Request]) -> Replies:
        """As `Chat.reply`. Raises ModelError for an endpoint that is down, was silent `PATIENCE` times in a row, or
        gave none of several requests an answer.

        Those requests are not reported as refused.
        """
        held: list[tuple[int, Refusal]] = []
        for number, answer in self._answers(requests):
            if isinstance(answer, _NoAnswer):
                held.append((number, Refusal(answer.reason, answer.text)))
                self._check_alive(held, answer)
                continue
            yield from held
            held.clear()
            yield number, answer
        # A single one may be at fault itself, and would stop every run that has nothing else left to ask.
        if len(held) == len(requests) > 1:
            raise self._silent(held)
        yield from held

    def _answers(self, requests: Sequence[Request]) -> Replies:
        """Answers as they come. A request is sent only when an answer was taken: a kill loses `parallel` at most."""
        todo = enumerate(requests)
        waiting: dict[Future[Reply | Refusal], int] = {}
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            for number, request in itertools.islice(todo, self.settings.parallel):
                waiting[pool.submit(self._one, request)] = number
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
                    for number, request in itertools.islice(todo, 1):
                        waiting[pool.submit(self._one, request)] = number

    def _check_alive(self, held: Sequence[tuple[int, Refusal]], last: _NoAnswer) -> None:
        if last.is_down:
            raise ModelError(f"{last.reason} Mend that and run again: answers are kept.")
        if len(held) >= PATIENCE:
            raise self._silent(held)

    def _silent(self, held: Sequence[tuple[int, Refusal]]) -> ModelError:
        return ModelError(
            f"{self.settings.url}: {len(held)} requests in a row got no answer, the last: {held[-1][1].reason} "
            "See that the server runs and the model, key and limits are right, and run again: answers are kept."
        )

    def _one(self, request: Request) -> Reply | Refusal:
        from rewards.errors import InputError
        from rewards.errors import ModelError as EndpointError
        from rewards.faithfulness.endpoint import NoAnswerError, say, text_of
        from t2i.captioners.view import shown

        try:
            image, view = shown(request.image, self.settings.max_side_px) if request.image else (None, "")
            self._pace.wait()
            options = {"temperature": self.settings.temperature, "max_tokens": self.settings.max_tokens}
            [choice] = self._endpoint.complete([say(request.text, image)], **options)
            return Reply(text_of(choice), str(choice.get("finish_reason") or ""), view)
        except InputError as error:
            raise DataError(str(error)) from error
        except NoAnswerError as error:
            return _NoAnswer(str(error), is_down=error.is_down)
        except (EndpointError, DataError) as error:
            return Refusal(str(error))
