"""What the `xla` backend makes of the logits of a tile: softmax or SiLU times values, or a mass.

A readout meets the keys of a block of queries in one tile or in several:

- `update(state, logits, allowed, query_values, key_values)` takes one tile in; state None is the
  first. `start(shape, dtype, key_values)` gives the state before any tile of a block of queries of
  shape [b, H, i], for loops that need one.
- `finish(state)` gives the output and the statistics from which the backward pass makes the weights
  again, one number a query each.
- `prepare_backward(...)` turns those and the gradient of the output into what `backward` needs.
- `backward(logits, query_values, key_values)` gives the gradient of a tile's logits, and the
  weights that carry the output's gradient to the values (None where there are no values).

Arrays are [b, H or 1, N] or [b, H, N, D], logits [b, H, i, j]. Everything is in the accumulator's
dtype: float32 (float64 for float64 input).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from stt_kernels.attention.geometry import accumulator
from stt_kernels.attention.reference import FLOOR
from stt_kernels.attention.sentinels import LOWEST, MASKED, NOTHING


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Softmax times values. Statistic: the log-sum-exp."""

    def start(self, shape, dtype, values):
        """Gives the state before any tile."""
        out = jnp.zeros((*shape, values.shape[3]), dtype)
        return jnp.full((*shape, 1), LOWEST, dtype), jnp.zeros((*shape, 1), dtype), out

    def update(self, state, logits, allowed, query_values, values):
        """Takes a tile in."""
        highest = _highest(logits)
        if state is not None:
            highest = jnp.maximum(highest, state[0])
        weights = jnp.exp(logits - highest)
        sums = jnp.sum(weights, axis=-1, keepdims=True)
        out = matmul("bhij,bhjd->bhid", weights.astype(values.dtype), values)
        if state is not None:
            fading = jnp.exp(state[0] - highest)
            sums, out = sums + state[1] * fading, out + state[2] * fading
        return highest, sums, out

    def finish(self, state):
        """Gives the output and the log-sum-exp."""
        highest, sums, out = state
        return out / _nonzero(sums), _log_sum_exp(highest, sums)[..., 0]

    def prepare_backward(self, query_targets, out_gradient, out, log_sum_exps):
        """Gives the output's gradient, the log-sum-exps, and output dot gradient."""
        return out_gradient, log_sum_exps, jnp.sum(out_gradient * out, axis=-1)

    def backward(self, logits, query_values, values):
        """Gives the logits' gradient and the weights."""
        out_gradient, log_sum_exps, overlap = query_values
        weights = jnp.exp(logits - log_sum_exps[..., None])
        weight_gradient = matmul("bhid,bhjd->bhij", out_gradient, values.astype(out_gradient.dtype))
        return weights * (weight_gradient - overlap[..., None]), weights


@dataclasses.dataclass(frozen=True)
class Silu:
    """SiLU of the logit over the number of keys, times values. Statistic: that number."""

    denominator: float | None

    def start(self, shape, dtype, values):
        """Gives the state before any tile."""
        out = jnp.zeros((*shape, values.shape[3]), dtype)
        return out, jnp.zeros((shape[0], 1, shape[2]), dtype)

    def update(self, state, logits, allowed, query_values, values):
        """Takes a tile in."""
        weights = logits * jax.nn.sigmoid(logits)  # of a masked logit: exactly 0
        out = matmul("bhij,bhjd->bhid", weights.astype(values.dtype), values)
        shape = (*logits.shape[:1], 1, logits.shape[2])
        if allowed is None:
            num_keys = jnp.full(shape, logits.shape[3], logits.dtype)
        else:
            num_keys = jnp.sum(allowed, axis=-1, dtype=jnp.int32).astype(logits.dtype)
            num_keys = jnp.broadcast_to(num_keys, shape)
        if state is not None:
            out, num_keys = out + state[0], num_keys + state[1]
        return out, num_keys

    def finish(self, state):
        """Gives the output and what it was divided by."""
        out, num_keys = state
        if self.denominator is None:
            denominators = jnp.maximum(num_keys, 1.0)
        else:
            denominators = jnp.full_like(num_keys, self.denominator)
        return out / denominators[..., None], denominators

    def prepare_backward(self, query_targets, out_gradient, out, denominators):
        """Gives the gradient of the undivided output."""
        return (out_gradient / denominators[..., None],)

    def backward(self, logits, query_values, values):
        """Gives the logits' gradient and the weights."""
        (out_gradient,) = query_values
        weight_gradient = matmul("bhid,bhjd->bhij", out_gradient, values.astype(out_gradient.dtype))
        gates = jax.nn.sigmoid(logits)
        slopes = gates * (1.0 + logits * (1.0 - gates))
        return weight_gradient * slopes, logits * gates


