"""Events as texts -> the columns that a model takes, in the order of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stt_jax.data.schema import UNKNOWN_E7
from stt_jax.data.store import PreparedLog
from stt_jax.histories import Events, join_events, log_events, traits_of_items
from stt_jax.service.models import ServedModel
from stt_jax.service.store import StoredEvent


def base_events(log: PreparedLog, row: int | None) -> Events:
    """The events of a person of the prepared log; none for None."""
    if row is None:
        return log_events(log, 0, 0)
    return log_events(log, int(log.user_offsets[row]), int(log.user_offsets[row + 1]))


def live_events(
    stored: Sequence[StoredEvent], served: ServedModel, base: Events | None = None
) -> Events:
    """Stored events as a model sees them, in their order.

    An item, category or value that its vocabulary does not hold is unknown (0). An event without a
    category or place of its own has its item's; one without an offset has the offset before it.
    """
    log = served.log
    items = np.array([served.item_rows.get(event.item, 0) for event in stored], np.int32)
    offset_s = int(base.utc_offsets_s[-1]) if base is not None and len(base) else 0
    offsets, places, categories = [], [], []
    for event, item in zip(stored, items.tolist(), strict=True):
        offset_s = offset_s if event.utc_offset_s is None else event.utc_offset_s
        offsets.append(offset_s)
        if event.latitude_e7 is not None and event.longitude_e7 is not None:
            places.append((event.latitude_e7, event.longitude_e7))
        elif item:
            places.append((int(log.item_latitudes_e7[item]), int(log.item_longitudes_e7[item])))
        else:
            places.append((UNKNOWN_E7, UNKNOWN_E7))
        category = served.category_rows.get(event.category or "", 0)
        categories.append(category or int(log.item_categories[item]) if item else category)
    return Events(
        items=items,
        times=np.array([e.time_s for e in stored], np.int64) * log.meta.has_times,
        utc_offsets_s=np.array(offsets, np.int32),
        latitudes_e7=np.array([place[0] for place in places], np.int32),
        longitudes_e7=np.array([place[1] for place in places], np.int32),
        categories=np.array(categories, np.int32),
        contexts={
            name: np.array([rows.get(e.contexts.get(name, ""), 0) for e in stored], np.int32)
            for name, rows in served.context_rows.items()
        },
        traits=traits_of_items(log, items),
    )


def merge_events(base: Events, live: Events, *, has_times: bool) -> Events:
    """One person's events of the prepared log and of the service in the order of their time.

    Ties keep the order in which they came, the prepared log first. An event that both hold, known
    by its time and item, is there once: a log prepared again may hold what the service had stored.
    """
    if len(live) == 0:
        return base
    if not has_times:
        return join_events([base, live])
    if len(base):
        there = set(zip(base.times.tolist(), base.items.tolist(), strict=True))
        pairs = zip(live.times.tolist(), live.items.tolist(), strict=True)
        live = live[np.array([item == 0 or (time, item) not in there for time, item in pairs])]
    events = join_events([base, live])
    return events[np.argsort(events.times, kind="stable")]
