"""Tiled attention in plain JAX: runs anywhere, exports, and is what every platform falls back to.

A tile is a block of queries against a run of keys, all heads of a few rows of the batch at once. A
block of queries meets all its keys in one tile (its causal prefix, where the order is known before
the data), so that the softmax is exact in one go.

The bias of a tile is looked up by rows of H numbers, one row a table entry, so that one index
serves all heads; two tables may be joined into one of all their pairs, which halves the look-ups.
The backward pass makes the tile again from the log-sum-exp and adds dS to the tables by the same
index.

What is done with the logits of a tile is its readout: softmax or SiLU times values, or the mass on
  the keys that match.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from stt_kernels.attention import geometry
from stt_kernels.attention.reference import FLOOR

_MASKED = -1e30  # finite: a row of nothing but masked pairs makes no NaN; exp of it is exactly 0
_LOWEST = -1e20  # no maximum is taken to be lower, so that what is masked stays far below it
_NOTHING = 1e30  # the log-sum-exp of a query with no key: exp(logit - it) is exactly 0
_MAX_JOINED_ENTRIES = 2**14


@dataclasses.dataclass(frozen=True)
class TileSizes:
    """How a call is cut up."""

    num_rows: int  # rows of the batch at once; divides B
    block_queries: int  # queries of one tile


def choose_tile_sizes(num_rows: int, num_queries: int, num_keys: int, num_heads: int) -> TileSizes:
    """Chooses tiles of about 1 MiB of logits, the second-level cache of a core."""
    block_queries = min(64, num_queries)
    wanted = 2**18 // (block_queries * num_keys * num_heads)
    fitting = [n for n in range(1, num_rows + 1) if num_rows % n == 0 and n <= max(wanted, 1)]
    return TileSizes(num_rows=fitting[-1], block_queries=block_queries)


def unsupported(call) -> str | None:
    """Gives why this backend can't take the call: it takes every valid one."""
    return None


def attend(q, k, v, tables, queries, keys, rules, tile_sizes=None):
    """Gives the attention output [B, L, H, D] in q's dtype."""
    readout = _Softmax() if rules.normalizer == "softmax" else _Silu(rules.silu_denominator)
    plan = _Plan(readout, rules, tile_sizes or _default_tile_sizes(q, k))
    return _tiled(plan, q, k, v, None, tables, queries, keys).astype(q.dtype)


def pointer_log_mass(q, k, ids, target_ids, tables, queries, keys, rules, tile_sizes=None):
    """Gives the log of the mean over heads of the softmax mass on matching keys, [B, L]."""
    plan = _Plan(_Pointer(), rules, tile_sizes or _default_tile_sizes(q, k))
    ids, target_ids = ids[:, None], target_ids[:, None]
    return _tiled(plan, q, k, ids, target_ids, tables, queries, keys)[:, 0]


def _default_tile_sizes(q, k):
    return choose_tile_sizes(q.shape[0], q.shape[1], k.shape[1], q.shape[2])


@dataclasses.dataclass(frozen=True)
class _Plan:
    readout: "_Softmax | _Silu | _Pointer"
    rules: geometry.Rules
    tile_sizes: TileSizes


class _Row(NamedTuple):
    """A few rows of the batch. Arrays of 4 axes are [b, N, H, D] outside and [b, H, N, D] inside;
    those of 3 axes are [b, H or 1, N] in both.
    """

    q: jax.Array
    k: jax.Array
    query_values: tuple  # what the readout knows of each query
    key_values: jax.Array  # the values of the keys, or their ids
    queries: geometry.Side
    keys: geometry.Side


# Differentiation and the loop over rows of the batch


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(plan, q, k, key_values, query_targets, tables, queries, keys):
    return _tiled_forward(plan, q, k, key_values, query_targets, tables, queries, keys)[0]


def _tiled_forward(plan, q, k, key_values, query_targets, tables, queries, keys):
    bias = _Bias(tables, _num_pairs(q, k))
    query_values = () if query_targets is None else (query_targets,)
    row = _Row(q, k, query_values, key_values, queries, keys)

    def step(_, row):
        out, statistics = _forward_blocks(plan, bias, row)
        return (), (_swap_heads(out), statistics)

    _, (out, statistics) = _scan_rows(step, (), row, plan.tile_sizes.num_rows)
    saved = (q, k, key_values, query_targets, tables, queries, keys, out, statistics)
    return out, saved


