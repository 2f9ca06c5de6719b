"""The routes."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any

import fastapi
import numpy as np
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from stt_jax.ranking import excludes_seen
from stt_jax.service import schemas
from stt_jax.service.asks import RequestError
from stt_jax.service.batcher import BusyError
from stt_jax.service.guards import Guard
from stt_jax.service.service import Service
from stt_jax.service.store import StoreError, now_s

_PAGE = pathlib.Path(__file__).with_name("page.html")
_LAST_EVENTS = 1000

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Problem, "description": text}
    for status, text in {
        400: "The body is no JSON.",
        401: "The token is missing or wrong.",
        413: "The body is too large.",
        421: "The service has no token and was asked under a name that is not this machine's.",
        422: "The request is not as described here.",
        429: "Too many requests are waiting; try again in a second.",
        503: "The event log or the model is not available now.",
    }.items()
}
_UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": schemas.Problem, "description": "No person with this id is known."}
}
UserId = Annotated[schemas.Id, fastapi.Path(description="Id of the person.")]


def create_app(service: Service, *, token: str = "", managed: bool = True) -> Any:
    """The ASGI application.

    Args:
      service: not yet loaded, if `managed`.
      token: what callers have to send; "" = nothing, but only this machine's names are answered.
      managed: the model is loaded when the application starts, beside the first requests, and the
        service stopped when it ends; False leaves both to the caller.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        if managed:
            threading.Thread(target=_load, args=(service,), daemon=True).start()
        yield
        if managed:
            await run_in_threadpool(service.stop)

    app = fastapi.FastAPI(
        title="stt_jax",
        summary="What comes next, for a person, a time and a place.",
        lifespan=lifespan,
        responses=_PROBLEMS,
    )
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestError, _wrong)
    app.add_exception_handler(BusyError, _busy)
    app.add_exception_handler(StoreError, _unavailable)
    app.include_router(_data_routes(service))
    app.include_router(_state_routes(service))
    config = service.config
    return Guard(
        app,
        service.metrics,
        token=token,
        host=config.host,
        max_body_bytes=config.max_body_bytes,
    )


def _data_routes(service: Service) -> fastapi.APIRouter:
    routes = fastapi.APIRouter()

    @routes.post("/events")
    async def add_events(body: schemas.OneOrMany) -> schemas.Stored:
        """Stores one event or many: when the answer comes they are on the disk."""
        try:
            made = body.stored(service.ids, now_s())
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        events = made if isinstance(made, list) else [made]
        num_new = await asyncio.wrap_future(service.add(events))
        return schemas.Stored(stored=num_new, duplicates=len(events) - num_new)

    @routes.post("/recommend")
    async def recommend(body: schemas.RecommendBody) -> schemas.Recommended:
        """The items that come next most probably, under the caller's rules."""
        step = service.model.run.step
        try:
            ask = body.ask(service.ids, now_s())
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        answer = await asyncio.wrap_future(service.recommend(ask))
        return schemas.Recommended.of(answer, step)

    @routes.get("/users/{user:path}", responses=_UNKNOWN)
    def get_user(user: UserId) -> schemas.User:
        """What is known of a person."""
        known = service.known(service.ids.user(user))
        if known is None:
            raise HTTPException(404, "no person with this id is known")
        return schemas.User(
            user=user,
            in_training=known.in_training,
            num_log_events=known.num_log_events,
            num_events=len(known.events),
            events=[
                schemas.KnownEvent(
                    event_id=event.event_id,
                    item=event.item,
                    time=schemas.iso_time(event.time_s, event.utc_offset_s),
                    latitude=None if event.latitude_e7 is None else event.latitude_e7 / 1e7,
                    longitude=None if event.longitude_e7 is None else event.longitude_e7 / 1e7,
                    category=event.category,
                    context=event.contexts,
                    numbers=event.numbers,
                )
                for event in known.events[-_LAST_EVENTS:]
            ],
        )

    @routes.delete("/users/{user:path}", responses=_UNKNOWN)
    def forget_user(user: UserId) -> schemas.Forgotten:
        """Forgets a person: deletes their events, and uses none of the prepared log any more."""
        return schemas.Forgotten(deleted_events=service.forget(service.ids.user(user)))

    return routes


def _state_routes(service: Service) -> fastapi.APIRouter:
    routes = fastapi.APIRouter(include_in_schema=False)

    @routes.get("/healthz")
    async def healthz() -> PlainTextResponse:
        return PlainTextResponse("alive\n")

    @routes.get("/readyz")
    def readyz() -> PlainTextResponse:
        reason = service.not_ready
        return PlainTextResponse(f"{reason or 'ready'}\n", 503 if reason else 200)

    @routes.get("/metrics")
    def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @routes.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"))

    @routes.get("/map")
    def map_data(limit: Annotated[int, fastapi.Query(ge=1, le=20_000)] = 5000) -> JSONResponse:
        """The most frequent items and some people, for the page."""
        log, coords = service.model.log, service.model.coords
        rows = np.flatnonzero(~np.isnan(coords[:, 0]))[:limit]
        places = np.stack([log.item_latitudes_e7[rows], log.item_longitudes_e7[rows]], 1) / 1e7
        items = [
            [log.item_ids[row], log.item_names[row], log.category_values[log.item_categories[row]]]
            for row in rows.tolist()
        ]
        # Pseudonyms are nothing to ask by: callers know people by their own ids.
        hidden = service.ids.key is not None
        people = [] if hidden else list(log.user_ids[: min(100, log.num_train_users)])
        found = {"items": items, "places": places.tolist(), "people": people}
        return JSONResponse(found | {"fresh": excludes_seen(service.model.run, None)})

    @routes.get("/trail/{user:path}")
    def trail(user: UserId) -> JSONResponse:
        """A person's last events, of the prepared log and of the service, for the page."""
        return JSONResponse(service.trail(service.ids.user(user)))

    return routes


def _load(service: Service) -> None:
    try:
        service.load()
    except Exception as error:
        # There is nothing to serve: the process is to end, and to say why.
        service.failure = str(error)
        service.on_failure()


async def _invalid(_: fastapi.Request, error: Any) -> JSONResponse:
    if isinstance(error.body, bytes):  # not taken for JSON, so nobody has looked at it
        detail = "send the body as JSON, with the header Content-Type: application/json"
        return JSONResponse({"detail": detail}, 422)
    # What was sent is not sent back: it may be personal, or no text at all.
    found = "; ".join(f"{_field(one['loc'])}: {_message(one)}" for one in error.errors())
    detail = found.encode("utf-8", "replace").decode()[:2000]
    # Other bodies that cannot be read at all are answered 400 by the framework itself.
    is_json = all(one["type"] != "json_invalid" for one in error.errors())
    return JSONResponse({"detail": detail}, 422 if is_json else 400)


def _field(loc: Sequence[Any]) -> str:
    """Where an error is in what was sent, without the names of the branches of a union."""
    parts = [str(part) for part in loc[1:]]
    return ".".join(part for part in parts if not part.startswith("<")) or "body"


def _message(one: Mapping[str, Any]) -> str:
    if one["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "must be a JSON object"
    return str(one["msg"]).removeprefix("Value error, ")


async def _http_problem(_: fastapi.Request, error: Any) -> JSONResponse:
    return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)


async def _wrong(_: fastapi.Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)


async def _busy(_: fastapi.Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 429, {"retry-after": "1"})


async def _unavailable(_: fastapi.Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503, {"retry-after": "5"})
