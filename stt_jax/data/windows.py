"""Pieces of people's histories, each with the requests that it answers.

A window holds `events[history_starts:history_ends]` followed by `events[starts:ends]` as tokens,
and asks for every event in `[request_starts, request_ends)`. A request sees the window's tokens
before its own event, so all requests of a window are answered by one causal pass.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import Targets
from stt_jax.data.store import TRAIN

_COUNTED_AT_ONCE = 1 << 20  # events


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows over a prepared log; all arrays int64 [W], event indices and user rows.

    `befores` is the last event of the person that may be known of before `starts`, in the window
    or not; -1 = there is none. The gap of the event at `starts` counts from it.
    """

    users: np.ndarray
    history_starts: np.ndarray
    history_ends: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    request_starts: np.ndarray
    request_ends: np.ndarray
    befores: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, selection: np.ndarray | slice) -> Windows:
        return Windows(
            *(getattr(self, field.name)[selection] for field in dataclasses.fields(self))
        )

    @property
    def num_tokens(self) -> np.ndarray:
        """int64 [W]."""
        return (self.history_ends - self.history_starts) + (self.ends - self.starts)

    @property
    def num_requests(self) -> np.ndarray:
        """int64 [W]."""
        return self.request_ends - self.request_starts


def training_windows(log: PreparedLog, *, window: int, requests: int) -> Windows:
    """Covers every training event with exactly one request.

    A person's training events are cut into runs of `requests`; each run is asked with up to
    `window` tokens before its last event. A small `requests` gives every request a longer past
    and costs more tokens.

    Args:
      log: the prepared log; a person's training events are the first of that person.
      window: most tokens in a window.
      requests: most requests in a window, at most `window`.
    """
    firsts = log.user_offsets[: log.num_train_users]
    counts = _train_counts(log)
    num_windows = -(-counts // requests)
    users = np.repeat(np.arange(log.num_train_users), num_windows)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    request_starts = firsts[users] + nth * requests
    request_ends = np.minimum(request_starts + requests, firsts[users] + counts[users])
    ends = request_ends - 1  # the last requested event is no token
    starts = np.maximum(firsts[users], ends - window)
    befores = np.where(starts > firsts[users], starts - 1, -1)
    return Windows(users, starts, starts, starts, ends, request_starts, request_ends, befores)


def _train_counts(log: PreparedLog) -> np.ndarray:
    """int64, training events of each person who has any; holds a stretch of the log at a time."""
    offsets = log.user_offsets[: log.num_train_users + 1]
    counts = np.zeros(log.num_train_users, np.int64)
    first = 0
    while first < log.num_train_users:
        end = int(np.searchsorted(offsets, offsets[first] + _COUNTED_AT_ONCE))
        end = min(max(end, first + 1), log.num_train_users)
        is_train = log.parts[offsets[first] : offsets[end]] == TRAIN
        starts = offsets[first:end] - offsets[first]
        counts[first:end] = np.add.reduceat(is_train, starts, dtype=np.int64)
        first = end
    return counts


def target_windows(targets: Targets, *, window: int) -> Windows:
    """One window a target, with the last `window` events of its context."""
    own = np.minimum(targets.events - targets.session_starts, window)
    history = np.minimum(targets.history_ends - targets.history_starts, window - own)
    starts = targets.events - own
    # Between the two ranges of a context there may be events that it leaves out.
    has_history = targets.history_ends > targets.history_starts
    befores = np.where(has_history, targets.history_ends - 1, -1)
    return Windows(
        targets.users,
        targets.history_ends - history,
        targets.history_ends,
        starts,
        targets.events,
        targets.events,
        targets.events + 1,
        np.where(starts > targets.session_starts, starts - 1, befores),
    )
