"""Training losses: the negative log-likelihood of the generate-or-point mixture.

The softmax over the catalogue comes in three forms with one signature: `full_softmax` holds all
logits, `chunked_softmax` gives the same numbers holding a stretch of them, and `sampled_softmax`
estimates the normaliser from part of the items.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from stt_jax.config import TrainingConfig
from stt_jax.model.head import ItemScorer
from stt_jax.model.mixture import Prediction
from stt_jax.training.tiles import catalogue_sums

# (scorer, queries, places, targets) -> what `full_softmax` gives.
Sums = tuple[jax.Array, jax.Array, jax.Array]
Softmax = Callable[[ItemScorer, jax.Array, jax.Array, jax.Array], Sums]


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
) -> Sums:
    """What a loss has to know of the logits of all items.

    Args:
      scorer: of the catalogue's rows.
      queries, places: [N, E] and float32 [N, 3], what it compares the items with.
      targets: int32 [N]; 0 gives a meaningless but finite number.

    Returns:
      (log_normalizers, target_logits, mean_logits), float32 [N]; the mean is over the items.
    """
    logits = scorer.logits(queries, places)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    rows = jnp.arange(logits.shape[1], dtype=jnp.int32)
    # A mask, because a gather along a dimension that is split over devices would fetch all of it.
    hits = (targets[:, None] == rows[None]) & (rows > 0)[None]
    target_logits = jnp.where(hits, logits, 0.0).sum(-1)
    logit_sums = jnp.where(scorer.is_item[None], logits, 0.0).sum(-1)
    return log_normalizer, target_logits, logit_sums / scorer.num_items


def chunked_softmax(
    scorer: ItemScorer,
    queries: jax.Array,
    places: jax.Array,
    targets: jax.Array,
    *,
    chunk_items: int,
) -> Sums:
    """As `full_softmax`, holding the logits of a few queries with `chunk_items` items at a time.

    The backward pass makes them again: memory is that of one tile and of the gradients, time one
    more product, and less than that where the logits would not fit the cache. Where the catalogue
    is split over devices, every chunk is a piece of each device's part.
    """
    log_normalizers, target_logits, logit_sums = catalogue_sums(
        scorer, queries, places, targets, chunk_items
    )
    return log_normalizers, target_logits, logit_sums / scorer.num_items


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
) -> Sums:
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
      (log_normalizers, target_logits, mean_logits), float32 [N].

    Source: sampled softmax, Bengio and Senecal (2008); logQ for in-batch negatives, Yi et al.
    (RecSys 2019). Differs from them: drawn without replacement, one item a stratum, so that
    probabilities are exact; batch items are certain and need no estimate of their frequency.
    """
    num_rows = scorer.num_items + scorer.num_forgotten
    edges = strata(num_rows, min(num_negatives, num_rows), log_uniform=log_uniform)
    starts, ends = jnp.asarray(edges[:-1]), jnp.asarray(edges[1:])
    items = 1 + jax.random.randint(key, starts.shape, starts, ends)
    log_weights = jnp.log((ends - starts).astype(jnp.float32))
    counted = scorer.is_item[items] if scorer.num_forgotten else jnp.ones(items.shape, bool)
    if in_batch:
        # Sorted, so that 0 (no target) comes first where there is one, and pads the rest.
        batch = jnp.unique(targets, size=min(len(targets), num_rows + 1), fill_value=0)
        counted = jnp.concatenate([counted & ~jnp.isin(items, batch), batch > 0])
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
    mean_logits = (target_logits + weighted.sum(1)) / scorer.num_items
    return log_normalizer, target_logits, mean_logits


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
    generate_weight: float = 0.0,
    target_weights: jax.Array | None = None,
    softmax: Softmax = full_softmax,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a batch and what to report of it: the weighted sum by the number of requests.

        -(1 - e) log p(target) - e mean_v log p_generate(v) - w log p_generate(target)

    p is the mixture of the head; smoothing acts on the generating part alone, because the
    pointer can only ever reach the items of the history.

    Args:
      prediction: of the model, [B, R].
      targets: int32 [B, R]; 0 is not learned from.
      label_smoothing: e, in [0, 1].
      generate_weight: w, of the likelihood under the generating part alone.
      target_weights: float32 [rows], what a request with that target counts, 1 on average over the
        log; None = all one.
      softmax: of the generating part, see `make_softmax`.

    Returns:
      (loss, sums): float32 [], and sums to report: the number of requests, and weighted those of
      log-likelihood and of the gate.
    """
    targets = targets.reshape(-1)
    queries = prediction.queries.reshape(len(targets), -1)
    weights = (targets > 0).astype(jnp.float32)
    # Not of the weights: by their sum a batch of one domain would count as if it had none.
    num_requests = weights.sum()
    if target_weights is not None:
        weights = weights * target_weights[targets]
    places = prediction.places.reshape(len(targets), 3)
    scorer = prediction.scorer
    log_normalizers, target_logits, mean_logits = softmax(scorer, queries, places, targets)
    if prediction.boosts is not None:
        boosts = jax.tree.map(lambda part: part.reshape(len(targets), -1), prediction.boosts)
        logits = scorer.candidate_logits(queries, places, boosts.items)
        log_normalizers += boosts.log_growth(logits, log_normalizers)
        target_logits += boosts.of_items(targets)
        mean_logits += (boosts.logits / boosts.copies).sum(axis=-1) / scorer.num_items
    generated, mean_log_probs = target_logits - log_normalizers, mean_logits - log_normalizers
    log_gates = prediction.log_gates.reshape(len(targets), -1)
    pointed = prediction.target_log_masses.reshape(len(targets), -1)
    log_masses = jnp.concatenate([generated[:, None], pointed], axis=1)
    log_probs = jax.nn.logsumexp(log_gates + log_masses, axis=1)
    losses = -(1 - label_smoothing) * log_probs - label_smoothing * mean_log_probs
    losses = losses - generate_weight * generated
    loss = (losses * weights).sum() / jnp.maximum(num_requests, 1.0)
    sums = {
        "requests": num_requests,
        "log_likelihood": (log_probs * weights).sum(),
        "generating": (jnp.exp(log_gates[:, 0]) * weights).sum(),
    }
    return loss, sums
