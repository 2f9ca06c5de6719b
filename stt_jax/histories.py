"""Events of single people, on the host: from integer columns to the arrays that a model takes.

The same numbers as `stt_jax.data.pipeline` lays out for training, for people whose events are not
(or not all) in a prepared log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from stt_jax.batch import History, Requests
from stt_jax.data.encodings import earth_coords, hour_of_week, int32_seconds
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.store import UNKNOWN_E7

_NOW_MIN = 2**30  # after all that was counted, whatever is subtracted from it


@dataclasses.dataclass(frozen=True)
class Events:
    """Events of one person in the order of their time; columns as in `PreparedLog`, [N] each."""

    items: np.ndarray
    times: np.ndarray
    utc_offsets_s: np.ndarray
    latitudes_e7: np.ndarray
    longitudes_e7: np.ndarray
    categories: np.ndarray
    contexts: dict[str, np.ndarray]
    numbers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    traits: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # [N, M] each

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, selection: slice | np.ndarray) -> Events:
        columns = {name: getattr(self, name)[selection] for name in _COLUMNS}

        def selected(by_name: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: column[selection] for name, column in by_name.items()}

        return Events(
            **columns,
            contexts=selected(self.contexts),
            numbers=selected(self.numbers),
            traits=selected(self.traits),
        )

    @property
    def coords(self) -> np.ndarray:
        """float64 [N, 3], earth-centred metres, NaN = unknown."""
        return earth_coords(self.latitudes_e7, self.longitudes_e7)


_BY_NAME = ("contexts", "numbers", "traits")
_COLUMNS = tuple(f.name for f in dataclasses.fields(Events) if f.name not in _BY_NAME)


def log_events(log: PreparedLog, first: int, end: int) -> Events:
    """The events `first..end` of a prepared log."""
    columns = {name: np.asarray(getattr(log, name)[first:end]) for name in _COLUMNS}
    return Events(
        **columns,
        contexts={name: column[first:end] for name, column in log.contexts.items()},
        numbers={name: column[first:end] for name, column in log.numbers.items()},
        traits=traits_of_items(log, columns["items"]),
    )


def traits_of_items(log: PreparedLog, items: np.ndarray) -> dict[str, np.ndarray]:
    """What the log says of items, int32 [N]: int32 [N, M] by name."""
    return {name: np.asarray(values[items]) for name, values in log.item_traits.items()}


def join_events(parts: Sequence[Events]) -> Events:
    """Events one after the other; at least one part."""
    columns = {name: np.concatenate([getattr(p, name) for p in parts]) for name in _COLUMNS}

    def joined(dicts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([one[name] for one in dicts]) for name in dicts[0]}

    return Events(
        **columns,
        contexts=joined([part.contexts for part in parts]),
        numbers=joined([part.numbers for part in parts]),
        traits=joined([part.traits for part in parts]),
    )


@dataclasses.dataclass(frozen=True)
class Anchor:
    """Where the times and coords of encoded events count from.

    Attributes:
      time_s: unix seconds of the first event.
      place: float64 [3], earth-centred metres of the first known place; zero where none is known.
      has_place: False as long as none is known.
    """

    time_s: int
    place: np.ndarray
    has_place: bool

    def seeing(self, events: Events) -> Anchor:
        """The same, with the first known place of `events` if none was known before."""
        if self.has_place:
            return self
        coords = events.coords
        known = np.flatnonzero(~np.isnan(coords[:, 0]))
        return Anchor(self.time_s, coords[known[0]], True) if len(known) else self


def anchor(events: Events) -> Anchor:
    """The anchor of events that are encoded from the first of them on."""
    time_s = int(events.times[0]) if len(events) else 0
    return Anchor(time_s, np.zeros(3), False).seeing(events)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Events of one person that are to be encoded.

    Attributes:
      events: oldest first.
      time_before_s: unix seconds of the event before the first; None = there is none.
      anchor: of the person's encoded events.
    """

    events: Events
    time_before_s: int | None
    anchor: Anchor


