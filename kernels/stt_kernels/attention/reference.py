"""Dense attention: slow, obviously right, differentiated by JAX. This file defines the answer;
tests run it in float64.

It stores [B, H, L, S] arrays.
"""

import jax
import jax.numpy as jnp
from jax import lax

from stt_kernels.attention import geometry

FLOOR = -1e9  # the log of no mass at all: finite, so that sums and `logaddexp` stay finite


def unsupported(call) -> str | None:
    """Gives why this backend can't take the call: it takes every valid one."""
    return None


def attend(q, k, v, tables, queries, keys, rules):
    """Gives the attention output [B, L, H, D] in q's dtype."""
    weights = attention_weights(q, k, tables, queries, keys, rules)
    return _matmul("bhls,bshd->blhd", weights, v.astype(weights.dtype)).astype(q.dtype)


def attention_weights(q, k, tables, queries, keys, rules):
    """Gives what each query takes of each key, [B, H, L, S] in float32 (or float64, as q)."""
    logits, allowed = _logits(q, k, tables, queries, keys, rules)
    if rules.normalizer == "softmax":
        lowered = logits - _log_sum_exp(logits, allowed)[..., None]
        return jnp.exp(jnp.where(allowed, lowered, -jnp.inf))
    num_keys = jnp.sum(allowed, axis=-1, keepdims=True)
    denominator = jnp.maximum(num_keys, 1).astype(logits.dtype)
    if rules.silu_denominator is not None:
        denominator = jnp.full_like(denominator, rules.silu_denominator)
    return jnp.where(allowed, jax.nn.silu(logits) / denominator, 0.0)


def pointer_log_mass(q, k, ids, target_ids, tables, queries, keys, rules):
    """Gives the log of the softmax mass on keys with the target id, averaged over heads, [B, L]."""
    logits, allowed = _logits(q, k, tables, queries, keys, rules)
    hits = allowed & (target_ids[:, None, :, None] == ids[:, None, None, :])
    log_masses = _log_sum_exp(logits, hits) - _log_sum_exp(logits, allowed)
    any_hit = jnp.any(hits, axis=(1, 3))
    log_mass = jax.nn.logsumexp(log_masses, axis=1) - jnp.log(jnp.asarray(q.shape[2], logits.dtype))
    return jnp.where(any_hit, log_mass, FLOOR)


def _logits(q, k, tables, queries, keys, rules):
    """Gives the logits [B, H, L, S] and, broadcastable to them, which pairs are allowed."""
    dtype = geometry.accumulator(q)
    logits = _matmul("blhd,bshd->bhls", q.astype(dtype), k.astype(dtype)) * rules.scale
    queries, keys = geometry.number(queries, q.shape[1]), geometry.number(keys, k.shape[1])
    entries = geometry.table_entries(queries, keys, tables.sizes())
    for name, entry in entries.items():
        table = getattr(tables, name).astype(dtype)
        logits = logits + jnp.moveaxis(table[:, entry], 0, 1)
    allowed = geometry.allowed_pairs(queries, keys, rules.causal)
    if allowed is None:
        allowed = jnp.ones((1, q.shape[1], k.shape[1]), bool)
    return logits, jnp.broadcast_to(allowed[:, None], (*logits.shape[:1], 1, *logits.shape[2:]))


def _matmul(equation, a, b):
    return jnp.einsum(equation, a, b, precision=lax.Precision.HIGHEST)


def _log_sum_exp(logits, kept):
    """Gives the log-sum-exp over the kept keys; 0 with gradient 0 where none is kept."""
    any_kept = jnp.any(kept, axis=-1)
    kept = (
        kept | ~any_kept[..., None]
    )  # keep all of an empty row, to differentiate finite numbers, and drop it below
    sums = jax.nn.logsumexp(jnp.where(kept, logits, -jnp.inf), axis=-1)
    return jnp.where(any_kept, sums, 0.0)
