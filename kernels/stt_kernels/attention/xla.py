"""Tiled attention in plain JAX: runs anywhere, exports, and is what every platform falls back to.

A tile is a block of queries against a run of keys, all heads of a few rows of the batch at once.
Two forms share it:

- whole: a block of queries meets all its keys in one tile (its causal prefix, where the order is
  known before the data), so that the softmax is exact in one go. The blocks are unrolled.
- blocked: loops over blocks of queries and of keys with running maxima (flash attention), for
  sequences too long to unroll. Tiles past the causal half are never visited.

The bias is added in `xla_bias.py`; what is made of the logits stands in `xla_readouts.py`. The
backward pass makes each tile again from the saved log-sum-exp. Nothing of L x S is stored.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from stt_kernels.attention import geometry
from stt_kernels.attention.geometry import accumulator
from stt_kernels.attention.sentinels import MASKED
from stt_kernels.attention.xla_bias import Bias
from stt_kernels.attention.xla_readouts import Pointer, Silu, Softmax, matmul
from stt_kernels.materialise import materialised


@dataclasses.dataclass(frozen=True)
class TileSizes:
    """How a call is cut up."""

    num_rows: int  # rows of the batch at once; divides B
    block_queries: int  # queries of one tile
    block_keys: int | None  # keys of one tile; None = all of them, the form "whole"


# Numbers of a tile, and of its keys: what a core's cache holds, or what fills a device.
_MOST_NUMBERS, _MOST_NUMBERS_ON_DEVICES = (2**18, 2**20), (2**26, 2**28)


def choose_tile_sizes(num_rows, num_queries, num_keys, num_heads, width) -> TileSizes:
    """Chooses the form and the tiles; the times behind the numbers stand in kernels/NOTES.md."""
    on_cpu = jax.default_backend() == "cpu"
    most_of_tile, most_of_keys = _MOST_NUMBERS if on_cpu else _MOST_NUMBERS_ON_DEVICES
    # Smaller blocks leave out more of the causal half, where there is one to leave.
    if num_queries == num_keys <= 512:
        block_queries, block_keys = _even_block(num_queries, 64), None
    elif num_queries <= 128 and num_keys <= 1024:
        block_queries, block_keys = num_queries, None
    else:
        block_queries = _even_block(num_queries, 128)
        block_keys = _even_block(num_keys, 128 if num_queries > 128 else 1024)
    tile = block_queries * (block_keys or num_keys) * num_heads
    keys = num_keys * num_heads * width
    # One row alone makes XLA choose layouts that cost up to four times as much, so two at least.
    most_rows = max(2, min(most_of_tile // tile, most_of_keys // keys))
    divisors = [n for n in range(1, num_rows + 1) if num_rows % n == 0]
    return TileSizes(max(n for n in divisors if n <= most_rows), block_queries, block_keys)


def _even_block(length, most):
    """Gives the size of the fewest equal blocks of at most `most`, so that little is padded."""
    return -(-length // -(-length // most))


def unsupported(call) -> str | None:
    """Gives why this backend can't take the call: it takes every valid one."""
    return None


def attend(q, k, v, tables, queries, keys, rules, tile_sizes=None):
    """Gives the attention output [B, L, H, D] in q's dtype."""
    readout = Softmax() if rules.normalizer == "softmax" else Silu(rules.silu_denominator)
    plan = _Plan(readout, rules, tile_sizes or _default_tile_sizes(q, k))
    return _tiled(plan, q, k, v, None, tables, queries, keys).astype(q.dtype)


def pointer_log_mass(q, k, ids, target_ids, tables, queries, keys, rules, tile_sizes=None):
    """Gives the log of the mean over heads of the softmax mass on matching keys, [B, L]."""
    plan = _Plan(Pointer(), rules, tile_sizes or _default_tile_sizes(q, k))
    ids, target_ids = ids[:, None], target_ids[:, None]
    return _tiled(plan, q, k, ids, target_ids, tables, queries, keys)[:, 0]


