"""Prepared log -> batches: cut into windows, pack, gather; any batch can be made on its own.

A batch is a function of (log, options, step number), so the state of the input is one integer:
grain reads ahead in threads, saves it with the checkpoint and continues from it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from stt_jax.batch import HOURS_PER_WEEK, Catalogue, History, Requests
from stt_jax.data.packing import Packing, in_order, pack, shuffle_epoch
from stt_jax.data.protocol import Targets
from stt_jax.data.store import UNKNOWN_E7, PreparedLog
from stt_jax.data.windows import Windows, target_windows, training_windows

EARTH_RADIUS_M = 6_371_008.8
_EPOCH_HOUR_OF_WEEK = 72  # 1970-01-01 00:00 UTC was a Thursday; Monday 00:00 is hour 0
_INT32_MAX = 2**31 - 1


class TrainingBatches:
    """The batches of a training run, by step number: a random-access source for grain.

    Rows run on from one epoch into the next, so no row is left out and no batch is short.
    """

    def __init__(
        self, log: PreparedLog, *, window: int, requests: int, batch_rows: int, seed: int
    ) -> None:
        self._log = log
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
        for row in range(first, first + self._batch_rows):
            epoch, index = divmod(row, self.rows_per_epoch)
            windows, order = self._epoch(epoch)
            rows.append(_row_windows(self._packing, windows, order[index]))
        return gather_batch(
            self._log,
            self._windows,
            rows,
            row_tokens=self._row_tokens,
            row_requests=self._row_requests,
        )


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
        history, requests = gather_batch(
            log, windows, rows, row_tokens=window, row_requests=row_requests
        )
        index = np.full(requests.users.shape, -1, np.int64)
        for row, members in enumerate(rows):
            index[row, : len(members)] = members
        yield history, requests, index


def catalogue(log: PreparedLog) -> Catalogue:
    """The items of a log as the model sees them."""
    coords = earth_coords(log.item_latitudes_e7, log.item_longitudes_e7)
    return Catalogue(np.asarray(log.item_categories, np.int32), coords.astype(np.float32))


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


def gather_batch(
    log: PreparedLog,
    windows: Windows,
    rows: list[np.ndarray],
    *,
    row_tokens: int,
    row_requests: int,
) -> tuple[History, Requests]:
    """Lays windows out in packed rows.

    Args:
      log: the prepared log.
      windows: windows over it.
      rows: for each row of the batch the indices of its windows, in order.
      row_tokens: S, tokens in a row.
      row_requests: R, requests in a row.

    Returns:
      `History` [B, S] and `Requests` [B, R], numpy. Requests carry the target's own time and
      place; whoever uses the batch decides what of that the model may see.
    """
    num_rows = len(rows)
    members = np.concatenate(rows)
    w = windows[members]
    row_of = np.repeat(np.arange(num_rows), [len(row) for row in rows])
    segment_of = np.arange(len(members)) - np.searchsorted(row_of, row_of) + 1

    # Where each window's tokens and requests begin, in the flattened [B * S] and [B * R] arrays.
    token_at = row_of * row_tokens + _starts_within(w.num_tokens, row_of)
    request_at = row_of * row_requests + _starts_within(w.num_requests, row_of)

    num_history = w.history_ends - w.history_starts
    token_events = _ranges(
        np.stack([w.history_starts, w.starts], 1).ravel(),
        np.stack([w.history_ends, w.request_ends - 1], 1).ravel(),
    )
    token_windows = np.repeat(np.arange(len(members)), w.num_tokens)
    token_slots = _ranges(token_at, token_at + w.num_tokens)
    request_events = _ranges(w.request_starts, w.request_ends)
    request_windows = np.repeat(np.arange(len(members)), w.num_requests)
    request_slots = _ranges(request_at, request_at + w.num_requests)

    # The segment's origin: time and place of its first token, or of the request if it has none.
    first_event = w.request_starts.copy()
    has_tokens = w.num_tokens > 0
    first_event[has_tokens] = token_events[_starts(w.num_tokens)[has_tokens]]
    time_origin = log.times[first_event]
    token_coords = earth_coords(log.latitudes_e7[token_events], log.longitudes_e7[token_events])
    request_coords = earth_coords(
        log.latitudes_e7[request_events], log.longitudes_e7[request_events]
    )
    place_origin = _first_known(token_coords, token_windows, request_coords, request_windows)

    # What came before a token: the event before it in the log, but never one that the window
    # leaves out between its two ranges.
    previous = token_events - 1
    jumps = (num_history > 0) & (w.num_tokens > num_history)
    previous[(_starts(w.num_tokens) + num_history)[jumps]] = w.history_ends[jumps] - 1
    gaps = log.times[token_events] - log.times[np.maximum(previous, 0)]
    gaps[token_events == log.user_offsets[w.users[token_windows]]] = -1
    gaps = np.clip(gaps, -1, _INT32_MAX).astype(np.int32)

    def tokens(values: np.ndarray, fill: float = 0) -> np.ndarray:
        return _scatter(values, token_slots, (num_rows, row_tokens), fill)

    def asked(values: np.ndarray, fill: float = 0) -> np.ndarray:
        return _scatter(values, request_slots, (num_rows, row_requests), fill)

    def seconds(events: np.ndarray, of_window: np.ndarray) -> np.ndarray:
        since = log.times[events] - time_origin[of_window]
        return np.clip(since, -_INT32_MAX, _INT32_MAX).astype(np.int32)

    def phases(events: np.ndarray) -> np.ndarray:
        if not log.meta.has_times:
            return np.full(len(events), -1, np.int32)
        return hour_of_week(log.times[events], log.utc_offsets_s[events])

    history = History(
        items=tokens(log.items[token_events]),
        categories=tokens(log.categories[token_events]),
        contexts={name: tokens(column[token_events]) for name, column in log.contexts.items()},
        times=tokens(seconds(token_events, token_windows)),
        gaps_s=tokens(gaps, -1),
        phases=tokens(phases(token_events), -1),
        coords=tokens((token_coords - place_origin[token_windows]).astype(np.float32), np.nan),
        origins=tokens(place_origin[token_windows].astype(np.float32)),
        segment_ids=tokens(segment_of[token_windows].astype(np.int32)),
    )
    # The token before each requested event: of the window's own range, or of its history.
    before = num_history[request_windows] + request_events - w.starts[request_windows] - 1
    last_tokens = np.where(before >= 0, token_at[request_windows] % row_tokens + before, -1)
    known_user = w.users < log.num_train_users
    requests = Requests(
        users=asked(np.where(known_user, w.users + 1, 0)[request_windows].astype(np.int32)),
        times=asked(seconds(request_events, request_windows)),
        phases=asked(phases(request_events), -1),
        time_known=asked(np.full(len(request_events), log.meta.has_times)),
        coords=asked((request_coords - place_origin[request_windows]).astype(np.float32), np.nan),
        origins=asked(place_origin[request_windows].astype(np.float32)),
        last_tokens=asked(last_tokens.astype(np.int32), -1),
        segment_ids=asked(segment_of[request_windows].astype(np.int32)),
        targets=asked(log.items[request_events]),
    )
    return history, requests


def _row_windows(packing: Packing, placed: np.ndarray, row: int) -> np.ndarray:
    return placed[packing.row_starts[row] : packing.row_starts[row + 1]]


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths


def _starts_within(lengths: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Running start of each length, from 0 again in every (sorted) group."""
    starts = _starts(lengths)
    return starts - starts[np.searchsorted(groups, groups)] if len(lengths) else starts


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


def _first_known(
    token_coords: np.ndarray,
    token_windows: np.ndarray,
    request_coords: np.ndarray,
    request_windows: np.ndarray,
) -> np.ndarray:
    """float64 [W, 3], first known place of each window's tokens, else requests, else zero."""
    coords = np.concatenate([token_coords, request_coords])
    of_window = np.concatenate([token_windows, request_windows])
    order = np.argsort(of_window, kind="stable")
    order = order[~np.isnan(coords[order, 0])]
    origins = np.zeros((int(request_windows[-1]) + 1 if len(request_windows) else 0, 3))
    found, first = np.unique(of_window[order], return_index=True)
    origins[found] = coords[order[first]]
    return origins
