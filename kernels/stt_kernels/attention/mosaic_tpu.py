"""Flash attention for TPUs in Pallas (Mosaic), forward and backward.

Map of the algorithm (Dao 2023, "FlashAttention-2", algorithms 1 and 2) to the code:

- `_forward_kernel`: a block of queries against the blocks of keys in turn, running maximum, sum and
  output in VMEM. Saves the log-sum-exp (softmax) or the number of keys (SiLU), one number a query.
- `_query_gradient_kernel`: the same walk; dq, and the gradients of the tables.
- `_key_gradient_kernel`: a block of keys against the blocks of queries in turn; dk and dv.

The geometry of a tile (which pairs are allowed, which entry of each table) is made once and serves
all heads, which a loop inside the kernel goes through. A table is looked up by lane gathers: its
row of 128 entries is laid over all sublanes and permuted by the entries (two rows and a choice past
128 entries). The gradient of a table is the sum of dS by entry: a loop over the entries that occur
in the tile, from the lowest to the highest, compares once and sums for each head. Everything runs
in a fixed order: same inputs, same bits. Of L x S nothing is stored.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from stt_kernels.attention import flash_inputs, geometry
from stt_kernels.attention.flash_inputs import NUMBERS, dot, pad
from stt_kernels.attention.sentinels import LOWEST, MASKED, NOTHING

INTERPRET = False  # True runs the kernels in Pallas's interpreter, on any platform: for tests

_LANES = 128
_MAX_VMEM_BYTES = 12 * 2**20  # of the 16 MiB that a TPU v5e gives a kernel by default


@dataclasses.dataclass(frozen=True)
class TileSizes:
    """The tile of one step; both are multiples of 128, the lanes of a register."""

    block_queries: int = 128
    block_keys: int = 128


def unsupported(call) -> str | None:
    """Gives why this backend can't take the call, or None."""
    if jax.default_backend() != "tpu" and not INTERPRET:
        return f"it needs a TPU; this is {jax.default_backend()}."
    if call.q.dtype == jnp.float64:
        return "it computes in float32 or bfloat16; q is float64."
    num_heads, width = call.q.shape[2:]
    needed = _vmem_bytes(num_heads, width, call.q.dtype.itemsize)
    if needed > _MAX_VMEM_BYTES:
        return (
            f"all heads of a tile must fit the vector memory, {_MAX_VMEM_BYTES} bytes; "
            f"{num_heads} heads of width {width} need {needed}."
        )
    return None


def _vmem_bytes(num_heads, width, item_bytes):
    block = num_heads * _LANES * max(width, _LANES)  # a narrow head still fills its lanes
    streamed = 2 * 5 * block * item_bytes  # five inputs and outputs, double-buffered
    return streamed + 3 * block * 4


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
    out, statistics = _call_forward(plan, arrays)
    out = _heads_last(out)[:, : q.shape[1]]
    return out, (q, k, v, tables, queries, keys, out, statistics)


def _attend_backward(rules, sizes, saved, out_gradient):
    q, k, v, tables, queries, keys, out, statistics = saved
    plan = _Plan.of(rules, sizes, q, k, tables, queries)
    arrays = _arrange(plan, q, k, v, tables, queries, keys)
    out_gradient32 = out_gradient.astype(jnp.float32)
    overlap = jnp.sum(out_gradient32 * out.astype(jnp.float32), axis=-1)  # [B, L, H]
    overlap = pad(jnp.swapaxes(overlap, 1, 2), plan.padded_queries, axis=2)[..., None]
    arrays["out_gradient"] = pad(_heads_first(out_gradient), plan.padded_queries, axis=2)
    arrays["statistics"], arrays["overlap"] = statistics, overlap
    q_gradient, table_gradients = _call_query_gradient(plan, arrays)
    k_gradient, v_gradient = _call_key_gradient(plan, arrays)
    tables_gradient = geometry.Tables(
        **{
            name: jnp.sum(gradient, axis=0).reshape(gradient.shape[1], -1)[:, : plan.sizes[name]]
            for name, gradient in zip(plan.sizes, table_gradients, strict=True)
        }
    )
    return (
        _heads_last(q_gradient)[:, : q.shape[1]],
        _heads_last(k_gradient)[:, : k.shape[1]],
        _heads_last(v_gradient)[:, : k.shape[1]],
        tables_gradient,
        None,
        None,
    )