def _tiled_backward(plan, saved, out_gradient):
    q, k, key_values, query_targets, tables, queries, keys, out, statistics = saved
    bias = _Bias(tables, _num_pairs(q, k))
    readout_values = (query_targets, out_gradient, out, statistics)
    row = _Row(q, k, readout_values, key_values, queries, keys)

    def step(table_gradients, row):
        row = row._replace(query_values=plan.readout.prepare_backward(*row.query_values))
        *gradients, table_gradients = _backward_blocks(plan, bias, row, table_gradients)
        return table_gradients, tuple(map(_swap_heads, gradients))

    carry = bias.zero_gradients()
    table_gradients, gradients = _scan_rows(step, carry, row, plan.tile_sizes.num_rows)
    q_gradient, k_gradient, value_gradient = gradients
    tables_gradient = bias.split_gradients(table_gradients)
    return q_gradient, k_gradient, value_gradient, None, tables_gradient, None, None


_tiled.defvjp(_tiled_forward, _tiled_backward)


def _scan_rows(step, carry, row, num_rows):
    """Runs `step(carry, row)` on `num_rows` rows of the batch at a time, heads first."""

    def inner(carry, row):
        return step(carry, jax.tree.map(_swap_heads, row))

    total = row.q.shape[0]
    if num_rows == total:
        return inner(carry, row)
    chunks = jax.tree.map(lambda a: a.reshape(total // num_rows, num_rows, *a.shape[1:]), row)
    carry, outs = lax.scan(inner, carry, chunks)
    return carry, jax.tree.map(lambda a: a.reshape(total, *a.shape[2:]), outs)


def _swap_heads(array):
    if array is None or array.ndim != 4:
        return array
    return jnp.swapaxes(array, 1, 2)


def _num_pairs(q, k):
    return q.shape[0] * q.shape[1] * k.shape[1]


# The loop over blocks of queries


def _blocks(plan, row):
    """Gives, for each block of queries, its slice and the number of keys that it meets."""
    num_queries, num_keys = row.q.shape[2], row.k.shape[2]
    prefix = plan.rules.causal and row.queries.positions is None
    for start in range(0, num_queries, plan.tile_sizes.block_queries):
        stop = min(start + plan.tile_sizes.block_queries, num_queries)
        yield start, stop, (stop if prefix else num_keys)


def _take(row, start, stop, num_keys):
    """Cuts one tile out of the rows."""

    def cut(tree, axis, start, stop):
        return jax.tree.map(lambda a: lax.slice_in_dim(a, start, stop, axis=axis), tree)

    row = row._replace(
        queries=geometry.number(row.queries, row.q.shape[2]),
        keys=geometry.number(row.keys, row.k.shape[2]),
    )
    return _Row(
        cut(row.q, 2, start, stop),
        cut(row.k, 2, 0, num_keys),
        cut(row.query_values, 2, start, stop),
        cut(row.key_values, 2, 0, num_keys),
        cut(row.queries, 1, start, stop),
        cut(row.keys, 1, 0, num_keys),
    )


def _forward_blocks(plan, bias, row):
    outs = []
    for block in _blocks(plan, row):
        tile = _take(row, *block)
        logits, allowed, _ = _tile_logits(plan.rules, bias, tile)
        outs.append(plan.readout.forward(logits, allowed, tile.query_values, tile.key_values))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *outs)


def _backward_blocks(plan, bias, row, table_gradients):
    dtype = _accumulator(row.q)
    q_gradients = []
    k_gradient = jnp.zeros(row.k.shape, dtype)
    value_gradient = jnp.zeros(row.key_values.shape, dtype) if row.key_values.ndim == 4 else None
    for start, stop, num_keys in _blocks(plan, row):
        tile = _take(row, start, stop, num_keys)
        logits, _, entries = _tile_logits(plan.rules, bias, tile)
        logit_gradient, weights = plan.readout.backward(logits, tile.query_values, tile.key_values)
        table_gradients = bias.add_gradients(table_gradients, logit_gradient, entries)
        scaled = (logit_gradient * plan.rules.scale).astype(row.q.dtype)
        q_gradients.append(_matmul("bhij,bhjd->bhid", scaled, tile.k))
        k_part = _matmul("bhij,bhid->bhjd", scaled, tile.q)
        k_gradient = k_gradient.at[:, :, :num_keys].add(k_part)
        if value_gradient is not None:
            out_gradient = tile.query_values[0]
            weights = weights.astype(out_gradient.dtype)
            value_part = _matmul("bhij,bhid->bhjd", weights, out_gradient)
            value_gradient = value_gradient.at[:, :, :num_keys].add(value_part)
    q_gradient = jnp.concatenate(q_gradients, axis=2)
    if value_gradient is not None:
        value_gradient = value_gradient.astype(row.key_values.dtype)
    return (
        q_gradient.astype(row.q.dtype),
        k_gradient.astype(row.k.dtype),
        value_gradient,
        table_gradients,
    )


def _tile_logits(rules, bias, tile):
    """Gives a tile's masked logits, its allowed pairs (None = all) and its entries in the tables."""
    logits = _matmul("bhid,bhjd->bhij", tile.q, tile.k) * rules.scale
    logits, entries = bias.add(logits, tile.queries, tile.keys)
    allowed = geometry.allowed_pairs(tile.queries, tile.keys, rules.causal)
    if allowed is not None:
        allowed = allowed[:, None]
        logits = jnp.where(allowed, logits, _MASKED)
    return logits, allowed, entries


# The bias


class _Bias:
    """The tables, as rows of H numbers, some of them joined."""

    def __init__(self, tables, num_pairs):
        self._tables = tables
        self._sizes = tables.sizes()
        self._groups = _join(self._sizes, num_pairs)
        self._rows = [self._joined_rows(names) for names in self._groups]

    def _joined_rows(self, names):
        rows = getattr(self._tables, names[0]).T
        for name in names[1:]:
            more = getattr(self._tables, name).T
            rows = (rows[:, None] + more[None]).reshape(-1, rows.shape[1])
        return rows

    def add(self, logits, queries, keys):
        """Adds a tile's bias to its logits; gives also the pairs' entries in each group of tables."""
        entries = geometry.table_entries(queries, keys, self._sizes)
        joined = []
        for names, rows in zip(self._groups, self._rows, strict=True):
            entry = entries[names[0]]
            for name in names[1:]:
                entry = entry * self._sizes[name] + entries[name]
            looked_up = rows.at[entry].get(mode="promise_in_bounds")
            logits = logits + jnp.moveaxis(looked_up, -1, 1).astype(logits.dtype)
            joined.append(entry)
        return logits, joined

    def zero_gradients(self):
        """Gives the gradients of the joined tables before the first tile."""
        return [jnp.zeros(rows.shape, rows.dtype) for rows in self._rows]

    def add_gradients(self, gradients, logit_gradient, entries):
        """Adds what one tile gives to the gradients of the joined tables."""
        sums = []
        for gradient, entry in zip(gradients, entries, strict=True):
            updates = logit_gradient
            if entry.shape[0] != updates.shape[0]:  # the same for every row of the batch
                updates = jnp.sum(updates, axis=0, keepdims=True)
            updates = jnp.moveaxis(updates, 1, -1).astype(gradient.dtype)
            sums.append(gradient.at[entry].add(updates, mode="promise_in_bounds"))
        return sums

    def split_gradients(self, gradients):
        """Gives the gradient of each table from those of the joined ones."""
        split = {}
        for names, gradient in zip(self._groups, gradients, strict=True):
            by_table = gradient.reshape(*(self._sizes[name] for name in names), -1)
            for axis, name in enumerate(names):
                others = tuple(other for other in range(len(names)) if other != axis)
                split[name] = jnp.sum(by_table, axis=others).T
        return geometry.Tables(**split)


def _join(sizes, num_pairs):
    """Groups tables, at most two together, where that makes few entries for the pairs of events."""
    names = [name for name in ("time", "space", "cycle") if name in sizes]
    groups = []
    while names:
        first, *names = names
        fitting = [
            name
            for name in names
            if sizes[first] * sizes[name] <= min(_MAX_JOINED_ENTRIES, num_pairs // 4)
        ]
        groups.append((first, *fitting[:1]))
        names = [name for name in names if name not in fitting[:1]]
    return groups + [("order",)] * ("order" in sizes)


# Readouts: what is made of the logits of a tile


@dataclasses.dataclass(frozen=True)
class _Softmax:
    """Softmax times values. Statistic: the log-sum-exp."""

    def forward(self, logits, allowed, query_values, values):
        highest = _highest(logits)
        weights = jnp.exp(logits - highest)
        sums = jnp.sum(weights, axis=-1, keepdims=True)
        out = _matmul("bhij,bhjd->bhid", weights.astype(values.dtype), values)
        return out / _nonzero(sums), _log_sum_exp(highest, sums)[..., 0]

    def prepare_backward(self, query_targets, out_gradient, out, log_sum_exps):
        overlap = jnp.sum(out_gradient * out, axis=-1)
        return out_gradient, log_sum_exps, overlap

    def backward(self, logits, query_values, values):
        out_gradient, log_sum_exps, overlap = query_values
        weights = jnp.exp(logits - log_sum_exps[..., None])
        weight_gradient = _matmul(
            "bhid,bhjd->bhij", out_gradient, values.astype(out_gradient.dtype)
        )
        return weights * (weight_gradient - overlap[..., None]), weights


@dataclasses.dataclass(frozen=True)
class _Silu:
    """SiLU of the logit over the number of keys, times values. Statistic: that number."""

    denominator: float | None

    def forward(self, logits, allowed, query_values, values):
        weights = jax.nn.silu(logits)  # of a masked logit: exactly 0
        out = _matmul("bhij,bhjd->bhid", weights.astype(values.dtype), values)
        shape = (*logits.shape[:1], 1, logits.shape[2])
        if self.denominator is not None:
            denominators = jnp.full(shape, self.denominator, logits.dtype)
        elif allowed is None:
            denominators = jnp.full(shape, logits.shape[3], logits.dtype)
        else:
            num_keys = jnp.sum(allowed, axis=-1, dtype=jnp.int32)
            denominators = jnp.broadcast_to(jnp.maximum(num_keys, 1), shape).astype(logits.dtype)
        return out / denominators[..., None], denominators

    def prepare_backward(self, query_targets, out_gradient, out, denominators):
        return (out_gradient / denominators[..., None],)

    def backward(self, logits, query_values, values):
        (out_gradient,) = query_values
        weight_gradient = _matmul(
            "bhid,bhjd->bhij", out_gradient, values.astype(out_gradient.dtype)
        )
        gates = jax.nn.sigmoid(logits)
        slopes = gates * (1.0 + logits * (1.0 - gates))
        return weight_gradient * slopes, logits * gates


@dataclasses.dataclass(frozen=True)
class _Pointer:
    """The log of the mass on the keys whose id is the query's target. Statistics: two log-sum-exps,
    of all keys and of those.

    Each number is raised by the maximum of its own kind, so that one exponential a pair serves both
    sums.
    """

    def forward(self, logits, allowed, query_values, ids):
        match = _match(query_values[0], ids)
        highest, highest_match = _highest(logits), _highest(jnp.where(match, logits, _MASKED))
        raised = jnp.exp(logits - jnp.where(match, highest_match, highest))
        match_sums = jnp.sum(jnp.where(match, raised, 0.0), axis=-1, keepdims=True)
        other_sums = jnp.sum(jnp.where(match, 0.0, raised), axis=-1, keepdims=True)
        sums = other_sums + match_sums * jnp.exp(highest_match - highest)
        of_all = _log_sum_exp(highest, sums)[..., 0]
        of_match = _log_sum_exp(highest_match, match_sums)[..., 0]
        log_masses = jnp.where(of_match == _NOTHING, FLOOR, of_match - of_all)
        out = jax.nn.logsumexp(log_masses, axis=1, keepdims=True) - jnp.log(
            jnp.asarray(logits.shape[1], logits.dtype)
        )
        out = jnp.where(of_match[:, :1] == _NOTHING, FLOOR, out)
        return out, (of_all, of_match)

    def prepare_backward(self, query_targets, out_gradient, out, log_sum_exps):
        of_all, of_match = log_sum_exps
        found = of_match != _NOTHING
        log_masses = jnp.where(found, of_match - of_all, 0.0)
        shares = jnp.exp(log_masses - jnp.where(found, out, 0.0)) / of_all.shape[1]
        head_gradients = jnp.where(found, shares * out_gradient, 0.0)
        return query_targets, of_all, of_match, head_gradients, -jnp.expm1(log_masses)

    def backward(self, logits, query_values, ids):
        targets, of_all, of_match, head_gradients, missed = (a[..., None] for a in query_values)
        match = targets == ids[:, :, None]
        shares = jnp.exp(logits - jnp.where(match, of_match, of_all))
        return shares * head_gradients * jnp.where(match, missed, -1.0), None


def _match(targets, ids):
    return targets[..., None] == ids[:, :, None]


def _highest(logits):
    return jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), _LOWEST)


def _nonzero(sums):
    return jnp.where(sums == 0.0, 1.0, sums)


def _log_sum_exp(highest, sums):
    return jnp.where(sums == 0.0, _NOTHING, highest + jnp.log(_nonzero(sums)))


def _matmul(equation, a, b):
    return jnp.einsum(equation, a, b, preferred_element_type=_accumulator(a))


def _accumulator(array):
    return jnp.promote_types(array.dtype, jnp.float32)
