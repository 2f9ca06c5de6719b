"""The table gradient of `place_offsets` in Pallas with the Triton compiler.

A program keeps the sums of its items in registers, one for each distance, and goes through its
queries: no atomics, so that the same inputs give the same bits.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from stt_kernels import triton_device
from stt_kernels.buckets import space_bucket

_BLOCK_ITEMS = 32
_PROGRAMS = 4096  # that keep a GPU busy
_FEWEST_QUERIES = 64  # of a program


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def with_summed_gradient(look_up, table, rows, places, coords):
    """Gives `look_up(table, rows, places, coords)`; the kernel sums the gradient of its table."""
    return look_up(table, rows, places, coords)


def _forward(look_up, table, rows, places, coords):
    return look_up(table, rows, places, coords), (table, rows, places, coords)


def _backward(look_up, saved, gradient):
    table, rows, places, coords = saved
    of_items = _sums_by_distance(gradient, places, coords, table.shape[1])
    # A product, so that the same inputs give the same bits: a scatter adds in any order.
    in_row = (jnp.arange(len(table))[:, None] == rows[None]).astype(jnp.float32)
    of_table = jnp.dot(in_row, of_items, precision=lax.Precision.HIGHEST)
    return of_table, None, None, None


with_summed_gradient.defvjp(_forward, _backward)


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
        interpret=triton_device.INTERPRET,
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
