"""What the benchmark of freshness lets a model see, and which events it asks two models for."""

import dataclasses

import numpy as np
import pytest

from benchmarks.bench_freshness import (
    frozen,
    reciprocal_errors,
    same_targets,
    with_new_items,
)
from stt_jax.data.protocol import find_targets
from stt_jax.data.store import TEST
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=6, seed=5)


def test_a_frozen_state_holds_what_is_older_than_its_age_and_a_live_one_everything():
    targets = find_targets(LOG, TEST)
    live = frozen(LOG, targets, 0)
    old = frozen(LOG, targets, 86_400)
    cut = 0
    for index, event in enumerate(targets.events):
        before = np.arange(LOG.user_offsets[targets.users[index]], event)
        np.testing.assert_array_equal(live.context(index), before)
        kept = before[LOG.times[before] <= LOG.times[event] - 86_400]
        np.testing.assert_array_equal(old.context(index), kept)
        cut += len(before) - len(kept)
    assert cut > 0


def test_two_logs_are_asked_for_the_same_events_however_they_number_people():
    counts = np.diff(LOG.user_offsets)
    order = np.array([3, 1, 0, 4, 2, 5])
    rows = np.concatenate([np.arange(LOG.user_offsets[u], LOG.user_offsets[u + 1]) for u in order])
    other = dataclasses.replace(
        LOG,
        user_ids=[LOG.user_ids[user] for user in order],
        user_offsets=np.concatenate([[0], np.cumsum(counts[order])]),
        times=LOG.times[rows],
        items=LOG.items[rows],
    )
    targets = find_targets(LOG, TEST)
    mine = same_targets(LOG, targets, other)
    np.testing.assert_array_equal(rows[mine.events], targets.events)
    assert [other.user_ids[u] for u in mine.users] == [LOG.user_ids[u] for u in targets.users]
    with pytest.raises(ValueError, match="do not hold the same events"):
        same_targets(LOG, targets, dataclasses.replace(other, times=other.times[::-1]))


def test_a_log_is_told_of_the_items_that_a_later_one_knows():
    num_known, order = 7, np.array([3, 1, 0, 4, 2, 5])
    old = dataclasses.replace(
        LOG,
        item_ids=LOG.item_ids[: num_known + 1],
        item_names=LOG.item_names[: num_known + 1],
        items=np.where(LOG.items > num_known, 0, LOG.items),
        **{
            name: getattr(LOG, name)[: num_known + 1]
            for name in (
                "item_latitudes_e7",
                "item_longitudes_e7",
                "item_categories",
                "item_train_counts",
            )
        },
        item_traits={name: values[: num_known + 1] for name, values in LOG.item_traits.items()},
    )
    rows = np.concatenate([np.arange(LOG.user_offsets[u], LOG.user_offsets[u + 1]) for u in order])
    numbers = np.concatenate([[0], np.arange(LOG.num_items, 0, -1)])  # numbered from the end
    later = dataclasses.replace(
        LOG,
        user_ids=[LOG.user_ids[user] for user in order],
        user_offsets=np.concatenate([[0], np.cumsum(np.diff(LOG.user_offsets)[order])]),
        times=LOG.times[rows],
        items=numbers[LOG.items[rows]].astype(np.int32),
        item_ids=[LOG.item_ids[0], *LOG.item_ids[:0:-1]],
    )
    told = with_new_items(old, later)
    assert told.num_items == LOG.num_items
    assert [told.item_ids[item] for item in told.items] == [LOG.item_ids[i] for i in LOG.items]
    np.testing.assert_array_equal(told.items[old.items > 0], old.items[old.items > 0])
    with pytest.raises(ValueError, match="do not hold the same events"):
        with_new_items(old, dataclasses.replace(later, times=later.times[::-1]))


def test_a_miss_counts_as_nothing_and_people_are_what_varies():
    ranks, live = np.array([0, 2, 2, 1]), np.array([1, 1, 2, 1])
    error = reciprocal_errors(ranks, live, np.array([0, 0, 1, 1]))
    mean = (-1 - 0.5) / 4
    assert error == pytest.approx(np.sqrt(2) * abs(-1.5 - 2 * mean) / 4)
