"""Who was trained on? The loss-threshold attack, and logs of those who were and who were not.

A model tends to find likelier what it was trained on. The attack calls everybody a member whose
events it finds likelier than a threshold. Over all thresholds that is a ROC curve, and the area
under it the probability that a member's events are likelier than those of somebody else: 0.5 tells
nothing, 1 everything.

Source: Yeom et al., "Privacy risk in machine learning: analyzing the connection to overfitting"
(CSF 2018). Differs from it: what is told is a person, by the mean over their events, not an
example; all thresholds in place of the one at the mean training loss.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np

from stt_jax.data.gather import gather_history, gather_requests
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.schema import EVENT_DTYPES
from stt_jax.data.store import TRAIN
from stt_jax.data.windows import training_windows
from stt_jax.model.mixture import Prediction
from stt_jax.relations import model_catalogue
from stt_jax.training.losses import mixture_loss
from stt_jax.training.ranks import in_mode
from stt_jax.training.run import Run

_BATCH_ROWS = 32


def split_people(log: PreparedLog, *, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws who is trained on.

    Args:
      log: a prepared log.
      share: fraction of the people with training events that are members.
      seed: of the draw.

    Returns:
      (members, others): int64 [M] and [N], ascending user rows, all with training events.
    """
    order = np.random.default_rng(seed).permutation(log.num_train_users)
    num_members = round(share * len(order))
    return np.sort(order[:num_members]), np.sort(order[num_members:])


def draw_people(rows: np.ndarray, num_people: int, *, seed: int) -> np.ndarray:
    """At most so many of the rows, int64 ascending, drawn without replacement."""
    if num_people >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, num_people, replace=False))


def select_people(log: PreparedLog, rows: np.ndarray) -> PreparedLog:
    """The log of some of its people alone, with the vocabularies and the split of all.

    Args:
      log: a prepared log.
      rows: int64 [P], ascending user rows, all with training events.

    Returns:
      A log in memory whose user row i is row `rows[i]`. Its `data_hash` says who is in it, so that
      a run on it goes with no other.
    """
    lengths = np.diff(log.user_offsets)
    chosen = np.zeros(log.num_users, bool)
    chosen[rows] = True
    events = np.flatnonzero(np.repeat(chosen, lengths))

    def of_events(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {name: column[events] for name, column in columns.items()}

    kept = of_events({name: getattr(log, name) for name in EVENT_DTYPES})
    user_ids = [log.user_ids[row] for row in rows.tolist()]
    named = "\n".join([log.meta.data_hash, *user_ids])
    trained = kept["items"][kept["parts"] == TRAIN]
    return dataclasses.replace(
        log,
        **kept,
        contexts=of_events(log.contexts),
        numbers=of_events(log.numbers),
        was_missing=of_events(log.was_missing),
        user_offsets=np.concatenate([[0], np.cumsum(lengths[rows])]).astype(np.int64),
        num_train_users=len(rows),
        user_ids=user_ids,
        user_traits={name: column[rows] for name, column in log.user_traits.items()},
        item_train_counts=np.bincount(trained, minlength=log.num_items + 1),
        meta=dataclasses.replace(
            log.meta, data_hash=hashlib.sha256(named.encode()).hexdigest(), warnings=(), steps=()
        ),
    )


def mean_log_likelihoods(run: Run, log: PreparedLog, *, mode: str) -> np.ndarray:
    """How likely a model finds what each person did in the training part.

    Every training event is asked for once, with the history that training shows it and without
    dropout. An item outside the vocabulary is not asked for.

    Args:
      run: a trained model without an embedding per person, so that it asks for all people alike.
      log: of P people to ask for, with the vocabularies of the log that the run was trained on.
      mode: what requests tell, of `data.protocol.MODES`.

    Returns:
      float64 [P], mean log-likelihood per event; NaN where there is none to ask for.

    Raises:
      ValueError: the model has an embedding per person.
    """
    if run.model_config.use_person:
        raise ValueError(
            "a model with an embedding per person has none for those it was not trained on; train "
            "it with --use_person=false"
        )
    windows = training_windows(log, window=run.training.window, requests=run.training.requests)
    items = jax.tree.map(jax.numpy.asarray, model_catalogue(log, run.model_config))

    def of_row(params: Any, items: Any, history: Any, requests: Any) -> tuple[jax.Array, jax.Array]:
        history, requests = jax.tree.map(lambda array: array[None], (history, requests))
        prediction = run.model.apply(
            {"params": params}, items, history, in_mode(requests, mode), deterministic=True
        )
        _, sums = mixture_loss(cast(Prediction, prediction), requests.targets, label_smoothing=0.0)
        return sums["log_likelihood"], sums["requests"]

    of_rows = jax.jit(jax.vmap(of_row, in_axes=(None, None, 0, 0)))
    sums = np.zeros((2, log.num_train_users))
    for first in range(0, len(windows), _BATCH_ROWS):
        chosen = np.arange(first, min(first + _BATCH_ROWS, len(windows)))
        rows = [np.array([index]) for index in chosen]
        rows += [np.zeros(0, np.int64)] * (_BATCH_ROWS - len(rows))
        history, layout = gather_history(log, windows, rows, row_tokens=run.training.window)
        requests = gather_requests(log, layout, (_BATCH_ROWS, run.training.requests))
        found = of_rows(run.params, items, history, requests)
        for total, of_windows in zip(sums, found, strict=True):
            np.add.at(total, windows.users[chosen], np.asarray(of_windows)[: len(chosen)])
    log_likelihoods, num_requests = sums
    asked = num_requests > 0
    return np.where(asked, log_likelihoods / np.where(asked, num_requests, 1), np.nan)


def auc(members: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """The area under the ROC curve of telling members from others by a score.

    Args:
      members: float [M], scores of members; higher says "member".
      others: float [N], scores of the others.

    Returns:
      (area, standard error): the area is the fraction of pairs in which the member scores higher,
      a tie counting half (Mann and Whitney); its error is that of DeLong et al. (1988), from how
      the fraction varies over the members and over the others.

    Raises:
      ValueError: fewer than two scores on a side, or one that is NaN.
    """
    if min(len(members), len(others)) < 2 or np.isnan(members).any() or np.isnan(others).any():
        raise ValueError(
            "members and others must be two scores or more each, none of them NaN; got "
            f"{len(members)} and {len(others)}"
        )
    above = _fraction_below(others, members)  # [M]
    below = 1 - _fraction_below(members, others)  # [N]
    variance = above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below)
    return float(above.mean()), float(np.sqrt(variance))


def _fraction_below(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """float64 [T], the fraction of `scores` below each threshold, those equal to it by half."""
    ordered = np.sort(scores)
    less = np.searchsorted(ordered, thresholds, side="left")
    no_more = np.searchsorted(ordered, thresholds, side="right")
    return (less + no_more) / (2 * len(ordered))
