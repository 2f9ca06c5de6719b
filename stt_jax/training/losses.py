"""Training losses: the negative log-likelihood of the generate-or-point mixture.

The softmax over the catalogue comes in three forms with one signature: `full_softmax` holds all
logits, `chunked_softmax` gives the same numbers holding a stretch of them, and `sampled_softmax`
estimates the normaliser from part of the items.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stt_jax.config import TrainingConfig
from stt_jax.model.head import ItemScorer
from stt_jax.model.stt import Prediction

# (scorer, queries, places, targets) -> (target_log_probs, mean_log_probs), as `full_softmax`.
Softmax = Callable[[ItemScorer, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def make_softmax(config: TrainingConfig, key: jax.Array) -> Softmax:
    """The softmax that `--loss` names; `key` draws its negatives, if it needs any."""
    if config.loss == "chunked":
        return functools.partial(chunked_softmax, chunk_items=config.loss_chunk_items)
    if config.loss == "sampled":
        return functools.partial(
            sampled_softmax,
            key=key,
            num_negatives=config.num_negatives,
            log_uniform=config.negatives == "log_uniform",
            in_batch=config.in_batch_negatives,
        )
    return full_softmax


def full_softmax(
    scorer: ItemScorer, queries: jax.Array, places: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of the target, and the mean over all items, under the full softmax.

    Args:
      scorer: of items 1..V.
      queries, places: float32 [N, E] and [N, 3], what it compares the items with.
      targets: int32 [N]; 0 gives a meaningless but finite number.

    Returns:
      (target_log_probs, mean_log_probs), float32 [N]; the mean is over items 1..V.
    """
    logits = scorer.logits(queries, places)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    columns = jnp.maximum(targets - 1, 0)[:, None]
    target_logits = jnp.take_along_axis(logits, columns, axis=-1)[:, 0]
    return target_logits - log_normalizer, logits.mean(-1) - log_normalizer


