"""What lies between a query and a key: whether they may meet, and in which bucket of each table
they fall.

Everything here is shared by all heads and made from O(L) inputs, for a whole row (`reference`) or
for one tile (every other backend).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stt_kernels import buckets


class Side(NamedTuple):
    """One side of the pairs, B rows of N events; what is left None takes no part."""

    times: Any = None  # int32 [B, N], seconds
    coords: Any = None  # float32 [B, N, 3], metres
    phases: Any = None  # int32 [B, N]
    positions: Any = None  # int32 [B, N], or [1, N] where all rows agree
    segment_ids: Any = None  # int32 [B, N]


class Tables(NamedTuple):
    """The learned offsets, each float32 [H, number of entries], or None."""

    time: Any = None
    space: Any = None
    order: Any = None
    cycle: Any = None

    def sizes(self) -> dict[str, int]:
        """Gives the number of entries of each table that is present."""
        return {name: table.shape[1] for name, table in self._asdict().items() if table is not None}


@dataclasses.dataclass(frozen=True)
class Rules:
    """The static part of a call."""

    causal: bool
    scale: float
    normalizer: str  # "softmax" or "silu"
    silu_denominator: float | None


def accumulator(array: jax.Array) -> Any:
    """Gives the dtype of logits and of sums: float32, or float64 where the input is."""
    return jnp.float64 if array.dtype == jnp.float64 else jnp.float32


def number(side: Side, num_events: int, start: jax.Array | int = 0) -> Side:
    """Gives the default order, `start`, `start` + 1, ..., to a side that has no positions."""
    if side.positions is not None:
        return side
    return side._replace(positions=(start + jnp.arange(num_events, dtype=jnp.int32))[None])


def allowed_pairs(queries: Side, keys: Side, causal: bool) -> jax.Array | None:
    """Gives bool [B or 1, L, S], True where the query may attend to the key; None = everywhere."""
    allowed = None
    if causal:
        allowed = keys.positions[:, None, :] <= queries.positions[:, :, None]
    if keys.segment_ids is not None:
        query_ids, key_ids = queries.segment_ids[:, :, None], keys.segment_ids[:, None, :]
        same_segment = (query_ids == key_ids) & (key_ids != 0)
        allowed = same_segment if allowed is None else allowed & same_segment
    return allowed


def table_entries(queries: Side, keys: Side, sizes: dict[str, int]) -> dict[str, jax.Array]:
    """Gives the entry of every pair in each table of `sizes`: int32 [B or 1, L, S], in range."""
    entries = {}
    if "time" in sizes:
        entries["time"] = buckets.time_bucket(_gaps(queries.times, keys.times), sizes["time"])
    if "space" in sizes:
        entries["space"] = buckets.space_bucket(
            squared_distances(queries.coords, keys.coords), sizes["space"]
        )
    if "order" in sizes:
        entries["order"] = jnp.clip(_gaps(queries.positions, keys.positions), 0, sizes["order"] - 1)
    if "cycle" in sizes:
        entries["cycle"] = phase_gaps(queries.phases, keys.phases, sizes["cycle"] - 1)
    return entries


def squared_distances(query_coords, key_coords):
    """Gives squared chords, float32 [B, L, S], by differences: a product loses kilometres."""

    def square(axis):
        difference = query_coords[:, :, None, axis] - key_coords[:, None, :, axis]
        return difference * difference

    return square(0) + square(1) + square(2)


def with_unknown_phase(cycle_table):
    """Appends the entry, always 0, of pairs whose phase gap is unknown: [H, P] -> [H, P + 1]."""
    return None if cycle_table is None else jnp.pad(cycle_table, ((0, 0), (0, 1)))


def phase_gaps(query_phases, key_phases, num_phases):
    """Gives phase gaps mod `num_phases`, or `num_phases` where either phase is unknown (negative).

    Stays within the table, whatever padding holds.
    """
    return phase_entries(query_phases[:, :, None], key_phases[:, None, :], num_phases)


def phase_entries(query_phases, key_phases, num_phases):
    """As `phase_gaps`, of any two shapes that broadcast."""
    differences = query_phases - key_phases
    wrapped = jnp.where(differences < 0, differences + num_phases, differences)
    unknown = (query_phases < 0) | (key_phases < 0)
    return jnp.where(unknown, num_phases, jnp.clip(wrapped, 0, num_phases - 1))


def _gaps(query_values, key_values):
    return query_values[:, :, None] - key_values[:, None, :]
