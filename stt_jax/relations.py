"""What the crowd did, counted in the training part: the tables that `stt_jax.model.crowd` asks.

    followers    n(i, j) / n(i): how often event j came right after event i, for anybody
    neighbours   cosine of the people who had i and j, a row scaled to one (item-kNN)
    trends       what was popular at a time, see `stt_jax.trends`
    successions  what followed what at a time, see `stt_jax.successions`

Each row keeps its largest entries. The held-out version of an entry lacks one observation: one
succession, one person.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from stt_jax.batch import Catalogue, Relation, Successions, Trends, table_rows
from stt_jax.config import ModelConfig
from stt_jax.counting import TrainingCounts, largest_per_row
from stt_jax.data.catalogue import catalogue
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.likely_times import find_waits
from stt_jax.successions import find_successions
from stt_jax.trends import LiveTrends, find_trends


def model_catalogue(
    log: PreparedLog, config: ModelConfig, *, live_trends: bool = False
) -> Catalogue:
    """The items of a log as a model of this config sees them.

    Args:
      log: whose training part is counted.
      config: of the model.
      live_trends: what was popular, and what followed what lately, is counted in all parts of the
        log, each hour's for the hours after it, as a service does while events come in.
    """
    items = catalogue(log)
    if config.use_popularity:
        items = dataclasses.replace(items, log_popularity=log_popularity(log))
    if config.likely_times and config.use_time and log.meta.has_times:
        items = dataclasses.replace(items, waits_s=find_waits(log, config.likely_times))
    if not config.use_crowd:
        return items
    counts = TrainingCounts(log)
    relations = {
        "followers": followers(counts, config.num_related),
        "neighbours": neighbours(counts, config.num_related),
    }
    items = dataclasses.replace(items, relations=relations)
    if not config.use_time or not log.meta.has_times:
        return items
    trends, successions = (
        live_crowd(log, config)
        if live_trends
        else (
            find_trends(log, counts.events, config.trend_half_lives_h, config.trend_step_min),
            find_successions(log, counts.events) if config.succession_half_lives_h else None,
        )
    )
    return dataclasses.replace(items, trends=trends, successions=successions)


def live_crowd(log: PreparedLog, config: ModelConfig) -> tuple[Trends, Successions | None]:
    """What was popular and what followed what, counted in all parts of the log."""
    trends = LiveTrends(log, config.trend_half_lives_h, config.trend_step_min).trends()
    if not config.succession_half_lives_h:
        return trends, None
    return trends, find_successions(log, np.arange(log.num_events))


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
    return _lay_out(
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
    return _lay_out(
        shape,
        rows,
        columns,
        cosines / sums[rows],
        np.clip(held_out / sums[rows], 0, 1),
        people,
        np.maximum(people - 1, 0),
    )


def _lay_out(
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
