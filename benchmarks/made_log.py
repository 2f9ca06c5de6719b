"""Random prepared logs of any size, made without the preparation: for speed, not for learning."""

from __future__ import annotations

import pathlib

import numpy as np

from stt_jax.data.prepared_log import LogMeta, PreparedLog
from stt_jax.data.store import TEST, TRAIN, UNKNOWN_E7
from stt_jax.data.texts import Texts

_ORIGIN_S = 1_600_000_000


def make_log(
    directory: pathlib.Path,
    num_events: int,
    *,
    num_items: int,
    person_events: int,
    vary: bool = True,
    seed: int = 0,
) -> PreparedLog:
    """A log in memory, about 50 bytes an event while it is made; `store.write_log` writes it.

    Args:
      directory: where it would be written.
      num_events: about so many; whole people are made.
      num_items: V, drawn by a power law, each at a place of its own.
      person_events: mean events of a person, the last of which is the test's.
      vary: lengths between half and one and a half times the mean; else all the same.
      seed: of everything drawn.
    """
    random = np.random.default_rng(seed)
    num_people = max(1, num_events // person_events)
    lengths = np.full(num_people, person_events)
    if vary:
        lengths = random.integers(person_events // 2, person_events * 3 // 2 + 1, num_people)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    num_events = int(offsets[-1])

    items = random.random(num_events, np.float32)
    items = (1 + num_items * np.square(items, out=items)).astype(np.int32)
    np.minimum(items, num_items, out=items)
    times = np.cumsum(random.integers(0, 20_000, num_events, np.int32), dtype=np.int64)
    times += np.repeat(_ORIGIN_S - times[offsets[:-1]], lengths)
    places = random.integers(-300_000, 300_000, (2, num_items + 1), np.int32)
    places += np.array([[407_000_000], [-740_000_000]], np.int32)
    places[:, 0] = UNKNOWN_E7
    parts = np.full(num_events, TRAIN, np.int8)
    parts[offsets[1:] - 1] = TEST
    categories = (1 + np.arange(num_items + 1) % 50).astype(np.int32)
    categories[0] = 0
    item_ids = Texts(["", *(f"i{number}" for number in range(1, num_items + 1))])
    return PreparedLog(
        directory=directory,
        items=items,
        times=times,
        utc_offsets_s=np.full(num_events, -4 * 3600, np.int32),
        latitudes_e7=places[0][items],
        longitudes_e7=places[1][items],
        categories=categories[items],
        contexts={},
        sessions=np.zeros(num_events, np.int32),
        parts=parts,
        user_offsets=offsets.astype(np.int64),
        num_train_users=num_people,
        user_ids=Texts([f"u{number:09d}" for number in range(num_people)]),
        item_ids=item_ids,
        item_names=item_ids,
        item_latitudes_e7=places[0],
        item_longitudes_e7=places[1],
        item_categories=categories,
        item_train_counts=np.bincount(items, minlength=num_items + 1),
        category_values=["", *(f"c{number}" for number in range(1, 51))],
        context_values={},
        meta=LogMeta(
            format_version=1,
            data_hash="",
            split_hash="",
            has_times=True,
            has_places=True,
            time_format="made",
            local_time="made",
            steps=(),
            statistics={},
            warnings=(),
        ),
    )