def _default_tile_sizes(q, k):
    return choose_tile_sizes(q.shape[0], q.shape[1], k.shape[1], *q.shape[2:])


@dataclasses.dataclass(frozen=True)
class _Plan:
    readout: Softmax | Silu | Pointer
    rules: geometry.Rules
    tile_sizes: TileSizes


class _Rows(NamedTuple):
    """A few rows of the batch.

    Arrays of 4 axes are [b, N, H, D] outside `_scan_rows` and [b, H, N, D] inside; those of 3 axes
    are [b, H or 1, N] in both.
    """

    q: jax.Array
    k: jax.Array
    query_values: tuple  # what the readout knows of each query
    key_values: jax.Array  # the values of the keys, or their ids
    queries: geometry.Side
    keys: geometry.Side


# Differentiation, and the loop over rows of the batch


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(plan, q, k, key_values, query_targets, tables, queries, keys):
    return _tiled_forward(plan, q, k, key_values, query_targets, tables, queries, keys)[0]


def _tiled_forward(plan, q, k, key_values, query_targets, tables, queries, keys):
    bias = Bias(tables, _num_pairs(q, k))
    run = _forward_whole if plan.tile_sizes.block_keys is None else _forward_blocked

    def step(_, rows):
        out, statistics = run(plan, bias, rows)
        return (), (_swap_heads(out), statistics)

    rows = _Rows(q, k, (query_targets,), key_values, queries, keys)
    _, (out, statistics) = _scan_rows(step, (), rows, plan.tile_sizes.num_rows)
    return out, (q, k, key_values, query_targets, tables, queries, keys, out, statistics)


def _tiled_backward(plan, saved, out_gradient):
    q, k, key_values, query_targets, tables, queries, keys, out, statistics = saved
    bias = Bias(tables, _num_pairs(q, k))
    run = _backward_whole if plan.tile_sizes.block_keys is None else _backward_blocked

    def step(table_gradients, rows):
        *gradients, table_gradients = run(plan, bias, rows, table_gradients)
        return table_gradients, tuple(map(_swap_heads, gradients))

    query_values = (query_targets, out_gradient, out, statistics)
    rows = _Rows(q, k, query_values, key_values, queries, keys)
    carry = bias.zero_gradients()
    table_gradients, gradients = _scan_rows(step, carry, rows, plan.tile_sizes.num_rows)
    tables_gradient = bias.split_gradients(table_gradients)
    return *gradients, None, tables_gradient, None, None


_tiled.defvjp(_tiled_forward, _tiled_backward)


