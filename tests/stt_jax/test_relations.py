import dataclasses
import itertools

import jax
import numpy as np
import pytest

from stt_jax.config import ModelConfig
from stt_jax.counting import TrainingCounts
from stt_jax.data.store import TRAIN
from stt_jax.relations import followers, model_catalogue, neighbours
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


def test_only_the_training_part_is_counted():
    log = random_log(seed=2)
    changed = log.items.copy()
    changed[log.parts != TRAIN] = 1
    other = dataclasses.replace(log, items=changed)
    one, two = (model_catalogue(counted, ModelConfig()) for counted in (log, other))
    jax.tree.map(
        np.testing.assert_array_equal, (one.relations, one.trends), (two.relations, two.trends)
    )
    live = model_catalogue(log, ModelConfig(), live_trends=True)
    jax.tree.map(np.testing.assert_array_equal, one.relations, live.relations)


def test_a_log_without_times_has_no_trends_and_a_model_without_crowd_no_relations():
    log = random_log(seed=2, has_times=False)
    assert model_catalogue(log, ModelConfig()).trends is None
    assert model_catalogue(log, ModelConfig(use_crowd=False)).relations == {}
