"""The weights of the mixture's sources, moved to what ranks best once training has ended.

Training asks at a time when everything is fresh, and for likelihood. A model is asked later, when
articles have aged and what the crowd did is old, and for a list: then the sources are worth
something else than what their gate learned. One number a source, added to the gate's logits, is
found on the validation part by coordinate search for the metric that the run is selected by, as the
weights of the counting mix are (`stt_jax.baseline_tuning`). The likelihood of a bias fitted by
gradient was better only where the two moments differ (`benchmarks/NOTES.md`).
"""

from __future__ import annotations

import itertools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from stt_jax.batch import Catalogue, History, Requests
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import MODES, Targets
from stt_jax.metrics import ranking_metrics
from stt_jax.model.stt import SpatiotemporalTransformer, wanted_items
from stt_jax.training.ranks import asked_batches, in_mode
from stt_jax.training.sharding import Placement

_MAX_TARGETS = 8000  # drawn by a fixed seed
_TOGETHER = 100  # candidates of a target: the best of the mixture,
_EACH = 30  # and of every source
_MAX_ROUNDS = 4
_MOVES = (-2.0, 2.0, -1.0, 1.0, -0.5, 0.5, -0.25, 0.25)
_MAX_MASSES = 1 << 22  # of a batch: requests times sources times rows of the catalogue


def fit_gates(
    model: SpatiotemporalTransformer,
    params: Any,
    catalogue: Catalogue,
    log: PreparedLog,
    targets: Targets,
    *,
    window: int,
    leave_out_seen: bool,
    name_domains: bool,
    placement: Placement,
    metric: str = "mrr",
) -> Any:
    """The parameters with the mixture's gate fitted to some targets, in both request modes.

    Args:
      model, params, catalogue: the model's.
      log, targets, window, leave_out_seen, name_domains, placement: as in `ranks.model_ranks`.
      metric: what is best, as of `find_biases`.

    Returns:
      As `params`; what is not the gate's bias is the same.
    """
    gate = params["mixer"]["gate"]
    num_sources = gate["bias"].shape[0] + bool(model.config.habit_share)
    asked = asked_batches(
        log,
        targets.sample(_MAX_TARGETS, seed=0),
        window=window,
        leave_out_seen=leave_out_seen,
        name_domains=name_domains,
        placement=placement,
        max_scores=_MAX_MASSES // num_sources,
    )
    modes = MODES if log.meta.has_times else MODES[:1]

    @jax.jit
    def ask(
        params: Any, catalogue: Catalogue, history: History, requests: Requests, allowed: Any
    ) -> list[Any]:
        variables = {"params": params}
        states = model.apply(variables, history, deterministic=True, method=model.encode)
        found = []
        for mode in modes:
            asked_in_mode = in_mode(requests, mode)
            log_gates, masses = cast(
                tuple[jax.Array, jax.Array],
                model.apply(
                    variables, catalogue, history, asked_in_mode, states, method=model.source_masses
                ),
            )
            ranked = jnp.ones((1, 1, 1), bool) if allowed is None else allowed
            if (wanted := wanted_items(catalogue, asked_in_mode)) is not None:
                ranked = ranked & wanted
            found.append((log_gates, *find_candidates(log_gates, masses, requests.targets, ranked)))
        return found

    parts: list[list[np.ndarray]] = []
    for history, requests, allowed, index in asked:
        for of_mode in ask(params, catalogue, history, requests, allowed):
            whole = multihost_utils.process_allgather(of_mode, tiled=True)
            parts.append([np.asarray(array)[index >= 0] for array in whole])
    log_gates, masses, counted = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    added = find_biases(log_gates, masses, counted, gate["bias"].shape[0], metric)
    moved = jax.device_put(gate["bias"] + added, gate["bias"].sharding)
    return {**params, "mixer": {**params["mixer"], "gate": {**gate, "bias": moved}}}


def find_candidates(
    log_gates: jax.Array, masses: jax.Array, targets: jax.Array, ranked: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The items that may come before a target, whatever the weights of the sources.

    Args:
      log_gates: float32 [B, R, 1 + M].
      masses: float32 [B, R, 1 + M, rows], of every source for every item.
      targets: int32 [B, R].
      ranked: bool, broadcast to [B, R, rows], which items are ranked at all.

    Returns:
      (masses, counted): float32 [B, R, 1 + M, C], the target first, and bool [B, R, C], whether a
      place holds another item than the target and those before it.
    """
    num_rows = masses.shape[-1]
    masses = jnp.where(ranked[:, :, None], masses, 0.0)
    mixture = jnp.einsum("brm,brmv->brv", jnp.exp(log_gates), masses)
    together = jax.lax.top_k(mixture, min(_TOGETHER, num_rows))[1]
    each = jax.lax.top_k(masses, min(_EACH, num_rows))[1]
    items = jnp.concatenate(
        [targets[..., None], together, each.reshape(*targets.shape, -1)], axis=-1
    )
    found = jnp.take_along_axis(masses, items[:, :, None], axis=-1)
    order = jnp.argsort(items, axis=-1, stable=True)
    ordered = jnp.take_along_axis(items, order, axis=-1)
    is_new = jnp.diff(ordered, axis=-1, prepend=-1) > 0
    back = jnp.argsort(order, axis=-1)
    counted = jnp.take_along_axis(is_new, back, axis=-1)
    ranked = jnp.broadcast_to(ranked, mixture.shape)
    counted &= jnp.take_along_axis(ranked, items, axis=-1)
    return found, counted & (items != targets[..., None]) & (items > 0)


def find_biases(
    log_gates: np.ndarray,
    masses: np.ndarray,
    counted: np.ndarray,
    num_gated: int,
    metric: str = "mrr",
) -> np.ndarray:
    """What to add to the gate's logits for the best `metric`, float32 [num_gated].

    Args:
      log_gates: float32 [N, 1 + M], log-weights of the sources for every target.
      masses, counted: [N, 1 + M, C] and [N, C], of `find_candidates`.
      num_gated: sources that are weighed by the gate; those after them keep their share.
      metric: of `stt_jax.metrics.ranking_metrics`.
    """
    gates = np.exp(log_gates)
    gated, fixed = gates[:, :num_gated], gates[:, num_gated:]
    shared_out = gated.sum(axis=1, keepdims=True)

    def quality(added: np.ndarray) -> float:
        moved = gated * np.exp(added)
        moved *= shared_out / moved.sum(axis=1, keepdims=True)
        scores = np.einsum("nm,nmc->nc", np.concatenate([moved, fixed], axis=1), masses)
        ahead = counted & (scores >= scores[:, :1])  # ties against
        return ranking_metrics(1 + ahead.sum(axis=1), (1, 10))[metric]

    added = np.zeros(num_gated, np.float32)
    best = quality(added)
    for _ in range(_MAX_ROUNDS):
        before = best
        for source, move in itertools.product(range(len(added)), _MOVES):
            moved = added.copy()
            moved[source] += move
            if (found := quality(moved)) > best:
                best, added = found, moved
        if best == before:
            break
    return added