def _scan_rows(step, carry, rows, num_rows):
    """Runs `step(carry, rows)` on `num_rows` rows of the batch at a time, heads first."""

    def inner(carry, rows):
        return step(carry, jax.tree.map(_swap_heads, rows))

    total = rows.q.shape[0]
    if num_rows == total:
        return inner(carry, rows)
    chunks = jax.tree.map(lambda a: a.reshape(total // num_rows, num_rows, *a.shape[1:]), rows)
    carry, outs = lax.scan(inner, carry, chunks)
    return carry, jax.tree.map(lambda a: a.reshape(total, *a.shape[2:]), outs)


def _swap_heads(array):
    if array is None or array.ndim != 4:
        return array
    return jnp.swapaxes(array, 1, 2)


def _num_pairs(q, k):
    return q.shape[0] * q.shape[1] * k.shape[1]


# One tile


def _tile_logits(rules, bias, tile, num_keys_left=None):
    """Gives a tile's masked logits, its allowed pairs (None = all) and its table entries.

    What is masked gets `MASKED` added, so that table offsets and mask are one array, stored once;
    the product, the sum and the softmax after them are left to XLA to fuse.
    """
    dtype = accumulator(tile.q)
    entries = bias.entries(tile.queries, tile.keys)
    allowed = geometry.allowed_pairs(tile.queries, tile.keys, rules.causal)
    if num_keys_left is not None:
        real = (jnp.arange(tile.k.shape[2], dtype=jnp.int32) < num_keys_left)[None, None]
        allowed = real if allowed is None else allowed & real
    if allowed is not None:
        allowed = allowed[:, None]

    def offsets(_, entries, allowed):
        found = bias.look_up(entries, dtype)
        if allowed is None:
            return found
        found = jnp.zeros((), dtype) if found is None else found
        return jnp.where(allowed, found, jnp.asarray(MASKED, dtype))

    logits = matmul("bhid,bhjd->bhij", tile.q, tile.k) * rules.scale
    if entries or allowed is not None:
        logits = logits + materialised(offsets, tile.q, entries, allowed)
    return logits, allowed, entries


def _tile_gradients(plan, bias, tile, table_gradients, num_keys_left=None):
    """Gives a tile's gradients of q, [b, H, i, D], of k and the values, both [b, H, D, j], and adds
    those of the tables.

    Keys come out transposed: XLA's matmul takes the tile as it is then, else it copies it first.
    """
    logits, _, entries = _tile_logits(plan.rules, bias, tile, num_keys_left)
    logit_gradient, weights = plan.readout.backward(logits, tile.query_values, tile.key_values)
    table_gradients = bias.add_gradients(table_gradients, logit_gradient, entries)
    scaled = (logit_gradient * plan.rules.scale).astype(tile.q.dtype)
    q_gradient = matmul("bhij,bhjd->bhid", scaled, tile.k)
    k_gradient = matmul("bhdi,bhij->bhdj", jnp.swapaxes(tile.q, 2, 3), scaled)
    value_gradient = None
    if weights is not None:
        out_gradient = jnp.swapaxes(tile.query_values[0], 2, 3)
        value_gradient = matmul("bhdi,bhij->bhdj", out_gradient, weights.astype(out_gradient.dtype))
    return q_gradient, k_gradient, value_gradient, table_gradients


def _has_values(rows):
    return rows.key_values.ndim == 4


def _number(rows):
    return rows._replace(
        queries=geometry.number(rows.queries, rows.q.shape[2]),
        keys=geometry.number(rows.keys, rows.k.shape[2]),
    )


def _cut_queries(rows, start, size):
    cut = functools.partial(_cut, start=start, size=size)
    return rows._replace(
        q=cut(rows.q, axis=2),
        query_values=cut(rows.query_values, axis=2),
        queries=cut(rows.queries, axis=1),
    )


def _cut_keys(rows, start, size):
    cut = functools.partial(_cut, start=start, size=size)
    return rows._replace(
        k=cut(rows.k, axis=2), key_values=cut(rows.key_values, axis=2), keys=cut(rows.keys, axis=1)
    )


def _cut(tree, start, size, axis):
    if isinstance(start, int):
        return jax.tree.map(lambda a: lax.slice_in_dim(a, start, start + size, axis=axis), tree)
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size, axis=axis), tree)


# The form "whole"


def _whole_tiles(plan, rows):
    """Gives the tiles: each block of queries with all the keys that it may meet."""
    num_queries, num_keys = rows.q.shape[2], rows.k.shape[2]
    prefix = _known_order(plan, rows)
    rows = _number(rows)
    for start in range(0, num_queries, plan.tile_sizes.block_queries):
        size = min(plan.tile_sizes.block_queries, num_queries - start)
        yield _cut_keys(_cut_queries(rows, start, size), 0, start + size if prefix else num_keys)


def _known_order(plan, rows):
    return plan.rules.causal and rows.queries.positions is None


def _forward_whole(plan, bias, rows):
    outs = []
    for tile in _whole_tiles(plan, rows):
        logits, allowed, _ = _tile_logits(plan.rules, bias, tile)
        state = plan.readout.update(None, logits, allowed, tile.query_values, tile.key_values)
        outs.append(plan.readout.finish(state))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *outs)


