"""The Triton kernels themselves: one tile, and the walks over tiles that `triton.py` names.

A program is one block of one side, of one row and head; its inputs are given by name, each whole
for its row and head.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from stt_kernels.attention import geometry
from stt_kernels.attention.flash_inputs import NUMBERS, dot
from stt_kernels.attention.sentinels import LOWEST, MASKED, NOTHING

_ROWS_OF_NUMBERS = (*NUMBERS, "ids")  # the last of a pointer alone

# One tile


class _Events:
    """Some events of one side, read as they are asked for, in the shape that a tile takes."""

    def __init__(self, inputs, side, events, shape):
        self._inputs, self._side, self._shape = inputs, side, shape
        self.events = events

    def heads(self, name):
        return self._inputs[name][self.events, :]

    def per_event(self, name):
        return self._inputs[name][self.events][self._shape]

    def number(self, name):
        row = _ROWS_OF_NUMBERS.index(name)
        return self._inputs[f"{self._side}_numbers"][row, self.events][self._shape]

    def coordinate(self, axis):
        return self._inputs[f"{self._side}_coords"][axis, self.events][self._shape]


def _query_block(plan, inputs, index):
    size = plan.tile.block_queries
    return _Events(inputs, "query", pl.ds(index * size, size), (slice(None), None))


def _key_block(plan, inputs, index):
    size = plan.tile.block_keys
    return _Events(inputs, "key", pl.ds(index * size, size), (None, slice(None)))


def _walk(inputs, side, block, take_tile, start):
    """Takes the blocks of the other side that this one may meet, one after the other."""
    ranges = inputs[f"{side}_ranges"]
    return lax.fori_loop(ranges[0, block], ranges[1, block], take_tile, start)


def _reader(queries, keys):
    return lambda name: (queries.number(name), keys.number(name))


def _entries(plan, queries, keys):
    """Gives the entry of every pair in each table, by its name."""

    def read_coords(axis):
        return queries.coordinate(axis), keys.coordinate(axis)

    return geometry.entries_of(_reader(queries, keys), read_coords, plan.sizes)


def _packed(entries):
    """Puts the entries of all tables, below 256 each, into one int32 a pair."""
    packed = jnp.zeros((), jnp.int32)
    for number, entry in enumerate(entries.values()):
        packed = packed | (entry << (8 * number))
    return packed


def _unpacked(plan, packed):
    return {
        name: (packed >> (8 * number)) & 255 for number, (name, _) in enumerate(plan.table_sizes)
    }


def _logits(plan, inputs, queries, keys, entries):
    """Gives a tile's masked logits and its allowed pairs (None = all)."""
    logits = dot(queries.heads("q"), keys.heads("k"), ((1,), (1,))) * plan.rules.scale
    for name, entry in entries.items():
        logits = logits + pltriton.load(inputs[f"{name}_table"].at[entry])
    allowed = geometry.pairs_of(_reader(queries, keys), plan.rules.causal, plan.masks_segments)
    if allowed is not None:
        logits = jnp.where(allowed, logits, MASKED)
    return logits, allowed


def _tile_backward(plan, inputs, queries, keys):
    """Gives a tile's weights and the gradient of its logits.

    A pointer has no weights: its gradient is by log mass, share of the match minus share of all.
    """
    entries = {}
    if plan.table_sizes:
        entries = _unpacked(plan, inputs["entries"][queries.events, keys.events])
    logits, _ = _logits(plan, inputs, queries, keys, entries)
    statistics = queries.per_event("statistics")
    if plan.pointer:
        match = _match(queries, keys)
        shares = jnp.exp(
            logits - jnp.where(match, queries.per_event("match_statistics"), statistics)
        )
        gradients = queries.per_event("match_gradient"), queries.per_event("other_gradient")
        return None, shares * jnp.where(match, *gradients)
    weight_gradient = dot(queries.heads("out_gradient"), keys.heads("v"), ((1,), (1,)))
    if plan.rules.normalizer == "softmax":
        weights = jnp.exp(logits - statistics)
        logit_gradient = weights * (weight_gradient - queries.per_event("overlap"))
    else:
        gates = _sigmoid(logits)
        slopes = gates * (1.0 + logits * (1.0 - gates))
        weights = logits * gates / statistics
        logit_gradient = weight_gradient * slopes / statistics
    return weights, logit_gradient


def _match(queries, keys):
    return queries.number("ids") == keys.number("ids")


def _sigmoid(values):
    return 1.0 / (1.0 + jnp.exp(-values))


# Forward


