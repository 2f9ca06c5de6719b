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


def test_a_source_asks_for_the_last_items_of_its_own_person():
    history, requests = batch()
    found = crowd.find_rows(CONFIG, ITEMS, history, requests)
    assert len(found) == crowd.num_sources(CONFIG) == len(crowd.ITEM_SOURCES) + 1
    segments, items = np.asarray(history.segment_ids), np.asarray(history.items)
    other_persons = 0
    for (name, back), (relation, rows) in zip(crowd.ITEM_SOURCES, found, strict=False):
        assert relation is ITEMS.relations[name]
        for b, r in np.argwhere(np.asarray(requests.segment_ids) > 0):
            token = int(requests.last_tokens[b, r]) - back
            own = token >= 0 and segments[b, token] == requests.segment_ids[b, r]
            other_persons += token >= 0 and not own
            assert rows[b, r] == (items[b, token] if own else 0)
    assert other_persons  # the batch holds a person who comes right after another


@pytest.mark.parametrize("lag_h", [0, 30])
def test_the_trends_are_those_of_the_request_or_of_the_last_event_where_its_time_is_hidden(lag_h):
    history, requests = batch()
    shown = np.arange(requests.users.size).reshape(requests.users.shape) % 2 == 0
    requests = requests.replace(time_known=jnp.asarray(shown))
    config = dataclasses.replace(CONFIG, trend_lag_h=lag_h)
    items = jax.tree.map(
        jnp.asarray,
        model_catalogue(LOG, dataclasses.replace(config, trend_half_lives_h=("1", "24"))),
    )
    found = crowd.find_rows(config, items, history, requests)[len(crowd.ITEM_SOURCES) :]
    assert [relation for relation, _ in found] == list(items.trends.relations)
    starts = np.asarray(items.trends.start_hours)
    differ = 0
    for b, r in np.argwhere(np.asarray(requests.segment_ids) > 0):
        hours = requests.hours if shown[b, r] else requests.last_hours
        differ += int(requests.hours[b, r] != requests.last_hours[b, r])
        for _, rows in found:
            assert rows[b, r] == np.count_nonzero(starts <= int(hours[b, r]) - lag_h)
    assert differ


def test_the_mass_on_a_target_is_its_held_out_share_and_nothing_has_a_finite_logarithm():
    history, requests = batch()
    rows = crowd.find_rows(CONFIG, ITEMS, history, requests)
    masses = crowd.target_log_masses(rows, requests.targets)
    for (relation, row), mass in zip(rows, masses, strict=True):
        assert np.isfinite(mass).all()
        for b, r in np.argwhere(np.asarray(requests.targets) > 0):
            at = np.flatnonzero(relation.items[row[b, r]] == requests.targets[b, r])
            share = relation.held_out_shares[row[b, r], at[0]] if len(at) else 0.0
            np.testing.assert_allclose(np.exp(mass[b, r]), share, rtol=1e-5, atol=1e-20)


def test_a_model_without_crowd_or_time_asks_less():
    history, requests = batch()
    timeless = dataclasses.replace(CONFIG, use_time=False)
    assert len(crowd.find_rows(timeless, ITEMS, history, requests)) == len(crowd.ITEM_SOURCES)
    alone = dataclasses.replace(CONFIG, use_crowd=False)
    assert crowd.find_rows(alone, ITEMS, history, requests) == []
    assert crowd.num_sources(alone) == 0
