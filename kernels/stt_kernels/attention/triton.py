"""Flash attention for NVIDIA GPUs (Ampere and newer) in Pallas with the Triton compiler.

JAX calls this compiler deprecated; this file can be taken out by its name in `api.py` and its
tests.

Map of the algorithm (Dao 2023, "FlashAttention-2", algorithms 1 and 2) to the code, one program a
block, a row and a head each:

- `_forward_kernel`: a block of queries against the keys; running maximum, sum and output in
  registers. Saves the log-sum-exp (softmax) or the number of keys (SiLU), one number a query.
- `_query_gradient_kernel`: the same walk; dq.
- `_key_gradient_kernel`: a block of keys against the queries; dk and dv.
- `_table_gradient_kernel`: the walk of dq once more, for the tables alone: together they do not fit
  the registers. For each entry that occurs in a tile, from the lowest to the highest, compares and
  sums dS. The sums of a block of queries stay in registers and go to a row of their own, added up
  afterwards: no atomics, so that the same inputs give the same bits. That is O(L) numbers a head.

A table is looked up through the pointer. Of L x S nothing is stored.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from stt_kernels import buckets
from stt_kernels.attention import flash_inputs, geometry
from stt_kernels.attention.flash_inputs import LOWEST, MASKED, NOTHING, NUMBERS, dot, pad

INTERPRET = False  # True runs the kernels in Pallas's interpreter, on any platform: for tests

_MAX_WIDTH = 128
_LEAST_CAPABILITY = 8.0


@dataclasses.dataclass(frozen=True)
class TileSizes:
    """The tile of one step; powers of two, 16 at least.

    Not measured on a device yet: chosen by registers and spills of the compiled code
    (benchmarks/compile_offline.py).
    """

    block_queries: int = 64
    block_keys: int = 64
    num_warps: int = 8
    num_stages: int = 1  # with 2 the compiler pipelines the table look-ups through shared memory


def unsupported(call) -> str | None:
    """Gives why this backend can't take the call, or None."""
    if not INTERPRET:
        if jax.default_backend() != "gpu":
            return f"it needs a GPU; this is {jax.default_backend()}."
        capability = getattr(jax.devices()[0], "compute_capability", "none (not CUDA)")
        try:
            enough = float(capability) >= _LEAST_CAPABILITY
        except ValueError:
            enough = False
        if not enough:
            return f"it needs compute capability >= {_LEAST_CAPABILITY}; this GPU has {capability}."
    if call.q.dtype == jnp.float64:
        return "it computes in float32 or bfloat16; q is float64."
    if call.q.shape[3] > _MAX_WIDTH:
        return f"it takes heads of width <= {_MAX_WIDTH}; q has {call.q.shape[3]}."
    return None


def attend(q, k, v, tables, queries, keys, rules, tile_sizes=None):
    """Gives the attention output [B, L, H, D] in q's dtype."""
    return _attend(rules, tile_sizes or TileSizes(), q, k, v, tables, queries, keys)


# Differentiation


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(rules, sizes, q, k, v, tables, queries, keys):
    return _attend_forward(rules, sizes, q, k, v, tables, queries, keys)[0]


def _attend_forward(rules, sizes, q, k, v, tables, queries, keys):
    plan = _Plan.of(rules, sizes, q, k, tables, queries)
    arrays = _arrange(plan, q, k, v, tables, queries, keys)
    out, statistics = _call(
        plan,
        _forward_kernel,
        arrays,
        plan.grid_queries,
        [_out(plan, "queries", q.dtype), _out(plan, "queries", jnp.float32, per_event=True)],
    )
    out = _trim(out, q)
    return out, (q, k, v, tables, queries, keys, out, statistics)


def _attend_backward(rules, sizes, saved, out_gradient):
    q, k, v, tables, queries, keys, out, statistics = saved
    plan = _Plan.of(rules, sizes, q, k, tables, queries)
    arrays = _arrange(plan, q, k, v, tables, queries, keys)
    out_gradient32 = out_gradient.astype(jnp.float32)
    overlap = jnp.sum(out_gradient32 * out.astype(jnp.float32), axis=-1)  # [B, L, H]
    arrays |= {
        "out_gradient": _arrange_heads(plan, out_gradient, plan.padded_queries),
        "statistics": statistics,
        "overlap": pad(jnp.swapaxes(overlap, 1, 2), plan.padded_queries, axis=2),
    }
    call = functools.partial(_call, plan, arrays=arrays)
    (q_gradient,) = call(
        kernel=_query_gradient_kernel,
        num_blocks=plan.grid_queries,
        outs=[_out(plan, "queries", q.dtype)],
    )
    k_gradient, v_gradient = call(
        kernel=_key_gradient_kernel,
        num_blocks=plan.grid_keys,
        outs=[_out(plan, "keys", q.dtype)] * 2,
    )
    tables_gradient = geometry.Tables()
    if plan.sizes:
        found = call(
            kernel=_table_gradient_kernel,
            num_blocks=plan.grid_queries,
            outs=[_table_out(plan, size) for size in plan.sizes.values()],
        )
        tables_gradient = geometry.Tables(
            **{
                name: jnp.sum(gradient, axis=(0, 2))[:, :size]
                for (name, size), gradient in zip(plan.sizes.items(), found, strict=True)
            }
        )
    gradients = _trim(q_gradient, q), _trim(k_gradient, k), _trim(v_gradient, v)
    return *gradients, tables_gradient, None, None


