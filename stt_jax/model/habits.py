"""What a person does by habit: their own history, counted; nothing of it is learned.

    p(item) = sum_j w_j [item_j = item],   w_j ~ f_j k_j   over the known items j of the history
    k_j = 1/10 + exp(-(hours of the day between j and the request / 2)^2 / 2) / (2 if just one of
          the two is in a weekend), or 1 where an hour is unknown
    f_j = 1 if the event before j had the item that was the last before the request, else 3/10

Pointers that learn to explain the next event prefer what is recent. What somebody has done at this
hour for months says more than they make of it; a fixed share of the answer (`--habit_share`) keeps
it. The training loss does not see it: beside it the pointers would learn less.

Source: our own; the counting of `stt_jax.baselines.score_own` without decay.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from stt_jax.batch import FIRST_WEEKEND_HOUR, History, Requests
from stt_jax.model.geometry import seen_events
from stt_jax.model.segments import last_items, previous_in_segment

_WIDTH_H = 2.0
_OTHER_DAYS = 0.5
_HOUR_FLOOR = 0.1
_SEQUENCE_FLOOR = 0.3
_TINY = 1e-30  # no weight, as a number to divide by


def habit_mass(history: History, requests: Requests, *, use_time: bool) -> jax.Array:
    """The weight of every event of the history, float32 [B, R, S].

    A request's weights sum to one, or are all zero where it sees no event with a known item.

    Args:
      history, requests: what is asked; hours of the week are their `phases`, items their `items`.
      use_time: False = as if every hour were unknown.
    """
    counted = seen_events(history, requests) & (history.items > 0)[:, None]
    weights = jnp.where(_follows_last(history, requests), 1.0, _SEQUENCE_FLOOR)
    if use_time:
        asked = jnp.where(requests.time_known, requests.phases, -1)
        weights = weights * _hour_weights(history.phases[:, None], asked[:, :, None])
    weights = jnp.where(counted, weights, 0.0)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), _TINY)


def _follows_last(history: History, requests: Requests) -> jax.Array:
    """bool [B, R, S], whether the event before had the item that the request's last event has."""
    last = last_items(history, requests)[:, :, None]
    before = previous_in_segment(history.items, history.segment_ids)[:, None]
    return (before == last) & (last > 0)


def _hour_weights(hours: jax.Array, asked: jax.Array) -> jax.Array:
    """How well hours of the week fit those that are asked for, broadcast; -1 = unknown."""
    apart_h = jnp.abs(hours - asked) % 24
    apart_h = jnp.minimum(apart_h, 24 - apart_h).astype(jnp.float32)
    fit = jnp.exp(-0.5 * jnp.square(apart_h / _WIDTH_H))
    same_days = (hours >= FIRST_WEEKEND_HOUR) == (asked >= FIRST_WEEKEND_HOUR)
    fit = _HOUR_FLOOR + fit * jnp.where(same_days, 1.0, _OTHER_DAYS)
    return jnp.where((hours >= 0) & (asked >= 0), fit, 1.0)
