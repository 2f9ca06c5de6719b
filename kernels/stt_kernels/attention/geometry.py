"""What lies between a query and a key: whether they may meet, and in which bucket of each table
they fall.

Everything here is shared by all heads and made from O(L) inputs, for a whole row (`reference`) or
for one tile (every other backend). Whoever has the two sides as arrays of events (`reference`,
`xla`) asks `allowed_pairs` and `table_entries`. The kernels for devices read a tile's events in
layouts of their own, and ask `pairs_of` and `entries_of` by what these read.
"""

import dataclasses
from collections.abc import Callable
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


# What the queries and what the keys of a tile have, of shapes that broadcast to [..., L, S].
Read = Callable[[str], tuple[Any, Any]]  # by the name of a whole number of `Side`
ReadCoords = Callable[[int], tuple[Any, Any]]  # by the axis


def allowed_pairs(queries: Side, keys: Side, causal: bool) -> jax.Array | None:
    """Gives bool [B or 1, L, S], True where the query may attend to the key; None = everywhere."""
    return pairs_of(_reader(queries, keys), causal, keys.segment_ids is not None)


def table_entries(queries: Side, keys: Side, sizes: dict[str, int]) -> dict[str, jax.Array]:
    """Gives the entry of every pair in each table of `sizes`: int32 [B or 1, L, S], in range."""

    def read_coords(axis):
        return queries.coords[:, :, None, axis], keys.coords[:, None, :, axis]

    return entries_of(_reader(queries, keys), read_coords, sizes)


def pairs_of(read: Read, causal: bool, segments: bool) -> jax.Array | None:
    """As `allowed_pairs`, of what is read; `segments` tells whether there are any."""
    allowed = None
    if causal:
        query_positions, key_positions = read("positions")
        allowed = key_positions <= query_positions
    if segments:
        query_ids, key_ids = read("segment_ids")
        same_segment = (query_ids == key_ids) & (key_ids != 0)
        allowed = same_segment if allowed is None else allowed & same_segment
    return allowed


def entries_of(read: Read, read_coords: ReadCoords, sizes: dict[str, int]) -> dict[str, jax.Array]:
    """As `table_entries`, of what is read; in the order of `sizes`."""

    def gaps(name):
        of_query, of_key = read(name)
        return of_query - of_key

    entries = {}
    for name, size in sizes.items():
        if name == "time":
            entries[name] = buckets.time_bucket(gaps("times"), size)
        elif name == "space":
            entries[name] = buckets.space_bucket(_squared_distances(read_coords), size)
        elif name == "order":
            entries[name] = jnp.clip(gaps("positions"), 0, size - 1)
        else:
            entries[name] = _phase_gaps(*read("phases"), size - 1)
    return entries


def with_unknown_phase(cycle_table):
    """Appends the entry, always 0, of pairs whose phase gap is unknown: [H, P] -> [H, P + 1]."""
    return None if cycle_table is None else jnp.pad(cycle_table, ((0, 0), (0, 1)))


def _reader(queries: Side, keys: Side) -> Read:
    def read(name):
        return getattr(queries, name)[:, :, None], getattr(keys, name)[:, None, :]

    return read


def _squared_distances(read_coords):
    """Gives squared chords, float32, by differences: a product loses kilometres."""

    def square(axis):
        of_query, of_key = read_coords(axis)
        difference = of_query - of_key
        return difference * difference

    return square(0) + square(1) + square(2)


def _phase_gaps(query_phases, key_phases, num_phases):
    """Gives phase gaps mod `num_phases`, or `num_phases` where either phase is unknown (negative).

    Stays within the table, whatever padding holds.
    """
    differences = query_phases - key_phases
    wrapped = jnp.where(differences < 0, differences + num_phases, differences)
    unknown = (query_phases < 0) | (key_phases < 0)
    return jnp.where(unknown, num_phases, jnp.clip(wrapped, 0, num_phases - 1))
