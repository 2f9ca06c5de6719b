"""Events as texts -> the columns that a model takes, in the order of training."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.schema import TEST, UNKNOWN_E7, known_place
from stt_jax.histories import Events, join_events, log_events, traits_of_items
from stt_jax.service.models import ServedModel
from stt_jax.service.store import StoredEvent


def base_events(log: PreparedLog, row: int | None) -> Events:
    """The events of a person of the prepared log; none for None."""
    if row is None:
        return log_events(log, 0, 0)
    return log_events(log, int(log.user_offsets[row]), int(log.user_offsets[row + 1]))


def live_events(stored: Sequence[StoredEvent], served: ServedModel) -> Events:
    """Stored events as a model sees them, in their order.

    An item, category or value that its vocabulary does not hold is unknown (0). An event without a
    category or place of its own has its item's; one without an offset has 0, see `person_events`.
    Numbers go through what preparing did to their column, a person's smoothing beginning with
    their first stored event, since the prepared log does not keep the numbers before it; columns
    that preparing made (`features.NUMBERS`) are unknown here, see `person_events`.
    """
    log = served.log
    items = np.array([served.item_rows.get(event.item, 0) for event in stored], np.int32)
    places, categories = [], []
    for event, item in zip(stored, items.tolist(), strict=True):
        # What was stored by earlier versions may say (0, 0) still.
        own = known_place(event.latitude_e7 or 0, event.longitude_e7 or 0)
        if own is not None:
            places.append(own)
        elif item:
            places.append((int(log.item_latitudes_e7[item]), int(log.item_longitudes_e7[item])))
        else:
            places.append((UNKNOWN_E7, UNKNOWN_E7))
        category = served.category_rows.get(event.category or "", 0)
        categories.append(category or int(log.item_categories[item]) if item else category)
    return Events(
        items=items,
        times=np.array([e.time_s for e in stored], np.int64) * log.meta.has_times,
        utc_offsets_s=np.array([e.utc_offset_s or 0 for e in stored], np.int32),
        latitudes_e7=np.array([place[0] for place in places], np.int32),
        longitudes_e7=np.array([place[1] for place in places], np.int32),
        categories=np.array(categories, np.int32),
        contexts={
            name: np.array([rows.get(e.contexts.get(name, ""), 0) for e in stored], np.int32)
            for name, rows in served.context_rows.items()
        },
        numbers=_scaled(
            log, {name: [e.numbers.get(name, np.nan) for e in stored] for name in log.numbers}
        ),
        traits=traits_of_items(log, items),
    )


def person_events(
    stored: Sequence[StoredEvent], served: ServedModel, row: int | None = None
) -> Events:
    """One person's events of the prepared log and of the service in the order of their time.

    Ties keep the order in which they came, the prepared log first. An event that both hold is there
    once (`held_by_log`): a log prepared again may hold what the service had stored.
    One that was stored without an offset has that of the event before it, wherever that is held,
    and before all that told one that of the prepared log's first event, or else UTC.
    What preparing makes of the other columns (`--features`) is made of stored events here, with
    all of the person's events before them; those of the prepared log keep what it says.

    Args:
      stored: in the order of their time.
      served: the model.
      row: of the person in the prepared log; None = not in there.
    """
    log = served.log
    base = base_events(log, row)
    live = live_events(stored, served)
    if len(live) == 0:
        return base
    new = ~held_by_log(log, row, live.times, live.items)
    live, stored = live[new], [event for event, kept in zip(stored, new, strict=True) if kept]
    parts = np.full(len(base) + len(live), TEST, np.int8)
    if row is not None:
        parts[: len(base)] = log.parts[log.user_offsets[row] : log.user_offsets[row + 1]]
    is_live = np.arange(len(parts)) >= len(base)
    tells = np.array([True] * len(base) + [event.utc_offset_s is not None for event in stored])
    events = join_events([base, live])
    if log.meta.has_times:
        order = np.argsort(events.times, kind="stable")
        events, parts, is_live, tells = events[order], parts[order], is_live[order], tells[order]
    first_offset_s = int(base.utc_offsets_s[0]) if len(base) else 0
    offsets_s = _carried(events.utc_offsets_s, tells, first_offset_s)
    events = dataclasses.replace(events, utc_offsets_s=offsets_s)
    for name, values in _made(log, events, parts).items():
        events.numbers[name][is_live] = values[is_live]
    return events


def held_by_log(
    log: PreparedLog, row: int | None, times: np.ndarray, items: np.ndarray
) -> np.ndarray:
    """bool [N], which of a person's stored events the prepared log holds, too.

    They are known by time and item. The log may keep times on a grid (--coarsen_time_s), and has
    lost the ids of items without training events: to it all of those are one. Each of its events
    stands for one stored event.

    Args:
      log: the prepared log; without times it holds none.
      row: of the person in it; None = not in there.
      times, items: of the stored events, [N]: unix seconds and rows of items, 0 = unknown.
    """
    held = np.zeros(len(times), bool)
    if row is None or not log.meta.has_times or not len(times):
        return held
    times = times // log.meta.time_grid_s * log.meta.time_grid_s
    first, end = log.user_offsets[row], log.user_offsets[row + 1]
    own = log.times[first:end]
    begin = first + np.searchsorted(own, times.min())
    end = first + np.searchsorted(own, times.max(), side="right")

    def keys(times: np.ndarray, items: np.ndarray) -> Iterator[tuple[int, int]]:
        known = np.where(log.item_train_counts[items] > 0, items, 0)
        return zip(times.tolist(), known.tolist(), strict=True)

    left = collections.Counter(keys(log.times[begin:end], log.items[begin:end]))
    for index, key in enumerate(keys(times, items)):
        held[index] = left[key] > 0
        left[key] -= 1
    return held


def _carried(offsets_s: np.ndarray, tells: np.ndarray, first_offset_s: int) -> np.ndarray:
    """int32 [N], each offset that an event tells, and where one tells none the last before it."""
    last = np.maximum.accumulate(np.where(tells, np.arange(len(tells)), -1))
    return np.where(last < 0, first_offset_s, offsets_s[last]).astype(np.int32)


def _made(log: PreparedLog, events: Events, parts: np.ndarray) -> dict[str, np.ndarray]:
    """The numeric columns of a log that preparing made of others, float32 [N], of these events."""
    # Only what is read from a file is marked where it was missing.
    made = log.numbers.keys() - log.was_missing.keys()
    if not made:
        return {}
    # Slow to import, for it brings the table engine; most logs have no such columns.
    from stt_jax.data import features
    from stt_jax.data.columns import Columns

    columns = Columns(
        source_rows=np.arange(len(events)),
        users=np.zeros(len(events), np.int32),
        items=events.items,
        times_s=events.times,
        utc_offsets_s=events.utc_offsets_s.astype(np.int64),
        parts=parts,
        latitudes_e7=events.latitudes_e7,
        longitudes_e7=events.longitudes_e7,
        numbers={},
        codes={},
        texts={},
        was_missing={},
    )
    for feature, names in features.NUMBERS.items():
        if made.issuperset(names):
            features.add_numbers(columns, feature)
    return _scaled(log, columns.numbers)


def _scaled(log: PreparedLog, columns: dict[str, Any]) -> dict[str, np.ndarray]:
    """Numbers of one person as the prepared log would have them, float32 [N] by name."""
    if not columns:
        return {}
    from stt_jax.data.numerics import apply_stages  # as slow to import

    return {
        name: apply_stages(log.meta.numerics.get(name, ()), np.array(values, np.float64))
        for name, values in columns.items()
    }
