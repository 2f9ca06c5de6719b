"""Training losses: the negative log-likelihood of the generate-or-point mixture.

The softmax over the catalogue comes in three forms with one signature: `full_softmax` holds all
logits, `chunked_softmax` gives the same numbers holding a stretch of them, and `sampled_softmax`
estimates the normaliser from part of the items.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stt_jax.config import TrainingConfig
from stt_jax.mesh import MODEL, axis_size
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
      scorer: of the catalogue's rows.
      queries, places: [N, E] and float32 [N, 3], what it compares the items with.
      targets: int32 [N]; 0 gives a meaningless but finite number.

    Returns:
      (target_log_probs, mean_log_probs), float32 [N]; the mean is over items 1..V.
    """
    logits = scorer.logits(queries, places)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    if scorer.distance_table is None and axis_size(MODEL) == 1:
        # Both are linear in the vectors, so no pass over the logits and their gradient is needed.
        target_logits = scorer.pair_logits(queries, places, targets)
        logit_sums = _linear_sum(scorer, queries)
    else:
        rows = jnp.arange(logits.shape[1], dtype=jnp.int32)
        target_logits, logit_sums = _target_and_sum(scorer, logits, targets, rows)
    return target_logits - log_normalizer, logit_sums / scorer.num_items - log_normalizer


def _linear_sum(scorer: ItemScorer, queries: jax.Array) -> jax.Array:
    """The sum of each query's logits over the items, where no distance enters; float32 [N]."""
    is_item = scorer.is_item.astype(jnp.float32)
    vectors = jnp.einsum("v,ve->e", is_item, scorer.vectors.astype(jnp.float32))
    biases = jnp.dot(is_item, scorer.bias)
    return jnp.einsum("ne,e->n", queries.astype(jnp.float32), vectors) + biases


