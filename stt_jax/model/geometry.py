"""When and where events and requests stand towards each other: what the kernel is told."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from stt_jax.batch import History, Requests
from stt_jax.config import ModelConfig


@struct.dataclass
class Geometry:
    """When and where queries and keys are; the arguments of the attention kernel.

    Keys are [B, S, ...], queries [B, L, ...]; fields that are None are left out of the logits.
    """

    times: jax.Array | None
    query_times: jax.Array | None
    coords: jax.Array | None
    query_coords: jax.Array | None
    phases: jax.Array | None
    query_phases: jax.Array | None
    segment_ids: jax.Array
    query_segment_ids: jax.Array | None
    query_positions: jax.Array | None


def self_geometry(config: ModelConfig, history: History) -> Geometry:
    """Every event towards the events before it."""
    times = history.times if config.use_time else None
    phases = history.phases if config.use_time else None
    coords = history.coords if config.use_place else None
    return Geometry(
        times=times,
        query_times=None,
        coords=coords,
        query_coords=None,
        phases=phases,
        query_phases=None,
        segment_ids=history.segment_ids,
        query_segment_ids=None,
        query_positions=None,
    )


def event_geometry(
    config: ModelConfig, history: History, events: History, places: jax.Array | None
) -> Geometry:
    """New events towards all events of their people, themselves included.

    `places`, int32 [B, N], say where in the history they are; None = they are all of it.
    """
    time, place = config.use_time, config.use_place
    return Geometry(
        times=history.times if time else None,
        query_times=events.times if time else None,
        coords=history.coords if place else None,
        query_coords=events.coords if place else None,
        phases=history.phases if time else None,
        query_phases=events.phases if time else None,
        segment_ids=history.segment_ids,
        query_segment_ids=events.segment_ids,
        query_positions=places,
    )


def request_geometry(config: ModelConfig, history: History, requests: Requests) -> Geometry:
    """Where a request stands towards the history.

    An unknown time is anchored at the last event that the request sees, and has no phase; an
    unknown place likewise stands where that event was.
    """
    last = jnp.maximum(requests.last_tokens, 0)
    times = query_times = phases = query_phases = coords = query_coords = None
    if config.use_time:
        times, phases = history.times, history.phases
        last_times = jnp.take_along_axis(history.times, last, axis=1)
        query_times = jnp.where(requests.time_known, requests.times, last_times)
        query_phases = jnp.where(requests.time_known, requests.phases, -1)
    if config.use_place:
        coords, query_coords = history.coords, _coords(history, requests)
    return Geometry(
        times=times,
        query_times=query_times,
        coords=coords,
        query_coords=query_coords,
        phases=phases,
        query_phases=query_phases,
        segment_ids=history.segment_ids,
        query_segment_ids=requests.segment_ids,
        query_positions=requests.last_tokens,
    )


def seen_events(history: History, requests: Requests) -> jax.Array:
    """Which events of the history each request sees, bool [B, R, S]."""
    tokens = jnp.arange(history.items.shape[1], dtype=jnp.int32)[None, None]
    return (history.segment_ids[:, None] == requests.segment_ids[:, :, None]) & (
        tokens <= requests.last_tokens[:, :, None]
    )


def request_places(history: History, requests: Requests) -> jax.Array:
    """Where a request is, or else its last event: float32 [B, R, 3] earth-centred, NaN unknown."""
    return _coords(history, requests) + requests.origins


def _coords(history: History, requests: Requests) -> jax.Array:
    last = jnp.maximum(requests.last_tokens, 0)[..., None]
    last_coords = jnp.take_along_axis(history.coords, last, axis=1)
    last_coords = jnp.where(requests.last_tokens[..., None] >= 0, last_coords, jnp.nan)
    return jnp.where(jnp.isnan(requests.coords), last_coords, requests.coords)
