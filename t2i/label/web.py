"""The page and its few addresses. No address holds a path: images are named by pair and place."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, cast, get_args

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from t2i.errors import RunError
from t2i.label.agreement import agreements
from t2i.label.guarding import OwnPageOnly
from t2i.label.study import Place, Study
from t2i.label.votes import Choice, Vote, VoteLog
from t2i.rundir import now_utc

_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_SHOWN_AS_IS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_MAX_NAME = 40


@dataclass(frozen=True)
class _Site:
    """The addresses of one study."""

    study: Study
    log: VoteLog

    def session(self, request: Request) -> Response:
        """Everything that a rater's page needs: the pairs in the rater's order, with the choices made so far."""
        rater = _rater(request.query_params.get("rater"))
        own = self.log.ballots.get(rater, {})
        items = [
            {
                "pair": pair,
                "prompt": self.study.pairs[pair].prompt,
                "choice": _placed(own.get(pair), self.study.first(rater, pair)),
            }
            for pair in self.study.order(rater)
        ]
        return JSONResponse({"rater": rater, "session": self.study.session(rater), "items": items})

    def image(self, request: Request) -> Response:
        rater = _rater(request.query_params.get("rater"))
        self._check_session(rater, request.path_params["session"])
        pair, place = request.path_params["pair"], request.path_params["place"]
        if pair >= len(self.study.pairs) or place not in get_args(Place):
            raise HTTPException(404, "no such image")
        path = self.study.image(rater, pair, place)
        # The session in the address names the images' bytes.
        headers = {"Cache-Control": "private, max-age=86400, immutable"}
        if path.suffix.lower() in _SHOWN_AS_IS:
            # No file name: it could tell where the image is from.
            return FileResponse(path, headers=headers, media_type=_SHOWN_AS_IS[path.suffix.lower()])
        from t2i.data.images import open_image

        buffer = io.BytesIO()
        open_image(path).save(buffer, "PNG")
        return Response(buffer.getvalue(), headers=headers, media_type="image/png")

    async def vote(self, request: Request) -> Response:
        """Answers when the vote is on the disk, and not before."""
        sent = _vote_sent(await request.body())
        self._check_session(sent.rater, sent.session)
        if not 0 <= sent.pair < len(self.study.pairs):
            raise HTTPException(400, "no such pair")
        first = self.study.first(sent.rater, sent.pair)
        choice = _chosen(sent.choice, first)
        vote = Vote(sent.rater, sent.pair, choice, first, round(sent.seconds, 2), now_utc())
        try:
            await run_in_threadpool(self.log.append, vote)
        except RunError as error:
            raise HTTPException(507, str(error)) from error
        return JSONResponse({"saved": True})

    def agreement(self, request: Request) -> Response:
        return JSONResponse([asdict(one) for one in agreements(self.log.ballots)])

    def _check_session(self, rater: str, session: object) -> None:
        if session != self.study.session(rater):
            raise HTTPException(409, "this page was opened for other pairs; reload it")


@dataclass(frozen=True)
class _Sent:
    rater: str
    session: str
    pair: int
    choice: str
    seconds: float


def application(study: Study, log: VoteLog) -> Starlette:
    """The ASGI application of a study."""
    site = _Site(study, log)
    routes = [Route(address, _asset(*asset)) for address, asset in _PAGE.items()]
    routes += [
        # Browsers ask for it unasked, and would note an error.
        Route("/favicon.ico", lambda request: Response(status_code=204)),
        Route("/session", site.session),
        Route("/images/{session}/{pair:int}/{place}", site.image),
        Route("/votes", site.vote, methods=["POST"]),
        Route("/agreement", site.agreement),
    ]
    return Starlette(routes=routes, middleware=[Middleware(OwnPageOnly)])


def _asset(name: str, media_type: str) -> Callable[[Request], Response]:
    text = (resources.files("t2i.label") / name).read_text(encoding="utf-8")
    return lambda request: Response(text, media_type=media_type)


def _rater(name: object) -> str:
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name.strip()) <= _MAX_NAME:
        raise HTTPException(400, f"rater: expected a name of 1 to {_MAX_NAME} printable characters")
    return name.strip()


def _vote_sent(body: bytes) -> _Sent:
    try:
        row: Any = json.loads(body)
        pair, seconds = row["pair"], row["seconds"]
        if type(pair) is not int or type(seconds) not in (int, float) or not 0 <= seconds < 1e9:
            raise ValueError("pair or seconds")
        return _Sent(_rater(row["rater"]), row["session"], pair, row["choice"], float(seconds))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HTTPException(400, "not a vote") from error


def _chosen(choice: object, first: str) -> Choice:
    """A place of the page, or `tie` or `skip` -> what the file of votes says."""
    second = "left" if first == "right" else "right"
    named = {"first": first, "second": second, "tie": "tie", "skip": "skip"}
    if not isinstance(choice, str) or choice not in named:
        raise HTTPException(400, f"choice: expected one of {', '.join(named)}")
    return cast("Choice", named[choice])


def _placed(choice: Choice | None, first: str) -> str | None:
    """The reverse of `_chosen`."""
    return choice if choice in (None, "tie", "skip") else "first" if choice == first else "second"
