"""Flash attention for NVIDIA GPUs (Ampere and newer) in Pallas with the Triton compiler.

JAX calls this compiler deprecated. To remove it, delete the files triton*.py here, and beside this
folder `triton_device.py` and `place_offsets_triton.py`; then what names them in `api.py`,
`place_offsets.py`, the tests and the benchmarks.

Map of the algorithm (Dao 2023, "FlashAttention-2", algorithms 1 and 2) to the code in
`triton_kernels.py`, one program a block, a row and a head each:

- `forward_kernel`: a block of queries against the keys; running maximum, sum and output in
  registers. Saves the log-sum-exp (softmax) or the number of keys (SiLU), one number a query.
- `mass_kernel`: the same walk for a pointer; two log-sum-exps, of all keys and of those that match.
- `entries_kernel`: the entries of every pair in the tables, one int32 for all tables and heads. It
  and what follows take a part of the queries at a time: `scratch_numbers` pairs times heads, or a
  block of queries where that is more.
- `query_gradient_kernel`: the same walk; dq. Writes the tiles' weights and dS.
- `key_gradient_kernel`: products of these with queries and dO; what a part gives to dk and dv.
- `table_gradient_kernel`: the product of what says which pair has which entry with the pairs' dS,
  all heads at once. The sums of a few queries go to a row of their own, added up afterwards: no
  atomics, so that the same inputs give the same bits.

Blocks that share no allowed pair are not visited: `triton_plan.with_ranges`.

A table is looked up through the pointer.
"""

import functools

import jax
import jax.numpy as jnp

from stt_kernels import triton_device
from stt_kernels.attention import geometry
from stt_kernels.attention import triton_kernels as kernels
from stt_kernels.attention import triton_plan as plans
from stt_kernels.attention.flash_inputs import pad
from stt_kernels.attention.reference import FLOOR
from stt_kernels.attention.sentinels import NOTHING

_MAX_WIDTH = 128


def unsupported(call) -> str | None:
    """Gives why this backend can't take the call, or None."""
    if reason := triton_device.unsupported_device():
        return reason
    if call.q.dtype == jnp.float64:
        return "it computes in float32 or bfloat16; q is float64."
    if call.q.shape[3] > _MAX_WIDTH:
        return f"it takes heads of width <= {_MAX_WIDTH}; q has {call.q.shape[3]}."
    return None


def attend(q, k, v, tables, queries, keys, rules, tiles=None):
    """Gives the attention output [B, L, H, D] in q's dtype."""
    return _attend(rules, tiles, q, k, v, tables, queries, keys)


def pointer_log_mass(q, k, ids, target_ids, tables, queries, keys, rules, tiles=None):
    """Gives the log of the mean over heads of the softmax mass on matching keys, [B, L]."""
    statistics = _log_masses(rules, tiles, q, k, ids, target_ids, tables, queries, keys)
    any_match = jnp.any(statistics > FLOOR, axis=1)
    lowered = jnp.where(any_match[:, None], statistics, 0.0)
    num_heads = jnp.asarray(q.shape[2], jnp.float32)
    return jnp.where(any_match, jax.nn.logsumexp(lowered, axis=1) - jnp.log(num_heads), FLOOR)


# Attention


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(rules, tiles, q, k, v, tables, queries, keys):
    return _attend_forward(rules, tiles, q, k, v, tables, queries, keys)[0]


def _attend_forward(rules, tiles, q, k, v, tables, queries, keys):
    plan = plans.Plan.of(rules, tiles, q, k, tables, queries)
    arrays = plans.arrange(plan, q, k, tables, queries, keys)
    arrays["v"] = plans.arrange_heads(plan, v, plan.padded_keys)
    outs = [plans.per_event("queries", q.dtype, heads=True), _NUMBER_A_QUERY]
    out, statistics = _forward(plan, kernels.forward_kernel, arrays, outs)
    out = plans.trim(out, q)
    return out, (q, k, v, tables, queries, keys, out, statistics)