_attend.defvjp(_attend_forward, _attend_backward)


# What the kernels are given


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The static part of a call."""

    rules: geometry.Rules
    tile: TileSizes
    num_rows: int
    num_heads: int
    width: int  # a power of two, 16 at least
    num_queries: int
    num_keys: int
    table_sizes: tuple[tuple[str, int], ...]
    known_order: bool  # the causal half is known before the data
    masks_segments: bool  # there are segments, or padding up to whole blocks of keys

    @classmethod
    def of(cls, rules, sizes, q, k, tables, queries):
        padded = k.shape[1] % sizes.block_keys != 0
        return cls(
            rules=rules,
            tile=sizes,
            num_rows=q.shape[0],
            num_heads=q.shape[2],
            width=max(pl.next_power_of_2(q.shape[3]), 16),
            num_queries=q.shape[1],
            num_keys=k.shape[1],
            table_sizes=tuple(tables.sizes().items()),
            known_order=rules.causal and queries.positions is None,
            masks_segments=padded or queries.segment_ids is not None,
        )

    @property
    def sizes(self):
        return dict(self.table_sizes)

    @property
    def grid_queries(self):
        return pl.cdiv(self.num_queries, self.tile.block_queries)

    @property
    def grid_keys(self):
        return pl.cdiv(self.num_keys, self.tile.block_keys)

    @property
    def padded_queries(self):
        return self.grid_queries * self.tile.block_queries

    @property
    def padded_keys(self):
        return self.grid_keys * self.tile.block_keys

    def key_blocks_end(self, query_block):
        """Gives the block of keys after the last that a block of queries meets."""
        if not self.known_order:
            return self.grid_keys
        end = pl.cdiv((query_block + 1) * self.tile.block_queries, self.tile.block_keys)
        return jnp.minimum(end, self.grid_keys)

    def first_query_block(self, key_block):
        """Gives the first block of queries that meets a block of keys."""
        if not self.known_order:
            return 0
        return key_block * self.tile.block_keys // self.tile.block_queries


def _arrange(plan, q, k, v, tables, queries, keys):
    """Puts heads before events and pads to whole blocks and to a width that Triton takes."""

    def whole_numbers(side, length, padded):
        columns = flash_inputs.whole_numbers(side, plan.num_rows, length)
        return pad(jnp.stack(columns, axis=1), padded, axis=2)

    def places(side, length, padded):
        if side.coords is None:
            return jnp.zeros((plan.num_rows, 3, padded), jnp.float32)
        return pad(jnp.swapaxes(side.coords, 1, 2), padded, axis=2)

    num_queries, num_keys = plan.num_queries, plan.num_keys
    return {
        "q": _arrange_heads(plan, q, plan.padded_queries),
        "k": _arrange_heads(plan, k, plan.padded_keys),
        "v": _arrange_heads(plan, v, plan.padded_keys),
        "query_numbers": whole_numbers(queries, num_queries, plan.padded_queries),
        "key_numbers": whole_numbers(keys, num_keys, plan.padded_keys),
        "query_coords": places(queries, num_queries, plan.padded_queries),
        "key_coords": places(keys, num_keys, plan.padded_keys),
    } | {f"{name}_table": getattr(tables, name).astype(jnp.float32) for name in plan.sizes}


def _arrange_heads(plan, array, length):
    array = pad(jnp.swapaxes(array, 1, 2), length, axis=2)
    return pad(array, plan.width, axis=3)


def _trim(array, like):
    """Undoes `_arrange_heads`."""
    return jnp.swapaxes(array[:, :, : like.shape[1], : like.shape[3]], 1, 2)


def _out(plan, side, dtype, per_event=False):
    """Gives the block and the shape of an output with a block for each program."""
    queries = side == "queries"
    length = plan.padded_queries if queries else plan.padded_keys
    size = plan.tile.block_queries if queries else plan.tile.block_keys
    last, zeros = ((), ()) if per_event else ((plan.width,), (0,))
    spec = pl.BlockSpec((None, None, size, *last), lambda b, h, block: (b, h, block, *zeros))
    shape = (plan.num_rows, plan.num_heads, length, *last)
    return spec, jax.ShapeDtypeStruct(shape, dtype)


def _table_out(plan, size):
    width = pl.next_power_of_2(size)
    spec = pl.BlockSpec((None, None, None, width), lambda b, h, block: (b, h, block, 0))
    shape = (plan.num_rows, plan.num_heads, plan.grid_queries, width)
    return spec, jax.ShapeDtypeStruct(shape, jnp.float32)


def _call(plan, kernel, arrays, num_blocks, outs):
    """Runs a kernel that is given its inputs by name, each whole for its row and head."""

    def spec(name):
        shape = arrays[name].shape
        if name.endswith("_table"):
            return pl.BlockSpec((None, shape[1]), lambda b, h, block: (h, 0))
        if name.endswith(("_numbers", "_coords")):
            return pl.BlockSpec((None, *shape[1:]), lambda b, h, block: (b, 0, 0))
        zeros = (0,) * (len(shape) - 2)
        return pl.BlockSpec((None, None, *shape[2:]), lambda b, h, block: (b, h, *zeros))

    names = tuple(arrays)

    def run(*refs):
        kernel(plan, dict(zip(names, refs, strict=False)), *refs[len(names) :])

    return pl.pallas_call(
        run,
        grid=(plan.num_rows, plan.num_heads, num_blocks),
        in_specs=[spec(name) for name in names],
        out_specs=[spec for spec, _ in outs],
        out_shape=[shape for _, shape in outs],
        compiler_params=pltriton.CompilerParams(
            num_warps=plan.tile.num_warps, num_stages=plan.tile.num_stages
        ),
        interpret=INTERPRET,
        name=kernel.__name__.strip("_"),
    )(*arrays.values())


# One tile


class _Block:
    """The events of one block of one side, read as they are asked for."""

    def __init__(self, inputs, side, index, size):
        self._inputs, self._side = inputs, side
        self.events = pl.ds(index * size, size)

    def heads(self, name):
        return self._inputs[name][self.events, :]

    def per_event(self, name):
        return self._inputs[name][self.events][:, None]

    def number(self, name):
        return self._inputs[f"{self._side}_numbers"][NUMBERS.index(name), self.events]

    def coordinate(self, axis):
        return self._inputs[f"{self._side}_coords"][axis, self.events]


def _query_block(plan, inputs, index):
    return _Block(inputs, "query", index, plan.tile.block_queries)


def _key_block(plan, inputs, index):
    return _Block(inputs, "key", index, plan.tile.block_keys)


def _entries(plan, queries, keys):
    """Gives the entry of every pair of a tile in each table."""

    def gaps(name):
        return queries.number(name)[:, None] - keys.number(name)[None, :]

    def square(axis):
        difference = queries.coordinate(axis)[:, None] - keys.coordinate(axis)[None, :]
        return difference * difference

    entries = {}
    for name, size in plan.table_sizes:
        if name == "time":
            entries[name] = buckets.time_bucket(gaps("times"), size)
        elif name == "space":
            squares = square(0) + square(1) + square(2)
            entries[name] = buckets.space_bucket(squares, size)
        elif name == "order":
            entries[name] = jnp.clip(gaps("positions"), 0, size - 1)
        else:
            query_phases, key_phases = queries.number("phases"), keys.number("phases")
            entries[name] = geometry.phase_entries(
                query_phases[:, None], key_phases[None, :], size - 1
            )
    return entries


def _logits(plan, inputs, queries, keys):
    """Gives a tile's masked logits, its allowed pairs (None = all) and its table entries."""
    logits = dot(queries.heads("q"), keys.heads("k"), ((1,), (1,))) * plan.rules.scale
    entries = _entries(plan, queries, keys)
    for name, entry in entries.items():
        logits = logits + pltriton.load(inputs[f"{name}_table"].at[entry])
    allowed = None
    if plan.rules.causal:
        allowed = keys.number("positions")[None, :] <= queries.number("positions")[:, None]
    if plan.masks_segments:
        query_segments = queries.number("segment_ids")[:, None]
        key_segments = keys.number("segment_ids")[None, :]
        same = (query_segments == key_segments) & (key_segments != 0)
        allowed = same if allowed is None else allowed & same
    if allowed is not None:
        logits = jnp.where(allowed, logits, MASKED)
    return logits, allowed, entries