def forward_kernel(plan, inputs, out, statistics):
    """Writes the output of a block of queries, and its log-sum-exps or its numbers of keys."""
    index = pl.program_id(2)
    queries = _query_block(plan, inputs, index)
    softmax = plan.rules.normalizer == "softmax"

    def take_tile(key_index, state):
        highest, sums, total = state
        keys = _key_block(plan, inputs, key_index)
        entries = _entries(plan, queries, keys)
        logits, allowed = _logits(plan, inputs, queries, keys, entries)
        values = keys.heads("v")
        if softmax:
            now = jnp.maximum(highest, jnp.max(logits, axis=1))
            weights, fading = jnp.exp(logits - now[:, None]), jnp.exp(highest - now)
            sums = sums * fading + jnp.sum(weights, axis=1)
            total = total * fading[:, None]
            highest = now
        else:
            weights = logits * _sigmoid(logits)
            kept = jnp.ones(logits.shape, jnp.float32)
            if allowed is not None:
                kept = jnp.where(allowed, kept, 0.0)
            sums = sums + jnp.sum(kept, axis=1)
        return highest, sums, total + dot(weights.astype(values.dtype), values, ((1,), (0,)))

    size = plan.tile.block_queries
    zeros = jnp.zeros((size,), jnp.float32)
    start = jnp.full((size,), LOWEST, jnp.float32), zeros, jnp.zeros((size, plan.width))
    highest, sums, total = _walk(inputs, "query", index, take_tile, start)
    if softmax:
        divisors = jnp.where(sums == 0.0, 1.0, sums)
        statistics[...] = _log_sum_exp(highest, sums)
    else:
        divisors = jnp.maximum(sums, 1.0)
        if plan.rules.silu_denominator is not None:
            divisors = jnp.full((size,), plan.rules.silu_denominator, jnp.float32)
        statistics[...] = divisors
    out[...] = (total / divisors[:, None]).astype(out.dtype)


def mass_kernel(plan, inputs, of_all, of_match):
    """Writes the log-sum-exps of a block of queries, of all keys and of those that match.

    Every logit is lowered by the maximum of its own kind, so that one exponential serves both.
    """
    index = pl.program_id(2)
    queries = _query_block(plan, inputs, index)

    def take_tile(key_index, state):
        highest, other_sums, highest_match, match_sums = state
        keys = _key_block(plan, inputs, key_index)
        logits, _ = _logits(plan, inputs, queries, keys, _entries(plan, queries, keys))
        match = _match(queries, keys)
        now = jnp.maximum(highest, jnp.max(logits, axis=1))
        of_matches = jnp.max(jnp.where(match, logits, MASKED), axis=1)
        match_now = jnp.maximum(highest_match, of_matches)
        raised = jnp.exp(logits - jnp.where(match, match_now[:, None], now[:, None]))
        other_sums = other_sums * jnp.exp(highest - now)
        other_sums = other_sums + jnp.sum(jnp.where(match, 0.0, raised), axis=1)
        match_sums = match_sums * jnp.exp(highest_match - match_now)
        match_sums = match_sums + jnp.sum(jnp.where(match, raised, 0.0), axis=1)
        return now, other_sums, match_now, match_sums

    size = plan.tile.block_queries
    lowest, zeros = jnp.full((size,), LOWEST, jnp.float32), jnp.zeros((size,), jnp.float32)
    start = lowest, zeros, lowest, zeros
    highest, other_sums, highest_match, match_sums = _walk(inputs, "query", index, take_tile, start)
    sums = other_sums + match_sums * jnp.exp(highest_match - highest)
    of_all[...] = _log_sum_exp(highest, sums)
    of_match[...] = _log_sum_exp(highest_match, match_sums)


def _log_sum_exp(highest, sums):
    return jnp.where(sums == 0.0, NOTHING, highest + jnp.log(jnp.where(sums == 0.0, 1.0, sums)))


# Backward


def entries_kernel(plan, inputs, entries):
    """Writes the entries of every tile that a block of queries visits, one int32 a pair."""
    index = pl.program_id(2)
    queries = _query_block(plan, inputs, index)

    def take_tile(key_index, state):
        keys = _key_block(plan, inputs, key_index)
        entries[:, keys.events] = _packed(_entries(plan, queries, keys))
        return state

    _walk(inputs, "query", index, take_tile, 0)


