"""What there is to say about a prepared log: its numbers, and what should make one suspicious."""

from __future__ import annotations

from typing import Any

import numpy as np

from stt_jax.data.schema import PART_NAMES, TEST, TRAIN, UNKNOWN_E7, VALIDATION
from stt_jax.data.store import PreparedLog

# Logs of behaviour from before 1990 or after 2100 are likelier to be misread than real.
EARLY_S, LATE_S = 631_152_000, 4_102_444_800
_DAY_S = 86_400
_LARGE_SHARE = 0.4  # of all events, by one user
_TIED_SHARE = 0.05  # of a user's steps in time, without a second in between
_SAME_SECOND_SHARE = 0.01  # of all events, in one second
_BUSY_DAY = 20  # events of a usual day, from which on an empty day is remarkable


def iso_time(time_s: int) -> str:
    """Unix seconds for people to read."""
    moment = np.datetime64(int(time_s), "s")
    return f"{moment}Z"


def describe_log(log: PreparedLog) -> dict[str, Any]:
    """Numbers about a log: sizes by part, and how much of each part training has seen."""
    users = np.repeat(np.arange(log.num_users), np.diff(log.user_offsets))
    known = (users < log.num_train_users) & (log.items > 0)
    statistics: dict[str, Any] = {
        "num_events": log.num_events,
        "num_users": log.num_users,
        "num_train_users": log.num_train_users,
        "num_items": log.num_items,
        "num_categories": log.num_categories,
        "num_contexts": {name: len(texts) - 1 for name, texts in log.context_values.items()},
        "num_sessions": int(log.sessions.max()),
        "median_user_events": float(np.median(np.diff(log.user_offsets))),
        "events_without_place": int(np.count_nonzero(log.latitudes_e7 == UNKNOWN_E7)),
        "events_without_category": int(np.count_nonzero(log.categories == 0)),
    }
    for part, name in enumerate(PART_NAMES):
        mask = log.parts == part
        statistics[f"{name}_events"] = int(np.count_nonzero(mask))
        statistics[f"{name}_users"] = len(np.unique(users[mask]))
        statistics[f"{name}_known_events"] = int(np.count_nonzero(mask & known))
        if log.meta.has_times and mask.any():
            statistics[f"{name}_first_s"] = int(log.times[mask].min())
            statistics[f"{name}_last_s"] = int(log.times[mask].max())
    return statistics


def find_warnings(log: PreparedLog) -> tuple[str, ...]:
    """What a careful person would want to know before training on a log."""
    users = np.repeat(np.arange(log.num_users), np.diff(log.user_offsets))
    same_user = users[1:] == users[:-1]
    return (
        *_warn_of_parts(log, users, same_user),
        *_warn_of_people(log),
        *(_warn_of_times(log, same_user) if log.meta.has_times else ()),
        *_warn_of_sessions(log),
    )


def _warn_of_parts(log: PreparedLog, users: np.ndarray, same_user: np.ndarray) -> list[str]:
    warnings = []
    for part in (VALIDATION, TEST):
        if not (log.parts == part).any():
            warnings.append(f"the {PART_NAMES[part]} part is empty")
    num_early = int(np.count_nonzero(same_user & (log.parts[1:] < log.parts[:-1])))
    if num_early:
        warnings.append(
            f"{num_early} times an event of an earlier part follows one of a later part in a "
            "user's order: training data may come after test data"
        )
    test = log.parts == TEST
    unknown = test & (log.items == 0)
    if 2 * np.count_nonzero(unknown) > np.count_nonzero(test):
        warnings.append(
            f"{np.count_nonzero(unknown)} of {np.count_nonzero(test)} test events are at items "
            "that training never saw; no model can name those"
        )
    if log.meta.has_times and (log.parts == TRAIN).any() and test.any():
        late = (log.parts == TRAIN) & (log.times > log.times[test].min())
        share = np.count_nonzero(late) / np.count_nonzero(log.parts == TRAIN)
        if share > 0.01:
            warnings.append(
                f"{share:.0%} of the training events come after the first test event: what others "
                "did later is known in training (leakage, unless the split means it so)"
            )
    return warnings


def _warn_of_people(log: PreparedLog) -> list[str]:
    counts = np.diff(log.user_offsets)
    largest = int(counts.argmax())
    share = counts[largest] / log.num_events
    if len(counts) < 2 or share < _LARGE_SHARE:
        return []
    return [
        f"one user ({log.user_ids[largest]}) has {share:.0%} of the events: a machine or a shared "
        "account? --max_events_per_day drops those"
    ]


def _warn_of_times(log: PreparedLog, same_user: np.ndarray) -> list[str]:
    warnings = []
    first, last = int(log.times.min()), int(log.times.max())
    if first < EARLY_S or last > LATE_S:
        warnings.append(
            f"times run from {iso_time(first)} to {iso_time(last)}: is --time the right column?"
        )
    num_tied = int(np.count_nonzero(same_user & (log.times[1:] == log.times[:-1])))
    if num_tied > _TIED_SHARE * max(1, int(np.count_nonzero(same_user))):
        warnings.append(
            f"{num_tied} events have the time of their user's event before: within such a moment "
            "the order is that of the rows, which may mean nothing"
        )
    seconds, counts = np.unique(log.times, return_counts=True)
    if log.num_events >= 1_000 and counts.max() > _SAME_SECOND_SHARE * log.num_events:
        warnings.append(
            f"{counts.max()} events are at the very second {iso_time(seconds[counts.argmax()])}: "
            "a default value instead of a time?"
        )
    days, counts = np.unique(log.times // _DAY_S, return_counts=True)
    jumps = np.flatnonzero(np.diff(days) > 1)
    if len(jumps) and np.median(counts) >= _BUSY_DAY:
        longest = jumps[np.argmax(np.diff(days)[jumps])]
        num_silent = int((np.diff(days)[jumps] - 1).sum())
        warnings.append(
            f"the clock jumps: no event at all on {num_silent} days, the longest time after "
            f"{iso_time((days[longest] + 1) * _DAY_S - 1)}; is a part of the log missing?"
        )
    return warnings


def _warn_of_sessions(log: PreparedLog) -> list[str]:
    changes = (log.sessions[1:] != log.sessions[:-1]) & (log.sessions[1:] > 0)
    num_runs = int(np.count_nonzero(changes)) + int(log.sessions[0] > 0)
    num_sessions = int(log.sessions.max())
    if num_runs <= num_sessions:
        return []
    return [
        f"{num_runs - num_sessions} times another session lies between two events of one "
        "session: sessions overlap in time"
    ]
