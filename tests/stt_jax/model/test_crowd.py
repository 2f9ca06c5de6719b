import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stt_jax.config import ModelConfig
from stt_jax.data.pipeline import TrainingBatches
from stt_jax.model import crowd
from stt_jax.relations import model_catalogue
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=30, seed=5, max_events=12)
CONFIG = ModelConfig()
ITEMS = jax.tree.map(jnp.asarray, model_catalogue(LOG, CONFIG))


def batch():
    source = TrainingBatches(LOG, window=16, requests=16, batch_rows=8, seed=0)
    return jax.tree.map(jnp.asarray, source[0])


def sources(config=CONFIG, items=ITEMS, *, held_out=True):
    return crowd.find_sources(config, items, *batch(), held_out=held_out)


@pytest.mark.parametrize("held_out", [False, True])
def test_a_source_asks_for_the_last_items_of_its_own_person(held_out):
    history, requests = batch()
    found = sources(held_out=held_out)
    assert len(found) == crowd.num_sources(CONFIG) == len(crowd.ITEM_SOURCES) + 1
    segments, items = np.asarray(history.segment_ids), np.asarray(history.items)
    other_persons = differ = 0
    for (name, back), named in zip(crowd.ITEM_SOURCES, found, strict=False):
        table = ITEMS.relations[name]
        shares = table.held_out_shares if held_out else table.shares
        counts = table.held_out_counts if held_out else table.counts
        for b, r in np.argwhere(np.asarray(requests.segment_ids) > 0):
            token = int(requests.last_tokens[b, r]) - back
            own = token >= 0 and segments[b, token] == requests.segment_ids[b, r]
            other_persons += token >= 0 and not own
            row = items[b, token] if own else 0
            np.testing.assert_array_equal(named.items[b, r], table.items[row])
            np.testing.assert_array_equal(named.shares[b, r], shares[row])
            assert named.counts[b, r] == counts[row]
            differ += bool(table.held_out_counts[row] != table.counts[row])
    assert other_persons  # the batch holds a person who comes right after another
    assert differ


@pytest.mark.parametrize("lag_h", [0, 30])
def test_the_trends_are_those_of_the_request_or_of_the_last_event_where_its_time_is_hidden(lag_h):
    history, requests = batch()
    shown = np.arange(requests.users.size).reshape(requests.users.shape) % 2 == 0
    requests = requests.replace(time_known=jnp.asarray(shown))
    config = dataclasses.replace(
        CONFIG, trend_lag_h=lag_h, trend_half_lives_h=(1.0, 24.0), trend_step_min=20
    )
    items = jax.tree.map(jnp.asarray, model_catalogue(LOG, config))
    found = crowd.find_sources(config, items, history, requests, held_out=False)
    found = found[len(crowd.ITEM_SOURCES) :]
    assert len(found) == len(items.trends.relations) == 2
    starts = np.asarray(items.trends.start_minutes)
    differ = 0
    for b, r in np.argwhere(np.asarray(requests.segment_ids) > 0):
        minutes = requests.minutes if shown[b, r] else requests.last_minutes
        differ += int(requests.minutes[b, r] != requests.last_minutes[b, r])
        row = np.count_nonzero(starts <= int(minutes[b, r]) - 60 * lag_h)
        for named, relation in zip(found, items.trends.relations, strict=True):
            np.testing.assert_array_equal(named.items[b, r], relation.items[row])
            np.testing.assert_array_equal(named.shares[b, r], relation.shares[row])
    assert differ


def test_what_follows_lately_is_asked_of_the_last_item_before_the_minute_that_is_known():
    history, requests = batch()
    shown = np.arange(requests.users.size).reshape(requests.users.shape) % 2 == 0
    requests = requests.replace(time_known=jnp.asarray(shown))
    config = dataclasses.replace(CONFIG, succession_half_lives_h=(1.0, 500.0))
    items = jax.tree.map(jnp.asarray, model_catalogue(LOG, config))
    found = crowd.find_sources(config, items, history, requests, held_out=True)
    assert len(found) == crowd.num_sources(config) == len(crowd.ITEM_SOURCES) + 3
    segments, history_items = np.asarray(history.segment_ids), np.asarray(history.items)
    last_items = np.zeros_like(shown, np.int32)
    for b, r in np.argwhere(np.asarray(requests.last_tokens) >= 0):
        token = int(requests.last_tokens[b, r])
        if segments[b, token] == requests.segment_ids[b, r]:
            last_items[b, r] = history_items[b, token]
    expected = crowd.latest_followers(
        items.successions,
        jnp.asarray(last_items),
        jnp.where(jnp.asarray(shown), requests.minutes, requests.last_minutes),
        [60.0, 30_000.0],
        size=config.num_related,
    )
    assert max(named.shares.max() for named in expected) > 0
    jax.tree.map(np.testing.assert_array_equal, found[-2:], expected)
    # What is asked for, and all that came after it, is not in what is named.
    first = int(min(items.successions.minutes))
    early = requests.replace(minutes=jnp.full_like(requests.minutes, first))
    early = early.replace(time_known=jnp.ones_like(early.time_known))
    for named in crowd.find_sources(config, items, history, early, held_out=True)[-2:]:
        assert not named.counts.any()


def test_the_mass_on_a_target_is_its_share_and_nothing_has_a_finite_logarithm():
    _, requests = batch()
    found = sources()
    masses = crowd.target_log_masses(found, requests.targets)
    for named, mass in zip(found, masses, strict=True):
        assert np.isfinite(mass).all()
        for b, r in np.argwhere(np.asarray(requests.targets) > 0):
            at = np.flatnonzero(named.items[b, r] == requests.targets[b, r])
            share = named.shares[b, r, at[0]] if len(at) else 0.0
            np.testing.assert_allclose(np.exp(mass[b, r]), share, rtol=1e-5, atol=1e-20)


def test_boosts_that_take_nearly_all_of_the_normaliser_are_as_exact():
    logits = jnp.array([[0.0, 10.0, 0.0, 0.0]])
    boosts = crowd.Boosts(jnp.array([[1]]), jnp.array([[-12.0]]), jnp.ones((1, 1)))
    before = jax.nn.logsumexp(logits, axis=-1)
    exact = jax.nn.logsumexp(logits + boosts.dense(4), axis=-1) - before
    np.testing.assert_allclose(boosts.log_growth(logits[:, 1:2], before), exact, rtol=1e-3)


def test_a_model_without_crowd_or_time_asks_less():
    timeless = dataclasses.replace(CONFIG, use_time=False, succession_half_lives_h=(1.0,))
    assert len(sources(timeless)) == crowd.num_sources(timeless) == len(crowd.ITEM_SOURCES)
    alone = dataclasses.replace(CONFIG, use_crowd=False)
    assert sources(alone) == []
    assert crowd.num_sources(alone) == 0
