"""Holds people and items out of a prepared log entirely, as if they came after training."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import Any

import numpy as np

from stt_jax.data.newitems import add_items
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import Targets
from stt_jax.data.schema import EVENT_DTYPES
from stt_jax.data.store import TEST, TRAIN, VALIDATION, open_log, write_log


@dataclasses.dataclass(frozen=True)
class ColdLogs:
    """A log in three views; people and items that all views know have the same rows in them.

    Attributes:
      train: warm people at warm items; their last event is the test, the one before validates.
      people: and behind them the cold people, at warm items.
      items: warm people, and the cold items behind the warm ones with what is known of them.
      num_cold_users, num_cold_items: how many are held out.
    """

    train: PreparedLog
    people: PreparedLog
    items: PreparedLog
    num_cold_users: int
    num_cold_items: int


def hold_out(log: PreparedLog, directory: pathlib.Path, *, share: float, seed: int) -> ColdLogs:
    """Draws cold people and items, and stores the log of the others for training.

    Args:
      log: a prepared log; its own split is not looked at.
      directory: where the training log goes.
      share: fraction of the people and of the items that are held out.
      seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    cold_users = rng.random(log.num_users) < share
    cold_items = rng.random(log.num_items + 1) < share
    cold_items[0] = False
    users = np.repeat(np.arange(log.num_users), np.diff(log.user_offsets))
    known = log.items > 0
    warm_events = known & ~cold_users[users] & ~cold_items[log.items]
    # People of whom too little is left to train, validate and test take no part.
    lengths = np.bincount(users[warm_events], minlength=log.num_users)
    warm_users = ~cold_users & (lengths >= 3)
    warm_events &= warm_users[users]
    left = np.zeros(log.num_events, np.int64)  # warm events of the person from this one on
    rows = np.flatnonzero(warm_events)
    ends = np.cumsum(lengths[warm_users])[np.cumsum(warm_users)[users[rows]] - 1]
    left[rows] = ends - np.arange(len(rows))
    parts = np.full(log.num_events, TEST, np.int8)
    parts[warm_events & (left == 2)] = VALIDATION
    parts[warm_events & (left > 2)] = TRAIN
    counts = np.bincount(log.items[parts == TRAIN], minlength=log.num_items + 1)
    counts[0] = 0
    order = np.lexsort((np.arange(len(counts)), -counts))
    warm_items = order[counts[order] > 0]
    cold = np.flatnonzero(cold_items).tolist()
    item_rows = np.zeros(log.num_items + 1, np.int64)
    item_rows[warm_items] = np.arange(1, len(warm_items) + 1)
    item_rows[cold] = len(warm_items) + 1 + np.arange(len(cold))

    described = _with_items(log, np.concatenate([[0], warm_items]), counts)
    train = _with_events(described, log, np.flatnonzero(warm_users), warm_events, parts, item_rows)
    chosen = "\n".join(
        [
            *(log.user_ids[u] for u in np.flatnonzero(cold_users).tolist()),
            *(log.item_ids[i] for i in cold),
        ]
    )
    meta = dataclasses.replace(
        train.meta, split_hash=hashlib.sha256(chosen.encode()).hexdigest(), warnings=(), steps=()
    )
    write_log(dataclasses.replace(train, meta=meta, directory=directory), "")
    train = open_log(directory)

    cold_rows = np.flatnonzero(cold_users)
    of_cold = cold_users[users] & known & ~cold_items[log.items]
    everybody = np.concatenate([np.flatnonzero(warm_users), cold_rows])
    people = _with_events(train, log, everybody, warm_events | of_cold, parts, item_rows)
    wider = add_items(
        train,
        [log.item_ids[i] for i in cold],
        name=[log.item_names[i] for i in cold],
        category=[log.category_values[log.item_categories[i]] for i in cold],
        latitude=[_degrees(log.item_latitudes_e7[i]) for i in cold],
        longitude=[_degrees(log.item_longitudes_e7[i]) for i in cold],
        traits={
            name: [[log.item_trait_values[name][v] for v in values[i] if v] for i in cold]
            for name, values in log.item_traits.items()
        },
    )
    at_cold = warm_users[users] & cold_items[log.items]
    items = _with_events(
        wider, log, np.flatnonzero(warm_users), warm_events | at_cold, parts, item_rows
    )
    return ColdLogs(train, people, items, len(cold_rows), len(cold))


def people_targets(logs: ColdLogs, num_known: int, num_next: int) -> Targets:
    """The next events of cold people of whom the first `num_known` are known, and no more."""
    log = logs.people
    cold = np.arange(logs.train.num_users, log.num_users)
    starts, ends = log.user_offsets[cold] + num_known, log.user_offsets[cold + 1]
    counts = np.clip(ends - starts, 0, num_next)
    users = np.repeat(cold, counts)
    nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    events = np.repeat(starts, counts) + nth
    targets = Targets(users, events, log.user_offsets[users], np.repeat(starts, counts), events)
    return targets[log.items[events] > 0]


def item_targets(logs: ColdLogs) -> Targets:
    """The events of warm people at cold items, with all that they had before."""
    log = logs.items
    events = np.flatnonzero(log.items > logs.train.num_items)
    users = np.searchsorted(log.user_offsets, events, side="right") - 1
    starts = log.user_offsets[users]
    return Targets(users, events, starts, events, events)


def join_targets(parts: list[Targets]) -> Targets:
    """Targets one after the other."""
    fields = [field.name for field in dataclasses.fields(Targets)]
    return Targets(*(np.concatenate([getattr(p, name) for p in parts]) for name in fields))


def _with_items(log: PreparedLog, items: np.ndarray, counts: np.ndarray) -> PreparedLog:
    """The log with these rows of its items; events are still the old ones."""
    return dataclasses.replace(
        log,
        item_ids=[log.item_ids[i] for i in items.tolist()],
        item_names=[log.item_names[i] for i in items.tolist()],
        item_latitudes_e7=log.item_latitudes_e7[items],
        item_longitudes_e7=log.item_longitudes_e7[items],
        item_categories=log.item_categories[items],
        item_train_counts=counts[items].astype(np.int64),
        item_traits={name: values[items] for name, values in log.item_traits.items()},
    )


def _with_events(
    described: PreparedLog,
    log: PreparedLog,
    users: np.ndarray,
    chosen: np.ndarray,
    parts: np.ndarray,
    item_rows: np.ndarray,
) -> PreparedLog:
    """`described` with the chosen events of `log`, of these users in this order."""
    ranges = [np.arange(log.user_offsets[u], log.user_offsets[u + 1]) for u in users]
    of_users = [events[chosen[events]] for events in ranges]
    events = np.concatenate(of_users)
    columns: dict[str, Any] = {name: getattr(log, name)[events] for name in EVENT_DTYPES}
    columns["items"] = item_rows[columns["items"]].astype(np.int32)
    columns["parts"] = parts[events]
    trained = [bool(np.any(parts[own] == TRAIN)) for own in of_users]
    return dataclasses.replace(
        described,
        **columns,
        contexts={name: column[events] for name, column in log.contexts.items()},
        numbers={},
        was_missing={},
        user_offsets=np.concatenate([[0], np.cumsum([len(own) for own in of_users])]),
        num_train_users=sum(trained),
        user_ids=[log.user_ids[u] for u in users.tolist()],
        user_traits={name: column[users] for name, column in log.user_traits.items()},
    )


def _degrees(e7: int) -> str:
    return "" if e7 == -(2**31) else f"{e7 * 1e-7:.7f}"
