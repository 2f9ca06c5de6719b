"""Ranks of evaluation targets under a model, over the full catalogue, in both request modes.

Several models of one kind (an ensemble) rank by the mean of their probabilities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from stt_jax.batch import Catalogue, History, Requests, table_rows
from stt_jax.data.pipeline import target_batches
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import MODES, Targets
from stt_jax.mesh import DATA
from stt_jax.metrics import MISS, target_ranks
from stt_jax.model.stt import SpatiotemporalTransformer, wanted_items
from stt_jax.training.sharding import Placement

_MAX_SCORES = 1 << 25  # scores held at once, 128 MiB

Ranker = Callable[..., dict[str, jax.Array]]


def make_ranker(model: SpatiotemporalTransformer) -> Ranker:
    """The jitted `(members, catalogue, history, requests, allowed, modes) -> ranks of the targets`.

    It gives mode -> int32 [B, R]. `members` are the parameters of each model. The history is
    encoded once for all modes. `allowed`, bool [B, R, rows], says what may be ranked; None = every
    item.
    """

    def ranks(
        members: Sequence[Any],
        catalogue: Catalogue,
        history: History,
        requests: Requests,
        allowed: jax.Array | None,
        modes: tuple[str, ...],
    ) -> dict[str, jax.Array]:
        states = [
            model.apply({"params": params}, history, deterministic=True, method=model.encode)
            for params in members
        ]
        found = {}
        for mode in modes:
            asked = in_mode(requests, mode)
            probabilities = jnp.zeros(())
            for params, encoded in zip(members, states, strict=True):
                probabilities += cast(
                    jax.Array,
                    model.apply(
                        {"params": params},
                        catalogue,
                        history,
                        asked,
                        encoded,
                        method=model.item_probabilities,
                    ),
                )
            ranked = catalogue.is_item[None, None]
            if (wanted := wanted_items(catalogue, asked)) is not None:
                ranked = ranked & wanted
            scores = jnp.where(ranked, probabilities, -jnp.inf)
            if allowed is not None:
                scores = jnp.where(allowed, scores, -jnp.inf)
            flat = scores.reshape(-1, scores.shape[-1])
            flat_ranks = target_ranks(flat, requests.targets.reshape(-1))
            found[mode] = flat_ranks.reshape(requests.targets.shape)
        return found

    return jax.jit(ranks, static_argnames="modes")


def in_mode(requests: Requests, mode: str) -> Requests:
    """Hides what a mode does not tell: the place always, the time in mode "unknown"."""
    return dataclasses.replace(
        requests,
        time_known=requests.time_known & (mode == "known"),
        coords=jnp.full_like(requests.coords, jnp.nan),
    )


def model_ranks(
    ranker: Ranker,
    params: Any,
    catalogue: Catalogue,
    log: PreparedLog,
    targets: Targets,
    *,
    modes: tuple[str, ...] = MODES,
    window: int,
    others: Sequence[Any] = (),
    leave_out_seen: bool = False,
    name_domains: bool = False,
    placement: Placement | None = None,
) -> dict[str, np.ndarray]:
    """Ranks every target.

    Args:
      ranker: of `make_ranker`.
      params, catalogue: the model's.
      log, targets: what to predict.
      modes: request modes, of `MODES`.
      window: tokens of history that a request sees at most.
      others: parameters of further models; the mean of all probabilities ranks.
      leave_out_seen: rank no item of the target's context, however long that is.
      name_domains: requests say which domain they want, that of the target, and only its items are
        ranked; without domains in the log it means nothing.
      placement: where params and catalogue live; rows of batches are shared out over its devices.
        None = one device.

    Returns:
      mode -> int32 [T], 1 = best, `MISS` where the target is not in the vocabulary, or is
      left out because it was seen.
    """
    members = (params, *others)
    ranks = {mode: np.full(len(targets), MISS, np.int32) for mode in modes}
    for history, requests, allowed, index in asked_batches(
        log,
        targets,
        window=window,
        leave_out_seen=leave_out_seen,
        name_domains=name_domains,
        placement=placement,
    ):
        filled = index >= 0
        for mode, found in ranker(members, catalogue, history, requests, allowed, modes).items():
            whole = multihost_utils.process_allgather(found, tiled=True)
            ranks[mode][index[filled]] = np.asarray(whole)[filled]
    return ranks


def asked_batches(
    log: PreparedLog,
    targets: Targets,
    *,
    window: int,
    leave_out_seen: bool,
    name_domains: bool,
    placement: Placement | None,
    max_scores: int = _MAX_SCORES,
) -> Iterator[tuple[History, Requests, jax.Array | np.ndarray | None, np.ndarray]]:
    """Batches on the devices that ask for every target once.

    Args:
      log, targets, window, leave_out_seen, name_domains, placement: as in `model_ranks`.
      max_scores: requests times rows of the catalogue, of a batch.

    Yields:
      (history, requests, allowed, index): allowed bool [B, R, rows], the items that may be ranked,
      None = every one; the others as of `target_batches`.
    """
    if len(targets) == 0:
        return
    lengths = (targets.events - targets.session_starts) + (
        targets.history_ends - targets.history_starts
    )
    row_requests = int(np.clip(window // max(1, np.minimum(lengths, window).mean()), 1, 32))
    batch_rows = int(np.clip(max_scores // (row_requests * table_rows(log.num_items)), 1, 32))
    if placement is not None:
        shared = placement.mesh.shape[DATA]
        batch_rows = -(-batch_rows // shared) * shared
    for history, requests, index in target_batches(
        log, targets, window=window, row_requests=row_requests, batch_rows=batch_rows
    ):
        if requests.domains is not None and not name_domains:
            every = np.ones_like(requests.domains)
            requests = dataclasses.replace(requests, domains=every)
        allowed = _unseen(log, targets, index) if leave_out_seen else None
        if placement is not None:
            history, requests, allowed = placement.put_whole(
                (history, requests, allowed), placement.by_row
            )
        yield history, requests, allowed, index


def _unseen(log: PreparedLog, targets: Targets, index: np.ndarray) -> np.ndarray:
    """bool [B, R, rows], the items that are not in the context of the target at each place."""
    allowed = np.ones((*index.shape, table_rows(log.num_items)), bool)
    for row, place in zip(*np.nonzero(index >= 0), strict=True):
        allowed[row, place, log.items[targets.context(index[row, place])]] = False
    return allowed
