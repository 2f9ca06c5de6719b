import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stt_jax.config import ModelConfig
from stt_jax.counting import TrainingCounts
from stt_jax.data.store import TRAIN
from stt_jax.model.crowd import trend_rows
from stt_jax.relations import TREND_HALF_LIFE_H, find_trends, followers, model_catalogue, neighbours
from tests.stt_jax.tiny_logs import random_log


def entries(relation, row):
    """item -> (share, held-out share) of a row."""
    return {
        int(item): (float(share), float(held_out))
        for item, share, held_out in zip(
            relation.items[row], relation.shares[row], relation.held_out_shares[row], strict=True
        )
        if item
    }


def successions(log):
    """(item, next item) of one person, both known, in the training part."""
    found = []
    for first, end in zip(log.user_offsets, log.user_offsets[1:], strict=False):
        train = [int(log.items[e]) for e in range(first, end) if log.parts[e] == TRAIN]
        found += [(a, b) for a, b in itertools.pairwise(train) if a and b]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_followers_are_shares_and_held_out_shares_are_those_of_all_others(seed):
    log = random_log(seed=seed, num_items=5)
    relation = followers(TrainingCounts(log), 50)
    pairs = successions(log)
    for item in range(1, log.num_items + 1):
        after = [b for a, b in pairs if a == item]
        assert relation.counts[item] == len(after)
        assert relation.held_out_counts[item] == max(len(after) - 1, 0)
        expected = {}
        for follower in set(after):
            without = after.copy()
            without.remove(follower)
            left = without.count(follower) / max(len(without), 1)
            expected[follower] = (after.count(follower) / len(after), left)
        found = entries(relation, item)
        assert found.keys() == expected.keys()
        for follower, shares in expected.items():
            np.testing.assert_allclose(found[follower], shares, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_are_cosines_scaled_to_one_and_the_held_out_ones_lack_a_person(seed):
    log = random_log(seed=seed, num_items=5)
    relation = neighbours(TrainingCounts(log), 50)
    people = [
        {int(log.items[e]) for e in range(first, end) if log.parts[e] == TRAIN} - {0}
        for first, end in zip(log.user_offsets, log.user_offsets[1:], strict=False)
    ]

    def having(*items):
        return sum(all(item in had for item in items) for had in people)

    for item in range(1, log.num_items + 1):
        others = [o for o in range(1, log.num_items + 1) if o != item and having(item, o)]
        cosine = {o: having(item, o) / np.sqrt(having(item) * having(o)) for o in others}
        found = entries(relation, item)
        assert found.keys() == cosine.keys()
        for other, (share, held_out) in found.items():
            np.testing.assert_allclose(share, cosine[other] / sum(cosine.values()), rtol=1e-5)
            left = (having(item, other) - 1) / np.sqrt(
                max((having(item) - 1) * (having(other) - 1), 1)
            )
            np.testing.assert_allclose(
                held_out, min(left / sum(cosine.values()), 1), rtol=1e-5, atol=1e-7
            )


def test_a_short_list_keeps_what_is_most_frequent():
    log = random_log(seed=1, num_items=9)
    whole, cut = (followers(TrainingCounts(log), size) for size in (50, 2))
    for item in range(1, log.num_items + 1):
        shares = sorted((share for share, _ in entries(whole, item).values()), reverse=True)
        kept = sorted((share for share, _ in entries(cut, item).values()), reverse=True)
        np.testing.assert_allclose(kept, shares[:2])


@pytest.mark.parametrize("most_stretches", [1000, 7])
def test_trends_are_fading_shares_of_what_came_before_the_stretch(monkeypatch, most_stretches):
    monkeypatch.setattr("stt_jax.relations._MAX_STRETCHES", most_stretches)
    log = random_log(seed=3)
    trends = find_trends(TrainingCounts(log))
    train = np.flatnonzero((log.parts == TRAIN) & (log.items > 0))
    hours = log.times // 3600
    starts = np.asarray(trends.start_hours)
    assert len(starts) == min(len(np.unique(hours[log.parts == TRAIN])), most_stretches) + 1
    for event in train:
        row = int(trend_rows(trends, jnp.asarray(hours[event], jnp.int32)))
        assert starts[row - 1] <= hours[event]
        age_h = starts[row - 1] - hours[train]
        weights = np.where(age_h > 0, 0.5 ** (age_h / TREND_HALF_LIFE_H), 0.0)
        mass = np.bincount(log.items[train], weights, log.num_items + 1)
        found = np.zeros(log.num_items + 1)
        found[trends.relation.items[row]] = trends.relation.shares[row]
        np.testing.assert_allclose(found[1:], mass[1:] / max(mass.sum(), 1e-30), atol=1e-6)
        np.testing.assert_allclose(trends.relation.counts[row], mass.sum(), rtol=1e-5)


def test_years_without_events_take_no_rows_from_the_others():
    log = random_log(seed=3)
    late = np.arange(len(log.times)) >= log.user_offsets[log.num_users // 2]
    times = log.times + np.where(late, 12 * 365 * 86_400, 0)
    trends = find_trends(TrainingCounts(dataclasses.replace(log, times=times)))
    hours = np.unique(times[log.parts == TRAIN] // 3600)
    assert len(trends.start_hours) == len(hours) + 1
    np.testing.assert_array_equal(trends.start_hours[1:], hours + 1)


def test_hours_outside_the_training_part_have_nothing_or_the_latest():
    trends = find_trends(TrainingCounts(random_log(seed=3)))
    last = trends.relation.items.shape[0] - 1
    hours = jnp.asarray([0, int(trends.start_hours[0]), 2**30], jnp.int32)
    np.testing.assert_array_equal(trend_rows(trends, hours), [0, 1, last])
    assert trends.relation.counts[0] == trends.relation.counts[1] == 0
    assert trends.relation.counts[last] > 0


def test_only_the_training_part_is_counted():
    log = random_log(seed=2)
    changed = log.items.copy()
    changed[log.parts != TRAIN] = 1
    other = dataclasses.replace(log, items=changed)
    for one, two in zip(
        (model_catalogue(log, ModelConfig()).relations, find_trends(TrainingCounts(log))),
        (model_catalogue(other, ModelConfig()).relations, find_trends(TrainingCounts(other))),
        strict=True,
    ):
        jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_log_without_times_has_no_trends_and_a_model_without_crowd_no_relations():
    log = random_log(seed=2, has_times=False)
    assert model_catalogue(log, ModelConfig()).trends is None
    assert model_catalogue(log, ModelConfig(use_crowd=False)).relations == {}