def _tile_backward(plan, inputs, queries, keys):
    """Gives a tile's weights, the gradient of its logits, its allowed pairs and its entries."""
    logits, allowed, entries = _logits(plan, inputs, queries, keys)
    statistics = queries.per_event("statistics")
    weight_gradient = dot(queries.heads("out_gradient"), keys.heads("v"), ((1,), (1,)))
    if plan.rules.normalizer == "softmax":
        weights = jnp.exp(logits - statistics)
        logit_gradient = weights * (weight_gradient - queries.per_event("overlap"))
    else:
        gates = _sigmoid(logits)
        slopes = gates * (1.0 + logits * (1.0 - gates))
        weights = logits * gates / statistics
        logit_gradient = weight_gradient * slopes / statistics
    return weights, logit_gradient, allowed, entries


def _sigmoid(values):
    return 1.0 / (1.0 + jnp.exp(-values))


# Forward


def _forward_kernel(plan, inputs, out, statistics):
    index = pl.program_id(2)
    queries = _query_block(plan, inputs, index)
    softmax = plan.rules.normalizer == "softmax"

    def take_tile(key_index, state):
        highest, sums, total = state
        keys = _key_block(plan, inputs, key_index)
        logits, allowed, _ = _logits(plan, inputs, queries, keys)
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
    end = plan.key_blocks_end(index)
    highest, sums, total = lax.fori_loop(0, end, take_tile, start)
    if softmax:
        divisors = jnp.where(sums == 0.0, 1.0, sums)
        statistics[...] = jnp.where(sums == 0.0, NOTHING, highest + jnp.log(divisors))
    else:
        divisors = jnp.maximum(sums, 1.0)
        if plan.rules.silu_denominator is not None:
            divisors = jnp.full((size,), plan.rules.silu_denominator, jnp.float32)
        statistics[...] = divisors
    out[...] = (total / divisors[:, None]).astype(out.dtype)