@dataclasses.dataclass(frozen=True)
class Pointer:
    """The log of the mass on the keys whose id is the query's target, averaged over heads.

    Statistics: two log-sum-exps, of all keys and of those. Every logit is lowered by the maximum of
    its own kind, so that one exponential a pair serves both.
    """

    def start(self, shape, dtype, ids):
        """Gives the state before any tile."""
        lowest, zeros = jnp.full((*shape, 1), LOWEST, dtype), jnp.zeros((*shape, 1), dtype)
        return lowest, zeros, lowest, zeros

    def update(self, state, logits, allowed, query_values, ids):
        """Takes a tile in."""
        match = query_values[0][..., None] == ids[:, :, None]
        highest = _highest(logits)
        highest_match = _highest(jnp.where(match, logits, MASKED))
        if state is not None:
            highest = jnp.maximum(highest, state[0])
            highest_match = jnp.maximum(highest_match, state[2])
        raised = jnp.exp(logits - jnp.where(match, highest_match, highest))
        match_sums = jnp.sum(jnp.where(match, raised, 0.0), axis=-1, keepdims=True)
        other_sums = jnp.sum(jnp.where(match, 0.0, raised), axis=-1, keepdims=True)
        if state is not None:
            other_sums = other_sums + state[1] * jnp.exp(state[0] - highest)
            match_sums = match_sums + state[3] * jnp.exp(state[2] - highest_match)
        return highest, other_sums, highest_match, match_sums

    def finish(self, state):
        """Gives the log of the mass, averaged over heads, and the two log-sum-exps."""
        highest, other_sums, highest_match, match_sums = state
        sums = other_sums + match_sums * jnp.exp(highest_match - highest)
        of_all = _log_sum_exp(highest, sums)[..., 0]
        of_match = _log_sum_exp(highest_match, match_sums)[..., 0]
        found = of_match != NOTHING
        log_masses = jnp.where(found, of_match - of_all, 0.0)
        num_heads = jnp.asarray(of_all.shape[1], of_all.dtype)
        out = jax.nn.logsumexp(log_masses, axis=1, keepdims=True) - jnp.log(num_heads)
        return jnp.where(found[:, :1], out, FLOOR), (of_all, of_match)

    def prepare_backward(self, query_targets, out_gradient, out, log_sum_exps):
        """Gives targets, log-sum-exps, the gradient by a head's log mass, and the mass missed."""
        of_all, of_match = log_sum_exps
        found = of_match != NOTHING
        log_masses = jnp.where(found, of_match - of_all, 0.0)
        shares = jnp.exp(log_masses - jnp.where(found, out, 0.0)) / of_all.shape[1]
        head_gradients = jnp.where(found, shares * out_gradient, 0.0)
        return query_targets, of_all, of_match, head_gradients, -jnp.expm1(log_masses)

    def backward(self, logits, query_values, ids):
        """Gives the logits' gradient: by log mass, share of the match minus share of all."""
        targets, of_all, of_match, head_gradients, missed = (a[..., None] for a in query_values)
        match = targets == ids[:, :, None]
        shares = jnp.exp(logits - jnp.where(match, of_match, of_all))
        return shares * head_gradients * jnp.where(match, missed, -1.0), None


def matmul(equation, a, b):
    """Multiplies with float32 sums (float64 for float64); float32 is not cut to fewer digits."""
    highest = lax.Precision.HIGHEST  # a GPU would take TF32, a TPU bfloat16; bfloat16 stays itself
    return jnp.einsum(equation, a, b, precision=highest, preferred_element_type=accumulator(a))


def _highest(logits):
    return jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), LOWEST)


def _nonzero(sums):
    return jnp.where(sums == 0.0, 1.0, sums)


def _log_sum_exp(highest, sums):
    return jnp.where(sums == 0.0, NOTHING, highest + jnp.log(_nonzero(sums)))
