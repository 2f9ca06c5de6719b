"""What was popular when, counted once or going on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stt_jax.data.store import TRAIN
from stt_jax.model.crowd import trend_rows
from stt_jax.trends import LiveTrends, find_trends
from tests.stt_jax.tiny_logs import random_log

HALF_LIVES_H = (24.0, 1.5)


def training_trends(log):
    return find_trends(log, np.flatnonzero(log.parts == TRAIN), HALF_LIVES_H)


def shares_of_row(trends, row, num_items):
    """float64 [half-lives, V + 1], and what counts in all, [half-lives]."""
    found = np.zeros((len(trends.relations), num_items + 1))
    for mine, relation in zip(found, trends.relations, strict=True):
        mine[relation.items[row]] = relation.shares[row]
    found[:, 0] = 0
    return found, np.array([relation.counts[row] for relation in trends.relations])


def shares_by_hand(items, hours, start, num_items):
    """The same, from all events before the hour `start`."""
    known = (hours < start) & (items > 0)
    masses = np.array(
        [
            np.bincount(items[known], 0.5 ** ((start - hours[known]) / half), num_items + 1)
            for half in HALF_LIVES_H
        ]
    )
    totals = masses.sum(axis=1)
    return masses / np.maximum(totals, 1e-30)[:, None], totals


def assert_shows(trends, hour, items, hours, num_items):
    """That the row of an hour says what the events before its beginning say."""
    row = int(trend_rows(trends, jnp.asarray(hour, jnp.int32)))
    start = trends.start_hours[row - 1]
    assert start <= hour
    found, totals = shares_of_row(trends, row, num_items)
    shares, masses = shares_by_hand(items, hours, start, num_items)
    np.testing.assert_allclose(found, shares, atol=1e-6)
    np.testing.assert_allclose(totals, masses, rtol=1e-5)
    return start


@pytest.mark.parametrize("most_stretches", [1000, 7])
def test_they_are_fading_shares_of_what_came_before_the_stretch(monkeypatch, most_stretches):
    monkeypatch.setattr("stt_jax.trends._MAX_STRETCHES", most_stretches)
    log = random_log(seed=3)
    trends = training_trends(log)
    train = log.parts == TRAIN
    items, hours = log.items[train], log.times[train] // 3600
    assert len(trends.start_hours) == min(len(np.unique(hours)), most_stretches) + 1
    for hour in np.unique(hours):
        assert_shows(trends, hour, items, hours, log.num_items)


def test_years_without_events_take_no_rows_from_the_others():
    log = random_log(seed=3)
    late = np.arange(len(log.times)) >= log.user_offsets[log.num_users // 2]
    times = log.times + np.where(late, 12 * 365 * 86_400, 0)
    trends = training_trends(dataclasses.replace(log, times=times))
    hours = np.unique(times[log.parts == TRAIN] // 3600)
    assert len(trends.start_hours) == len(hours) + 1
    np.testing.assert_array_equal(trends.start_hours[1:], hours + 1)


def test_hours_outside_the_training_part_have_nothing_or_the_latest():
    trends = training_trends(random_log(seed=3))
    lately = trends.relations[0]
    last = lately.items.shape[0] - 1
    hours = jnp.asarray([0, int(trends.start_hours[0]), 2**30], jnp.int32)
    np.testing.assert_array_equal(trend_rows(trends, hours), [0, 1, last])
    assert lately.counts[0] == lately.counts[1] == 0
    assert lately.counts[last] > 0


@pytest.mark.parametrize("num_live", [128, 5])
def test_live_ones_count_every_part_and_what_comes_after(monkeypatch, num_live):
    monkeypatch.setattr("stt_jax.trends._NUM_LIVE", num_live)
    log = random_log(seed=4)
    live = LiveTrends(log, HALF_LIVES_H)
    items, hours = log.items, log.times // 3600
    first = live.trends()
    for hour in np.unique(hours):
        start = assert_shows(first, hour, items, hours, log.num_items)
        assert start > hours[hours < hour].max(initial=0)
    rng = np.random.default_rng(0)
    for _ in range(4):
        new = rng.integers(0, log.num_items + 1, 9).astype(np.int32)
        at = hours.max() + np.sort(rng.integers(0, 5, 9))
        live.add(new, at)
        items, hours = np.append(items, new), np.append(hours, at)
        trends = live.trends()
        jax.tree.map(lambda one, two: np.testing.assert_equal(one.shape, two.shape), first, trends)
        for hour in np.unique(hours)[-num_live:] + 1:
            assert assert_shows(trends, hour, items, hours, log.num_items) == hour


def test_a_late_event_counts_from_then_on(monkeypatch):
    monkeypatch.setattr("stt_jax.trends._NUM_LIVE", 5)
    log = random_log(seed=4)
    live, hours = LiveTrends(log, HALF_LIVES_H), log.times // 3600
    live.trends()
    items = log.items
    for item, early in ((3, np.unique(hours)[-6]), (4, np.unique(hours)[-3])):
        live.add(np.array([item], np.int32), np.array([early]))
        items, hours = np.append(items, item), np.append(hours, early)
        trends = live.trends()
        assert assert_shows(trends, 2**30, items, hours, log.num_items) == hours.max() + 1


def test_an_empty_log_has_none_until_something_comes():
    log = random_log(seed=1)
    log = dataclasses.replace(log, items=log.items[:0], times=log.times[:0], parts=log.parts[:0])
    live = LiveTrends(log, HALF_LIVES_H)
    trends = live.trends()
    row = int(trend_rows(trends, jnp.asarray(2**30, jnp.int32)))
    assert shares_of_row(trends, row, log.num_items)[1].sum() == 0
    live.add(np.array([5, 0, 5], np.int32), np.array([400_000] * 3))
    trends = live.trends()
    row = int(trend_rows(trends, jnp.asarray(400_001, jnp.int32)))
    assert shares_of_row(trends, row, log.num_items)[0][:, 5].tolist() == [1, 1]
    assert trend_rows(trends, jnp.asarray(400_000, jnp.int32)) < row