# Backward


def _query_gradient_kernel(plan, inputs, q_gradient):
    index = pl.program_id(2)
    queries = _query_block(plan, inputs, index)

    def take_tile(key_index, total):
        keys = _key_block(plan, inputs, key_index)
        _, logit_gradient, _, _ = _tile_backward(plan, inputs, queries, keys)
        k = keys.heads("k")
        return total + dot((logit_gradient * plan.rules.scale).astype(k.dtype), k, ((1,), (0,)))

    zeros = jnp.zeros((plan.tile.block_queries, plan.width), jnp.float32)
    total = lax.fori_loop(0, plan.key_blocks_end(index), take_tile, zeros)
    q_gradient[...] = total.astype(q_gradient.dtype)


def _key_gradient_kernel(plan, inputs, k_gradient, v_gradient):
    index = pl.program_id(2)
    keys = _key_block(plan, inputs, index)

    def take_tile(query_index, totals):
        k_total, v_total = totals
        queries = _query_block(plan, inputs, query_index)
        weights, logit_gradient, _, _ = _tile_backward(plan, inputs, queries, keys)
        q, out_gradient = queries.heads("q"), queries.heads("out_gradient")
        scaled = (logit_gradient * plan.rules.scale).astype(q.dtype)
        k_total = k_total + dot(scaled, q, ((0,), (0,)))
        v_total = v_total + dot(weights.astype(q.dtype), out_gradient, ((0,), (0,)))
        return k_total, v_total

    zeros = jnp.zeros((plan.tile.block_keys, plan.width), jnp.float32)
    first = plan.first_query_block(index)
    k_total, v_total = lax.fori_loop(first, plan.grid_queries, take_tile, (zeros, zeros))
    k_gradient[...] = k_total.astype(k_gradient.dtype)
    v_gradient[...] = v_total.astype(v_gradient.dtype)


def _table_gradient_kernel(plan, inputs, *table_gradients):
    index = pl.program_id(2)
    queries = _query_block(plan, inputs, index)

    def take_tile(key_index, totals):
        keys = _key_block(plan, inputs, key_index)
        _, logit_gradient, allowed, entries = _tile_backward(plan, inputs, queries, keys)
        return tuple(
            _add_by_entry(total, logit_gradient, entry, allowed)
            for total, entry in zip(totals, entries.values(), strict=True)
        )

    zeros = tuple(jnp.zeros(ref.shape, jnp.float32) for ref in table_gradients)
    totals = lax.fori_loop(0, plan.key_blocks_end(index), take_tile, zeros)
    for ref, total in zip(table_gradients, totals, strict=True):
        ref[...] = total


def _add_by_entry(total, logit_gradient, entries, allowed):
    lowest, highest = entries, entries
    if allowed is not None:
        lowest = jnp.where(allowed, entries, total.shape[0])
        highest = jnp.where(allowed, entries, -1)
    places = lax.broadcasted_iota(jnp.int32, total.shape, 0)

    def add(entry, total):
        found = jnp.sum(jnp.where(entries == entry, logit_gradient, 0.0))
        return total + jnp.where(places == entry, found, 0.0)

    return lax.fori_loop(jnp.min(lowest), jnp.max(highest) + 1, add, total)
