"""Replies of an endpoint: many requests at once, each answer handed on as it comes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

from t2i.captioners.base import Refusal
from t2i.captioners.chat import EndpointModel, Pace, Replies, Reply, Request
from t2i.errors import DataError, ModelError
from t2i.records import Origin

PATIENCE = 20
"""Failures in a row, with no answer between, after which the endpoint is taken to be down or misused."""


class EndpointChat:
    """A `Chat` over HTTP. A request that fails for good is a refusal; an endpoint that fails always is an error."""

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
        """As `Chat.reply`. Raises ModelError after `PATIENCE` failures in a row; those are not reported as refused."""
        held: list[tuple[int, Refusal]] = []
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            waiting = {pool.submit(self._one, request): number for number, request in enumerate(requests)}
            try:
                for future in as_completed(waiting):
                    answer = future.result()
                    if isinstance(answer, Refusal):
                        held.append((waiting[future], answer))
                        self._check_alive(held)
                        continue
                    yield from held
                    held.clear()
                    yield waiting[future], answer
            finally:
                _cancel(list(waiting))
        yield from held

    def _check_alive(self, held: Sequence[tuple[int, Refusal]]) -> None:
        if len(held) >= PATIENCE:
            raise ModelError(
                f"{self.settings.url}: {PATIENCE} requests in a row got no answer, the last: {held[-1][1].reason} "
                "See that the server runs and the model, key and limits are right, and run again: answers are kept."
            )

    def _one(self, request: Request) -> Reply | Refusal:
        from rewards.errors import InputError
        from rewards.errors import ModelError as EndpointError
        from rewards.faithfulness.endpoint import say, text_of
        from t2i.captioners.view import shown

        try:
            image, view = shown(request.image, self.settings.max_side_px) if request.image else (None, "")
            self._pace.wait()
            options = {"temperature": self.settings.temperature, "max_tokens": self.settings.max_tokens}
            [choice] = self._endpoint.complete([say(request.text, image)], **options)
            return Reply(text_of(choice), str(choice.get("finish_reason") or ""), view)
        except InputError as error:
            raise DataError(str(error)) from error
        except (EndpointError, DataError) as error:
            return Refusal(str(error))


def _cancel(futures: Sequence[Future[Reply | Refusal]]) -> None:
    for future in futures:
        future.cancel()