def query_gradient_kernel(plan, inputs, q_gradient, logit_gradients, weights=None):
    """Writes dq of a block of queries, and dS and the weights of every tile that it visits."""
    index = pl.program_id(2)
    queries = _query_block(plan, inputs, index)

    def take_tile(key_index, total):
        keys = _key_block(plan, inputs, key_index)
        tile_weights, logit_gradient = _tile_backward(plan, inputs, queries, keys)
        logit_gradients[:, keys.events] = logit_gradient.astype(logit_gradients.dtype)
        if weights is not None:
            weights[:, keys.events] = tile_weights.astype(weights.dtype)
        k = keys.heads("k")
        return total + dot((logit_gradient * plan.rules.scale).astype(k.dtype), k, ((1,), (0,)))

    zeros = jnp.zeros((plan.tile.block_queries, plan.width), jnp.float32)
    total = _walk(inputs, "query", index, take_tile, zeros)
    q_gradient[...] = total.astype(q_gradient.dtype)


def key_gradient_kernel(plan, inputs, k_gradient, v_gradient=None):
    """Writes what some queries give to dk, and to dv if there are values, of a block of keys.

    By the dS and weights that `query_gradient_kernel` wrote, where it did.
    """
    index = pl.program_id(2)
    keys = _key_block(plan, inputs, index)
    ranges = inputs["query_ranges"]

    def take_tile(query_index, totals):
        queries = _query_block(plan, inputs, query_index)

        def add(totals):
            def add_product(total, weights, vectors):
                weights = inputs[weights][queries.events, keys.events]
                return total + dot(weights, queries.heads(vectors), ((0,), (0,)))

            k_total, *v_total = totals
            k_total = add_product(k_total, "logit_gradients", "q")
            v_total = [add_product(total, "weights", "out_gradient") for total in v_total]
            return k_total, *v_total

        visited = (ranges[0, query_index] <= index) & (index < ranges[1, query_index])
        return lax.cond(visited, add, lambda totals: totals, totals)

    zeros = jnp.zeros((plan.tile.block_keys, plan.width), jnp.float32)
    start = (zeros,) if v_gradient is None else (zeros, zeros)
    k_total, *v_total = _walk(inputs, "key", index, take_tile, start)
    k_gradient[...] = k_total * plan.rules.scale
    if v_gradient is not None:
        v_gradient[...] = v_total[0]


def table_gradient_kernel(plan, inputs, *gradients):
    """Writes what some queries give to the gradient of every entry of every table, for all heads.

    A step takes some pairs: [entries, pairs] is 1 where a pair has an entry, and its product with
    the pairs' dS, [pairs, heads], sums them by entry. So one comparison serves all heads, and the
    tensor cores add.
    """
    first_query = pl.program_id(2) * plan.tile.block_queries
    block = first_query // plan.tiles.query_gradient.block_queries
    step_queries, block_keys = plan.tiles.table_step, plan.tile.block_keys
    numbers = lax.iota(jnp.int32, step_queries * block_keys)
    heads = jnp.minimum(lax.iota(jnp.int32, plan.table_heads), plan.num_heads - 1)

    def take_queries(step, totals):
        queries = first_query + step * step_queries + numbers // block_keys

        def take_pairs(key_index, totals):
            keys = key_index * block_keys + numbers % block_keys
            pairs = heads[None], queries[:, None], keys[:, None]
            terms = _bfloat16_terms(inputs["logit_gradients"][pairs])
            entries = _unpacked(plan, inputs["entries"][queries, keys])
            return tuple(
                _add_by_entry(total, terms, entries[name] - first)
                for total, (name, first, _) in zip(totals, plan.table_pieces, strict=True)
            )

        return _walk(inputs, "query", block, take_pairs, totals)

    zeros = tuple(jnp.zeros(ref.shape, jnp.float32) for ref in gradients)
    num_steps = plan.tile.block_queries // step_queries
    totals = lax.fori_loop(0, num_steps, take_queries, zeros)
    for ref, total in zip(gradients, totals, strict=True):
        ref[...] = total


def _add_by_entry(total, terms, entries):
    places = lax.broadcasted_iota(jnp.int32, (total.shape[0], entries.shape[0]), 0)
    falls_in = (places == entries[None]).astype(jnp.bfloat16)
    for term in terms:
        total = total + dot(falls_in, term, ((1,), (0,)))
    return total


def _bfloat16_terms(values):
    """Gives bfloat16 arrays whose sum is `values`: one for bfloat16, three for float32."""
    terms = [values.astype(jnp.bfloat16)]
    while values.dtype == jnp.float32 and len(terms) < 3:
        values = values - terms[-1].astype(jnp.float32)
        terms.append(values.astype(jnp.bfloat16))
    return terms
