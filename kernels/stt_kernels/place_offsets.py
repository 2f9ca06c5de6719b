"""Learned offsets by distance between queries and the places of a catalogue: a table look-up, and
the gradient of its table.

Forward is XLA's everywhere. Backward, every pair's gradient is to be added to its entry. XLA's
scatter does that with one atomic addition a pair: on a GPU nearly all of them wait for the few
entries that there are. The `triton` backend compares instead: a program keeps the sums of its items
in registers, one for each distance, and goes through its queries.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from stt_kernels import dispatch
from stt_kernels.attention import triton
from stt_kernels.attention.checks import check_array
from stt_kernels.buckets import MAX_BUCKETS, space_bucket
from stt_kernels.materialise import materialised

_FEWEST_PAIRS = 2**20  # below this a scatter is no cost, and whole blocks of items a waste
_BLOCK_ITEMS = 32
_PROGRAMS = 4096  # that keep a GPU busy
_FEWEST_QUERIES = 64  # of a program


def place_offsets(
    table: jax.Array,
    rows: jax.Array,
    places: jax.Array,
    coords: jax.Array,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Gives what a table says of the distance of every pair of a query and an item.

        out[n, v] = table[rows[v], space_bucket(|places[n] - coords[v]|^2, K)]

    Args:
      table: float32 [C, K].
      rows: int32 [V], the table's row of each item, 0..C-1.
      places: float32 [N, 3], in the unit of the buckets; NaN = unknown.
      coords: float32 [V, 3], as places.
      implementation: of the gradient: "xla", "triton", or None = "triton" where it can and there
        are enough pairs.

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
    enough = len(places) * len(coords) >= _FEWEST_PAIRS
    order = ("triton", "xla") if enough and jax.default_backend() == "gpu" else ("xla",)
    reasons = {"triton": triton.unsupported_device, "xla": lambda: None}
    if dispatch.choose(implementation, order, reasons) == "triton":
        return _summed_by_triton(table, rows, places, coords)
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


@jax.custom_vjp
def _summed_by_triton(table, rows, places, coords):
    return _look_up(table, rows, places, coords)


def _forward(table, rows, places, coords):
    return _look_up(table, rows, places, coords), (table, rows, places, coords)


def _backward(saved, gradient):
    table, rows, places, coords = saved
    of_items = _sums_by_distance(gradient, places, coords, table.shape[1])
    # A product, so that the same inputs give the same bits: a scatter adds in any order.
    in_row = (jnp.arange(len(table))[:, None] == rows[None]).astype(jnp.float32)
    of_table = jnp.dot(in_row, of_items, precision=lax.Precision.HIGHEST)
    return of_table, None, None, None


_summed_by_triton.defvjp(_forward, _backward)


def _sums_by_distance(values, places, coords, num_distances):
    """Gives the sum of `values` [N, V] over the queries at each distance, float32 [V, K]."""
    num_queries, num_items = values.shape
    item_blocks = pl.cdiv(num_items, _BLOCK_ITEMS)
    most = pl.cdiv(num_queries, _FEWEST_QUERIES)
    block_queries = pl.cdiv(num_queries, min(most, max(1, _PROGRAMS // item_blocks)))
    query_blocks = pl.cdiv(num_queries, block_queries)
    pieces = _powers_of_two(num_distances)

    def run(values, places, coords, *sums):
        items = pl.program_id(0) * _BLOCK_ITEMS + lax.iota(jnp.int32, _BLOCK_ITEMS)
        items = jnp.minimum(items, num_items - 1)  # those past the end are left out afterwards
        item_coords = [coords[axis, items] for axis in range(3)]
        first_query = pl.program_id(1) * block_queries

        def add(query, totals):
            squared = jnp.zeros((_BLOCK_ITEMS,), jnp.float32)
            for axis in range(3):
                squared = squared + jnp.square(places[axis, query] - item_coords[axis])
            distances = space_bucket(squared, num_distances)[:, None]
            added = values[query, items][:, None]
            return tuple(
                total + jnp.where(distances == first + _numbers(total.shape), added, 0.0)
                for total, (first, _) in zip(totals, pieces, strict=True)
            )

        zeros = tuple(jnp.zeros((_BLOCK_ITEMS, size), jnp.float32) for _, size in pieces)
        end = jnp.minimum(first_query + block_queries, num_queries)
        for ref, total in zip(sums, lax.fori_loop(first_query, end, add, zeros), strict=True):
            ref[...] = total

    def out(size):
        spec = pl.BlockSpec((None, _BLOCK_ITEMS, size), lambda items, queries: (queries, items, 0))
        shape = (query_blocks, item_blocks * _BLOCK_ITEMS, size)
        return spec, jax.ShapeDtypeStruct(shape, jnp.float32)

    outs = [out(size) for _, size in pieces]
    inputs = values, places.T, coords.T
    found = pl.pallas_call(
        run,
        grid=(item_blocks, query_blocks),
        in_specs=[pl.BlockSpec(array.shape, lambda items, queries: (0, 0)) for array in inputs],
        out_specs=[spec for spec, _ in outs],
        out_shape=[shape for _, shape in outs],
        compiler_params=pltriton.CompilerParams(num_warps=1, num_stages=1),
        interpret=triton.INTERPRET,
        name="sums_by_distance_kernel",
    )(*inputs)
    return jnp.concatenate([jnp.sum(part, axis=0)[:num_items] for part in found], axis=1)


def _numbers(shape):
    return lax.broadcasted_iota(jnp.int32, shape, 1)


@functools.cache
def _powers_of_two(number: int) -> tuple[tuple[int, int], ...]:
    """Gives (first, size) of pieces, the largest first, that make up 0..number-1."""
    pieces, first = [], 0
    for bit in reversed(range(number.bit_length())):
        if number >> bit & 1:
            pieces.append((first, 1 << bit))
            first += 1 << bit
    return tuple(pieces)
