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


def training_trends(log, step_min=60):
    return find_trends(log, np.flatnonzero(log.parts == TRAIN), HALF_LIVES_H, step_min)


def shares_of_row(trends, row, num_items):
    """float64 [half-lives, V + 1], and what counts in all, [half-lives]."""
    found = np.zeros((len(trends.relations), num_items + 1))
    for mine, relation in zip(found, trends.relations, strict=True):
        mine[relation.items[row]] = relation.shares[row]
    found[:, 0] = 0
    return found, np.array([relation.counts[row] for relation in trends.relations])


def shares_by_hand(items, minutes, start, num_items, step_min):
    """The same, from all events before the minute `start`, at which a step begins."""
    known = (minutes < start) & (items > 0)
    ages_h = (start - minutes[known] // step_min * step_min) / 60
    masses = np.array(
        [np.bincount(items[known], 0.5 ** (ages_h / half), num_items + 1) for half in HALF_LIVES_H]
    )
    totals = masses.sum(axis=1)
    return masses / np.maximum(totals, 1e-30)[:, None], totals


def assert_shows(trends, minute, items, minutes, num_items, step_min=60):
    """That the row of a minute says what the events before its beginning say."""
    row = int(trend_rows(trends, jnp.asarray(minute, jnp.int32)))
    start = trends.start_minutes[row - 1]
    assert start <= minute
    found, totals = shares_of_row(trends, row, num_items)
    shares, masses = shares_by_hand(items, minutes, start, num_items, step_min)
    np.testing.assert_allclose(found, shares, atol=1e-6)
    np.testing.assert_allclose(totals, masses, rtol=1e-5)
    return start


@pytest.mark.parametrize(("most_stretches", "step_min"), [(1000, 60), (7, 60), (1000, 5), (1, 15)])
def test_they_are_fading_shares_of_what_came_before_the_stretch(
    monkeypatch, most_stretches, step_min
):
    monkeypatch.setattr("stt_jax.trends._MAX_STRETCHES", most_stretches)
    log = random_log(seed=3)
    trends = training_trends(log, step_min)
    train = log.parts == TRAIN
    items, minutes = log.items[train], log.times[train] // 60
    steps = np.unique(minutes // step_min)
    assert len(trends.start_minutes) == min(len(steps), most_stretches * 60 // step_min) + 1
    for minute in np.unique(minutes):
        start = assert_shows(trends, minute, items, minutes, log.num_items, step_min)
        if most_stretches == 1000:  # none of the step of the minute, and all of those before
            assert minutes[minutes < start].max(initial=0) == (
                minutes[minutes // step_min < minute // step_min].max(initial=0)
            )


def test_years_without_events_take_no_rows_from_the_others():
    log = random_log(seed=3)
    late = np.arange(len(log.times)) >= log.user_offsets[log.num_users // 2]
    times = log.times + np.where(late, 12 * 365 * 86_400, 0)
    trends = training_trends(dataclasses.replace(log, times=times))
    hours = np.unique(times[log.parts == TRAIN] // 3600)
    assert len(trends.start_minutes) == len(hours) + 1
    np.testing.assert_array_equal(trends.start_minutes[1:], 60 * (hours + 1))


def test_minutes_outside_the_training_part_have_nothing_or_the_latest():
    trends = training_trends(random_log(seed=3))
    lately = trends.relations[0]
    last = lately.items.shape[0] - 1
    minutes = jnp.asarray([0, int(trends.start_minutes[0]), 2**30], jnp.int32)
    np.testing.assert_array_equal(trend_rows(trends, minutes), [0, 1, last])
    assert lately.counts[0] == lately.counts[1] == 0
    assert lately.counts[last] > 0


@pytest.mark.parametrize(("num_live", "step_min"), [(128, 60), (5, 60), (5, 10)])
def test_live_ones_count_every_part_and_what_comes_after(monkeypatch, num_live, step_min):
    monkeypatch.setattr("stt_jax.trends._NUM_LIVE", num_live)
    log = random_log(seed=4)
    live = LiveTrends(log, HALF_LIVES_H, step_min)
    items, minutes = log.items, log.times // 60
    first = live.trends()
    for minute in np.unique(minutes):
        start = assert_shows(first, minute, items, minutes, log.num_items, step_min)
        assert start > minutes[minutes // step_min < minute // step_min].max(initial=0)
    rng = np.random.default_rng(0)
    for _ in range(4):
        new = rng.integers(0, log.num_items + 1, 9).astype(np.int32)
        at = minutes.max() + np.sort(rng.integers(0, 5, 9)) * step_min
        live.add(new, at)
        items, minutes = np.append(items, new), np.append(minutes, at)
        trends = live.trends()
        jax.tree.map(lambda one, two: np.testing.assert_equal(one.shape, two.shape), first, trends)
        for step in np.unique(minutes // step_min)[-num_live:] + 1:
            start = assert_shows(trends, step * step_min, items, minutes, log.num_items, step_min)
            assert start == step * step_min


def test_a_late_event_counts_from_then_on(monkeypatch):
    monkeypatch.setattr("stt_jax.trends._NUM_LIVE", 5)
    log = random_log(seed=4)
    live, minutes = LiveTrends(log, HALF_LIVES_H), log.times // 60
    live.trends()
    items = log.items
    hours = np.unique(minutes // 60)
    for item, early in ((3, 60 * hours[-6]), (4, 60 * hours[-3])):
        live.add(np.array([item], np.int32), np.array([early]))
        items, minutes = np.append(items, item), np.append(minutes, early)
        trends = live.trends()
        start = assert_shows(trends, 2**30, items, minutes, log.num_items)
        assert start == 60 * (hours[-1] + 1)


def test_an_empty_log_has_none_until_something_comes():
    log = random_log(seed=1)
    log = dataclasses.replace(log, items=log.items[:0], times=log.times[:0], parts=log.parts[:0])
    live = LiveTrends(log, HALF_LIVES_H)
    trends = live.trends()
    row = int(trend_rows(trends, jnp.asarray(2**30, jnp.int32)))
    assert shares_of_row(trends, row, log.num_items)[1].sum() == 0
    live.add(np.array([5, 0, 5], np.int32), np.array([60 * 400_000] * 3))
    trends = live.trends()
    row = int(trend_rows(trends, jnp.asarray(60 * 400_001, jnp.int32)))
    assert shares_of_row(trends, row, log.num_items)[0][:, 5].tolist() == [1, 1]
    assert trend_rows(trends, jnp.asarray(60 * 400_001 - 1, jnp.int32)) < row
