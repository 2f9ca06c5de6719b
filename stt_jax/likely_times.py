"""How long people wait for their next event: what a hidden request time may be."""

from __future__ import annotations

import itertools

import numpy as np

from stt_jax.batch import FIRST_WEEKEND_HOUR, HOURS_PER_WEEK
from stt_jax.data.encodings import hour_of_week
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.store import TRAIN

_NUM_KINDS = 48  # of hours: of the day, on Monday to Friday and on the weekend
_FEW = 20  # waits say little of their hour


def find_waits(log: PreparedLog, num_waits: int) -> np.ndarray:
    """Equally likely waits after an event at each hour of the week, in the training part.

    They are the middles of as many quantiles of what was waited from one training event of a person
    to the next. An hour of all weekdays is counted as one, and of both days of the weekend; where
    there were few, all hours together are.

    Args:
      log: whose training part is counted.
      num_waits: K.

    Returns:
      int32 [168, K], seconds, ascending in a row; zero where nobody had two events.
    """
    events = np.flatnonzero(log.parts == TRAIN)
    users = np.searchsorted(log.user_offsets, events, side="right") - 1
    follows = (users[1:] == users[:-1]) & (np.diff(events) == 1)
    before, after = events[:-1][follows], events[1:][follows]
    waits = np.minimum(log.times[after] - log.times[before], np.iinfo(np.int32).max)
    if not len(waits):
        return np.zeros((HOURS_PER_WEEK, num_waits), np.int32)
    kinds = _kind_of_hour(hour_of_week(log.times[before], log.utc_offsets_s[before]))
    middles = (np.arange(num_waits) + 0.5) / num_waits
    of_all = np.quantile(waits, middles)
    order = np.argsort(kinds, kind="stable")
    bounds = np.searchsorted(kinds[order], np.arange(_NUM_KINDS + 1))
    of_kind = [
        np.quantile(waits[order[start:end]], middles) if end - start >= _FEW else of_all
        for start, end in itertools.pairwise(bounds)
    ]
    return np.stack(of_kind)[_kind_of_hour(np.arange(HOURS_PER_WEEK))].astype(np.int32)


def _kind_of_hour(hours: np.ndarray) -> np.ndarray:
    """0..23, hours of Monday to Friday; 24..47, those of the weekend."""
    return hours % 24 + 24 * (hours >= FIRST_WEEKEND_HOUR)
