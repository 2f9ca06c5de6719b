"""Counts of a log, contexts of targets and sparse scores: what the counting models are made of.

A score of a target for every item has two parts: a sparse one of its own (values at keys), and a
dense one that all targets share (popularity). Ranks over the full catalogue follow from these
without an array of targets times items.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import scipy.sparse

from stt_jax.batch import HOURS_PER_WEEK, NUM_LATEST, Successions, Trends
from stt_jax.data.encodings import hour_of_week
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import Targets
from stt_jax.data.store import TRAIN
from stt_jax.metrics import MISS
from stt_jax.successions import find_successions
from stt_jax.trends import LiveTrends

_MOST_MINUTES = 1 << 32  # more than have passed since 1970
MAX_CONTEXT = 2000  # most recent events of a context that are counted
NUM_NEIGHBOURS = 50  # of an item, by cosine

_CHUNK_TARGETS = 2048
_BLOCK_ITEMS = 512


class TrainingCounts:
    """What is counted in the training part of a log, each kind once, when first asked for."""

    def __init__(self, log: PreparedLog, apart: np.ndarray | None = None):
        """`apart`: int [V + 1], a group of each item, within which it is ranked; None = all one."""
        self.log = log
        groups = np.zeros(log.num_items + 1, np.int32) if apart is None else apart
        self.apart = np.where(log.is_item, groups, -1)  # forgotten items are beside nothing
        self.num_columns = log.num_items + 1
        self.events = np.flatnonzero(log.parts == TRAIN)
        self.hours = hour_of_week(log.times, log.utc_offsets_s).astype(np.int16)

    @functools.cached_property
    def popularity(self) -> np.ndarray:
        """float64 [V + 1], shares of the training events, 0 for the unknown item."""
        return self.recent_popularity(None)

    def recent_popularity(self, half_life_days: float | None) -> np.ndarray:
        """The same with an event's weight halved every `half_life_days` before the last one."""
        items, times = self.log.items[self.events], self.log.times[self.events]
        ages_days = (times.max(initial=0) - times) / 86_400
        weights = None if half_life_days is None else np.exp2(-ages_days / half_life_days)
        counts = np.bincount(items, weights=weights, minlength=self.num_columns).astype(np.float64)
        counts[0] = 0
        return counts / max(counts.sum(), 1e-300)

    @functools.cache  # noqa: B019 (a TrainingCounts lives as long as an evaluation)
    def live_trends(self, half_life_h: float, step_min: int) -> Trends:
        """What was popular when, counted in all parts of the log."""
        return LiveTrends(self.log, (half_life_h,), step_min).trends()

    @functools.cached_property
    def live_successions(self) -> Successions:
        """What followed what when, in all parts of the log."""
        return find_successions(self.log, np.arange(self.log.num_events))

    @functools.cached_property
    def transition_counts(self) -> scipy.sparse.csr_array:
        """[V + 1, V + 1] how often each item followed each."""
        before, after = (self.log.items[events] for events in self._successions)
        chosen = (before > 0) & (after > 0)
        shape = (self.num_columns, self.num_columns)
        ones = np.ones(np.count_nonzero(chosen))
        return scipy.sparse.csr_array((ones, (before[chosen], after[chosen])), shape=shape)

    @functools.cached_property
    def transitions(self) -> scipy.sparse.csr_array:
        """[V + 1, V + 1] shares of what followed each item; a row sums to one or is empty."""
        counts = self.transition_counts
        shares = (scipy.sparse.diags_array(1 / np.maximum(counts.sum(axis=1), 1)) @ counts).tocsr()
        shares.sort_indices()
        return shares

    @functools.cached_property
    def next_hours(self) -> np.ndarray:
        """[168, 168] P(hour of week of the next event | of this one)."""
        before, after = (self.hours[events] for events in self._successions)
        table = np.full((HOURS_PER_WEEK, HOURS_PER_WEEK), 1 / HOURS_PER_WEEK)
        np.add.at(table, (before, after), 1.0)
        return table / table.sum(axis=1, keepdims=True)

    @functools.cached_property
    def _had(self) -> scipy.sparse.csr_array:
        """[people, V + 1] one where a person had an item."""
        users = np.searchsorted(self.log.user_offsets, self.events, side="right") - 1
        items = self.log.items[self.events]
        ages = np.searchsorted(users, users, side="right") - np.arange(len(users))
        chosen = (items > 0) & (ages <= MAX_CONTEXT)
        pairs = distinct(users[chosen] * self.num_columns + items[chosen])
        rows, columns = np.divmod(pairs, self.num_columns)
        shape = (self.log.num_users, self.num_columns)
        return scipy.sparse.csr_array(
            (np.ones(len(pairs), np.float32), (rows, columns)), shape=shape
        )

    @functools.cached_property
    def item_people(self) -> np.ndarray:
        """float64 [V + 1], people who had each item."""
        return np.asarray(self._had.sum(axis=0), np.float64)

    @functools.cached_property
    def similarities(self) -> scipy.sparse.csr_array:
        """[V + 1, V + 1] cosine of the people who had two items, nearest neighbours only."""
        norms = np.sqrt(np.maximum(self.item_people, 1)).astype(np.float32)
        had = (self._had @ scipy.sparse.diags_array(1 / norms)).tocsr()
        had_by_item = had.T.tocsr()
        blocks = []
        for first in range(0, self.num_columns, _BLOCK_ITEMS):
            block = (had_by_item[first : first + _BLOCK_ITEMS] @ had).tocsr()
            rows = np.repeat(np.arange(block.shape[0]) + first, np.diff(block.indptr))
            block.data[block.indices == rows] = 0  # an item is no neighbour of its own
            rows, columns, values = largest_per_row(block, NUM_NEIGHBOURS)
            blocks.append(scipy.sparse.csr_array((values, (rows, columns)), shape=block.shape))
        return scipy.sparse.vstack(blocks, format="csr")

    @functools.cached_property
    def _successions(self) -> tuple[np.ndarray, np.ndarray]:
        """Consecutive training events of one person."""
        users = np.searchsorted(self.log.user_offsets, self.events, side="right")
        same = users[1:] == users[:-1]
        return self.events[:-1][same], self.events[1:][same]