def _attend_backward(rules, tiles, saved, out_gradient):
    q, k, v, tables, queries, keys, out, statistics = saved
    plan = plans.Plan.of(rules, tiles, q, k, tables, queries)
    arrays = plans.arrange(plan, q, k, tables, queries, keys)
    overlap = jnp.sum(out_gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    arrays |= {
        "v": plans.arrange_heads(plan, v, plan.padded_keys),
        "out_gradient": plans.arrange_heads(plan, out_gradient, plan.padded_queries),
        "statistics": statistics,
        "overlap": pad(jnp.swapaxes(overlap, 1, 2), plan.padded_queries, axis=2),
    }
    q_gradient, (k_gradient, v_gradient), tables_gradient = _gradients(plan, arrays, q, k)
    return q_gradient, k_gradient, v_gradient, tables_gradient, None, None


_attend.defvjp(_attend_forward, _attend_backward)


# A pointer


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _log_masses(rules, tiles, q, k, ids, target_ids, tables, queries, keys):
    return _log_masses_forward(rules, tiles, q, k, ids, target_ids, tables, queries, keys)[0]


def _log_masses_forward(rules, tiles, q, k, ids, target_ids, tables, queries, keys):
    """Gives the log of the mass of each head [B, H, L], at least 2 * FLOOR."""
    plan = plans.Plan.of(rules, tiles, q, k, tables, queries, pointer=True)
    arrays = _pointer_arrays(plan, q, k, ids, target_ids, tables, queries, keys)
    outs = [_NUMBER_A_QUERY] * 2
    of_all, of_match = _forward(plan, kernels.mass_kernel, arrays, outs)
    log_masses = jnp.where(of_match == NOTHING, 2 * FLOOR, of_match - of_all)
    saved = q, k, ids, target_ids, tables, queries, keys, of_all, of_match
    return log_masses[:, :, : q.shape[1]], saved


def _log_masses_backward(rules, tiles, saved, gradient):
    q, k, ids, target_ids, tables, queries, keys, of_all, of_match = saved
    plan = plans.Plan.of(rules, tiles, q, k, tables, queries, pointer=True)
    arrays = _pointer_arrays(plan, q, k, ids, target_ids, tables, queries, keys)
    found = of_match != NOTHING
    missed = -jnp.expm1(jnp.where(found, of_match - of_all, 0.0))
    gradient = jnp.where(found, pad(gradient, plan.padded_queries, axis=2), 0.0)
    arrays |= {
        "statistics": of_all,
        "match_statistics": of_match,
        "other_gradient": -gradient,
        "match_gradient": missed * gradient,
    }
    q_gradient, (k_gradient,), tables_gradient = _gradients(plan, arrays, q, k)
    return q_gradient, k_gradient, None, None, tables_gradient, None, None


_log_masses.defvjp(_log_masses_forward, _log_masses_backward)


def _pointer_arrays(plan, q, k, ids, target_ids, tables, queries, keys):
    arrays = plans.arrange(plan, q, k, tables, queries, keys)
    arrays["query_numbers"] = plans.with_ids(arrays["query_numbers"], target_ids)
    arrays["key_numbers"] = plans.with_ids(arrays["key_numbers"], ids)
    return arrays


# Both

_NUMBER_A_QUERY = plans.per_event("queries", jnp.float32)


def _forward(plan, kernel, arrays, outs):
    plan = plan.of_kernel("forward")
    arrays = plans.with_ranges(plan, arrays, "query")
    return plans.call(plan, kernel, "queries", arrays, outs, interpret=triton_device.INTERPRET)


def _gradients(plan, arrays, q, k):
    """Gives the gradient of q, those of k and of v if there is one, and those of the tables."""
    part_plan, shared, parts = plans.cut_queries(plan, arrays)

    def add_part(sums, part):
        q_gradient, found = _of_part(part_plan, shared | part, q.dtype)
        return jax.tree.map(jnp.add, sums, found), q_gradient

    key_shape = (plan.num_rows, plan.num_heads, plan.padded_keys, plan.width)
    shapes = (
        [key_shape] * (1 if plan.pointer else 2),
        [(num_entries, plan.table_heads) for _, _, num_entries in plan.table_pieces],
    )
    zeros = tuple([jnp.zeros(shape, jnp.float32) for shape in some] for some in shapes)
    (of_keys, of_pieces), q_gradient = jax.lax.scan(add_part, zeros, parts)

    pieces: dict[str, list[jax.Array]] = {name: [] for name in plan.sizes}
    for (name, _, _), gradient in zip(plan.table_pieces, of_pieces, strict=True):
        pieces[name].append(gradient)
    tables_gradient = geometry.Tables(
        **{
            name: jnp.concatenate(pieces[name])[:size, : plan.num_heads].T
            for name, size in plan.sizes.items()
        }
    )
    of_keys = [plans.trim(gradient.astype(k.dtype), k) for gradient in of_keys]
    return plans.trim(plans.join_queries(q_gradient), q), of_keys, tables_gradient


def _of_part(plan, arrays, dtype):
    """Gives dq, and what a part of the queries gives to (dk and dv, the pieces of the tables)."""
    by_query, by_key, by_entry = (
        plan.of_kernel(name) for name in ("query_gradient", "key_gradient", "table_gradient")
    )
    call = functools.partial(plans.call, interpret=triton_device.INTERPRET)
    arrays = plans.with_ranges(by_query, arrays, "query")
    if plan.sizes:
        outs = [plans.per_pair(jnp.int32, heads=False)]
        (arrays["entries"],) = call(
            by_query, kernels.entries_kernel, "queries", arrays, outs, all_heads=True
        )
    num_pairs = 1 if plan.pointer else 2  # dS, and the weights where there are values
    outs = [plans.per_event("queries", dtype, heads=True), *[plans.per_pair(dtype)] * num_pairs]
    q_gradient, *pairs = call(by_query, kernels.query_gradient_kernel, "queries", arrays, outs)
    arrays |= dict(zip(("logit_gradients", "weights"), pairs, strict=False))

    outs = [plans.per_event("keys", jnp.float32, heads=True)] * num_pairs
    ranged = plans.with_ranges(by_key, arrays, "key")
    of_keys = call(by_key, kernels.key_gradient_kernel, "keys", ranged, outs)

    of_pieces = []
    if plan.sizes:
        outs = [plans.per_entry(num_entries) for _, _, num_entries in plan.table_pieces]
        of_pieces = call(
            by_entry, kernels.table_gradient_kernel, "queries", arrays, outs, all_heads=True
        )
    return q_gradient, (list(of_keys), [jnp.sum(piece, axis=(0, 1)) for piece in of_pieces])