_attend.defvjp(_attend_forward, _attend_backward)


# What the kernels are given


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The static part of a call."""

    rules: geometry.Rules
    block_queries: int
    block_keys: int
    num_rows: int
    num_heads: int
    width: int
    num_queries: int
    num_keys: int
    table_sizes: tuple[tuple[str, int], ...]
    known_order: bool  # the causal half is known before the data
    dtype: jnp.dtype

    @classmethod
    def of(cls, rules, sizes, q, k, tables, queries):
        return cls(
            rules=rules,
            block_queries=sizes.block_queries,
            block_keys=sizes.block_keys,
            num_rows=q.shape[0],
            num_heads=q.shape[2],
            width=q.shape[3],
            num_queries=q.shape[1],
            num_keys=k.shape[1],
            table_sizes=tuple(tables.sizes().items()),
            known_order=rules.causal and queries.positions is None,
            dtype=q.dtype,
        )

    @property
    def sizes(self):
        return dict(self.table_sizes)

    @property
    def grid_queries(self):
        return pl.cdiv(self.num_queries, self.block_queries)

    @property
    def grid_keys(self):
        return pl.cdiv(self.num_keys, self.block_keys)

    @property
    def padded_queries(self):
        return self.grid_queries * self.block_queries

    @property
    def padded_keys(self):
        return self.grid_keys * self.block_keys

    def meets(self, query_block, key_block):
        """Gives whether a block of queries may attend to anything in a block of keys."""
        if not self.known_order:
            return True
        return key_block * self.block_keys < (query_block + 1) * self.block_queries


def _arrange(plan, q, k, v, tables, queries, keys):
    """Pads to whole blocks. The queries' side lies along sublanes, the keys' side along lanes."""

    def whole_numbers(side, length):
        return jnp.stack(flash_inputs.whole_numbers(side, plan.num_rows, length), axis=-1)

    def places(side, length):
        if side.coords is None:
            return jnp.zeros((plan.num_rows, length, 3), jnp.float32)
        return side.coords

    def lay_out(table):
        rows = pl.cdiv(table.shape[1], _LANES)
        table = pad(table.astype(jnp.float32), rows * _LANES, axis=1)
        return table.reshape(table.shape[0], rows, _LANES)

    pad_queries = functools.partial(pad, length=plan.padded_queries)
    pad_keys = functools.partial(pad, length=plan.padded_keys)
    return {
        "q": pad_queries(_heads_first(q), axis=2),
        "k": pad_keys(_heads_first(k), axis=2),
        "v": pad_keys(_heads_first(v), axis=2),
        "query_numbers": pad_queries(whole_numbers(queries, plan.num_queries), axis=1),
        "key_numbers": pad_keys(jnp.swapaxes(whole_numbers(keys, plan.num_keys), 1, 2), axis=2),
        "query_coords": pad_queries(places(queries, plan.num_queries), axis=1),
        "key_coords": pad_keys(jnp.swapaxes(places(keys, plan.num_keys), 1, 2), axis=2),
    } | {f"{name}_table": lay_out(getattr(tables, name)) for name in plan.sizes}


def _heads_first(array):
    return jnp.swapaxes(array, 1, 2)


_heads_last = _heads_first


def _specs(plan, names, query_block, key_block):
    """Gives the block of each input; `query_block` and `key_block` map grid to block indices."""
    shapes = {
        "q": ("queries", plan.width),
        "out_gradient": ("queries", plan.width),
        "statistics": ("queries", 1),
        "overlap": ("queries", 1),
        "k": ("keys", plan.width),
        "v": ("keys", plan.width),
    }

    def spec(name):
        shape: tuple[int, ...]
        if name in shapes:
            side, last = shapes[name]
            size = plan.block_queries if side == "queries" else plan.block_keys
            where = query_block if side == "queries" else key_block
            shape = (1, plan.num_heads, size, last)
            return pl.BlockSpec(shape, lambda b, x, y: (b, 0, where(x, y), 0))
        if name in ("query_numbers", "query_coords"):
            shape = (1, plan.block_queries, len(NUMBERS) if name == "query_numbers" else 3)
            return pl.BlockSpec(shape, lambda b, x, y: (b, query_block(x, y), 0))
        if name in ("key_numbers", "key_coords"):
            shape = (1, len(NUMBERS) if name == "key_numbers" else 3, plan.block_keys)
            return pl.BlockSpec(shape, lambda b, x, y: (b, 0, key_block(x, y)))
        rows = pl.cdiv(plan.sizes[name.removesuffix("_table")], _LANES)
        return pl.BlockSpec((plan.num_heads, rows, _LANES), lambda b, x, y: (0, 0, 0))

    return [spec(name) for name in names]


def _input_names(plan, *more):
    geometry_names = ("query_numbers", "key_numbers", "query_coords", "key_coords")
    return ("q", "k", "v", *geometry_names, *(f"{name}_table" for name in plan.sizes), *more)


def _call(plan, kernel, arrays, names, grid, maps, outs, scratch, semantics):
    """Runs a kernel that is given its inputs by name, then its outputs and its scratch."""

    def run(*refs):
        inputs = dict(zip(names, refs, strict=False))
        kernel(plan, inputs, *refs[len(names) :])

    return pl.pallas_call(
        run,
        grid=grid,
        in_specs=_specs(plan, names, *maps),
        out_specs=[spec for spec, _ in outs],
        out_shape=[shape for _, shape in outs],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        interpret=INTERPRET,
        name=kernel.__name__.strip("_"),
    )(*(arrays[name] for name in names))


# One tile


def _tile_geometry(plan, inputs):
    """Gives the allowed pairs of a tile and their entry in each table."""
    query_numbers, key_numbers = inputs["query_numbers"][0], inputs["key_numbers"][0]

    def read(name):
        index = NUMBERS.index(name)
        return query_numbers[:, index : index + 1], key_numbers[index : index + 1, :]

    def read_coords(axis):
        places, others = inputs["query_coords"][0], inputs["key_coords"][0]
        return places[:, axis : axis + 1], others[axis : axis + 1, :]

    allowed = geometry.pairs_of(read, plan.rules.causal, segments=True)
    return allowed, geometry.entries_of(read, read_coords, plan.sizes)


def _look_up(table, entries):
    """Gives `table[entries]` for a table [rows, 128] by gathers along the lanes."""
    found = None
    for row in range(table.shape[0]):
        spread = jnp.broadcast_to(table[row : row + 1, :], (entries.shape[0], _LANES))
        lanes = entries & (_LANES - 1) if table.shape[0] > 1 else entries
        parts = [
            jnp.take_along_axis(
                spread, lanes[:, start : start + _LANES], axis=1, mode="promise_in_bounds"
            )
            for start in range(0, entries.shape[1], _LANES)
        ]
        part = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
        found = part if found is None else jnp.where(entries >= row * _LANES, part, found)
    return found


def _logits(plan, inputs, head, allowed, entries):
    logits = dot(inputs["q"][0, head], inputs["k"][0, head], ((1,), (1,))) * plan.rules.scale
    for name, entry in entries.items():
        logits = logits + _look_up(inputs[f"{name}_table"][head], entry)
    return jnp.where(allowed, logits, MASKED)


def _tile_backward(plan, inputs, head, allowed, entries):
    """Gives the weights of one head of a tile and the gradient of its logits."""
    logits = _logits(plan, inputs, head, allowed, entries)
    statistics = inputs["statistics"][0, head]
    weight_gradient = dot(inputs["out_gradient"][0, head], inputs["v"][0, head], ((1,), (1,)))
    if plan.rules.normalizer == "softmax":
        weights = jnp.exp(logits - statistics)
        return weights, weights * (weight_gradient - inputs["overlap"][0, head])
    gates = jax.nn.sigmoid(logits)
    slopes = gates * (1.0 + logits * (1.0 - gates))
    return logits * gates / statistics, weight_gradient * slopes / statistics


def _for_each_head(plan, body):
    def step(head, carry):
        body(head)
        return carry

    lax.fori_loop(0, plan.num_heads, step, 0)


# Forward


def _call_forward(plan, arrays):
    shape = (plan.num_rows, plan.num_heads, plan.padded_queries)
    block = (1, plan.num_heads, plan.block_queries)

    def spec(last):
        return pl.BlockSpec((*block, last), lambda b, i, j: (b, 0, i, 0))

    return _call(
        plan,
        _forward_kernel,
        arrays,
        _input_names(plan),
        (plan.num_rows, plan.grid_queries, plan.grid_keys),
        (lambda i, j: i, lambda i, j: j),
        [
            (spec(plan.width), jax.ShapeDtypeStruct((*shape, plan.width), plan.dtype)),
            (spec(1), jax.ShapeDtypeStruct((*shape, 1), jnp.float32)),
        ],
        [
            pltpu.VMEM((*block[1:], 1), jnp.float32),
            pltpu.VMEM((*block[1:], 1), jnp.float32),
            pltpu.VMEM((*block[1:], plan.width), jnp.float32),
        ],
        ("parallel", "parallel", "arbitrary"),
    )


def _forward_kernel(plan, inputs, out, statistics, highest, sums, total):
    query_block, key_block = pl.program_id(1), pl.program_id(2)
    softmax = plan.rules.normalizer == "softmax"

    @pl.when(key_block == 0)
    def _start():
        highest[...] = jnp.full(highest.shape, LOWEST, jnp.float32)
        sums[...] = jnp.zeros(sums.shape, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)

    @pl.when(plan.meets(query_block, key_block))
    def _take_tile():
        allowed, entries = _tile_geometry(plan, inputs)

        def head_step(head):
            logits = _logits(plan, inputs, head, allowed, entries)
            values = inputs["v"][0, head]
            if not softmax:
                weights = logits * jax.nn.sigmoid(logits)
                kept = allowed.astype(jnp.float32)
                sums[head] = sums[head] + jnp.sum(kept, axis=1, keepdims=True)
                total[head] = total[head] + dot(weights.astype(values.dtype), values, ((1,), (0,)))
                return
            before = highest[head]
            now = jnp.maximum(before, jnp.max(logits, axis=1, keepdims=True))
            weights, fading = jnp.exp(logits - now), jnp.exp(before - now)
            highest[head] = now
            sums[head] = sums[head] * fading + jnp.sum(weights, axis=1, keepdims=True)
            added = dot(weights.astype(values.dtype), values, ((1,), (0,)))
            total[head] = total[head] * fading + added

        _for_each_head(plan, head_step)

    @pl.when(key_block == plan.grid_keys - 1)
    def _finish():
        def head_step(head):
            found = sums[head]
            if softmax:
                divisors = jnp.where(found == 0.0, 1.0, found)
                log_sums = highest[head] + jnp.log(divisors)
                statistics[0, head] = jnp.where(found == 0.0, NOTHING, log_sums)
            else:
                divisors = jnp.maximum(found, 1.0)
                if plan.rules.silu_denominator is not None:
                    divisors = jnp.full_like(divisors, plan.rules.silu_denominator)
                statistics[0, head] = divisors
            out[0, head] = (total[head] / divisors).astype(out.dtype)

        _for_each_head(plan, head_step)


# Backward


def _call_query_gradient(plan, arrays):
    block = (1, plan.num_heads, plan.block_queries, plan.width)
    shape = (plan.num_rows, plan.num_heads, plan.padded_queries, plan.width)
    outs = [
        (
            pl.BlockSpec(block, lambda b, i, j: (b, 0, i, 0)),
            jax.ShapeDtypeStruct(shape, plan.dtype),
        )
    ]
    for size in plan.sizes.values():
        table = (plan.num_heads, pl.cdiv(size, _LANES) * _LANES)
        outs.append(
            (
                pl.BlockSpec((1, *table), lambda b, i, j: (b, 0, 0)),
                jax.ShapeDtypeStruct((plan.num_rows, *table), jnp.float32),
            )
        )
    scratch = [pltpu.VMEM(block[1:], jnp.float32)]
    if plan.sizes:
        tile = (plan.num_heads, plan.block_queries, plan.block_keys)
        scratch.append(pltpu.VMEM(tile, jnp.float32))
    q_gradient, *table_gradients = _call(
        plan,
        _query_gradient_kernel,
        arrays,
        _input_names(plan, "out_gradient", "statistics", "overlap"),
        (plan.num_rows, plan.grid_queries, plan.grid_keys),
        (lambda i, j: i, lambda i, j: j),
        outs,
        scratch,
        ("parallel", "arbitrary", "arbitrary"),
    )
    return q_gradient, table_gradients


def _query_gradient_kernel(plan, inputs, q_gradient, *rest):
    table_gradients = rest[: len(plan.sizes)]
    total, *logit_gradients = rest[len(plan.sizes) :]
    query_block, key_block = pl.program_id(1), pl.program_id(2)

    @pl.when((query_block == 0) & (key_block == 0))
    def _start_tables():
        for gradient in table_gradients:
            gradient[...] = jnp.zeros(gradient.shape, jnp.float32)

    @pl.when(key_block == 0)
    def _start():
        total[...] = jnp.zeros(total.shape, jnp.float32)

    @pl.when(plan.meets(query_block, key_block))
    def _take_tile():
        allowed, entries = _tile_geometry(plan, inputs)

        def head_step(head):
            _, logit_gradient = _tile_backward(plan, inputs, head, allowed, entries)
            if logit_gradients:
                logit_gradients[0][head] = logit_gradient
            scaled = (logit_gradient * plan.rules.scale).astype(plan.dtype)
            total[head] = total[head] + dot(scaled, inputs["k"][0, head], ((1,), (0,)))

        _for_each_head(plan, head_step)
        for entry, gradient in zip(entries.values(), table_gradients, strict=True):
            _add_by_entry(plan, logit_gradients[0], entry, allowed, gradient)

    @pl.when(key_block == plan.grid_keys - 1)
    def _finish():
        q_gradient[0] = total[...].astype(q_gradient.dtype)


def _add_by_entry(plan, logit_gradients, entries, allowed, gradient):
    """Adds, for each entry that occurs in a tile, the sum of each head's logit gradients there."""
    lanes = lax.broadcasted_iota(jnp.int32, gradient.shape[1:], 1)
    lowest = jnp.min(jnp.where(allowed, entries, gradient.shape[2]))
    highest = jnp.max(jnp.where(allowed, entries, -1))

    def add(entry, sums):
        there = entries == entry
        by_head = [
            jnp.sum(jnp.where(there, logit_gradients[head], 0.0), keepdims=True)
            for head in range(plan.num_heads)
        ]
        column = by_head[0] if len(by_head) == 1 else jnp.concatenate(by_head, axis=0)
        return sums + jnp.where(lanes == entry, column, 0.0)

    zeros = jnp.zeros(gradient.shape[1:], jnp.float32)
    gradient[0] = gradient[0] + lax.fori_loop(lowest, highest + 1, add, zeros)


