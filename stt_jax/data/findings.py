"""What there is to say about a prepared log: its numbers, and what should make one suspicious."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.schema import NUMBER_LIMIT, PART_NAMES, TEST, TRAIN, UNKNOWN_E7, VALIDATION

# Logs of behaviour from before 1990 or after 2100 are likelier to be misread than real.
EARLY_S, LATE_S = 631_152_000, 4_102_444_800
_DAY_S = 86_400
_LARGE_SHARE = 0.4  # of all events, by one user
_TIED_SHARE = 0.05  # of a user's steps in time, without a second in between
_SAME_SECOND_SHARE = 0.01  # of all events, in one second
_SECOND_BINS = 1 << 20
_CUT_SHARE = 0.01  # of a numeric column's known values in training, cut by the model
_BUSY_DAY = 20  # events of a usual day, from which on an empty day is remarkable


def iso_time(time_s: int) -> str:
    """Unix seconds for people to read."""
    moment = np.datetime64(int(time_s), "s")
    return f"{moment}Z"


def describe_log(log: PreparedLog) -> dict[str, Any]:
    """Numbers about a log: sizes by part, and how much of each part training has seen."""
    statistics: dict[str, Any] = {
        "num_events": log.num_events,
        "num_users": log.num_users,
        "num_train_users": log.num_train_users,
        "num_items": log.num_listed,
        "num_categories": log.num_categories,
        "num_contexts": {name: len(texts) - 1 for name, texts in log.context_values.items()},
        "num_sessions": 0,
        "median_user_events": float(np.median(np.diff(log.user_offsets))),
        "events_without_place": 0,
        "events_without_category": 0,
    }
    names = ("events", "users", "known_events")
    statistics |= {f"{part}_{name}": 0 for part in PART_NAMES for name in names}
    spans: list[list[int]] = [[] for _ in PART_NAMES]
    first_unseen = log.user_offsets[log.num_train_users]  # the event from which users are unknown
    for users, events in log.stretches():
        sessions, items, parts = log.sessions[events], log.items[events], log.parts[events]
        statistics["num_sessions"] = max(statistics["num_sessions"], int(sessions.max()))
        unknown_places = log.latitudes_e7[events] == UNKNOWN_E7
        statistics["events_without_place"] += int(np.count_nonzero(unknown_places))
        statistics["events_without_category"] += int(np.count_nonzero(log.categories[events] == 0))
        known = (items > 0) & (np.arange(events.start, events.stop) < first_unseen)
        starts = log.user_offsets[users] - events.start
        for part, name in enumerate(PART_NAMES):
            mask = parts == part
            statistics[f"{name}_events"] += int(np.count_nonzero(mask))
            statistics[f"{name}_users"] += int(np.count_nonzero(np.add.reduceat(mask, starts)))
            statistics[f"{name}_known_events"] += int(np.count_nonzero(mask & known))
            if log.meta.has_times and mask.any():
                times = log.times[events][mask]
                spans[part] += [int(times.min()), int(times.max())]
    for name, span in zip(PART_NAMES, spans, strict=True):
        counts = {f"{name}_{what}": statistics.pop(f"{name}_{what}") for what in names}
        statistics |= counts
        if span:
            statistics |= {f"{name}_first_s": min(span), f"{name}_last_s": max(span)}
    return statistics


def find_warnings(log: PreparedLog) -> tuple[str, ...]:
    """What a careful person would want to know before training on a log."""
    return (
        *_warn_of_parts(log),
        *_warn_of_ids(log),
        *_warn_of_people(log),
        *(_warn_of_times(log) if log.meta.has_times else ()),
        *_warn_of_sessions(log),
        *_warn_of_numbers(log),
    )


def _warn_of_parts(log: PreparedLog) -> list[str]:
    sizes, num_early, num_unknown = np.zeros(len(PART_NAMES), np.int64), 0, 0
    num_judged, first_unseen = 0, log.user_offsets[log.num_train_users]
    test_starts = []
    for users, events in log.stretches():
        parts = log.parts[events]
        sizes += np.bincount(parts, minlength=len(PART_NAMES))
        falls = _same_user(log, users) & (parts[1:] < parts[:-1])
        num_early += int(np.count_nonzero(falls))
        known = (log.items[events] > 0) & (np.arange(events.start, events.stop) < first_unseen)
        num_judged += int(np.count_nonzero(known & (parts == VALIDATION)))
        test = parts == TEST
        num_unknown += int(np.count_nonzero(test & (log.items[events] == 0)))
        if test.any():
            test_starts.append(int(log.times[events][test].min()))
    warnings = [
        f"the {PART_NAMES[part]} part is empty" for part in (VALIDATION, TEST) if sizes[part] == 0
    ]
    if sizes[VALIDATION] and not num_judged:
        warnings.append(
            f"none of the {sizes[VALIDATION]} validation events has a user and an item that "
            "training knows: nothing can be chosen by them; give training more of the log"
        )
    if num_early:
        warnings.append(
            f"{num_early} times an event of an earlier part follows one of a later part in a "
            "user's order: training data may come after test data"
        )
    if 2 * num_unknown > sizes[TEST]:
        warnings.append(
            f"{num_unknown} of {sizes[TEST]} test events are at items "
            "that training never saw; no model can name those"
        )
    if log.meta.has_times and sizes[TRAIN] and test_starts:
        num_late = sum(
            int(np.count_nonzero((log.parts[e] == TRAIN) & (log.times[e] > min(test_starts))))
            for _, e in log.stretches()
        )
        share = num_late / sizes[TRAIN]
        if share > 0.01:
            warnings.append(
                f"{share:.0%} of the training events come after the first test event: what others "
                "did later is known in training (leakage, unless the split means it so)"
            )
    return warnings


def _same_user(log: PreparedLog, users: slice) -> np.ndarray:
    """bool [n - 1]: of the n events of these users, whether the next one is of the same user."""
    offsets = log.user_offsets[users.start : users.stop + 1] - log.user_offsets[users.start]
    same = np.ones(offsets[-1] - 1, bool)
    same[offsets[1:-1] - 1] = False
    return same


def _warn_of_ids(log: PreparedLog) -> list[str]:
    """Of numbers that a table program has made floats of, because one of them was missing."""
    return [
        f"every {name} id ends in .0, e.g. {ids[0]}: numbers that were read as floats? A request "
        "has to name them so, too"
        for name, ids in (("user", log.user_ids), ("item", log.item_ids[1:]))
        if len(ids) and all(text.endswith(".0") for text in ids)
    ]


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


def _warn_of_times(log: PreparedLog) -> list[str]:
    warnings = []
    spans: list[int] = []
    num_tied, num_steps = 0, 0
    events_of_day: Counter[int] = Counter()
    for users, events in log.stretches():
        times, same_user = log.times[events], _same_user(log, users)
        spans += [int(times.min()), int(times.max())]
        num_steps += int(np.count_nonzero(same_user))
        num_tied += int(np.count_nonzero(same_user & (times[1:] == times[:-1])))
        _count_values(events_of_day, times // _DAY_S)
    first, last = min(spans), max(spans)
    if first < EARLY_S or last > LATE_S:
        warnings.append(
            f"times run from {iso_time(first)} to {iso_time(last)}: is --time the right column?"
        )
    if num_tied > _TIED_SHARE * max(1, num_steps):
        warnings.append(
            f"{num_tied} events have the time of their user's event before: within such a moment "
            "the order is that of the rows, which may mean nothing"
        )
    second, count = _busiest_second(log)
    if log.num_events >= 1_000 and count > _SAME_SECOND_SHARE * log.num_events:
        warnings.append(
            f"{count} events are at the very second {iso_time(second)}: "
            "a default value instead of a time?"
        )
    days = np.array(sorted(events_of_day))
    jumps = np.flatnonzero(np.diff(days) > 1)
    if len(jumps) and np.median(list(events_of_day.values())) >= _BUSY_DAY:
        longest = jumps[np.argmax(np.diff(days)[jumps])]
        num_silent = int((np.diff(days)[jumps] - 1).sum())
        warnings.append(
            f"the clock jumps: no event at all on {num_silent} days, the longest time after "
            f"{iso_time((days[longest] + 1) * _DAY_S - 1)}; is a part of the log missing?"
        )
    return warnings


def _count_values(counter: Counter[int], values: np.ndarray) -> None:
    distinct, counts = np.unique(values, return_counts=True)
    for value, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        counter[value] += count


def _busiest_second(log: PreparedLog) -> tuple[int, int]:
    """The second with the most events, the earliest of several, and their number.

    Of a second with no more than `_SAME_SECOND_SHARE` of them nothing is said: (0, 0).
    """
    # Seconds are first counted in bins, which do not grow with the log; few bins have so many.
    bins = np.zeros(_SECOND_BINS, np.int64)
    for _, events in log.stretches():
        bins += np.bincount(log.times[events] % _SECOND_BINS, minlength=_SECOND_BINS)
    busy = bins > _SAME_SECOND_SHARE * log.num_events
    events_of_second: Counter[int] = Counter()
    for _, events in log.stretches() if busy.any() else ():
        times = log.times[events]
        _count_values(events_of_second, times[busy[times % _SECOND_BINS]])
    return max(events_of_second.items(), key=lambda pair: (pair[1], -pair[0]), default=(0, 0))


def _warn_of_sessions(log: PreparedLog) -> list[str]:
    num_runs, num_sessions, last = 0, 0, 0
    for _, events in log.stretches():
        sessions = log.sessions[events]
        before = np.concatenate(([last], sessions[:-1]))
        num_runs += int(np.count_nonzero((sessions != before) & (sessions > 0)))
        num_sessions, last = max(num_sessions, int(sessions.max())), int(sessions[-1])
    if num_runs <= num_sessions:
        return []
    return [
        f"{num_runs - num_sessions} times another session lies between two events of one "
        "session: sessions overlap in time"
    ]


def _warn_of_numbers(log: PreparedLog) -> list[str]:
    warnings = []
    for name, values in log.numbers.items():
        num_known = num_cut = 0
        for _, events in log.stretches():
            train = values[events][log.parts[events] == TRAIN]
            num_known += int(np.count_nonzero(~np.isnan(train)))
            num_cut += int(np.count_nonzero(np.abs(train) > NUMBER_LIMIT))
        if num_cut > _CUT_SHARE * num_known:
            warnings.append(
                f"{num_cut / num_known:.0%} of the training part's {name} is beyond "
                f"{NUMBER_LIMIT:g} or -{NUMBER_LIMIT:g}, where the model cuts it: bring it to one "
                f"scale, e.g. --normalise={name}:robust"
            )
    return warnings
