"""Learned offsets by distance between queries and the places of a catalogue: a table look-up, and
the gradient of its table.

Forward is XLA's everywhere. Backward, every pair's gradient is to be added to its entry. XLA's
scatter does that with one atomic addition a pair: on a GPU nearly all of them wait for the few
entries that there are. The `triton` backend compares instead: `place_offsets_triton.py`, which is
imported when it is first used.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from stt_kernels import dispatch, triton_device
from stt_kernels.attention.checks import check_array
from stt_kernels.buckets import MAX_BUCKETS, space_bucket
from stt_kernels.materialise import materialised

_FEWEST_PAIRS = 2**20  # below this a scatter is no cost, and whole blocks of items a waste


def place_offsets(
    table: jax.Array,
    rows: jax.Array,
    places: jax.Array,
    coords: jax.Array,
    *,
    implementation: str | Sequence[str] | None = None,
) -> jax.Array:
    """Gives what a table says of the distance of every pair of a query and an item.

        out[n, v] = table[rows[v], space_bucket(|places[n] - coords[v]|^2, K)]

    Args:
      table: float32 [C, K].
      rows: int32 [V], the table's row of each item, 0..C-1.
      places: float32 [N, 3], in the unit of the buckets; NaN = unknown.
      coords: float32 [V, 3], as places.
      implementation: of the gradient: "xla", "triton", or None = "triton" where it can and there
        are enough pairs; a sequence = the first of those that can.

    Returns:
      float32 [N, V]. Differentiable in the table alone.

    Raises:
      ValueError: an argument has the wrong shape or dtype; an unknown implementation.
      NotImplementedError: the implementation asked for can't take the call.
    """
    table_shape, num_queries, num_items = table.shape, places.shape[:1], coords.shape[:1]
    if len(table_shape) != 2 or not 1 <= table_shape[1] <= MAX_BUCKETS:
        raise ValueError(f"table must be float32 [C, 1..{MAX_BUCKETS}]; got {list(table_shape)}.")
    check_array("table", table, table_shape, "float32", "[C, K]")
    check_array("rows", rows, num_items, "int32", "[V]")
    check_array("places", places, (*num_queries, 3), "float32", "[N, 3]")
    check_array("coords", coords, (*num_items, 3), "float32", "[V, 3]")
    table, rows, places, coords = map(jnp.asarray, (table, rows, places, coords))
    enough = len(places) * len(coords) >= _FEWEST_PAIRS
    order = ("triton", "xla") if enough and jax.default_backend() == "gpu" else ("xla",)
    reasons = {"triton": triton_device.unsupported_device, "xla": lambda: None}
    if dispatch.choose(implementation, order, reasons) == "triton":
        from stt_kernels import place_offsets_triton

        return place_offsets_triton.with_summed_gradient(_look_up, table, rows, places, coords)
    return _look_up(table, rows, places, coords)


def _look_up(table, rows, places, coords):
    # Kept: XLA would work them out again, pair by pair, for each look-up and each gradient.
    entries = materialised(_entries, table, rows, places, coords)
    return table.reshape(-1).at[entries].get(mode="promise_in_bounds")


def _entries(table, rows, places, coords):
    """Gives the entry of every query and item in the flat table, int32 [N, V]."""
    num_distances = table.shape[1]
    squared = jnp.zeros((len(places), len(coords)), jnp.float32)
    for axis in range(3):
        squared = squared + jnp.square(places[:, None, axis] - coords[None, :, axis])
    return rows[None] * num_distances + space_bucket(squared, num_distances)
