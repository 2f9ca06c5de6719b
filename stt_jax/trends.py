"""What was popular when: shares of the events before a moment, faded by one or more half-lives.

`find_trends` counts a part of a log once; `LiveTrends` goes on counting as events come in. Time
goes in steps of some minutes, an hour if nobody says otherwise. A row of a table holds from a step
on and knows nothing of that step: what was counted ended before it. So an event is never among what
its own prediction goes by, and no version without it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse

from stt_jax.batch import Relation, Trends
from stt_jax.data.prepared_log import PreparedLog

NUM_TRENDING = 256  # items of a row
_MAX_STRETCHES = 1000  # of hours; of shorter steps as many more as they are shorter
_NUM_LIVE = 64  # steps with events that get a row each as they come in
_NEVER_MIN = 2**31 - 1


def find_trends(
    log: PreparedLog, events: np.ndarray, half_lives_h: Sequence[float], step_min: int = 60
) -> Trends:
    """What was popular at the end of each stretch of some events.

    A stretch is a step that has events, or several in a row that together have about as many as
    any other: a log may be quiet for years, or hold several that were years apart.

    Args:
      log: whose items and times they are.
      events: int [N], rows of the log's events.
      half_lives_h: hours after which an event counts half, one a table.
      step_min: minutes of a step.
    """
    steps, of_step = np.unique(log.times[events] // (60 * step_min), return_inverse=True)
    of_step = of_step.astype(np.int64)
    num_events = np.bincount(of_step, minlength=len(steps))
    most_stretches = _MAX_STRETCHES * 60 // step_min
    shares_before = (np.cumsum(num_events) - num_events) * most_stretches // max(1, len(of_step))
    stretches = np.arange(len(steps))
    if len(steps) > most_stretches:
        stretches = np.unique(shares_before, return_inverse=True)[1].astype(np.int64)
    last_steps = steps[np.diff(stretches, append=len(steps)) > 0]
    starts = np.concatenate([steps[:1], last_steps + 1])
    ages = (last_steps + 1)[stretches[of_step]] - steps[of_step]
    relations = []
    for half_life in _in_steps(half_lives_h, step_min):
        by_stretch = scipy.sparse.csr_array(
            (_fading(ages, half_life), (stretches[of_step], log.items[events])),
            shape=(len(last_steps), log.num_items + 1),
        )
        table = _Table(len(starts), log.num_items)
        masses = np.zeros(log.num_items + 1)
        for stretch in range(len(last_steps)):
            begin, end = by_stretch.indptr[stretch : stretch + 2]
            masses *= _fading(starts[stretch + 1] - starts[stretch], half_life)
            masses[by_stretch.indices[begin:end]] += by_stretch.data[begin:end]
            table.write(stretch + 2, masses)
        relations.append(table.relation())
    return Trends(tuple(relations), (starts * step_min).astype(np.int32))


class LiveTrends:
    """The trends of a whole log that go on as events come in, always in tables of one shape.

    The last steps that have events are counted apart and have a row each; as further ones come,
    the oldest of them join what came before. An event that comes late counts from then on.
    """

    def __init__(self, log: PreparedLog, half_lives_h: Sequence[float], step_min: int = 60) -> None:
        """Counts the log, all parts of it; the arguments are those of `find_trends`."""
        steps = log.times // (60 * step_min)
        recent = np.unique(steps)[-_NUM_LIVE:]
        self._step_min = step_min
        self._half_lives = _in_steps(half_lives_h, step_min)
        self._start = int(recent[0]) if len(recent) else 0
        before = np.flatnonzero(steps < self._start)
        base = find_trends(log, before, half_lives_h, step_min)
        self._base_starts = base.start_minutes
        self._items: dict[int, list[np.ndarray]] = {}
        self._changed_from = self._start
        self._masses, self._tables = [], []
        for half_life, relation in zip(self._half_lives, base.relations, strict=True):
            weights = _fading(self._start - steps[before], half_life)
            self._masses.append(np.bincount(log.items[before], weights, log.num_items + 1))
            table = _Table(len(base.start_minutes) + 1 + _NUM_LIVE, log.num_items)
            table.copy(relation)
            self._tables.append(table)
        later = np.flatnonzero(steps >= self._start)
        self.add(log.items[later], log.times[later] // 60)

    def add(self, items: np.ndarray, minutes: np.ndarray) -> None:
        """Counts further events.

        Args:
          items: int32 [N], rows of the catalogue; 0 = unknown, counts as an event of its step
            alone.
          minutes: int [N], minutes since 1970.
        """
        steps = minutes // self._step_min
        late = steps < self._start
        if late.any():
            ages = self._start - steps[late]
            for masses, half_life in zip(self._masses, self._half_lives, strict=True):
                np.add.at(masses, items[late], _fading(ages, half_life))
            self._changed_from = self._start
        for step in np.unique(steps[~late]).tolist():
            self._items.setdefault(step, []).append(items[steps == step])
            self._changed_from = min(self._changed_from, step)
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
        starts = np.full(num_base + 1 + _NUM_LIVE, _NEVER_MIN, np.int32)
        starts[:num_base] = self._base_starts
        starts[num_base] = self._start * self._step_min
        masses, at = self._masses, self._start
        if self._changed_from <= self._start:
            self._write(num_base + 1, masses)
        for row, step in enumerate(sorted(self._items), start=num_base + 1):
            masses = self._after(masses, at, step)
            at = step + 1
            starts[row] = at * self._step_min
            if step >= self._changed_from:
                self._write(row + 1, masses)
        self._changed_from = _NEVER_MIN
        return Trends(tuple(table.relation() for table in self._tables), starts)

    def _write(self, row: int, masses: list[np.ndarray]) -> None:
        for table, mine in zip(self._tables, masses, strict=True):
            table.write(row, mine)

    def _after(self, masses: list[np.ndarray], start: int, step: int) -> list[np.ndarray]:
        """What counts after a step: what counted at `start`, and the events of the step."""
        grown = []
        for before, half_life in zip(masses, self._half_lives, strict=True):
            after = before * _fading(step + 1 - start, half_life)
            for items in self._items[step]:
                np.add.at(after, items, _fading(1, half_life))
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


def _in_steps(half_lives_h: Sequence[float], step_min: int) -> list[float]:
    return [half_life_h * 60 / step_min for half_life_h in half_lives_h]


def _fading(ages: np.ndarray | int, half_life: float) -> np.ndarray:
    """What an event counts that many steps later."""
    return np.asarray(0.5 ** (np.asarray(ages) / half_life))
