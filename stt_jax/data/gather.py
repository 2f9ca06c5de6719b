"""Windows over a log -> the arrays of a batch: tokens in packed rows, and requests."""

from __future__ import annotations

import dataclasses

import numpy as np

from stt_jax.batch import History, Requests
from stt_jax.data.catalogue import model_users, one_domain
from stt_jax.data.encodings import earth_coords, hour_of_week, int32_seconds
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.windows import Windows


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
    # Features that were worked out from the event before are unknown where that is left out.
    skips = (previous != events - 1) & (events > log.user_offsets[w.users[of_window]])
    unknown = {"gap_h": skips, "step_km": _until_a_place(skips, of_window, coords)}

    def number(name: str, column: np.ndarray) -> np.ndarray:
        values = column[events]
        return np.where(unknown[name], np.float32(np.nan), values) if name in unknown else values

    def put(values: np.ndarray, fill: float = 0) -> np.ndarray:
        return _scatter(values, slots, (len(rows), row_tokens), fill)

    history = History(
        items=put(log.items[events]),
        categories=put(log.categories[events]),
        contexts={name: put(column[events]) for name, column in log.contexts.items()},
        numbers={name: put(number(name, column)) for name, column in log.numbers.items()},
        traits={name: put(values[log.items[events]]) for name, values in log.item_traits.items()},
        times=put(int32_seconds(log.times[events] - layout.time_origins[of_window])),
        gaps_s=put(int32_seconds(gaps), -1),
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
        times=put(int32_seconds(log.times[events] - layout.time_origins[of_window])),
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


def _phases(log: PreparedLog, events: np.ndarray) -> np.ndarray:
    if not log.meta.has_times:
        return np.full(len(events), -1, np.int32)
    return hour_of_week(log.times[events], log.utc_offsets_s[events])


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


def _until_a_place(skips: np.ndarray, of_window: np.ndarray, coords: np.ndarray) -> np.ndarray:
    """bool [tokens], True from a skip on until after the window's next token with a place."""
    known = ~np.isnan(coords[:, 0])
    before = np.cumsum(known) - known
    last = np.maximum.accumulate(np.where(skips, np.arange(len(skips)), -1))
    within = (last >= 0) & (of_window[last] == of_window)
    return within & (before == before[last])


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
