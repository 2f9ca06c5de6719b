"""A history encoded event by event equals the same history encoded at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stt_jax.config import ModelConfig
from stt_jax.data.pipeline import catalogue, gather_history, gather_requests
from stt_jax.data.windows import Windows
from stt_jax.model.cache import empty_cache
from stt_jax.model.head import item_mass
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.training.run import model_sizes
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=6, seed=5)
ITEMS = jax.tree.map(jnp.asarray, catalogue(LOG))
CAPACITY = 16
CONFIG = ModelConfig(width=16, num_heads=2, num_layers=2, attention="reference")
VARIANTS = {
    "whole": CONFIG,
    "bare": dataclasses.replace(CONFIG, use_time=False, use_place=False, use_pointer=False),
}


def people(num_events):
    """A row a person with their first `num_events` (or fewer) events, and a request for the next.

    Their own lengths differ, so rows have padding.
    """
    users = np.arange(4)
    firsts = LOG.user_offsets[users]
    ends = np.minimum(firsts + num_events - users, LOG.user_offsets[users + 1] - 1)
    windows = Windows(users, firsts, firsts, firsts, ends, ends, ends + 1)
    rows = [np.array([user]) for user in users]
    history, layout = gather_history(LOG, windows, rows, row_tokens=CAPACITY)
    requests = gather_requests(LOG, layout, (len(users), 1))
    return jax.tree.map(jnp.asarray, (history, requests))


@functools.cache
def make(config):
    model = SpatiotemporalTransformer(config, model_sizes(LOG))
    init = jax.jit(model.init, static_argnames="deterministic")
    params = init(jax.random.key(0), ITEMS, *people(8), deterministic=True)["params"]
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return model, {"params": jax.tree.unflatten(treedef, noise)}


@functools.partial(jax.jit, static_argnums=0)
def extend(model, variables, cache, rows, starts, events):
    return model.apply(variables, cache, rows, starts, events, method=model.extend)


@functools.partial(jax.jit, static_argnums=0)
def from_cache(model, variables, cache, rows, requests):
    answer = model.apply(variables, cache, rows, requests, method=model.answer)
    scorer = model.apply(variables, ITEMS, method=model.item_scorer)
    logits = scorer.logits(answer.queries[:, 0], answer.places[:, 0])
    mixture = answer.gates * jax.nn.softmax(logits)
    if answer.event_mass is not None:
        pointed = item_mass(answer.event_mass, cache.of(rows).history.items, len(ITEMS.is_item))
        mixture = mixture + (1 - answer.gates) * pointed[:, 0]
    return jnp.where(ITEMS.is_item[None], mixture, 0.0)


@functools.partial(jax.jit, static_argnums=0)
def recomputed(model, variables, history, requests):
    states = model.apply(variables, history, deterministic=True, method=model.encode)
    p = model.apply(
        variables, ITEMS, history, requests, states, method=model.item_probabilities
    )  # fmt: skip
    return states, p[:, 0]


@pytest.mark.parametrize("name", VARIANTS)
def test_event_by_event_equals_at_once(name):
    model, variables = make(VARIANTS[name])
    rows = jnp.array([3, 0, 4, 1], jnp.int32)  # one of the table's people is somebody else
    cache = empty_cache(model.config, tuple(LOG.contexts), 5, CAPACITY)
    history, _ = people(5)
    noise = jax.tree.map(lambda column: column[::-1], history)  # what an earlier owner left
    cache = extend(model, variables, cache, rows, None, noise).cleared(rows)
    cache = extend(model, variables, cache, rows, None, history)
    for num_events in range(5, 13):
        history, requests = people(num_events)
        states, expected = recomputed(model, variables, history, requests)
        np.testing.assert_allclose(
            from_cache(model, variables, cache, rows, requests), expected, atol=1e-5
        )
        filled = history.segment_ids > 0
        kept = cache.of(rows)
        np.testing.assert_allclose(kept.states[filled], states[filled], atol=1e-5)
        np.testing.assert_array_equal(kept.history.segment_ids, history.segment_ids)

        longer, _ = people(num_events + 1)
        starts = filled.sum(axis=1)
        last = jnp.minimum(starts, CAPACITY - 1)
        grown = (longer.segment_ids.sum(axis=1) > starts).astype(jnp.int32)
        event = jax.tree.map(lambda column, at=last: column[jnp.arange(4), at][:, None], longer)
        event = dataclasses.replace(event, segment_ids=grown[:, None])
        cache = extend(model, variables, cache, rows, starts, event)
    assert int(cache.history.segment_ids[2].sum()) == 0


def test_a_cleared_person_leaves_no_trace():
    model, variables = make(CONFIG)
    rows = jnp.arange(4, dtype=jnp.int32)
    history, requests = people(6)
    fresh = empty_cache(CONFIG, tuple(LOG.contexts), 4, CAPACITY)
    used = extend(model, variables, fresh, rows, None, people(12)[0]).cleared(rows)
    np.testing.assert_array_equal(
        *(
            from_cache(
                model,
                variables,
                extend(model, variables, cache, rows, None, history),
                rows,
                requests,
            )
            for cache in (fresh, used)
        )
    )
