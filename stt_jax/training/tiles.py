"""Softmax statistics of the whole catalogue, tile by tile: a few queries times a few items.

No [N, V] array of logits exists, forward or backward: a tile stays in a core's cache, and the
backward pass makes it again from the saved normaliser. Each device goes through its own queries and
its own part of the catalogue; what they have to tell each other is said once, after the tiles.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from stt_jax.mesh import DATA, MODEL, axis_size
from stt_jax.model.head import ItemScorer
from stt_jax.model.precision import exact_products

TILE_LOGITS = 2**18  # of a tile on a CPU: 1 MiB, about the second-level cache of a core
DEVICE_TILE_LOGITS = 2**26  # elsewhere: what keeps a device busy

Sums = tuple[jax.Array, jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def catalogue_sums(
    scorer: ItemScorer,
    queries: jax.Array,
    places: jax.Array,
    targets: jax.Array,
    chunk_items: int,
) -> Sums:
    """What a softmax over all items needs of the logits.

    Args:
      scorer: of the catalogue's rows.
      queries, places: [N, E] and float32 [N, 3], see `ItemScorer.logits`.
      targets: int32 [N], rows.
      chunk_items: items of a tile, over all devices.

    Returns:
      Logsumexp of each query's logits, the logit of its target, the sum of its logits over the
      items; float32 [N].

    Source: the running maximum and sum of Milakov and Gimelshein, "Online normalizer calculation
    for softmax" (2018), algorithm 3. Differs from it: tiles of queries too, a backward pass.
    """
    return _forward(scorer, queries, places, targets, chunk_items)[0]


def _forward(
    scorer: ItemScorer,
    queries: jax.Array,
    places: jax.Array,
    targets: jax.Array,
    chunk_items: int,
) -> tuple[Sums, tuple[Any, ...]]:
    def of_device(scorer: ItemScorer, numbers: jax.Array, rows: Any) -> Sums:
        queries, places, targets = rows
        chunks = _cut(scorer, _chunk_rows(scorer, chunk_items))

        def of_block(block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            def add_chunk(sums: Any, chunk: ItemScorer) -> tuple[Any, None]:
                largest, exponentials, logit_sums = sums
                chunk = dataclasses.replace(chunk, distance_table=scorer.distance_table)
                logits = chunk.logits(*block)
                larger = jnp.maximum(largest, logits.max(-1))
                exponentials = exponentials * jnp.exp(largest - larger)
                exponentials = exponentials + jnp.exp(logits - larger[:, None]).sum(-1)
                if scorer.distance_table is not None:
                    logit_sums = logit_sums + jnp.where(chunk.is_item[None], logits, 0.0).sum(-1)
                return (larger, exponentials, logit_sums), None

            zeros = jnp.zeros(block[0].shape[0], jnp.float32)
            sums = (jnp.full_like(zeros, -jnp.inf), zeros, zeros)
            (largest, exponentials, logit_sums), _ = jax.lax.scan(add_chunk, sums, chunks)
            return largest + jnp.log(exponentials), logit_sums

        blocks = _cut((queries, places), _block_rows(scorer, chunk_items))
        normalizers, sums = _joined(jax.lax.map(of_block, blocks), len(queries))
        of_target, linear_sums = _linear_parts(scorer, numbers, queries, places, targets)
        if axis_size(MODEL) > 1:
            largest = jax.lax.pmax(normalizers, MODEL)
            shares = jax.lax.psum(jnp.exp(normalizers - largest), MODEL)
            normalizers = largest + jnp.log(shares)
            of_target, sums = jax.lax.psum((of_target, sums + linear_sums), MODEL)
            return normalizers, of_target, sums
        return normalizers, of_target, sums + linear_sums

    rows = (queries, places, targets)
    sums = _on_devices(of_device, PartitionSpec(DATA))(scorer, _numbers(scorer), rows)
    return sums, (scorer, queries, places, targets, sums[0])


def _backward(chunk_items: int, saved: tuple[Any, ...], cotangents: Sums) -> tuple[Any, ...]:
    scorer, queries, places, targets, log_normalizers = saved

    def of_device(scorer: ItemScorer, numbers: jax.Array, rows: Any) -> tuple[Any, Any]:
        queries, places, targets, log_normalizers, cotangents = rows
        for_normalizer, for_target, for_sum = cotangents
        block_rows = _block_rows(scorer, chunk_items)
        blocks = _cut((queries, places, log_normalizers, for_normalizer, for_sum), block_rows)

        def add_chunk(sums: Any, chunk: ItemScorer) -> tuple[Any, Any]:
            query_sums, table_sums = sums

            def add_block(sums: Any, block_and_sums: Any) -> tuple[Any, jax.Array]:
                (queries, places, normalizers, for_normalizer, for_sum), of_queries = block_and_sums

                def tile(
                    queries: jax.Array,
                    table: jax.Array | None,
                    vectors: jax.Array,
                    bias: jax.Array,
                ) -> jax.Array:
                    part = dataclasses.replace(
                        chunk, distance_table=table, vectors=vectors, bias=bias
                    )
                    return part.logits(queries, places)

                logits, pull_back = jax.vjp(
                    tile, queries, scorer.distance_table, chunk.vectors, chunk.bias
                )
                # No logit is above its normaliser; where a query is padding, it has none.
                shares = jnp.exp(jnp.minimum(logits - normalizers[:, None], 0.0))
                grads = for_normalizer[:, None] * shares
                if scorer.distance_table is not None:
                    grads = grads + jnp.where(chunk.is_item[None], for_sum[:, None], 0.0)
                of_tile, *of_parts = pull_back(grads)
                return _added(sums, of_parts), of_queries + of_tile.astype(jnp.float32)

            zeros = _zeros((chunk.vectors, chunk.bias))
            (table_sums, *of_chunk), query_sums = jax.lax.scan(
                add_block, [table_sums, *zeros], (blocks, query_sums)
            )
            return (query_sums, table_sums), of_chunk

        chunks = _cut(scorer, _chunk_rows(scorer, chunk_items))
        zeros = _zeros((blocks[0], scorer.distance_table))
        (of_queries, of_table), of_rows = jax.lax.scan(add_chunk, zeros, chunks)
        of_vectors, of_bias = _joined(of_rows, len(scorer.bias))

        def linear(queries: jax.Array, vectors: jax.Array, bias: jax.Array, table: Any) -> Any:
            part = dataclasses.replace(scorer, vectors=vectors, bias=bias, distance_table=table)
            return _linear_parts(part, numbers, queries, places, targets)

        _, pull_back = jax.vjp(linear, queries, scorer.vectors, scorer.bias, scorer.distance_table)
        queries_too, vectors_too, bias_too, table_too = pull_back((for_target, for_sum))
        of_queries = _joined(of_queries, len(queries)) + queries_too.astype(jnp.float32)
        of_params = _added((of_vectors, of_bias, of_table), (vectors_too, bias_too, table_too))
        # One exchange for all tiles: queries have met their own part of the catalogue alone, items
        # their own queries alone.
        if axis_size(MODEL) > 1:
            of_queries = jax.lax.psum(of_queries, MODEL)
        if axis_size(DATA) > 1:
            of_params = jax.lax.psum(of_params, DATA)
        of_vectors, of_bias, of_table = of_params
        if axis_size(MODEL) > 1 and of_table is not None:
            of_table = jax.lax.psum(of_table, MODEL)
        return of_queries, (of_vectors.astype(scorer.vectors.dtype), of_bias, of_table)

    rows = (queries, places, targets, log_normalizers, cotangents)
    model = PartitionSpec(MODEL)
    table_spec = None if scorer.distance_table is None else PartitionSpec()
    out_specs = (PartitionSpec(DATA), (model, model, table_spec))
    of_queries, (of_vectors, of_bias, of_table) = _on_devices(of_device, out_specs)(
        scorer, _numbers(scorer), rows
    )
    # Distances enter through integer buckets: places and coords have no gradient.
    of_scorer = dataclasses.replace(
        scorer,
        vectors=of_vectors,
        bias=of_bias,
        is_item=None,
        categories=None,
        coords=None,
        distance_table=of_table,
    )
    return of_scorer, of_queries.astype(queries.dtype), None, None


catalogue_sums.defvjp(_forward, _backward)


@exact_products
def _linear_parts(
    scorer: ItemScorer,
    numbers: jax.Array,
    queries: jax.Array,
    places: jax.Array,
    targets: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """What needs no pass over the logits: that of the target and, without distances, their sum.

    Of rows `numbers`, neighbours all; a target that is elsewhere counts 0.
    """
    rows = targets - numbers[0]
    here = (rows >= 0) & (rows < len(numbers))
    of_target = scorer.pair_logits(queries, places, jnp.where(here, rows, 0))
    of_target = jnp.where(here, of_target, 0.0)
    if scorer.distance_table is not None:
        return of_target, jnp.zeros_like(of_target)
    is_item = scorer.is_item.astype(jnp.float32)
    vectors = jnp.einsum("v,ve->e", is_item, scorer.vectors.astype(jnp.float32))
    sums = jnp.einsum("ne,e->n", queries.astype(jnp.float32), vectors)
    return of_target, sums + jnp.dot(is_item, scorer.bias)


def _on_devices(of_device: Callable[..., Any], out_specs: Any) -> Callable[..., Any]:
    """Lets each device run (its part of the catalogue, its row numbers, its queries)."""
    if axis_size(DATA) * axis_size(MODEL) == 1:
        return of_device

    def run(scorer: ItemScorer, numbers: jax.Array, rows: Any) -> Any:
        parts: Any = dataclasses.replace(scorer, distance_table=None)
        parts = jax.tree.map(lambda _: PartitionSpec(MODEL), parts)
        if scorer.distance_table is not None:
            parts = dataclasses.replace(parts, distance_table=PartitionSpec())
        return jax.shard_map(
            of_device,
            in_specs=(parts, PartitionSpec(MODEL), PartitionSpec(DATA)),
            out_specs=out_specs,
            check_vma=False,
        )(scorer, numbers, rows)

    return run


def _numbers(scorer: ItemScorer) -> jax.Array:
    return jnp.arange(scorer.bias.shape[0], dtype=jnp.int32)


def _chunk_rows(scorer: ItemScorer, chunk_items: int) -> int:
    """Rows of this device in a chunk: chunks are as equal as whole rows allow."""
    part_rows = scorer.bias.shape[0]
    wanted = max(1, chunk_items // axis_size(MODEL))
    return -(-part_rows // -(-part_rows // wanted))


def _block_rows(scorer: ItemScorer, chunk_items: int) -> int:
    most = TILE_LOGITS if jax.default_backend() == "cpu" else DEVICE_TILE_LOGITS
    return max(1, most // _chunk_rows(scorer, chunk_items))


def _cut(arrays: Any, rows: int) -> Any:
    """Every array [N, ...] as [N / rows, rows, ...], padded by zeros; a table stays out."""

    def cut(array: jax.Array) -> jax.Array:
        size = min(rows, len(array))
        padding = ((0, -len(array) % size), *((0, 0) for _ in array.shape[1:]))
        return jnp.pad(array, padding).reshape(-1, size, *array.shape[1:])

    if isinstance(arrays, ItemScorer):
        return dataclasses.replace(arrays.map_rows(cut), distance_table=None)
    return jax.tree.map(cut, arrays)


def _joined(arrays: Any, num_rows: int) -> Any:
    """The opposite of `_cut`."""
    return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:num_rows], arrays)


def _zeros(arrays: Any) -> Any:
    return jax.tree.map(lambda array: jnp.zeros(array.shape, jnp.float32), arrays)


def _added(arrays: Any, others: Any) -> Any:
    """Sums, array by array, in float32."""
    return jax.tree.map(
        lambda one, other: one + other.astype(jnp.float32), list(arrays), list(others)
    )
