"""Prepared log -> batches: cut into windows, pack, gather; any batch can be made on its own.

A batch is a function of (log, options, step number), so the state of the input is one integer:
grain reads ahead in threads, saves it with the checkpoint and continues from it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import numpy as np

from stt_jax.batch import HOURS_PER_WEEK, Catalogue, History, Requests, table_rows
from stt_jax.data.packing import Packing, in_order, pack, shuffle_epoch
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import Targets
from stt_jax.data.store import UNKNOWN_E7
from stt_jax.data.traits import find_user_trait
from stt_jax.data.windows import Windows, target_windows, training_windows

EARTH_RADIUS_M = 6_371_008.8
_EPOCH_HOUR_OF_WEEK = 72  # 1970-01-01 00:00 UTC was a Thursday; Monday 00:00 is hour 0
_INT32_MAX = 2**31 - 1


class TrainingBatches:
    """The batches of a training run, by step number: a random-access source for grain.

    Rows run on from one epoch into the next, so no row is left out and no batch is short. Where
    several processes train together each gathers its own rows of every batch, and reads no others.
    """

    def __init__(
        self,
        log: PreparedLog,
        *,
        window: int,
        requests: int,
        batch_rows: int,
        seed: int,
        local_rows: range | None = None,
    ) -> None:
        """Batches of `batch_rows` rows, of which this process makes `local_rows`; None = all."""
        self._log = log
        self._local_rows = range(batch_rows) if local_rows is None else local_rows
        self._row_tokens, self._row_requests = window, requests
        self._batch_rows = batch_rows
        self._windows = training_windows(log, window=window, requests=requests)
        self._packing = pack(
            self._windows.num_tokens,
            self._windows.num_requests,
            row_tokens=window,
            row_requests=requests,
        )
        self._epoch = functools.lru_cache(maxsize=2)(
            lambda epoch: shuffle_epoch(self._packing, seed, epoch)
        )

    @property
    def fill(self) -> float:
        """The fraction of tokens that are not padding."""
        return self._packing.fill

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of a batch, of all processes, and tokens of a row."""
        return self._batch_rows, self._row_tokens

    @property
    def rows_per_epoch(self) -> int:
        """Rows after which every training event was asked for once."""
        return self._packing.num_rows

    def num_steps(self, epochs: float) -> int:
        """Steps that cover `epochs` epochs."""
        return max(1, -int(-epochs * self.rows_per_epoch // self._batch_rows))

    def __len__(self) -> int:
        return _INT32_MAX  # endless: the loop says when to stop

    def __getitem__(self, step: int) -> tuple[History, Requests]:
        first = step * self._batch_rows
        rows = []
        for row in self._local_rows:
            epoch, index = divmod(first + row, self.rows_per_epoch)
            windows, order = self._epoch(epoch)
            rows.append(_row_windows(self._packing, windows, order[index]))
        history, layout = gather_history(
            self._log, self._windows, rows, row_tokens=self._row_tokens
        )
        shape = (len(rows), self._row_requests)
        return history, gather_requests(self._log, layout, shape)


class PersonBatches:
    """The batches of a private training: each person takes part in a step by a coin of their own.

    A row holds one window of one person, drawn from all of theirs. Rows beyond the people drawn are
    empty. A random-access source like `TrainingBatches`; who is drawn follows from a secret seed.
    """

    def __init__(
        self,
        log: PreparedLog,
        *,
        window: int,
        requests: int,
        batch_rows: int,
        rate: float,
        seed: int,
    ) -> None:
        """Batches of at most `batch_rows` people, each drawn with probability `rate`."""
        self._log = log
        self._row_tokens, self._row_requests = window, requests
        self._batch_rows, self._rate, self._seed = batch_rows, rate, seed
        self._windows = training_windows(log, window=window, requests=requests)
        self._first_windows = np.searchsorted(
            self._windows.users, np.arange(log.num_train_users + 1)
        )

    @property
    def fill(self) -> float:
        """The expected fraction of tokens that are not padding."""
        tokens = np.add.reduceat(self._windows.num_tokens, self._first_windows[:-1])
        of_people = tokens / np.diff(self._first_windows)  # one of a person's windows is drawn
        drawn = self._rate * of_people.sum()
        return float(drawn / self._row_tokens / self._batch_rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of a batch, which are more than the people expected, and tokens of a row."""
        return self._batch_rows, self._row_tokens

    def num_steps(self, epochs: float) -> int:
        """Steps in which as many windows are expected to be drawn as `epochs` epochs have."""
        people = self._rate * self._log.num_train_users
        return max(1, -int(-epochs * len(self._windows) // people))

    def __len__(self) -> int:
        return _INT32_MAX  # endless: the loop says when to stop

    def __getitem__(self, step: int) -> tuple[History, Requests]:
        draw = np.random.default_rng([self._seed, step])
        people = np.flatnonzero(draw.random(self._log.num_train_users) < self._rate)
        people = people[: self._batch_rows]
        firsts, ends = self._first_windows[people], self._first_windows[people + 1]
        rows = [np.array([index]) for index in draw.integers(firsts, ends)]
        rows += [np.zeros(0, np.int64)] * (self._batch_rows - len(rows))
        history, layout = gather_history(
            self._log, self._windows, rows, row_tokens=self._row_tokens
        )
        return history, gather_requests(self._log, layout, (self._batch_rows, self._row_requests))


def target_batches(
    log: PreparedLog, targets: Targets, *, window: int, row_requests: int, batch_rows: int
) -> Iterator[tuple[History, Requests, np.ndarray]]:
    """Batches that ask for every target once.

    Yields:
      (history, requests, index): index int64 [B, R], the target that each request asks for,
      -1 = padding.
    """
    windows = target_windows(targets, window=window)
    packing = pack(
        windows.num_tokens, windows.num_requests, row_tokens=window, row_requests=row_requests
    )
    placed, order = in_order(packing)
    for first in range(0, packing.num_rows, batch_rows):
        rows = [_row_windows(packing, placed, row) for row in order[first : first + batch_rows]]
        rows += [np.zeros(0, np.int64)] * (batch_rows - len(rows))
        history, layout = gather_history(log, windows, rows, row_tokens=window)
        requests = gather_requests(log, layout, (batch_rows, row_requests))
        index = np.full(requests.users.shape, -1, np.int64)
        for row, members in enumerate(rows):
            index[row, : len(members)] = members
        yield history, requests, index


def catalogue(log: PreparedLog) -> Catalogue:
    """The items of a log as the model sees them."""
    rows = table_rows(log.num_items)
    categories = np.zeros(rows, np.int32)
    categories[: log.num_items + 1] = log.item_categories
    coords = np.full((rows, 3), np.nan, np.float32)
    coords[: log.num_items + 1] = earth_coords(log.item_latitudes_e7, log.item_longitudes_e7)
    traits = {
        name: np.pad(values, ((0, rows - len(values)), (0, 0)))
        for name, values in log.item_traits.items()
    }
    numbers = np.arange(rows)
    return Catalogue((numbers >= 1) & (numbers <= log.num_items), categories, coords, traits)


def earth_coords(latitudes_e7: np.ndarray, longitudes_e7: np.ndarray) -> np.ndarray:
    """Places on a sphere, float64 [..., 3] earth-centred metres; NaN where unknown."""
    unknown = (latitudes_e7 == UNKNOWN_E7) | (longitudes_e7 == UNKNOWN_E7)
    latitude = np.radians(latitudes_e7 * 1e-7)
    longitude = np.radians(longitudes_e7 * 1e-7)
    xyz = EARTH_RADIUS_M * np.stack(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ],
        axis=-1,
    )
    xyz[unknown] = np.nan
    return xyz


def hour_of_week(times: np.ndarray, utc_offsets_s: np.ndarray | int) -> np.ndarray:
    """int32, local hour of the week in 0..167, Monday 00:00 is 0.

    Args:
      times: int64, unix seconds.
      utc_offsets_s: int, seconds to add for local time.
    """
    hours = (times + utc_offsets_s) // 3600 + _EPOCH_HOUR_OF_WEEK
    return (hours % HOURS_PER_WEEK).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where windows lie in the packed rows of a batch; arrays have one entry a window.

    Attributes:
      windows: the windows of all rows, row after row.
      rows: int64, the row of the batch.
      segments: int32, number within the row, from 1.
      token_starts: int64, position in the row of the window's first token.
      time_origins: int64, unix seconds that the window's times count from.
      place_origins: float64 [W, 3], earth-centred metres that its coords count from.
    """

    windows: Windows
    rows: np.ndarray
    segments: np.ndarray
    token_starts: np.ndarray
    time_origins: np.ndarray
    place_origins: np.ndarray


def gather_history(
    log: PreparedLog, windows: Windows, rows: list[np.ndarray], *, row_tokens: int
) -> tuple[History, Layout]:
    """Lays the tokens of windows out in packed rows.

    Args:
      log: the prepared log.
      windows: windows over it.
      rows: for each row of the batch the indices of its windows, in order.
      row_tokens: S, tokens in a row.

    Returns:
      `History` [B, S], numpy, and where each window lies in it.
    """
    w = windows[np.concatenate(rows)]
    of_row = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    token_starts = _starts_within(w.num_tokens, of_row)
    num_history = w.history_ends - w.history_starts
    events = _ranges(
        np.stack([w.history_starts, w.starts], 1).ravel(),
        np.stack([w.history_ends, w.ends], 1).ravel(),
    )
    of_window = np.repeat(np.arange(len(w)), w.num_tokens)
    first_tokens = of_row * row_tokens + token_starts
    slots = _ranges(first_tokens, first_tokens + w.num_tokens)

    # Times count from the first token; a window without tokens counts from what it asks for.
    first_events = np.minimum(w.request_starts, log.num_events - 1)
    has_tokens = w.num_tokens > 0
    first_events[has_tokens] = events[_starts(w.num_tokens)[has_tokens]]
    coords = earth_coords(log.latitudes_e7[events], log.longitudes_e7[events])
    layout = Layout(
        windows=w,
        rows=of_row,
        segments=(np.arange(len(w)) - np.searchsorted(of_row, of_row) + 1).astype(np.int32),
        token_starts=token_starts,
        time_origins=log.times[first_events],
        place_origins=_first_known(coords, of_window, len(w)),
    )

    # What came before a token: the event before it in the log, but never one that the context
    # leaves out between its two ranges.
    previous = np.where(events > log.user_offsets[w.users[of_window]], events - 1, -1)
    has_own = w.num_tokens > num_history
    previous[(_starts(w.num_tokens) + num_history)[has_own]] = w.befores[has_own]
    gaps = np.where(previous >= 0, log.times[events] - log.times[np.maximum(previous, 0)], -1)

    def put(values: np.ndarray, fill: float = 0) -> np.ndarray:
        return _scatter(values, slots, (len(rows), row_tokens), fill)

    history = History(
        items=put(log.items[events]),
        categories=put(log.categories[events]),
        contexts={name: put(column[events]) for name, column in log.contexts.items()},
        numbers={name: put(column[events]) for name, column in log.numbers.items()},
        traits={name: put(values[log.items[events]]) for name, values in log.item_traits.items()},
        times=put(_int32_seconds(log.times[events] - layout.time_origins[of_window])),
        gaps_s=put(_int32_seconds(gaps), -1),
        phases=put(_phases(log, events), -1),
        coords=put((coords - layout.place_origins[of_window]).astype(np.float32), np.nan),
        origins=put(layout.place_origins[of_window].astype(np.float32)),
        segment_ids=put(layout.segments[of_window]),
    )
    return history, layout


def gather_requests(log: PreparedLog, layout: Layout, shape: tuple[int, int]) -> Requests:
    """Lays out the requests for the events that the windows ask for.

    Args:
      log: the prepared log.
      layout: of `gather_history`.
      shape: (B, R).

    Returns:
      `Requests` [B, R], numpy, with each target's own time, place and domain: whoever uses the
      batch decides what of that the model may see.
    """
    w = layout.windows
    events = _ranges(w.request_starts, w.request_ends)
    of_window = np.repeat(np.arange(len(w)), w.num_requests)
    first_slots = layout.rows * shape[1] + _starts_within(w.num_requests, layout.rows)
    slots = _ranges(first_slots, first_slots + w.num_requests)
    # Tokens before the requested event: all of the window's history, and its own range so far.
    seen = (w.history_ends - w.history_starts - w.starts)[of_window] + events
    last_tokens = np.where(seen > 0, layout.token_starts[of_window] + seen - 1, -1)
    # The event before the requested one is the last seen: both ranges end there or before it.
    own = events > w.starts[of_window]
    last_events = np.where(own, events - 1, w.history_ends[of_window] - 1)
    last_events = np.where(seen > 0, last_events, events)
    coords = earth_coords(log.latitudes_e7[events], log.longitudes_e7[events])

    def put(values: np.ndarray, fill: float = 0) -> np.ndarray:
        return _scatter(values, slots, shape, fill)

    return Requests(
        users=put(model_users(log, w.users)[of_window]),
        traits={name: put(values[w.users][of_window]) for name, values in log.user_traits.items()},
        times=put(_int32_seconds(log.times[events] - layout.time_origins[of_window])),
        phases=put(_phases(log, events), -1),
        time_known=put(np.full(len(events), log.meta.has_times)),
        coords=put((coords - layout.place_origins[of_window]).astype(np.float32), np.nan),
        origins=put(layout.place_origins[of_window].astype(np.float32)),
        last_tokens=put(last_tokens.astype(np.int32), -1),
        minutes=put((log.times[events] // 60).astype(np.int32)),
        last_minutes=put((log.times[last_events] // 60).astype(np.int32)),
        segment_ids=put(layout.segments[of_window]),
        targets=put(log.items[events]),
        domains=put(one_domain(log, log.items[events])) if log.domain_values else None,
    )


def one_domain(log: PreparedLog, items: np.ndarray) -> np.ndarray:
    """bool [N, D], True for the domain of each item; an unknown item may be of any."""
    domains = log.item_domains[items][:, None]
    return (domains == np.arange(1, len(log.domain_values))) | (domains == 0)


def model_users(log: PreparedLog, users: np.ndarray) -> np.ndarray:
    """int32, the model's id of user rows: row + 1, or 0 for people without training events."""
    return np.where(users < log.num_train_users, users + 1, 0).astype(np.int32)


def traits_of_user(
    log: PreparedLog, row: int | None, told: Mapping[str, str] | None = None
) -> dict[str, int]:
    """What is known of a person by name, 0 = unknown.

    Args:
      log: whose traits they are.
      row: of the person; None = not in the log.
      told: trait -> value as in the raw log, instead of what the log says.

    Raises:
      ValueError: the log has no such trait, or nobody in training had that value.
    """
    traits = {
        name: 0 if row is None else int(values[row]) for name, values in log.user_traits.items()
    }
    for name, text in (told or {}).items():
        if name not in traits:
            has = ", ".join(traits) or "none"
            raise ValueError(f"traits: {name!r} is no trait of people of this log; it has {has}")
        traits[name] = find_user_trait(log.user_trait_values[name], text)
        if not traits[name]:
            known = ", ".join(log.user_trait_values[name][1:6])
            raise ValueError(f"traits: nobody in training had {name}={text}; there were {known}")
    return traits


def _row_windows(packing: Packing, placed: np.ndarray, row: int) -> np.ndarray:
    return placed[packing.row_starts[row] : packing.row_starts[row + 1]]


def _phases(log: PreparedLog, events: np.ndarray) -> np.ndarray:
    if not log.meta.has_times:
        return np.full(len(events), -1, np.int32)
    return hour_of_week(log.times[events], log.utc_offsets_s[events])


def _int32_seconds(seconds: np.ndarray) -> np.ndarray:
    return np.clip(seconds, -_INT32_MAX, _INT32_MAX).astype(np.int32)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths


def _starts_within(lengths: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Running start of each length, from 0 again in every (sorted) group."""
    starts = _starts(lengths)
    return starts - starts[np.searchsorted(groups, groups)]


def _ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """int64, `arange(starts[0], ends[0])` followed by `arange(starts[1], ends[1])` and so on."""
    lengths = ends - starts
    return np.repeat(starts - _starts(lengths), lengths) + np.arange(np.sum(lengths))


def _scatter(
    values: np.ndarray, slots: np.ndarray, shape: tuple[int, int], fill: float
) -> np.ndarray:
    out = np.full((shape[0] * shape[1], *values.shape[1:]), fill, values.dtype)
    out[slots] = values
    return out.reshape(*shape, *values.shape[1:])


def _first_known(coords: np.ndarray, of_window: np.ndarray, num_windows: int) -> np.ndarray:
    """float64 [W, 3], the first known place of each window's tokens, else zero."""
    known = np.flatnonzero(~np.isnan(coords[:, 0]))
    found, first = np.unique(of_window[known], return_index=True)
    origins = np.zeros((num_windows, 3))
    origins[found] = coords[known[first]]
    return origins
