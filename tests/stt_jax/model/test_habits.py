"""Habits: the own history counted by hour and by what was last, a fixed share of the answer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stt_jax.config import ModelConfig
from stt_jax.data.pipeline import TrainingBatches
from stt_jax.model.habits import habit_mass
from stt_jax.model.head import item_mass
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.relations import model_catalogue
from stt_jax.training.run import model_sizes
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=8, seed=5)
HISTORY, REQUESTS = TrainingBatches(LOG, window=64, requests=64, batch_rows=3, seed=0)[0]
REQUESTS.last_tokens[:, 0] = -1  # these see no event


def counted_by_hand(history, requests, row, number, use_time):
    """One request, event by event, in Python's own numbers."""
    mine, last = int(requests.segment_ids[row, number]), int(requests.last_tokens[row, number])
    own = [at for at in range(last + 1) if history.segment_ids[row, at] == mine]
    asked = int(requests.phases[row, number]) if requests.time_known[row, number] else -1
    weights = np.zeros(history.items.shape[1])
    for place, at in enumerate(own):
        if history.items[row, at] == 0:
            continue
        before = history.items[row, own[place - 1]] if place else 0
        follows = before > 0 and before == history.items[row, own[-1]]
        weight = 1.0 if follows else 0.3
        hour = int(history.phases[row, at])
        if use_time and hour >= 0 and asked >= 0:
            apart = abs(hour % 24 - asked % 24)
            apart = min(apart, 24 - apart)
            same_days = (hour // 24 in (5, 6)) == (asked // 24 in (5, 6))
            weight *= 0.1 + np.exp(-((apart / 2) ** 2) / 2) * (1 if same_days else 0.5)
        weights[at] = weight
    return weights / weights.sum() if weights.any() else weights


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), use_time=st.booleans())
def test_weights_are_those_counted_by_hand(seed, use_time):
    rng = np.random.default_rng(seed)
    shape, asked = HISTORY.items.shape, REQUESTS.segment_ids.shape
    history = HISTORY.replace(
        items=rng.integers(0, 4, shape).astype(np.int32),  # few, so that they come again
        phases=rng.integers(-1, 168, shape).astype(np.int32),
    )
    requests = REQUESTS.replace(
        phases=rng.integers(-1, 168, asked).astype(np.int32), time_known=rng.random(asked) < 0.7
    )
    weights = habit_mass(history, requests, use_time=use_time)
    for row, number in np.argwhere(requests.segment_ids > 0):
        expected = counted_by_hand(history, requests, row, number, use_time)
        np.testing.assert_allclose(weights[row, number], expected, atol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def probabilities(model, params, items, history, requests):
    states = model.apply({"params": params}, history, deterministic=True, method=model.encode)
    arguments = ({"params": params}, items, history, requests, states)
    return model.apply(*arguments, method=model.item_probabilities)


@pytest.mark.parametrize("use_pointer", [True, False])
def test_a_share_of_the_answer_is_habit_and_nothing_else_changes(use_pointer):
    config = ModelConfig(
        width=16, num_heads=2, num_layers=1, attention="reference", use_pointer=use_pointer
    )
    items = jax.tree.map(jnp.asarray, model_catalogue(LOG, config))
    with_habits = dataclasses.replace(config, habit_share=0.25)
    models = [SpatiotemporalTransformer(c, model_sizes(LOG)) for c in (config, with_habits)]
    init = jax.jit(models[1].init, static_argnames="deterministic")
    params = init(jax.random.key(0), items, HISTORY, REQUESTS, deterministic=True)["params"]
    before, after = (probabilities(m, params, items, HISTORY, REQUESTS) for m in models)
    share = 0.25 * use_pointer  # "without pointing" points nowhere
    weights = np.asarray(habit_mass(HISTORY, REQUESTS, use_time=True))
    named = jnp.broadcast_to(HISTORY.items[:, None], weights.shape)
    habits = item_mass(share * weights, named, before.shape[-1])
    left = 1 - share * np.any(weights > 0, axis=-1, keepdims=True)
    asked = REQUESTS.segment_ids > 0
    assert {0, 1} == {*np.any(weights > 0, axis=-1)[asked].tolist()}, "some have no habits"
    np.testing.assert_allclose(
        after[asked], (left * np.asarray(before) + habits.at[..., 0].set(0))[asked], atol=1e-6
    )
    losses = [
        jax.jit(m.apply, static_argnames="deterministic")(
            {"params": params}, items, HISTORY, REQUESTS, deterministic=True
        )
        for m in models
    ]
    np.testing.assert_array_equal(losses[0].log_gates, losses[1].log_gates)  # in training: none


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_is_less_than_the_whole(share):
    with pytest.raises(ValueError, match=f"--habit_share={share} must be in"):
        ModelConfig(habit_share=share)
