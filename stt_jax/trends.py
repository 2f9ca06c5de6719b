"""What was popular when: shares of the events before an hour, faded by one or more half-lives.

`find_trends` counts a part of a log once; `LiveTrends` goes on counting as events come in. A row of
a table holds from an hour on and knows nothing of that hour: what was counted ended before it. So
an event is never among what its own prediction goes by, and no version without it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse

from stt_jax.batch import Relation, Trends
from stt_jax.data.store import PreparedLog

NUM_TRENDING = 256  # items of a row
_MAX_STRETCHES = 1000
_NUM_LIVE = 64  # hours with events that get a row each as they come in
_NEVER_H = 2**31 - 1


def find_trends(log: PreparedLog, events: np.ndarray, half_lives_h: Sequence[float]) -> Trends:
    """What was popular at the end of each stretch of some events.

    A stretch is an hour that has events, or several in a row that together have about as many as
    any other: a log may be quiet for years, or hold several that were years apart.

    Args:
      log: whose items and times they are.
      events: int [N], rows of the log's events.
      half_lives_h: hours after which an event counts half, one a table.
    """
    hours, of_hour = np.unique(log.times[events] // 3600, return_inverse=True)
    of_hour = of_hour.astype(np.int64)
    num_events = np.bincount(of_hour, minlength=len(hours))
    shares_before = (np.cumsum(num_events) - num_events) * _MAX_STRETCHES // max(1, len(of_hour))
    stretches = np.arange(len(hours))
    if len(hours) > _MAX_STRETCHES:
        stretches = np.unique(shares_before, return_inverse=True)[1].astype(np.int64)
    last_hours = hours[np.diff(stretches, append=len(hours)) > 0]
    starts = np.concatenate([hours[:1], last_hours + 1])
    ages_h = (last_hours + 1)[stretches[of_hour]] - hours[of_hour]
    relations = []
    for half_life_h in half_lives_h:
        by_stretch = scipy.sparse.csr_array(
            (_fading(ages_h, half_life_h), (stretches[of_hour], log.items[events])),
            shape=(len(last_hours), log.num_items + 1),
        )
        table = _Table(len(starts), log.num_items)
        masses = np.zeros(log.num_items + 1)
        for stretch in range(len(last_hours)):
            begin, end = by_stretch.indptr[stretch : stretch + 2]
            masses *= _fading(starts[stretch + 1] - starts[stretch], half_life_h)
            masses[by_stretch.indices[begin:end]] += by_stretch.data[begin:end]
            table.write(stretch + 2, masses)
        relations.append(table.relation())
    return Trends(tuple(relations), starts.astype(np.int32))


class LiveTrends:
    """The trends of a whole log that go on as events come in, always in tables of one shape.

    The last hours that have events are counted apart and have a row each; as further hours come,
    the oldest of them join what came before. An event that comes late counts from then on.
    """

    def __init__(self, log: PreparedLog, half_lives_h: Sequence[float]) -> None:
        """Counts the log, all parts of it."""
        hours = log.times // 3600
        recent = np.unique(hours)[-_NUM_LIVE:]
        self._half_lives_h = half_lives_h
        self._start = int(recent[0]) if len(recent) else 0
        before = np.flatnonzero(hours < self._start)
        base = find_trends(log, before, half_lives_h)
        self._base_starts = base.start_hours
        self._items: dict[int, list[np.ndarray]] = {}
        self._changed_from = self._start
        self._masses, self._tables = [], []
        for half_life_h, relation in zip(half_lives_h, base.relations, strict=True):
            weights = _fading(self._start - hours[before], half_life_h)
            self._masses.append(np.bincount(log.items[before], weights, log.num_items + 1))
            table = _Table(len(base.start_hours) + 1 + _NUM_LIVE, log.num_items)
            table.copy(relation)
            self._tables.append(table)
        later = np.flatnonzero(hours >= self._start)
        self.add(log.items[later], hours[later])

    def add(self, items: np.ndarray, hours: np.ndarray) -> None:
        """Counts further events.

        Args:
          items: int [N], rows of the catalogue; 0 = unknown, counts as an event of its hour alone.
          hours: int [N], hours since 1970.
        """
        late = hours < self._start
        if late.any():
            ages_h = self._start - hours[late]
            for masses, half_life_h in zip(self._masses, self._half_lives_h, strict=True):
                np.add.at(masses, items[late], _fading(ages_h, half_life_h))
            self._changed_from = self._start
        for hour in np.unique(hours[~late]).tolist():
            self._items.setdefault(hour, []).append(items[hours == hour])
            self._changed_from = min(self._changed_from, hour)
        while len(self._items) > _NUM_LIVE:
            oldest = min(self._items)
            self._masses = self._after(self._masses, self._start, oldest)
            del self._items[oldest]
            self._start = oldest + 1
            for table in self._tables:
                table.drop(len(self._base_starts) + 1)

    def trends(self) -> Trends:
        """The tables as they are now; the arrays are new ones."""
        num_base = len(self._base_starts)
        starts = np.full(num_base + 1 + _NUM_LIVE, _NEVER_H, np.int32)
        starts[:num_base] = self._base_starts
        starts[num_base] = self._start
        masses, at = self._masses, self._start
        if self._changed_from <= self._start:
            self._write(num_base + 1, masses)
        for row, hour in enumerate(sorted(self._items), start=num_base + 1):
            masses = self._after(masses, at, hour)
            at = starts[row] = hour + 1
            if hour >= self._changed_from:
                self._write(row + 1, masses)
        self._changed_from = _NEVER_H
        return Trends(tuple(table.relation() for table in self._tables), starts)

    def _write(self, row: int, masses: list[np.ndarray]) -> None:
        for table, mine in zip(self._tables, masses, strict=True):
            table.write(row, mine)

    def _after(self, masses: list[np.ndarray], start: int, hour: int) -> list[np.ndarray]:
        """What counts after an hour: what counted at `start`, and the events of the hour."""
        grown = []
        for before, half_life_h in zip(masses, self._half_lives_h, strict=True):
            after = before * _fading(hour + 1 - start, half_life_h)
            for items in self._items[hour]:
                np.add.at(after, items, _fading(1, half_life_h))
            grown.append(after)
        return grown


class _Table:
    """A relation that is written row by row."""

    def __init__(self, num_rows: int, num_items: int) -> None:
        """Empty rows 1..num_rows, and row 0, which stays so."""
        self._size = min(NUM_TRENDING, num_items)
        shape = (num_rows + 1, max(self._size, 1))
        self._items = np.zeros(shape, np.int32)
        self._shares = np.zeros(shape, np.float32)
        self._totals = np.zeros(num_rows + 1, np.float32)

    def write(self, row: int, masses: np.ndarray) -> None:
        """Makes a row of what each item counts, float64 [V + 1]; the unknown item does not."""
        known = masses.copy()
        known[0] = 0
        total = known.sum()
        best = np.argpartition(-known, max(self._size, 1) - 1)[: self._size]
        best = best[known[best] > 0]
        self._items[row], self._shares[row] = 0, 0
        self._items[row, : len(best)] = best
        self._shares[row, : len(best)] = known[best] / max(total, 1e-300)
        self._totals[row] = total

    def drop(self, row: int) -> None:
        """Takes a row out; those after it move up, and the last stays as it is."""
        for column in (self._items, self._shares, self._totals):
            column[row:-1] = column[row + 1 :]

    def copy(self, relation: Relation) -> None:
        """Takes over the rows of another table."""
        count = len(relation.counts)
        self._items[:count] = relation.items
        self._shares[:count] = relation.shares
        self._totals[:count] = relation.counts

    def relation(self) -> Relation:
        """A copy of what was written."""
        items, shares, totals = self._items.copy(), self._shares.copy(), self._totals.copy()
        return Relation(items, shares, shares, totals, totals)


def _fading(ages_h: np.ndarray | int, half_life_h: float) -> np.ndarray:
    """What an event counts that many hours later."""
    return np.asarray(0.5 ** (np.asarray(ages_h) / half_life_h))