def _backward_whole(plan, bias, rows, table_gradients):
    rows = rows._replace(query_values=plan.readout.prepare_backward(*rows.query_values))
    q_gradients = []
    k_gradient = jnp.zeros(jnp.swapaxes(rows.k, 2, 3).shape, accumulator(rows.k))
    value_gradient = jnp.zeros_like(k_gradient) if _has_values(rows) else None
    for tile in _whole_tiles(plan, rows):
        q_part, k_part, value_part, table_gradients = _tile_gradients(
            plan, bias, tile, table_gradients
        )
        num_keys = tile.k.shape[2]
        q_gradients.append(q_part)
        k_gradient = k_gradient.at[..., :num_keys].add(k_part)
        if value_gradient is not None:
            value_gradient = value_gradient.at[..., :num_keys].add(value_part)
    return (
        jnp.concatenate(q_gradients, axis=2).astype(rows.q.dtype),
        jnp.swapaxes(k_gradient, 2, 3).astype(rows.k.dtype),
        None if value_gradient is None else _untranspose(value_gradient, rows.key_values),
        table_gradients,
    )


def _untranspose(gradient, like):
    return jnp.swapaxes(gradient, 2, 3).astype(like.dtype)


# The form "blocked"


class _Grid(NamedTuple):
    """The blocks of one `_Rows`, padded to whole ones."""

    num_queries: int
    num_keys: int
    block_queries: int
    block_keys: int
    skips: bool  # the causal half is known before the data

    @property
    def num_query_blocks(self):
        return -(-self.num_queries // self.block_queries)

    @property
    def num_key_blocks(self):
        return -(-self.num_keys // self.block_keys)

    def keys_left(self, key_block):
        """Gives how many keys of the block and those after it are real; None where all are."""
        if self.num_keys % self.block_keys == 0:
            return None
        return self.num_keys - key_block * self.block_keys

    def key_blocks_end(self, query_block):
        """Gives the key block after the last that a block of queries meets."""
        if not self.skips:
            return self.num_key_blocks
        last_query = (query_block + 1) * self.block_queries - 1
        return jnp.minimum(last_query // self.block_keys + 1, self.num_key_blocks)

    def first_query_block(self, key_block):
        """Gives the first block of queries that meets a block of keys."""
        return key_block * self.block_keys // self.block_queries if self.skips else 0


def _blocked(plan, rows):
    """Gives the grid and the rows padded to it; what is padded repeats the last event."""
    sizes = plan.tile_sizes
    grid = _Grid(
        num_queries=rows.q.shape[2],
        num_keys=rows.k.shape[2],
        block_queries=min(sizes.block_queries, rows.q.shape[2]),
        block_keys=min(sizes.block_keys, rows.k.shape[2]),
        skips=_known_order(plan, rows),
    )
    rows = _number(rows)
    query_padding = grid.num_query_blocks * grid.block_queries - grid.num_queries
    key_padding = grid.num_key_blocks * grid.block_keys - grid.num_keys
    pad_queries = functools.partial(_pad, amount=query_padding)
    pad_keys = functools.partial(_pad, amount=key_padding)
    return grid, _Rows(
        q=pad_queries(rows.q, axis=2),
        k=pad_keys(rows.k, axis=2),
        query_values=pad_queries(rows.query_values, axis=2),
        key_values=pad_keys(rows.key_values, axis=2),
        queries=pad_queries(rows.queries, axis=1),
        keys=pad_keys(rows.keys, axis=1),
    )


def _pad(tree, amount, axis):
    def pad(array):
        widths = [(0, amount if index == axis else 0) for index in range(array.ndim)]
        return jnp.pad(array, widths, mode="edge")

    return jax.tree.map(pad, tree) if amount else tree


def _forward_blocked(plan, bias, rows):
    grid, rows = _blocked(plan, rows)
    dtype = accumulator(rows.q)

    def query_block(index):
        block = _cut_queries(rows, index * grid.block_queries, grid.block_queries)

        def key_block(key_index, state):
            tile = _cut_keys(block, key_index * grid.block_keys, grid.block_keys)
            logits, allowed, _ = _tile_logits(plan.rules, bias, tile, grid.keys_left(key_index))
            return plan.readout.update(state, logits, allowed, tile.query_values, tile.key_values)

        start = plan.readout.start(block.q.shape[:3], dtype, block.key_values)
        end = grid.key_blocks_end(index)
        return plan.readout.finish(lax.fori_loop(0, end, key_block, start))

    blocks = lax.map(query_block, jnp.arange(grid.num_query_blocks, dtype=jnp.int32))

    def unite(array):  # [blocks, b, H, block_queries, ...] -> [b, H, L, ...]
        array = jnp.moveaxis(array, 0, 2)
        array = array.reshape(*array.shape[:2], -1, *array.shape[4:])
        return array[:, :, : grid.num_queries]

    return jax.tree.map(unite, blocks)


def _backward_blocked(plan, bias, rows, table_gradients):
    dtype = accumulator(rows.q)
    grid, rows = _blocked(plan, rows)
    targets, out_gradient, *rest = rows.query_values
    real = jnp.arange(rows.q.shape[2], dtype=jnp.int32) < grid.num_queries
    real = real.reshape(1, 1, -1, *[1] * (out_gradient.ndim - 3))
    out_gradient = jnp.where(real, out_gradient, 0.0)
    query_values = plan.readout.prepare_backward(targets, out_gradient, *rest)
    rows = rows._replace(query_values=query_values)

    def key_block(carry, key_index):
        block = _cut_keys(rows, key_index * grid.block_keys, grid.block_keys)

        def query_block(index, carry):
            q_gradient, k_gradient, value_gradient, table_gradients = carry
            start = index * grid.block_queries
            tile = _cut_queries(block, start, grid.block_queries)
            q_part, k_part, value_part, table_gradients = _tile_gradients(
                plan, bias, tile, table_gradients, grid.keys_left(key_index)
            )
            q_part = q_part + _cut(q_gradient, start, grid.block_queries, axis=2)
            q_gradient = lax.dynamic_update_slice_in_dim(q_gradient, q_part, start, axis=2)
            k_gradient = k_gradient + k_part
            if value_gradient is not None:
                value_gradient = value_gradient + value_part
            return q_gradient, k_gradient, value_gradient, table_gradients

        q_gradient, table_gradients = carry
        zeros = jnp.zeros(jnp.swapaxes(block.k, 2, 3).shape, dtype)
        carry = q_gradient, zeros, zeros if _has_values(rows) else None, table_gradients
        first = grid.first_query_block(key_index)
        carry = lax.fori_loop(first, grid.num_query_blocks, query_block, carry)
        q_gradient, k_gradient, value_gradient, table_gradients = carry
        return (q_gradient, table_gradients), (k_gradient, value_gradient)

    carry = jnp.zeros(rows.q.shape, dtype), table_gradients
    key_indices = jnp.arange(grid.num_key_blocks, dtype=jnp.int32)
    (q_gradient, table_gradients), blocks = lax.scan(key_block, carry, key_indices)

    def unite(array, like):  # [blocks, b, H, D, block_keys] -> [b, H, S, D]
        array = jnp.moveaxis(array, (0, 4), (2, 3))
        array = array.reshape(*array.shape[:2], -1, array.shape[4])
        return array[:, :, : grid.num_keys].astype(like.dtype)

    k_gradient, value_gradient = blocks
    return (
        q_gradient[:, :, : grid.num_queries].astype(rows.q.dtype),
        unite(k_gradient, rows.k),
        None if value_gradient is None else unite(value_gradient, rows.key_values),
        table_gradients,
    )