def _call_key_gradient(plan, arrays):
    block = (1, plan.num_heads, plan.block_keys, plan.width)
    shape = (plan.num_rows, plan.num_heads, plan.padded_keys, plan.width)
    out = (
        pl.BlockSpec(block, lambda b, j, i: (b, 0, j, 0)),
        jax.ShapeDtypeStruct(shape, plan.dtype),
    )
    return _call(
        plan,
        _key_gradient_kernel,
        arrays,
        _input_names(plan, "out_gradient", "statistics", "overlap"),
        (plan.num_rows, plan.grid_keys, plan.grid_queries),
        (lambda j, i: i, lambda j, i: j),
        [out, out],
        [pltpu.VMEM(block[1:], jnp.float32)] * 2,
        ("parallel", "parallel", "arbitrary"),
    )


def _key_gradient_kernel(plan, inputs, k_gradient, v_gradient, k_total, v_total):
    key_block, query_block = pl.program_id(1), pl.program_id(2)

    @pl.when(query_block == 0)
    def _start():
        k_total[...] = jnp.zeros(k_total.shape, jnp.float32)
        v_total[...] = jnp.zeros(v_total.shape, jnp.float32)

    @pl.when(plan.meets(query_block, key_block))
    def _take_tile():
        allowed, entries = _tile_geometry(plan, inputs)

        def head_step(head):
            weights, logit_gradient = _tile_backward(plan, inputs, head, allowed, entries)
            scaled = (logit_gradient * plan.rules.scale).astype(plan.dtype)
            weights = weights.astype(plan.dtype)
            out_gradient = inputs["out_gradient"][0, head]
            k_total[head] = k_total[head] + dot(scaled, inputs["q"][0, head], ((0,), (0,)))
            v_total[head] = v_total[head] + dot(weights, out_gradient, ((0,), (0,)))

        _for_each_head(plan, head_step)

    @pl.when(query_block == plan.grid_queries - 1)
    def _finish():
        k_gradient[0] = k_total[...].astype(k_gradient.dtype)
        v_gradient[0] = v_total[...].astype(v_gradient.dtype)
