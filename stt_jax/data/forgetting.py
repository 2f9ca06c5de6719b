"""Taking one person out of a prepared log, as if they had never been in it, as far as that goes.

Gone are their id, their events, and the words that only they had used: ids and names of items,
categories and context values that no event of anybody else holds. Rows of the vocabularies keep
their numbers, and those of items that are gone are marked, to be in no list and no count;
statistics, warnings and the report are made anew, and RecBole files removed. What stays is what
their events have gone into together with others': medians of the places of items, fitted fills and
scales, where a split by time cut, how much every step of the preparation did.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from stt_jax.data.findings import describe_log, find_warnings
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.report import render_report
from stt_jax.data.schema import EVENT_DTYPES, TRAIN, UNKNOWN_E7, StepCount
from stt_jax.data.store import FLAGS_FILE, FORMAT_VERSION, REPORT_FILE, open_log, write_log

_FORGOTTEN = "forgotten"


def without_person(log: PreparedLog, user_id: str) -> PreparedLog:
    """A log without one person.

    Args:
      log: a prepared log.
      user_id: as in the log.

    Returns:
      The other people's log, not stored yet; its data hash is still the old log's, which is among
      its former hashes, too.

    Raises:
      ValueError: no such person, or nobody else in the training part.
    """
    row = log.user_row(user_id)
    num_train_users = log.num_train_users - (row < log.num_train_users)
    if num_train_users == 0:
        raise ValueError(
            f"{user_id!r} is the only person in the training part of {log.directory}: remove the "
            "whole directory"
        )
    kept = np.ones(log.num_events, bool)
    kept[log.user_offsets[row] : log.user_offsets[row + 1]] = False
    events = {name: getattr(log, name)[kept] for name in EVENT_DTYPES}
    events["sessions"] = _renumber(events["sessions"])
    train = events["parts"] == TRAIN
    counts = np.bincount(events["items"][train], minlength=log.num_items + 1)
    counts[0] = 0
    contexts = {name: column[kept] for name, column in log.contexts.items()}
    gone = counts == 0  # item rows that nobody else's training events hold
    items = np.where(gone[log.items], 0, log.items)[kept]
    categories = np.where(gone, 0, log.item_categories).astype(np.int32)
    item_traits = {
        name: np.where(gone[:, None], 0, column).astype(np.int32)
        for name, column in log.item_traits.items()
    }
    user_traits = {name: np.delete(column, row) for name, column in log.user_traits.items()}
    used_categories = np.union1d(events["categories"], categories)
    num_gone = int(np.count_nonzero(~kept))
    step = StepCount(
        _FORGOTTEN, log.num_events, log.num_events - num_gone, {"by a person's wish": num_gone}, {}
    )
    meta = dataclasses.replace(
        log.meta,
        format_version=FORMAT_VERSION,
        steps=(*log.meta.steps, step),
        former_hashes=(*log.meta.former_hashes, log.meta.data_hash),
        forgotten_items=tuple((1 + np.flatnonzero(gone[1:])).tolist()),
    )
    left = dataclasses.replace(
        log,
        **{**events, "items": items.astype(np.int32)},
        contexts=contexts,
        user_offsets=np.concatenate([[0], np.cumsum(np.delete(np.diff(log.user_offsets), row))]),
        num_train_users=num_train_users,
        user_ids=[name for index, name in enumerate(log.user_ids) if index != row],
        item_ids=_blank(log.item_ids, gone),
        item_names=_blank(log.item_names, gone),
        item_latitudes_e7=np.where(gone, UNKNOWN_E7, log.item_latitudes_e7).astype(np.int32),
        item_longitudes_e7=np.where(gone, UNKNOWN_E7, log.item_longitudes_e7).astype(np.int32),
        item_categories=categories,
        item_train_counts=counts.astype(np.int64),
        category_values=_blank_unused(log.category_values, used_categories),
        context_values={
            name: _blank_unused(values, contexts[name])
            for name, values in log.context_values.items()
        },
        numbers={name: column[kept] for name, column in log.numbers.items()},
        was_missing={name: column[kept] for name, column in log.was_missing.items()},
        item_traits=item_traits,
        item_trait_values={
            name: _blank_unused(values, np.unique(item_traits[name]))
            for name, values in log.item_trait_values.items()
        },
        user_traits=user_traits,
        user_trait_values={
            name: _blank_unused(values, user_traits[name])
            for name, values in log.user_trait_values.items()
        },
        meta=meta,
    )
    # What else is among the statistics, such as the cuts of a split by time, is true as before.
    described = describe_log(log)
    others = {name: n for name, n in log.meta.statistics.items() if name not in described}
    meta = dataclasses.replace(
        meta, statistics=describe_log(left) | others, warnings=find_warnings(left)
    )
    return dataclasses.replace(left, meta=meta)


def forget_person(directory: str | os.PathLike, user_id: str) -> tuple[PreparedLog, PreparedLog]:
    """Takes a person out of the log in a directory, its report included; RecBole files go whole.

    Runs that were trained on it have still seen them; `python -m stt_jax.forget` names those.

    Args:
      directory: of a prepared log.
      user_id: as in the log.

    Returns:
      (the log as it was, the log as it is), the first only good for its counts and hashes.

    Raises:
      ValueError: as `without_person`.
    """
    directory = pathlib.Path(directory)
    before = open_log(directory)
    flags = (directory / FLAGS_FILE).read_text(encoding="utf-8")
    write_log(without_person(before, user_id), flags)
    after = open_log(directory)
    (directory / REPORT_FILE).write_text(render_report(after), encoding="utf-8")
    return before, after


def _renumber(sessions: np.ndarray) -> np.ndarray:
    """Sessions from 1 without holes, in the same order; 0 stays 0."""
    known = sessions > 0
    numbers = np.zeros_like(sessions)
    numbers[known] = np.unique(sessions[known], return_inverse=True)[1] + 1
    return numbers


def _blank(texts: Sequence[str], gone: np.ndarray) -> list[str]:
    """The texts, those that are gone replaced; row 0 stays as it is."""
    return [f"{_FORGOTTEN}-{row}" if row and gone[row] else text for row, text in enumerate(texts)]


def _blank_unused(values: Sequence[str], used: np.ndarray) -> list[str]:
    gone = np.ones(len(values), bool)
    gone[used] = False
    return _blank(values, gone)
