"""A request that hides its time is answered by the mean over likely times."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stt_jax.config import EvaluationConfig, ModelConfig
from stt_jax.data.pipeline import TrainingBatches
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.relations import model_catalogue
from stt_jax.training.run import model_sizes
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=8, seed=5)
NUM_TIMES = 3
AVERAGED = ModelConfig(
    width=16,
    num_heads=2,
    num_layers=1,
    attention="reference",
    habit_share=0.2,
    use_boost=True,
    likely_times=NUM_TIMES,
)
DIRECT = dataclasses.replace(AVERAGED, likely_times=0)
HISTORY, REQUESTS = TrainingBatches(LOG, window=64, requests=64, batch_rows=3, seed=0)[0]
REQUESTS.last_tokens[:, 0] = -1  # these see no event
ASKED = REQUESTS.segment_ids > 0
HIDDEN = REQUESTS.replace(time_known=np.zeros_like(REQUESTS.time_known))
ITEMS = model_catalogue(LOG, AVERAGED)
# The log is too small to tell hours apart.
ITEMS = ITEMS.replace(
    waits_s=np.sort(np.random.default_rng(2).integers(0, 200_000, (168, NUM_TIMES)), 1).astype("i4")
)


@functools.cache
def parameters():
    """Of both models, random everywhere."""
    init = jax.jit(
        SpatiotemporalTransformer(AVERAGED, model_sizes(LOG)).init, static_argnames="deterministic"
    )
    params = init(jax.random.key(0), ITEMS, HISTORY, REQUESTS, deterministic=True)["params"]
    leaves, treedef = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    noise = [np.asarray(leaf) + 0.3 * rng.standard_normal(leaf.shape) for leaf in leaves]
    return jax.tree.unflatten(treedef, [leaf.astype(np.float32) for leaf in noise])


@functools.partial(jax.jit, static_argnums=(0, 1))
def ask(config, method, variables, items, history, requests):
    model = SpatiotemporalTransformer(config, model_sizes(LOG))
    states = model.apply(variables, history, deterministic=True, method=model.encode)
    arguments = (variables, items, history, requests, states)
    return model.apply(*arguments, method=getattr(model, method))


def probabilities(config, requests, items=ITEMS, history=HISTORY):
    if not config.likely_times:
        items = items.replace(waits_s=None)
    variables = {"params": parameters()}
    return np.asarray(ask(config, "item_probabilities", variables, items, history, requests))


def at_likely_times():
    """The requests at each likely time, by hand: those that see an event, at a time after it."""
    for number in range(NUM_TIMES):
        times, phases = np.array(REQUESTS.times), np.array(REQUESTS.phases)
        for row, place in np.argwhere(ASKED & (REQUESTS.last_tokens >= 0)):
            last = REQUESTS.last_tokens[row, place]
            hour = int(HISTORY.phases[row, last])
            wait = int(ITEMS.waits_s[hour, number])
            times[row, place] = HISTORY.times[row, last] + wait
            phases[row, place] = (hour + int(wait / 3600 + 0.5)) % 168
        # The crowd is asked as of the last event.
        yield REQUESTS.replace(times=times, phases=phases, minutes=REQUESTS.last_minutes)


def sources(config, requests):
    """Weights of the sources and how probable each item is by each, habits last."""
    items = ITEMS if config.likely_times else ITEMS.replace(waits_s=None)
    variables = {"params": parameters()}
    log_gates, masses = ask(config, "source_masses", variables, items, HISTORY, requests)
    return np.exp(np.asarray(log_gates)), np.asarray(masses)


def test_a_hidden_time_is_the_mean_over_likely_ones():
    gates, masses = sources(AVERAGED, HIDDEN)
    direct_gates, direct_masses = sources(DIRECT, HIDDEN)
    then = [sources(DIRECT, requests) for requests in at_likely_times()]
    seen = ASKED & (REQUESTS.last_tokens >= 0)
    mean_gates = np.mean([gate for gate, _ in then], axis=0)
    np.testing.assert_allclose(gates[seen], mean_gates[seen], atol=1e-6)
    own = [1, 2, gates.shape[-1] - 1]  # pointer, sequel, habits
    weighted = np.mean([gate[..., None] * mass for gate, mass in then], axis=0)
    mine = (gates[..., None] * masses)[:, :, own]
    np.testing.assert_allclose(mine[seen], weighted[:, :, own][seen], atol=1e-6)
    assert np.abs(mine - (direct_gates[..., None] * direct_masses)[:, :, own])[seen].max() > 1e-3
    others = [one for one in range(gates.shape[-1]) if one not in own]  # generating, the crowd
    np.testing.assert_array_equal(masses[:, :, others], direct_masses[:, :, others])


def test_the_weights_of_the_sources_still_sum_to_one():
    gates, _ = sources(AVERAGED, HIDDEN)
    np.testing.assert_allclose(gates[ASKED].sum(axis=-1), 1, atol=1e-6)


def test_who_tells_the_time_or_has_no_history_is_answered_as_before():
    np.testing.assert_allclose(
        probabilities(AVERAGED, REQUESTS), probabilities(DIRECT, REQUESTS), rtol=1e-5, atol=1e-7
    )
    # Some that hide it beside some that do not, and some that see nothing.
    told = np.random.default_rng(0).random(ASKED.shape) < 0.5
    mixed = REQUESTS.replace(time_known=told)
    found = probabilities(AVERAGED, mixed)
    as_before = ASKED & (told | (REQUESTS.last_tokens < 0))
    np.testing.assert_allclose(
        found[as_before], probabilities(DIRECT, mixed)[as_before], rtol=1e-5, atol=1e-7
    )
    hidden = ASKED & ~as_before
    np.testing.assert_allclose(
        found[hidden], probabilities(AVERAGED, HIDDEN)[hidden], rtol=1e-5, atol=1e-7
    )
    no_hours = HISTORY.replace(phases=np.full_like(HISTORY.phases, -1))
    np.testing.assert_allclose(
        probabilities(AVERAGED, HIDDEN, history=no_hours)[ASKED],
        probabilities(DIRECT, HIDDEN, history=no_hours)[ASKED],
        rtol=1e-5,
        atol=1e-7,
    )


def test_training_does_not_see_it():
    losses = [
        jax.jit(
            SpatiotemporalTransformer(config, model_sizes(LOG)).apply,
            static_argnames="deterministic",
        )({"params": parameters()}, ITEMS, HISTORY, HIDDEN, deterministic=True)
        for config in (AVERAGED, DIRECT)
    ]
    jax.tree.map(np.testing.assert_array_equal, *losses)


def test_a_log_without_times_or_a_model_blind_to_them_has_no_likely_ones():
    assert model_catalogue(random_log(has_times=False), AVERAGED).waits_s is None
    assert model_catalogue(LOG, dataclasses.replace(AVERAGED, use_time=False)).waits_s is None
    assert model_catalogue(LOG, DIRECT).waits_s is None


def test_options_out_of_range_are_named():
    for count in (-1, 169):
        with pytest.raises(ValueError, match=f"--likely_times={count} must be in 0..168"):
            ModelConfig(likely_times=count)
    with pytest.raises(ValueError, match=r"--likely_times=-2 must be in 0..168, or -1 for as the"):
        EvaluationConfig(likely_times=-2)
    assert jnp.asarray(ITEMS.waits_s).dtype == jnp.int32
