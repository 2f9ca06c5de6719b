"""What repeats within a history: which events share an item, and how many of them there were."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from stt_jax.mesh import over_rows
from stt_jax.model.segments import at_tokens


@struct.dataclass
class Recurrences:
    """Tokens grouped into classes of one segment and one id; every array int32 [B, S].

    Attributes:
      classes: number of the token's class in its row, from 1; 0 = padding or unknown id.
      counts: tokens of the class up to and including this one; 0 where the class is 0.
    """

    classes: jax.Array
    counts: jax.Array


def find_recurrences(ids: jax.Array, segment_ids: jax.Array) -> Recurrences:
    """Groups the tokens of a row that agree in segment and id, by sorting: O(S log S).

    Args:
      ids: int32 [B, S], 0 = unknown, which equals nothing.
      segment_ids: int32 [B, S], 0 = padding.
    """
    return over_rows(lambda rows, _: _find_recurrences(*rows))((ids, segment_ids), ())


def _find_recurrences(ids: jax.Array, segment_ids: jax.Array) -> Recurrences:
    tokens = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    known = (ids > 0) & (segment_ids > 0)
    keys = [jnp.where(known, segment_ids, 0), jnp.where(known, ids, 0), tokens]
    segments, sorted_ids, order = jax.lax.sort(keys, dimension=1, num_keys=3)
    new = jnp.ones(ids.shape, bool)
    new = new.at[:, 1:].set(
        (segments[:, 1:] != segments[:, :-1]) | (sorted_ids[:, 1:] != sorted_ids[:, :-1])
    )
    numbers = jnp.cumsum(new, axis=1, dtype=jnp.int32)
    starts = jax.lax.cummax(jnp.where(new, tokens, 0), axis=1)

    def back(values: jax.Array) -> jax.Array:
        return jax.vmap(lambda at, row: jnp.zeros_like(row).at[at].set(row))(order, values)

    return Recurrences(
        classes=jnp.where(known, back(numbers), 0),
        counts=jnp.where(known, back(tokens - starts + 1), 0),
    )


def find_recurrence(ids: jax.Array, segment_ids: jax.Array, tokens: jax.Array) -> Recurrences:
    """As `find_recurrences`, of the class of one token a row and no other: O(S).

    Args:
      ids, segment_ids: as in `find_recurrences`.
      tokens: int32 [B, 1].

    Returns:
      class 1 where a token agrees with that one, else 0.
    """
    ours, segment = at_tokens(ids, tokens), at_tokens(segment_ids, tokens)
    agrees = (ids == ours) & (segment_ids == segment) & (ours > 0) & (segment > 0)
    return Recurrences(
        classes=agrees.astype(jnp.int32),
        counts=jnp.where(agrees, jnp.cumsum(agrees, axis=1, dtype=jnp.int32), 0),
    )
