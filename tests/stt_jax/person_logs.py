"""Prepared logs from lists of (item, time) a person, and of a small generated city."""

import functools
import pathlib

import numpy as np

from stt_jax.config import CityConfig
from stt_jax.data import synthetic
from stt_jax.data.prepared_log import LogMeta, PreparedLog
from stt_jax.data.store import TEST, TRAIN, UNKNOWN_E7, VALIDATION


def make_log(users, items, times, parts, *, utc_offset_s=0, has_times=True):
    """A log in memory from parallel columns sorted by (user, time); items count from 1."""
    users, items, times, parts = (np.asarray(column) for column in (users, items, times, parts))
    num_users, num_items = int(users.max()) + 1, int(items.max())
    unknown = np.full(len(items), UNKNOWN_E7, np.int32)
    zeros = np.zeros(len(items), np.int32)
    counts = np.bincount(items[parts == TRAIN], minlength=num_items + 1).astype(np.int64)
    ids = [str(row) for row in range(num_items + 1)]
    meta = LogMeta(1, "", "", has_times, False, "unix_s", "utc", (), {}, ())
    return PreparedLog(
        directory=pathlib.Path(),
        items=items.astype(np.int32),
        times=times.astype(np.int64),
        utc_offsets_s=np.full(len(items), utc_offset_s, np.int32),
        latitudes_e7=unknown,
        longitudes_e7=unknown,
        categories=zeros,
        contexts={},
        sessions=zeros,
        parts=parts.astype(np.int8),
        user_offsets=np.searchsorted(users, np.arange(num_users + 1)),
        num_train_users=num_users,
        user_ids=[str(row) for row in range(num_users)],
        item_ids=ids,
        item_names=ids,
        item_latitudes_e7=np.full(num_items + 1, UNKNOWN_E7, np.int32),
        item_longitudes_e7=np.full(num_items + 1, UNKNOWN_E7, np.int32),
        item_categories=np.zeros(num_items + 1, np.int32),
        item_train_counts=counts,
        category_values=[""],
        context_values={},
        meta=meta,
    )


def split_by_position(num_events):
    """The first 70 % of a person's events train, 15 % validation, the rest test."""
    positions = np.arange(num_events) / num_events
    return np.where(positions < 0.7, TRAIN, np.where(positions < 0.85, VALIDATION, TEST))


def person_log(sequences, **options):
    """One list of (item, time) a person."""
    users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    pairs = np.array([pair for sequence in sequences for pair in sequence])
    parts = np.concatenate([split_by_position(len(sequence)) for sequence in sequences])
    return make_log(users, pairs[:, 0], pairs[:, 1], parts, **options)


@functools.cache
def city_log():
    """20 people, 28 days, in local time five hours behind UTC."""
    config = CityConfig(num_users=20, num_places=60, num_days=28, seed=3)
    city = synthetic.generate_city(config)
    parts = np.concatenate([split_by_position(count) for count in np.bincount(city.event_users)])
    # Places without training events are unknown items, as in a prepared log.
    seen = np.unique(city.event_places[parts == TRAIN])
    rows = np.zeros(config.num_places, np.int64)
    rows[seen] = np.arange(1, len(seen) + 1)
    items = rows[city.event_places]
    offset_s = 60 * synthetic.UTC_OFFSET_MIN
    return make_log(city.event_users, items, city.event_times_s, parts, utc_offset_s=offset_s)