def history_rows(
    tokens: Sequence[Tokens], num_rows: int, num_tokens: int, *, has_times: bool
) -> History:
    """A `History` [num_rows, num_tokens], numpy: one person a row, then rows of padding.

    Raises:
      ValueError: a person has more events than `num_tokens`.
    """
    lengths = np.array([len(one.events) for one in tokens], np.int64)
    if len(tokens) > num_rows or np.max(lengths, initial=0) > num_tokens:
        raise ValueError(
            f"{len(tokens)} people with up to {np.max(lengths, initial=0)} events do not fit "
            f"[{num_rows}, {num_tokens}]"
        )
    events = join_events([one.events for one in tokens])
    people = np.repeat(np.arange(len(tokens)), lengths)
    slots = np.arange(len(events)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    time_origins = np.array([one.anchor.time_s for one in tokens], np.int64)[people]
    origins = np.stack([one.anchor.place for one in tokens])[people]

    gaps = np.diff(events.times, prepend=0)
    for row, one in enumerate(tokens):
        if lengths[row]:
            first = np.flatnonzero(people == row)[0]
            before = one.time_before_s
            gaps[first] = -1 if before is None else events.times[first] - before

    def put(values: np.ndarray, fill: float = 0) -> np.ndarray:
        out = np.full((num_rows, num_tokens, *values.shape[1:]), fill, values.dtype)
        out[people, slots] = values
        return out

    phases = np.full(len(events), -1, np.int32)
    if has_times:
        phases = hour_of_week(events.times, events.utc_offsets_s)
    return History(
        items=put(events.items),
        categories=put(events.categories),
        contexts={name: put(column) for name, column in events.contexts.items()},
        numbers={name: put(column) for name, column in events.numbers.items()},
        traits={name: put(column) for name, column in events.traits.items()},
        times=put(int32_seconds(events.times - time_origins)),
        gaps_s=put(int32_seconds(gaps), -1),
        phases=put(phases, -1),
        coords=put((events.coords - origins).astype(np.float32), np.nan),
        origins=put(origins.astype(np.float32)),
        segment_ids=put(np.ones(len(events), np.int32)),
    )


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a request is.

    Attributes:
      time_s: unix seconds; None = unknown, after the last event.
      utc_offset_s: local time = time_s + utc_offset_s.
      num_events: how many of the person's events it may use: those that are not after it.
    """

    time_s: int | None
    utc_offset_s: int
    num_events: int


def find_moment(
    events: Events,
    time_s: int | None,
    *,
    is_local: bool = False,
    told_offset_s: int | None = None,
    has_offsets: bool = True,
) -> Moment:
    """When a request of somebody is, and which of their events come before.

    The local time is the one of the last event before the request, or else of the first: people
    move, and a zone's clock changes with the season. A time without a zone is compared with each
    event's own local time, so one that occurs twice is the later one.

    Args:
      events: all of the person's.
      time_s: unix seconds, or local seconds where `is_local`; None = unknown.
      is_local: the time came without a zone.
      told_offset_s: of the zone that the time came with; None = it told none.
      has_offsets: whether any of the events told an offset; `told_offset_s` counts only where none
        did, for a time in UTC is often just a moment.
    """
    num_events = len(events)
    if time_s is not None and is_local:
        before = np.flatnonzero(events.times + events.utc_offsets_s <= time_s)
        num_events = int(before[-1]) + 1 if len(before) else 0
    elif time_s is not None:
        num_events = int(np.searchsorted(events.times, time_s, side="right"))
    if told_offset_s is not None and not (has_offsets and len(events)):
        offset_s = told_offset_s
    else:
        offset_s = int(events.utc_offsets_s[max(num_events - 1, 0)]) if len(events) else 0
    if time_s is not None and is_local:
        time_s -= offset_s
    return Moment(time_s, offset_s, num_events)


@dataclasses.dataclass(frozen=True)
class Question:
    """One request to one person's encoded events.

    Attributes:
      user: the model's id of the person, 0 = unknown to it.
      time_s: unix seconds; None = unknown.
      utc_offset_s: local time = time_s + utc_offset_s.
      place_e7: (latitude, longitude) in 1e-7 degrees; None = unknown.
      num_events: events of the person that are encoded.
      anchor: what they count from.
      traits: of the person by name, see `traits_of_user`; the same names in all questions.
      domains: bool [D], which are wanted, see `wanted_domains`; None = the log has none.
    """

    user: int
    time_s: int | None
    utc_offset_s: int
    place_e7: tuple[int, int] | None
    num_events: int
    anchor: Anchor
    traits: dict[str, int] = dataclasses.field(default_factory=dict)
    domains: np.ndarray | None = None


def request_rows(questions: Sequence[Question], num_rows: int) -> Requests:
    """`Requests` [num_rows, 1], numpy: one question a row, then rows of padding."""
    count = len(questions)

    def put(values: Any, dtype: type, fill: float = 0) -> np.ndarray:
        array: np.ndarray = np.asarray(values, dtype)
        out = np.full((num_rows, 1, *array.shape[1:]), fill, dtype)
        out[:count, 0] = array
        return out

    domains: list[Any] = [q.domains for q in questions]
    known = [q.time_s is not None for q in questions]
    times = np.array([0 if q.time_s is None else q.time_s for q in questions], np.int64)
    offsets = np.array([q.utc_offset_s for q in questions], np.int64)
    origins = np.stack([q.anchor.place for q in questions])
    places_e7 = np.array([q.place_e7 or (UNKNOWN_E7, UNKNOWN_E7) for q in questions], np.int64)
    coords = earth_coords(places_e7[:, 0], places_e7[:, 1]) - origins
    since = times - np.array([q.anchor.time_s for q in questions], np.int64)
    return Requests(
        users=put([q.user for q in questions], np.int32),
        traits={
            name: put([q.traits[name] for q in questions], np.int32) for name in questions[0].traits
        },
        times=put(int32_seconds(np.where(known, since, 0)), np.int32),
        phases=put(np.where(known, hour_of_week(times, offsets), -1), np.int32, -1),
        time_known=put(known, np.bool_),
        coords=put(coords, np.float32, np.nan),
        origins=put(origins, np.float32),
        last_tokens=put([q.num_events - 1 for q in questions], np.int32, -1),
        minutes=put(np.clip(times // 60, -_NOW_MIN, _NOW_MIN), np.int32),
        last_minutes=put(np.full(count, _NOW_MIN), np.int32),
        segment_ids=put(np.ones(count), np.int32),
        targets=put(np.zeros(count), np.int32),
        domains=None if domains[0] is None else put(np.stack(domains), np.bool_),
    )


def wanted_domains(log: PreparedLog, rows: np.ndarray | None) -> np.ndarray | None:
    """bool [D], True for the domains `rows` (from 1; None = all); None = the log has no domains."""
    if not log.domain_values:
        return None
    every = np.arange(1, len(log.domain_values))
    return np.ones(len(every), bool) if rows is None else np.isin(every, rows)