def _target_and_sum(
    scorer: ItemScorer, logits: jax.Array, targets: jax.Array, rows: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The logit of each query's target (0 if it is elsewhere) and the sum over the items."""
    target_logits = jnp.where(_hits(targets, rows), logits, 0.0).sum(-1)
    return target_logits, jnp.where(scorer.is_item[None], logits, 0.0).sum(-1)


def _hits(targets: jax.Array, rows: jax.Array) -> jax.Array:
    """Where the target's column is, bool [N, rows].

    A mask, because a gather along a dimension that is split over devices would fetch all of it.
    """
    return (targets[:, None] == rows[None]) & (rows > 0)[None]


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
    gradients, time one more forward product. Where the catalogue is split over devices, every
    chunk is a piece of each device's part.

    Source: the running maximum and sum of Milakov and Gimelshein, "Online normalizer calculation
    for softmax" (2018), algorithm 3. Differs from it: nothing.
    """
    chunks, rows = _chunks(scorer, chunk_items)
    log_normalizer, target_logits, logit_sums = _catalogue_sums(
        chunks, rows, queries, places, targets
    )
    return target_logits - log_normalizer, logit_sums / scorer.num_items - log_normalizer


def _chunks(scorer: ItemScorer, chunk_items: int) -> tuple[ItemScorer, jax.Array]:
    """The catalogue in chunks: every array [chunks, rows of a chunk, ...], and the row numbers."""
    parts = axis_size(MODEL)
    part_rows = scorer.bias.shape[0] // parts
    num_chunks = -(-scorer.bias.shape[0] // chunk_items)
    chunk_rows = -(-part_rows // num_chunks)

    def cut(array: jax.Array) -> jax.Array:
        rest = array.shape[1:]
        array = array.reshape(parts, part_rows, *rest)
        padding = num_chunks * chunk_rows - part_rows
        array = jnp.pad(array, ((0, 0), (0, padding), *((0, 0) for _ in rest)))
        array = array.reshape(parts, num_chunks, chunk_rows, *rest)
        return jnp.moveaxis(array, 1, 0).reshape(num_chunks, parts * chunk_rows, *rest)

    # The padding has is_item False and, like the unknown item, row number 0.
    return scorer.map_rows(cut), cut(jnp.arange(scorer.bias.shape[0], dtype=jnp.int32))


@jax.custom_vjp
def _catalogue_sums(
    chunks: ItemScorer,
    rows: jax.Array,
    queries: jax.Array,
    places: jax.Array,
    targets: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logsumexp of each query's logits, the logit of its target (0: none), and their sum."""

    def add_chunk(sums: Any, chunk_rows: Any) -> tuple[Any, None]:
        largest, exponentials, target_logits, logit_sums = sums
        chunk, numbers = _one_chunk(chunks, chunk_rows)
        logits = chunk.logits(queries, places)
        larger = jnp.maximum(largest, logits.max(-1))
        exponentials = exponentials * jnp.exp(largest - larger)
        exponentials = exponentials + jnp.exp(logits - larger[:, None]).sum(-1)
        new_targets, new_sums = _target_and_sum(chunk, logits, targets, numbers)
        return (larger, exponentials, target_logits + new_targets, logit_sums + new_sums), None

    zeros = jnp.zeros(queries.shape[0], jnp.float32)
    sums = (jnp.full_like(zeros, -jnp.inf), zeros, zeros, zeros)
    (largest, exponentials, target_logits, logit_sums), _ = jax.lax.scan(
        add_chunk, sums, (_per_row(chunks), rows)
    )
    return largest + jnp.log(exponentials), target_logits, logit_sums


def _catalogue_sums_forward(
    chunks: ItemScorer,
    rows: jax.Array,
    queries: jax.Array,
    places: jax.Array,
    targets: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[Any, ...]]:
    sums = _catalogue_sums(chunks, rows, queries, places, targets)
    return sums, (chunks, rows, queries, places, targets, sums[0])


def _catalogue_sums_backward(
    saved: tuple[Any, ...], cotangents: tuple[jax.Array, ...]
) -> tuple[Any, ...]:
    chunks, rows, queries, places, targets, log_normalizer = saved
    for_normalizer, for_target, for_sum = (cotangent[:, None] for cotangent in cotangents)

    def add_chunk(sums: Any, chunk_rows: Any) -> tuple[Any, Any]:
        query_sums, table_sums = sums
        chunk, numbers = _one_chunk(chunks, chunk_rows)

        def chunk_logits(
            queries: jax.Array, table: jax.Array | None, vectors: jax.Array, bias: jax.Array
        ) -> jax.Array:
            part = dataclasses.replace(chunk, distance_table=table, vectors=vectors, bias=bias)
            return part.logits(queries, places)

        logits, pull_back = jax.vjp(
            chunk_logits, queries, chunk.distance_table, chunk.vectors, chunk.bias
        )
        logit_grads = for_normalizer * jnp.exp(logits - log_normalizer[:, None])
        logit_grads = logit_grads + jnp.where(_hits(targets, numbers), for_target, 0.0)
        logit_grads = logit_grads + jnp.where(chunk.is_item[None], for_sum, 0.0)
        of_query, of_table, of_vectors, of_bias = pull_back(logit_grads)
        if table_sums is not None:
            table_sums = table_sums + of_table
        query_sums = query_sums + of_query.astype(jnp.float32)
        return (query_sums, table_sums), (of_vectors, of_bias)

    zeros = (
        jnp.zeros(queries.shape, jnp.float32),
        jax.tree.map(jnp.zeros_like, chunks.distance_table),
    )
    (of_queries, of_table), (of_vectors, of_bias) = jax.lax.scan(
        add_chunk, zeros, (_per_row(chunks), rows)
    )
    # Distances enter through integer buckets: places and coords have no gradient.
    of_chunks = dataclasses.replace(
        chunks,
        vectors=of_vectors,
        bias=of_bias,
        is_item=None,
        categories=None,
        coords=None,
        distance_table=of_table,
    )
    return of_chunks, None, of_queries.astype(queries.dtype), None, None


_catalogue_sums.defvjp(_catalogue_sums_forward, _catalogue_sums_backward)


def _per_row(chunks: ItemScorer) -> ItemScorer:
    """What a loop over the chunks takes apart: all but the table that they share."""
    return dataclasses.replace(chunks, distance_table=None)


def _one_chunk(chunks: ItemScorer, chunk_rows: Any) -> tuple[ItemScorer, jax.Array]:
    chunk, numbers = chunk_rows
    return dataclasses.replace(chunk, distance_table=chunks.distance_table), numbers


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
    num_items = scorer.num_items
    edges = strata(num_items, min(num_negatives, num_items), log_uniform=log_uniform)
    starts, ends = jnp.asarray(edges[:-1]), jnp.asarray(edges[1:])
    items = 1 + jax.random.randint(key, starts.shape, starts, ends)
    log_weights = jnp.log((ends - starts).astype(jnp.float32))
    counted = jnp.ones(items.shape, bool)
    if in_batch:
        # Sorted, so that 0 (no target) comes first where there is one, and pads the rest.
        batch = jnp.unique(targets, size=min(len(targets), num_items + 1), fill_value=0)
        counted = jnp.concatenate([~jnp.isin(items, batch), batch > 0])
        items = jnp.concatenate([items, batch])
        log_weights = jnp.concatenate([log_weights, jnp.zeros(batch.shape, jnp.float32)])

    target_logits = scorer.pair_logits(queries, places, targets)
    logits = scorer.take(items).logits(queries, places)
    counted = counted[None] & (items[None] != targets[:, None])
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
