"""What the crowd did, counted in the training part: the tables that `stt_jax.model.crowd` asks.

    followers    n(i, j) / n(i): how often event j came right after event i, for anybody
    neighbours   cosine of the people who had i and j, a row scaled to one (item-kNN)
    trends       shares of the events before a stretch of time, halved every `TREND_HALF_LIFE_H`

Each row keeps its largest entries. The held-out version of an entry lacks one observation: one
succession, one person. Trends count what ended before alone, so they need no such version.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse

from stt_jax.batch import Catalogue, Relation, Trends, table_rows
from stt_jax.config import ModelConfig
from stt_jax.counting import TrainingCounts, largest_per_row
from stt_jax.data.pipeline import catalogue
from stt_jax.data.store import PreparedLog

TREND_HALF_LIFE_H = 24.0
NUM_TRENDING = 256  # items of a stretch
_MAX_STRETCHES = 1000


def model_catalogue(log: PreparedLog, config: ModelConfig) -> Catalogue:
    """The items of a log as a model of this config sees them."""
    items = catalogue(log)
    if config.use_popularity:
        items = dataclasses.replace(items, log_popularity=log_popularity(log))
    if not config.use_crowd:
        return items
    counts = TrainingCounts(log)
    relations = {
        "followers": followers(counts, config.num_related),
        "neighbours": neighbours(counts, config.num_related),
    }
    trends = find_trends(counts) if config.use_time and log.meta.has_times else None
    return dataclasses.replace(items, relations=relations, trends=trends)


def log_popularity(log: PreparedLog) -> np.ndarray:
    """float32 [rows], log of (n + 1) / (N + V); of what nothing is known, the mean of the items."""
    counts = log.item_train_counts[1:]
    known = np.log((counts + 1) / (counts.sum() + np.count_nonzero(counts)))
    usual = known[counts > 0].mean() if counts.any() else 0.0
    rows = np.full(table_rows(log.num_items), usual, np.float32)
    rows[1 : log.num_items + 1] = np.where(counts > 0, known, usual)
    return rows


def followers(counts: TrainingCounts, num_related: int) -> Relation:
    """What came right after each item."""
    matrix = counts.transition_counts
    totals = np.asarray(matrix.sum(axis=1), np.float64)
    rows, columns, found = largest_per_row(matrix, num_related)
    held_out = (found - 1) / np.maximum(totals[rows] - 1, 1)
    shape = (table_rows(counts.log.num_items), num_related)
    return _relation(
        shape, rows, columns, found / totals[rows], held_out, totals, np.maximum(totals - 1, 0)
    )


def neighbours(counts: TrainingCounts, num_related: int) -> Relation:
    """What the people who had each item had besides."""
    matrix = counts.similarities
    people = counts.item_people
    rows, columns, cosines = largest_per_row(matrix, num_related)
    kept = cosines > 0  # the matrix holds zeros: an item is no neighbour of its own
    rows, columns, cosines = rows[kept], columns[kept], cosines[kept].astype(np.float64)
    common = np.round(cosines * np.sqrt(people[rows] * people[columns]))
    others = np.sqrt(np.maximum((people[rows] - 1) * (people[columns] - 1), 1))
    sums = np.maximum(np.bincount(rows, cosines, counts.num_columns), 1e-300)
    held_out = (common - 1) / others
    shape = (table_rows(counts.log.num_items), num_related)
    return _relation(
        shape,
        rows,
        columns,
        cosines / sums[rows],
        np.clip(held_out / sums[rows], 0, 1),
        people,
        np.maximum(people - 1, 0),
    )


def find_trends(counts: TrainingCounts) -> Trends:
    """What was popular at the end of each stretch of the training part.

    A stretch is an hour that has events, or several in a row that together have about as many as
    any other: a log may be quiet for years, or hold several that were years apart.
    """
    hours, of_hour = np.unique(counts.log.times[counts.events] // 3600, return_inverse=True)
    of_hour = of_hour.astype(np.int64)
    num_events = np.bincount(of_hour, minlength=len(hours))
    shares_before = (np.cumsum(num_events) - num_events) * _MAX_STRETCHES // max(1, len(of_hour))
    stretches = np.arange(len(hours))
    if len(hours) > _MAX_STRETCHES:
        stretches = np.unique(shares_before, return_inverse=True)[1].astype(np.int64)
    last_hours = hours[np.diff(stretches, append=len(hours)) > 0]
    starts = np.concatenate([hours[:1], last_hours + 1])
    num_stretches = len(last_hours)
    ages_h = (last_hours + 1)[stretches[of_hour]] - hours[of_hour]
    by_stretch = scipy.sparse.csr_array(
        (
            0.5 ** (ages_h / TREND_HALF_LIFE_H),
            (stretches[of_hour], counts.log.items[counts.events]),
        ),
        shape=(num_stretches, counts.num_columns),
    )
    popularity = np.zeros(counts.num_columns)
    size = min(NUM_TRENDING, counts.log.num_items)
    rows, columns, shares = [], [], []
    totals = np.zeros(num_stretches + 2)
    for stretch in range(num_stretches):
        begin, end = by_stretch.indptr[stretch : stretch + 2]
        popularity *= 0.5 ** ((starts[stretch + 1] - starts[stretch]) / TREND_HALF_LIFE_H)
        popularity[by_stretch.indices[begin:end]] += by_stretch.data[begin:end]
        popularity[0] = 0
        total = totals[stretch + 2] = popularity.sum()
        best = np.argpartition(-popularity, size - 1)[:size] if size else np.zeros(0, np.int64)
        best = best[popularity[best] > 0]
        rows.append(np.full(len(best), stretch + 2))
        columns.append(best)
        shares.append(popularity[best] / max(total, 1e-300))
    nothing = np.zeros(0, np.int64)
    kept = np.concatenate([nothing, *shares])
    relation = _relation(
        (num_stretches + 2, max(size, 1)),
        np.concatenate([nothing, *rows]),
        np.concatenate([nothing, *columns]),
        kept,
        kept,
        totals,
        totals,
    )
    return Trends(relation, starts.astype(np.int32))


def _relation(
    shape: tuple[int, int],
    rows: np.ndarray,
    columns: np.ndarray,
    shares: np.ndarray,
    held_out: np.ndarray,
    counts: np.ndarray,
    held_out_counts: np.ndarray,
) -> Relation:
    """Lays entries, ordered by row, out in a table of `shape`."""
    places = np.arange(len(rows)) - np.searchsorted(rows, rows)

    def table(values: np.ndarray, dtype: type) -> np.ndarray:
        out: np.ndarray = np.zeros(shape, dtype)
        out[rows, places] = values
        return out

    def column(values: np.ndarray) -> np.ndarray:
        out: np.ndarray = np.zeros(shape[0], np.float32)
        out[: len(values)] = values
        out[0] = 0
        return out

    return Relation(
        table(columns, np.int32),
        table(shares, np.float32),
        table(held_out, np.float32),
        column(counts),
        column(held_out_counts),
    )