def chunked_softmax(
    scorer: ItemScorer,
    queries: jax.Array,
    places: jax.Array,
    targets: jax.Array,
    *,
    chunk_items: int,
) -> tuple[jax.Array, jax.Array]:
    """As `full_softmax`, holding the logits of `chunk_items` items at a time.

    The backward pass makes each chunk's logits again: memory is that of one chunk and of the
    gradients, time one more forward product.

    Source: the running maximum and sum of Milakov and Gimelshein, "Online normalizer calculation
    for softmax" (2018), algorithm 3. Differs from it: nothing.
    """
    num_items = scorer.bias.shape[0]
    log_normalizer, target_logits, logit_sums = _catalogue_sums(
        scorer, queries, places, targets - 1, min(chunk_items, num_items)
    )
    return target_logits - log_normalizer, logit_sums / num_items - log_normalizer


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _catalogue_sums(
    scorer: ItemScorer,
    queries: jax.Array,
    places: jax.Array,
    columns: jax.Array,
    chunk_items: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logsumexp of each query's logits, the logit in its column (0 if outside), and their sum."""

    def add_chunk(sums: Any, first: jax.Array) -> tuple[Any, None]:
        largest, exponentials, target_logits, logit_sums = sums
        start, new_items = _chunk(scorer, first, chunk_items)
        logits = scorer.stretch(start, chunk_items).logits(queries, places)
        new_logits = jnp.where(new_items, logits, 0.0)
        masked = jnp.where(new_items, logits, -jnp.inf)
        larger = jnp.maximum(largest, masked.max(-1))
        exponentials = exponentials * jnp.exp(largest - larger)
        exponentials = exponentials + jnp.exp(masked - larger[:, None]).sum(-1)
        hits = _hits(columns, start, chunk_items)
        target_logits = target_logits + jnp.where(hits, new_logits, 0.0).sum(-1)
        return (larger, exponentials, target_logits, logit_sums + new_logits.sum(-1)), None

    zeros = jnp.zeros(queries.shape[0], jnp.float32)
    sums = (jnp.full_like(zeros, -jnp.inf), zeros, zeros, zeros)
    firsts = _firsts(scorer, chunk_items)
    (largest, exponentials, target_logits, logit_sums), _ = jax.lax.scan(add_chunk, sums, firsts)
    return largest + jnp.log(exponentials), target_logits, logit_sums


def _catalogue_sums_forward(
    scorer: ItemScorer,
    queries: jax.Array,
    places: jax.Array,
    columns: jax.Array,
    chunk_items: int,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[Any, ...]]:
    sums = _catalogue_sums(scorer, queries, places, columns, chunk_items)
    return sums, (scorer, queries, places, columns, sums[0])


def _catalogue_sums_backward(
    chunk_items: int, saved: tuple[Any, ...], cotangents: tuple[jax.Array, ...]
) -> tuple[Any, ...]:
    scorer, queries, places, columns, log_normalizer = saved
    for_normalizer, for_target, for_sum = (cotangent[:, None] for cotangent in cotangents)

    def add_chunk(sums: Any, first: jax.Array) -> tuple[Any, None]:
        query_sums, table_sums, vector_grads, bias_grads = sums
        start, new_items = _chunk(scorer, first, chunk_items)
        chunk = scorer.stretch(start, chunk_items)

        def chunk_logits(
            queries: jax.Array, table: jax.Array | None, vectors: jax.Array, bias: jax.Array
        ) -> jax.Array:
            part = chunk.replace(distance_table=table, vectors=vectors, bias=bias)
            return part.logits(queries, places)

        logits, pull_back = jax.vjp(
            chunk_logits, queries, chunk.distance_table, chunk.vectors, chunk.bias
        )
        logit_grads = for_normalizer * jnp.exp(logits - log_normalizer[:, None]) + for_sum
        logit_grads = logit_grads + jnp.where(_hits(columns, start, chunk_items), for_target, 0.0)
        of_query, of_table, of_vectors, of_bias = pull_back(jnp.where(new_items, logit_grads, 0.0))
        if table_sums is not None:
            table_sums = table_sums + of_table
        return (
            query_sums + of_query,
            table_sums,
            _add_at(vector_grads, of_vectors, start),
            _add_at(bias_grads, of_bias, start),
        ), None

    zeros = jax.tree.map(
        jnp.zeros_like, (queries, scorer.distance_table, scorer.vectors, scorer.bias)
    )
    grads, _ = jax.lax.scan(add_chunk, zeros, _firsts(scorer, chunk_items))
    of_queries, of_table, of_vectors, of_bias = grads
    # Distances enter through integer buckets: places and coords have no gradient.
    of_scorer = scorer.replace(
        vectors=of_vectors, bias=of_bias, categories=None, coords=None, distance_table=of_table
    )
    return of_scorer, of_queries, None, None


_catalogue_sums.defvjp(_catalogue_sums_forward, _catalogue_sums_backward)


def _firsts(scorer: ItemScorer, chunk_items: int) -> jax.Array:
    return jnp.arange(0, scorer.bias.shape[0], chunk_items, dtype=jnp.int32)


def _chunk(scorer: ItemScorer, first: jax.Array, chunk_items: int) -> tuple[jax.Array, jax.Array]:
    """Where a chunk starts and which of its items, [1, chunk], are new: the last reaches back."""
    start = jnp.minimum(first, scorer.bias.shape[0] - chunk_items)
    return start, (start + jnp.arange(chunk_items) >= first)[None]


def _hits(columns: jax.Array, start: jax.Array, chunk_items: int) -> jax.Array:
    return columns[:, None] == (start + jnp.arange(chunk_items))[None]


def _add_at(rows: jax.Array, new_rows: jax.Array, start: jax.Array) -> jax.Array:
    old_rows = jax.lax.dynamic_slice_in_dim(rows, start, new_rows.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(rows, old_rows + new_rows, start, axis=0)


def sampled_softmax(
    scorer: ItemScorer,
    queries: jax.Array,
    places: jax.Array,
    targets: jax.Array,
    *,
    key: jax.Array,
    num_negatives: int,
    log_uniform: bool,
    in_batch: bool,
) -> tuple[jax.Array, jax.Array]:
    """Estimates `full_softmax` from the target, the batch's targets and drawn items.

    Of every stratum of neighbouring ids one item is drawn and stands for its stratum: its logit is
    corrected by -log of its probability, the log of the stratum's width (logQ). The target and,
    with `in_batch`, all targets of the batch count as themselves and are struck from the draw. So
    the normaliser is unbiased given the batch, and exact once every item is drawn.

    Args:
      scorer, queries, places, targets: as in `full_softmax`.
      key: draws the items, the same for all queries.
      num_negatives: strata, at most one an item.
      log_uniform: strata of equal log(id), so that frequent items are strata of their own; else
        of equal width.
      in_batch: compare with the batch's targets too; costs [N, N] logits.

    Returns:
      (target_log_probs, mean_log_probs), float32 [N].

    Source: sampled softmax, Bengio and Senecal (2008); logQ for in-batch negatives, Yi et al.
    (RecSys 2019). Differs from them: drawn without replacement, one item a stratum, so that
    probabilities are exact; batch items are certain and need no estimate of their frequency.
    """
    num_items = scorer.bias.shape[0]
    edges = strata(num_items, min(num_negatives, num_items), log_uniform=log_uniform)
    starts, ends = jnp.asarray(edges[:-1]), jnp.asarray(edges[1:])
    columns = jax.random.randint(key, starts.shape, starts, ends)
    log_weights = jnp.log((ends - starts).astype(jnp.float32))
    counted = jnp.ones(columns.shape, bool)
    if in_batch:
        # Sorted, so that 0 (no target) comes first where there is one, and pads the rest.
        batch = jnp.unique(targets, size=min(len(targets), num_items + 1), fill_value=0)
        counted = jnp.concatenate([~jnp.isin(columns + 1, batch), batch > 0])
        columns = jnp.concatenate([columns, jnp.maximum(batch - 1, 0)])
        log_weights = jnp.concatenate([log_weights, jnp.zeros(batch.shape, jnp.float32)])

    target_columns = jnp.maximum(targets - 1, 0)
    target_logits = scorer.pair_logits(queries, places, target_columns)
    logits = scorer.take(columns).logits(queries, places)
    counted = counted[None] & (columns[None] != target_columns[:, None])
    corrected = jnp.where(counted, logits + log_weights[None], -jnp.inf)
    log_normalizer = jax.nn.logsumexp(
        jnp.concatenate([target_logits[:, None], corrected], axis=1), axis=1
    )
    weighted = jnp.where(counted, logits * jnp.exp(log_weights)[None], 0.0)
    mean_logits = (target_logits + weighted.sum(1)) / num_items
    return target_logits - log_normalizer, mean_logits - log_normalizer


def strata(num_items: int, num_strata: int, *, log_uniform: bool) -> np.ndarray:
    """Cuts 0..num_items into neighbouring, non-empty strata.

    Args:
      num_items: V.
      num_strata: at most V.
      log_uniform: equal in log(1 + column) as far as whole items allow; else equal in width.

    Returns:
      int32 [num_strata + 1], edges from 0 to V; stratum k is `edges[k]..edges[k + 1] - 1`.
    """
    if not log_uniform:
        return (np.arange(num_strata + 1) * num_items // num_strata).astype(np.int32)
    edges = [1.0]
    for left in range(num_strata, 0, -1):
        growth = ((num_items + 1) / edges[-1]) ** (1 / left)
        edges.append(edges[-1] + max(1, np.floor(edges[-1] * (growth - 1))))
    edges[-1] = num_items + 1  # one power of a float may fall just short of it
    return np.asarray(edges, np.int32) - 1


def mixture_loss(
    prediction: Prediction,
    targets: jax.Array,
    *,
    label_smoothing: float,
    softmax: Softmax = full_softmax,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over the requests of  -(1 - e) log p(target) - e mean_v log p_generate(v).

    p is the mixture of the head; smoothing acts on the generating part alone, because the
    pointer can only ever reach the items of the history.

    Args:
      prediction: of the model, [B, R].
      targets: int32 [B, R]; 0 is not learned from.
      label_smoothing: e, in [0, 1].
      softmax: of the generating part, see `make_softmax`.

    Returns:
      (loss, sums): float32 [], and sums to report: number of requests, of log-likelihood and of
      the gate.
    """
    targets = targets.reshape(-1)
    queries = prediction.queries.reshape(len(targets), -1)
    weights = (targets > 0).astype(jnp.float32)
    places = prediction.places.reshape(len(targets), 3)
    log_probs, mean_log_probs = softmax(prediction.scorer, queries, places, targets)
    gates = jnp.ones_like(log_probs)
    if prediction.gate_logits is not None and prediction.target_log_mass is not None:
        gate_logits = prediction.gate_logits.reshape(-1)
        log_probs = jnp.logaddexp(
            jax.nn.log_sigmoid(gate_logits) + log_probs,
            jax.nn.log_sigmoid(-gate_logits) + prediction.target_log_mass.reshape(-1),
        )
        gates = jax.nn.sigmoid(gate_logits)
    losses = -(1 - label_smoothing) * log_probs - label_smoothing * mean_log_probs
    num_requests = weights.sum()
    loss = (losses * weights).sum() / jnp.maximum(num_requests, 1.0)
    sums = {
        "requests": num_requests,
        "log_likelihood": (log_probs * weights).sum(),
        "generating": (gates * weights).sum(),
    }
    return loss, sums
