"""What the benchmark of freshness lets a model see, and which events it asks two models for."""

import dataclasses

import numpy as np
import pytest

from benchmarks.bench_freshness import frozen, reciprocal_errors, same_targets
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


def test_a_miss_counts_as_nothing_and_people_are_what_varies():
    ranks, live = np.array([0, 2, 2, 1]), np.array([1, 1, 2, 1])
    error = reciprocal_errors(ranks, live, np.array([0, 0, 1, 1]))
    mean = (-1 - 0.5) / 4
    assert error == pytest.approx(np.sqrt(2) * abs(-1.5 - 2 * mean) / 4)
