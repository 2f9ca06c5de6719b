"""Looking along packed rows without leaving a person's segment."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from stt_jax.batch import History, Requests


def previous_in_segment(values: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """For every token the value of the one before it, zero at a segment's first.

    Args:
      values: [B, S, ...].
      segment_ids: int32 [B, S].

    Returns:
      As `values`.
    """
    same_segment = segment_ids[:, 1:] == segment_ids[:, :-1]
    same_segment = jnp.expand_dims(same_segment, tuple(range(2, values.ndim)))
    previous = jnp.where(same_segment, values[:, :-1], 0)
    return jnp.pad(previous, ((0, 0), (1, 0), *((0, 0) for _ in values.shape[2:])))


def at_tokens(values: jax.Array, tokens: jax.Array) -> jax.Array:
    """`values` [B, S] at `tokens` int32 [B, R]; 0 where a token is negative."""
    taken = jnp.take_along_axis(values, jnp.maximum(tokens, 0), axis=1)
    return jnp.where(tokens >= 0, taken, 0)


def last_items(history: History, requests: Requests, back: int = 0) -> jax.Array:
    """The item of the last event that each request sees, or of one `back` before: int32 [B, R].

    0 where there is none in the request's segment, or it is unknown.
    """
    tokens = requests.last_tokens - back
    mine = at_tokens(history.segment_ids, tokens) == requests.segment_ids
    return jnp.where(mine, at_tokens(history.items, tokens), 0)
