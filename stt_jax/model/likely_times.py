"""A request that hides its time, asked at a time that is likely.

    p(item) = mean over K equally likely waits w of p(item | asked w after the last event)

Hours of the day say much of where people go, and what a network makes of a time that it is not told
is less than what follows from its own answers for known ones. This mean is taken of what has to do
with the person's own history, pointers and habits, and of the weights of all sources; what
generating and the crowd say is as asked without a time, so that it is still one search.

Source: our own; the marginal over an unobserved time.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from stt_jax.batch import HOURS_PER_WEEK, History, Requests

_HOUR_S = 3600


def likely_waits(waits_s: jax.Array, history: History, requests: Requests) -> jax.Array:
    """Seconds from the last event that each request sees to when it may be, int32 [K, B, R].

    Args:
      waits_s: int32 [168, K], by the hour of the week of the last event (`stt_jax.likely_times`).
      history, requests: what is asked.
    """
    last = jnp.maximum(requests.last_tokens, 0)
    phases = jnp.take_along_axis(history.phases, last, axis=1)
    return jnp.moveaxis(waits_s[jnp.maximum(phases, 0)], -1, 0)


def hide_time(history: History, requests: Requests) -> jax.Array:
    """bool [B, R], requests that hide their time and see an event whose hour is known."""
    last = jnp.maximum(requests.last_tokens, 0)
    has_hour = jnp.take_along_axis(history.phases, last, axis=1) >= 0
    return ~requests.time_known & (requests.last_tokens >= 0) & has_hour


def asked_after(history: History, requests: Requests, waits_s: jax.Array) -> Requests:
    """The requests at `waits_s`, int32 [B, R], after their last event; as if the time were known.

    The hour of the week is to the nearest hour, for that of an event does not tell its minute.
    """
    last = jnp.maximum(requests.last_tokens, 0)
    times = jnp.take_along_axis(history.times, last, axis=1)
    phases = jnp.take_along_axis(history.phases, last, axis=1)
    hours = phases + (waits_s + _HOUR_S // 2) // _HOUR_S
    return dataclasses.replace(
        requests,
        times=times + waits_s,
        phases=jnp.where(phases >= 0, hours % HOURS_PER_WEEK, -1),
        time_known=jnp.ones_like(requests.time_known),
    )