@dataclasses.dataclass(frozen=True)
class Cells:
    """Some (target, item) pairs of a chunk, ordered by key = row * num_columns + item.

    Attributes:
      keys, rows, items: int64 [Z].
    """

    keys: np.ndarray
    rows: np.ndarray
    items: np.ndarray

    @staticmethod
    def of(keys: np.ndarray, num_columns: int) -> Cells:
        """The cells of increasing keys."""
        return Cells(keys, *np.divmod(keys, num_columns))


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of n targets: `values` [Z] at `cells` plus `shared` [V + 1] in every row."""

    cells: Cells
    values: np.ndarray
    shared: np.ndarray

    def values_at(self, keys: np.ndarray) -> np.ndarray:
        """The sparse part at `keys`, 0 where there is none."""
        own_keys = self.cells.keys
        if not len(own_keys):
            return np.zeros(len(keys))
        places = np.minimum(np.searchsorted(own_keys, keys), len(own_keys) - 1)
        return np.where(own_keys[places] == keys, self.values[places], 0.0)

    def ranks(self, target_items: np.ndarray, apart: np.ndarray | None = None) -> np.ndarray:
        """int32 [n], `metrics.target_ranks` of the dense scores, without making them.

        `apart`, int [V + 1], tells groups of items: a target is ranked within its own. None = all
        items are one.
        """
        num_rows, num_columns = len(target_items), len(self.shared)
        apart = np.zeros(num_columns, np.int32) if apart is None else apart
        groups = apart[target_items]
        rows = self.cells.rows
        beside = apart[self.cells.items] == groups[rows]
        target_values = self.values_at(np.arange(num_rows) * num_columns + target_items)
        target_scores = target_values + self.shared[target_items]
        # Items in cells count with their own score, all others with the shared part.
        shared, row_scores = self.shared[self.cells.items], target_scores[rows]
        above_in_cells = np.bincount(
            rows[beside & (self.values + shared >= row_scores)], minlength=num_rows
        )
        above_shared_too = np.bincount(rows[beside & (shared >= row_scores)], minlength=num_rows)
        above_shared = np.zeros(num_rows, np.int64)
        for group in np.unique(groups):
            mine = groups == group
            scores = np.sort(self.shared[1:][apart[1:] == group])
            above_shared[mine] = len(scores) - np.searchsorted(scores, target_scores[mine])
        ranks = above_shared + above_in_cells - above_shared_too
        answered = (target_items > 0) & (target_scores > -np.inf)
        return np.where(answered, ranks, MISS).astype(np.int32)

    def without(self, seen: Cells) -> Scores:
        """The same with -inf at the cells `seen`."""
        keys = distinct(np.concatenate([self.cells.keys, seen.keys]))
        values = self.values_at(keys)
        values[np.searchsorted(keys, seen.keys)] = -np.inf
        return Scores(Cells.of(keys, len(self.shared)), values, self.shared)


@dataclasses.dataclass(frozen=True)
class Questions:
    """A chunk of n targets with their contexts laid end to end (P events).

    Attributes:
      target_items: int64 [n].
      own: the distinct known items of each context.
      own_index: int64 [P]. The cell of each context event; Z for an unknown item.
      ages: float64 [P]. 1 = the last event of the context, 2 = the one before, ...
      ages_days: float64 [P]. Days before the last event of the context.
      hour_pairs: int32 [P]. 168 * hour of week of the request + hour of the event; with the hour
        of the last event of the context in place of the request's if its time is unknown.
      request_known: whether that is the hour of the request.
      follows_last: bool [P]. Whether the event before had the same item as the context's last one.
      last_items: int64 [n], 0 if the context is empty or its last item unknown.
      now_min: int64 [n], minutes since 1970 at the request, or at the last event of the context if
        its time is unknown; at the request also where there is no context, as for the model.
    """

    target_items: np.ndarray
    own: Cells
    own_index: np.ndarray
    ages: np.ndarray
    ages_days: np.ndarray
    hour_pairs: np.ndarray
    request_known: bool
    follows_last: np.ndarray
    last_items: np.ndarray
    now_min: np.ndarray

    def sum_by_item(self, weights: np.ndarray) -> np.ndarray:
        """Sums the weights [P] of context events by cell, each target scaled to one: [Z]."""
        sums = np.bincount(self.own_index, weights=weights, minlength=len(self.own.keys) + 1)[:-1]
        return scale_rows(self.own.rows, sums, len(self.target_items))


def gather_questions(
    counts: TrainingCounts, targets: Targets, *, request_known: bool
) -> Iterator[Questions]:
    """The targets in chunks, their contexts looked up in the log."""
    for first in range(0, len(targets), _CHUNK_TARGETS):
        yield _gather(counts, targets[first : first + _CHUNK_TARGETS], request_known)


def _gather(counts: TrainingCounts, targets: Targets, request_known: bool) -> Questions:
    log, num_targets = counts.log, len(targets)
    # Both ranges of the context, shortened from the front to MAX_CONTEXT events together.
    session_lengths = np.minimum(targets.events - targets.session_starts, MAX_CONTEXT)
    history_lengths = np.minimum(
        targets.history_ends - targets.history_starts, MAX_CONTEXT - session_lengths
    )
    lengths = np.stack([history_lengths, session_lengths], axis=1)
    ends = np.stack([targets.history_ends, targets.events], axis=1)
    events = _ranges((ends - lengths).ravel(), lengths.ravel())
    totals = lengths.sum(axis=1)
    rows = np.repeat(np.arange(num_targets), totals)
    stops = np.cumsum(totals)
    # Of every context event: the last event of its context. Empty contexts have no events.
    last_events = events[np.repeat(stops, totals) - 1]
    items, last = log.items[events].astype(np.int64), log.items[last_events]
    follows_last = np.zeros(len(events), bool)
    follows_last[1:] = (items[:-1] == last[1:]) & (rows[:-1] == rows[1:]) & (last[1:] > 0)
    last_items = np.zeros(num_targets, np.int64)
    last_items[rows] = last
    now_events = np.array(targets.events)
    if not request_known:
        now_events[rows] = last_events
    keys = rows * counts.num_columns + items
    own = Cells.of(distinct(keys[items > 0]), counts.num_columns)
    asked_events = targets.events[rows] if request_known else last_events
    return Questions(
        target_items=log.items[targets.events].astype(np.int64),
        own=own,
        own_index=np.where(items > 0, np.searchsorted(own.keys, keys), len(own.keys)),
        ages=np.repeat(stops, totals) - np.arange(len(events), dtype=np.float64),
        ages_days=(log.times[last_events] - log.times[events]) / 86_400,
        hour_pairs=counts.hours[asked_events].astype(np.int32) * HOURS_PER_WEEK
        + counts.hours[events],
        request_known=request_known,
        follows_last=follows_last,
        last_items=last_items,
        now_min=log.times[now_events] // 60,
    )


def latest_followers(
    known: Successions, items: np.ndarray, now_min: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The last `NUM_LATEST` times that something followed each of some items before a minute.

    Args:
      known: of `find_successions`.
      items: int64 [n].
      now_min: int64 [n], minutes since 1970.

    Returns:
      (rows, followed, ages): int64 [P] each, which of the n, what followed, minutes before.
    """
    befores = np.repeat(np.arange(len(known.starts) - 1), np.diff(known.starts))
    times = befores * _MOST_MINUTES + known.minutes[: len(befores)]
    ends = np.searchsorted(times, items * _MOST_MINUTES + now_min)
    lengths = np.minimum(ends - known.starts[items], NUM_LATEST)
    at, rows = _ranges(ends - lengths, lengths), np.repeat(np.arange(len(items)), lengths)
    return rows, known.items[at].astype(np.int64), now_min[rows] - known.minutes[at]


def scale_rows(rows: np.ndarray, values: np.ndarray, num_rows: int) -> np.ndarray:
    """Values divided by the sum of their row; rows of zeros stay."""
    sums = np.bincount(rows, weights=values, minlength=num_rows)
    return values / np.maximum(sums, 1e-300)[rows]


def distinct(keys: np.ndarray) -> np.ndarray:
    """Sorted without repetitions; several times as fast as np.unique on nearly sorted keys."""
    keys = np.sort(keys, kind="stable")
    return keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys


def largest_per_row(
    matrix: scipy.sparse.csr_array, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and values of the `count` largest entries of each row, equal ones by column."""
    lengths = np.diff(matrix.indptr)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    columns, values = matrix.indices.astype(np.int64), matrix.data
    order = np.lexsort((columns, -values, rows))
    kept = order[np.arange(len(rows)) - np.repeat(matrix.indptr[:-1], lengths) < count]
    return rows[kept], columns[kept], values[kept]


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`starts[0], starts[0] + 1, ...` (lengths[0] of them), then the same from starts[1], ..."""
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(lengths.sum())
