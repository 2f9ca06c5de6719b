"""Scores -> a list for this person: top-k with names and distances, under the caller's rules."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from typing import Any, cast

import jax
import numpy as np

from stt_jax.batch import Catalogue, History, Requests
from stt_jax.config import RequestConfig
from stt_jax.data.pipeline import (
    EARTH_RADIUS_M,
    catalogue,
    earth_coords,
    gather_history,
    hour_of_week,
    model_users,
)
from stt_jax.data.store import UNKNOWN_E7, PreparedLog
from stt_jax.data.windows import Windows
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.training.run import Run


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One place of a list.

    Attributes:
      item_id, name, category: as in the log; category "" = unknown.
      probability: that this item comes next, over the whole catalogue.
      distance_km: great-circle, from the request's place or else the last known one; None =
        unknown.
    """

    item_id: str
    name: str
    category: str
    probability: float
    distance_km: float | None


def recommend_items(run: Run, log: PreparedLog, request: RequestConfig) -> list[Recommendation]:
    """The k most probable next items of a person.

    Args:
      run: a trained model.
      log: the log that it was trained on; the person's history is read from it.
      request: who, when, where, and what the list may hold.

    Returns:
      At most `request.k` items, most probable first; fewer if the rules leave fewer.

    Raises:
      ValueError: an unknown person, a time that cannot be read or that a log without times
        cannot use, or a radius where no place is known.
    """
    row = _user_row(log, request.user)
    time_s, utc_offset_s = _request_time(log, row, request.time)
    first, end = log.user_offsets[row], log.user_offsets[row + 1]
    if time_s is not None:
        end = first + np.searchsorted(log.times[first:end], time_s, side="right")
    context = (int(max(first, end - run.training.window)), int(end))
    history, requests = _batch(run, log, row, context, (time_s, utc_offset_s), request)
    scored = np.asarray(_score(run.model, run.params, catalogue(log), history, requests))
    probabilities = scored[: log.num_items + 1]

    distances_km = _distances_km(log, np.arange(*context), request)
    allowed = np.arange(log.num_items + 1) > 0
    if request.exclude_seen:
        allowed[log.items[first:end]] = False
    if request.radius_km > 0:
        if distances_km is None:
            raise ValueError(
                "--radius_km needs a place: give --latitude and --longitude, or a person with a "
                "known place in the log"
            )
        allowed &= distances_km <= request.radius_km  # False where the item's place is unknown
    chosen = _top(probabilities, allowed, log.item_categories, request.k, request.max_per_category)
    return [
        Recommendation(
            log.item_ids[item],
            log.item_names[item],
            log.category_values[log.item_categories[item]],
            float(probabilities[item]),
            None
            if distances_km is None or np.isnan(distances_km[item])
            else float(distances_km[item]),
        )
        for item in chosen
    ]


@functools.partial(jax.jit, static_argnums=0)
def _score(
    model: SpatiotemporalTransformer,
    params: Any,
    items: Catalogue,
    history: History,
    requests: Requests,
) -> jax.Array:
    """float32 [rows], p(item) of the only request."""
    variables = {"params": params}
    states = model.apply(variables, history, deterministic=True, method=model.encode)
    probabilities = model.apply(
        variables, items, history, requests, states, method=model.item_probabilities
    )
    return cast(jax.Array, probabilities)[0, 0]


def _top(
    probabilities: np.ndarray,
    allowed: np.ndarray,
    categories: np.ndarray,
    k: int,
    max_per_category: int,
) -> list[int]:
    """The best allowed items, ties by item id, at most so many of one known category."""
    order = np.argsort(-np.where(allowed, probabilities, -1.0), kind="stable")
    order = order[: np.count_nonzero(allowed)]
    if not max_per_category:
        return order[:k].tolist()
    chosen: list[int] = []
    taken: dict[int, int] = {}
    for item in order.tolist():
        category = int(categories[item])
        if category and taken.get(category, 0) >= max_per_category:
            continue
        taken[category] = taken.get(category, 0) + 1
        chosen.append(item)
        if len(chosen) == k:
            break
    return chosen


def _user_row(log: PreparedLog, user: str) -> int:
    if not user:
        raise ValueError("--user is missing: give the id of a person of the log")
    try:
        return log.user_row(user)
    except ValueError as error:
        raise ValueError(
            f"{error}. Give --user one of the log's people; to serve a new person, add their "
            "events to the --input of stt_jax.prepare and train on the result"
        ) from error


def _request_time(log: PreparedLog, row: int, text: str) -> tuple[int | None, int]:
    """Unix seconds (None = unknown) and UTC offset in seconds of a request."""
    last_offset_s = int(log.utc_offsets_s[log.user_offsets[row + 1] - 1])
    if not text:
        return None, last_offset_s
    if not log.meta.has_times:
        raise ValueError(f"--time={text}: {log.directory} has no times, so leave --time empty")
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"--time={text} is no ISO 8601 time; write 2012-12-22T08:30, with +00:00 for UTC"
        ) from error
    if moment.tzinfo is None:
        # "08:30" is half past eight where the person lives.
        moment = moment.replace(tzinfo=datetime.timezone(datetime.timedelta(seconds=last_offset_s)))
    return int(moment.timestamp()), last_offset_s


def _batch(
    run: Run,
    log: PreparedLog,
    row: int,
    context: tuple[int, int],
    when: tuple[int | None, int],
    request: RequestConfig,
) -> tuple[History, Requests]:
    """A batch of one row: the person's events in `context`, and this request."""
    first, end = np.array([context[0]]), np.array([context[1]])
    windows = Windows(np.array([row]), first, first, first, end, end, end)
    history, layout = gather_history(log, windows, [np.array([0])], row_tokens=run.training.window)
    time_s, utc_offset_s = when
    coords = np.full(3, np.nan)
    if request.latitude:
        coords = earth_coords(*_e7(request)) - layout.place_origins[0]
    known = time_s is not None
    seconds = time_s - layout.time_origins[0] if known else 0
    phase = hour_of_week(np.array(time_s), utc_offset_s) if known else -1

    def one(value: object, dtype: type) -> np.ndarray:
        return np.asarray(value, dtype)[None, None]

    requests = Requests(
        users=one(model_users(log, np.array(row)), np.int32),
        times=one(np.clip(seconds, -(2**31) + 1, 2**31 - 1), np.int32),
        phases=one(phase, np.int32),
        time_known=one(known, np.bool_),
        coords=one(coords, np.float32),
        origins=one(layout.place_origins[0], np.float32),
        last_tokens=one(context[1] - context[0] - 1, np.int32),
        segment_ids=one(1, np.int32),
        targets=one(0, np.int32),
    )
    return history, requests


def _distances_km(
    log: PreparedLog, context: np.ndarray, request: RequestConfig
) -> np.ndarray | None:
    """float64 [V + 1] from the request's place or else the last known one; None = no place."""
    if request.latitude:
        here = earth_coords(*_e7(request))
    else:
        known = context[log.latitudes_e7[context] != UNKNOWN_E7]
        if len(known) == 0:
            return None
        here = earth_coords(log.latitudes_e7[known[-1]], log.longitudes_e7[known[-1]])
    items = earth_coords(log.item_latitudes_e7, log.item_longitudes_e7)
    chords = np.linalg.norm(items - here, axis=-1)
    return 2 * EARTH_RADIUS_M * np.arcsin(np.minimum(chords / (2 * EARTH_RADIUS_M), 1)) / 1000


def _e7(request: RequestConfig) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.asarray(round(float(request.latitude) * 1e7), np.int64),
        np.asarray(round(float(request.longitude) * 1e7), np.int64),
    )
