"""What is held out is nowhere in training, and what is asked has the context that it claims."""

import dataclasses

import numpy as np
import pytest

from benchmarks.bench_coldstart import has_content
from benchmarks.coldstart_baselines import ColdBaselines
from benchmarks.coldstart_split import hold_out, item_targets, join_targets, people_targets
from stt_jax.config import ModelConfig
from stt_jax.data.store import TRAIN
from stt_jax.successions import find_successions
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=40, num_items=30, seed=3)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return hold_out(LOG, tmp_path_factory.mktemp("cold") / "log", share=0.25, seed=1)


def events_of(log):
    """(user id, item id, time, part) of every event."""
    users = np.repeat(np.arange(log.num_users), np.diff(log.user_offsets))
    return [
        (log.user_ids[user], log.item_ids[item], int(time), int(part))
        for user, item, time, part in zip(
            users.tolist(), log.items.tolist(), log.times, log.parts, strict=True
        )
    ]


def test_people_and_items_that_are_held_out_are_nowhere_in_training(logs):
    cold_users = list(logs.people.user_ids)[logs.train.num_users :]
    cold_items = list(logs.items.item_ids)[logs.train.num_items + 1 :]
    assert (len(cold_users), len(cold_items)) == (logs.num_cold_users, logs.num_cold_items)
    assert min(len(cold_users), len(cold_items)) > 3
    trained = events_of(logs.train)
    assert not {user for user, *_ in trained} & set(cold_users)
    assert not {item for _, item, *_ in trained} & set(cold_items)
    raw = {(user, item, time) for user, item, time, _ in events_of(LOG)}
    for log in (logs.train, logs.people, logs.items):
        assert {(user, item, time) for user, item, time, _ in events_of(log)} <= raw
        of_training = [event for event in events_of(log) if event[-1] == TRAIN]
        assert of_training == [event for event in trained if event[-1] == TRAIN]


def test_what_is_known_of_held_out_items_is_what_the_log_says(logs):
    row = logs.train.num_items + 1
    old = LOG.item_row(logs.items.item_ids[row])
    assert logs.items.item_categories[row] == LOG.item_categories[old]
    assert logs.items.item_latitudes_e7[row] == LOG.item_latitudes_e7[old]
    known = LOG.item_traits["genres"][old]
    assert set(logs.items.item_traits["genres"][row]) == set(known)


@pytest.mark.parametrize("num_known", [0, 1, 5])
def test_a_cold_person_shows_its_first_events_and_no_more(logs, num_known):
    targets = people_targets(logs, num_known, 4)
    assert len(targets)
    assert (targets.users >= logs.train.num_users).all()
    for target, (user, event) in enumerate(zip(targets.users, targets.events, strict=True)):
        start = logs.people.user_offsets[user]
        assert targets.context(target).tolist() == list(range(start, start + num_known))
        assert start + num_known <= event < start + num_known + 4
    assert len(join_targets([targets, targets])) == 2 * len(targets)


def test_targets_of_held_out_items_are_ranked_among_them(logs):
    targets = item_targets(logs)
    assert (logs.items.items[targets.events] > logs.train.num_items).all()
    baselines = ColdBaselines(logs.items, leave_out_seen=False, num_warm_items=logs.train.num_items)
    ranks = baselines.best("content_knn", targets, num_left_out=logs.train.num_items)
    assert ranks.min() >= 1
    assert ranks.max() <= logs.num_cold_items


def test_what_was_popular_lately_is_asked_at_the_request_and_at_the_last_event(logs):
    log = logs.people
    baselines = ColdBaselines(
        log,
        leave_out_seen=False,
        num_warm_items=logs.train.num_items,
        config=ModelConfig(trend_half_lives_h=(1.0, 24.0, 168.0)),
    )
    targets = people_targets(logs, 2, 4)
    found = list(baselines.popularity_lately(targets))
    assert len(found) == 3 * 2
    train = np.flatnonzero(log.parts == TRAIN)
    hours = log.times // 3600
    for at, now in ((2, targets.events), (3, targets.history_ends - 1)):
        for target in range(len(targets)):
            before = train[hours[train] < hours[now[target]]]
            ages_h = hours[now[target]] - hours[before]
            weights = np.exp2(-ages_h / 24)
            shares = np.bincount(log.items[before], weights, minlength=log.num_items + 1)
            shares[0] = 0
            found[at][target, 0] = 0
            expected = shares / max(weights.sum(), 1e-300)
            np.testing.assert_allclose(found[at][target], expected, atol=2e-6)


def test_what_followed_lately_is_asked_of_the_last_event_of_the_person(logs):
    log = logs.people
    config = ModelConfig(succession_half_lives_h=(24.0,))
    options = {"leave_out_seen": False, "num_warm_items": logs.train.num_items}
    baselines = ColdBaselines(log, config=config, **options)
    found = find_successions(log, np.flatnonzero(log.parts == TRAIN))
    for num_known in (0, 2):
        targets = people_targets(logs, num_known, 4)
        popular = list(baselines.popularity_lately(targets))
        mixed = list(baselines.followed_lately(targets))
        assert len(mixed) == 2 * 3
        said = 0
        for target, event in enumerate(targets.events):
            context = targets.context(target)
            item = int(log.items[context[-1]]) if len(context) else 0
            minute = log.times[event] // 60
            mine = np.arange(found.starts[item], found.starts[item + 1])
            mine = mine[found.minutes[mine] < minute][-128:]
            weights = np.exp2(-(minute - found.minutes[mine]) / (24 * 60))
            shares = np.bincount(found.items[mine], weights, minlength=log.num_items + 1)
            shares = shares / max(shares.sum(), 1e-300)
            said += shares.any()
            for number, weight in enumerate((0.3, 1.0, 3.0)):
                expected = popular[0][target] + weight * shares
                np.testing.assert_allclose(mixed[number][target], expected, rtol=1e-9)
        assert (said > 0) == (num_known > 0)


def test_ids_alone_are_no_content(logs):
    assert has_content(logs.items)
    bare = dataclasses.replace(
        logs.items,
        item_traits={},
        item_categories=np.zeros_like(logs.items.item_categories),
        meta=dataclasses.replace(logs.items.meta, has_places=False),
    )
    assert not has_content(bare)
    for change in ({"item_traits": logs.items.item_traits}, {"meta": logs.items.meta}):
        assert has_content(dataclasses.replace(bare, **change))
