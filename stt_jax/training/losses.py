"""Training losses: the negative log-likelihood of the generate-or-point mixture."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from stt_jax.model.head import ItemScorer
from stt_jax.model.stt import Prediction


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


def mixture_loss(
    prediction: Prediction, targets: jax.Array, *, label_smoothing: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean over the requests of  -(1 - e) log p(target) - e mean_v log p_generate(v).

    p is the mixture of the head; smoothing acts on the generating part alone, because the
    pointer can only ever reach the items of the history.

    Args:
      prediction: of the model, [B, R].
      targets: int32 [B, R]; 0 is not learned from.
      label_smoothing: e, in [0, 1].

    Returns:
      (loss, sums): float32 [], and sums to report: number of requests, of log-likelihood and of
      the gate.
    """
    targets = targets.reshape(-1)
    queries = prediction.queries.reshape(len(targets), -1)
    weights = (targets > 0).astype(jnp.float32)
    places = prediction.places.reshape(len(targets), 3)
    log_probs, mean_log_probs = full_softmax(prediction.scorer, queries, places, targets)
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
