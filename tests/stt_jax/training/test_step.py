import dataclasses

import jax
import numpy as np
import pytest

from stt_jax.config import ModelConfig, TrainingConfig
from stt_jax.data.pipeline import TrainingBatches
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.relations import model_catalogue
from stt_jax.training.run import model_sizes
from stt_jax.training.setup import target_weights
from stt_jax.training.step import (
    hide,
    init_state,
    learning_rate_schedule,
    make_optimizer,
    make_train_step,
)
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=20, seed=6)
MODEL = ModelConfig(
    width=8,
    num_heads=2,
    num_layers=1,
    dropout=0.1,
    attention="reference",
    use_time=False,
    use_sequel=False,
    use_crowd=False,
)
TRAINING = TrainingConfig(window=16, requests=8, batch_rows=4, learning_rate=1e-2)


def train(num_steps=3, model=MODEL, change=lambda number, batch: batch, **changes):
    """A few steps from fresh parameters: the state, and the measures of each step."""
    config = dataclasses.replace(TRAINING, **changes)
    batches = TrainingBatches(
        LOG,
        window=config.window,
        requests=config.requests,
        batch_rows=config.batch_rows,
        seed=config.seed,
    )
    module = SpatiotemporalTransformer(model, model_sizes(LOG))
    optimizer = make_optimizer(config, 10)
    items = jax.tree.map(jax.numpy.asarray, model_catalogue(LOG, MODEL))
    initialise = jax.jit(init_state, static_argnums=(0, 1, 5))
    state = initialise(module, optimizer, items, *batches[0], config.seed)
    step = make_train_step(module, optimizer, config)
    measures = []
    for number in range(num_steps):
        state, of_step = step(state, items, *change(number, batches[number]))
        measures.append(jax.tree.map(float, of_step))
    return state, measures


def test_a_hidden_domain_is_any_and_a_shown_one_is_that_of_the_target():
    log = random_log(num_users=30, has_domains=True)
    source = TrainingBatches(log, window=32, requests=16, batch_rows=8, seed=0)
    asked = jax.tree.map(jax.numpy.asarray, source[0][1])
    own = np.asarray(log.item_domains)[np.asarray(asked.targets)]
    known = (own > 0) & (np.asarray(asked.segment_ids) > 0)
    assert known.sum() > 50
    for rate in (0.0, 0.5, 1.0):
        config = TrainingConfig(known_domain_rate=rate)
        shown = np.asarray(hide(asked, jax.random.key(0), config).domains)
        named = ~shown.all(axis=-1)
        assert abs(named[known].mean() - rate) < 0.15
        np.testing.assert_array_equal(np.argmax(shown, -1)[named & known], own[named & known] - 1)


def test_balanced_domains_count_the_same_in_the_loss():
    log = random_log(num_users=30, num_items=9, has_domains=True)
    assert target_weights(log, TrainingConfig()) is None
    assert target_weights(random_log(), TrainingConfig(balance_domains=1.0)) is None
    weights = target_weights(log, TrainingConfig(balance_domains=1.0))
    counted = weights[: log.num_items + 1] * log.item_train_counts
    shares = np.bincount(log.item_domains, counted)[1:]
    assert shares[0] == pytest.approx(shares[1], rel=1e-5)
    assert counted[1:].sum() == pytest.approx(log.item_train_counts[1:].sum(), rel=1e-5)


@pytest.fixture(scope="module")
def plain():
    return train()


def losses(measures):
    return [of_step["loss"] for of_step in measures]


def requests():
    source = TrainingBatches(random_log(num_users=30), window=32, requests=16, batch_rows=8, seed=0)
    return jax.tree.map(jax.numpy.asarray, source[0][1])


def test_hiding_shows_the_stated_fractions_and_never_the_exact_place():
    before = requests()
    config = TrainingConfig(known_time_rate=0.7, known_place_rate=0.3, place_noise_m=100.0)
    times, places = [], []
    for seed in range(30):
        after = hide(before, jax.random.key(seed), config)
        times.append(np.asarray(after.time_known)[np.asarray(before.time_known)])
        had = ~np.isnan(np.asarray(before.coords[..., 0]))
        places.append(~np.isnan(np.asarray(after.coords[..., 0]))[had])
        moved = np.asarray(after.coords - before.coords)
        moved = moved[~np.isnan(moved)]
        assert np.all(moved != 0)
        assert np.abs(moved).mean() < 200
    assert abs(np.concatenate(times).mean() - 0.7) < 0.05
    assert abs(np.concatenate(places).mean() - 0.3) < 0.05


def test_rates_of_zero_and_one_hide_all_and_nothing():
    before = requests()
    nothing = hide(
        before, jax.random.key(0), TrainingConfig(known_time_rate=0.0, known_place_rate=0.0)
    )
    assert not nothing.time_known.any()
    assert np.isnan(nothing.coords).all()
    everything = hide(before, jax.random.key(0), TrainingConfig(known_time_rate=1.0))
    np.testing.assert_array_equal(everything.time_known, before.time_known)


def test_a_cold_request_shows_neither_history_nor_who_asks():
    before = requests()
    shown = []
    for seed in range(10):
        after = hide(before, jax.random.key(seed), TrainingConfig(cold_rate=0.3))
        cold = np.asarray(after.last_tokens != before.last_tokens)
        np.testing.assert_array_equal(np.asarray(after.last_tokens)[cold], -1)
        hidden = np.asarray(after.users == 0)
        assert hidden[cold].all()
        np.testing.assert_array_equal(
            np.asarray(after.users)[~hidden], np.asarray(before.users)[~hidden]
        )
        shown.append(~hidden[np.asarray(before.users) > 0])
    assert abs(np.concatenate(shown).mean() - 0.7) < 0.05


def test_learning_rate_rises_and_then_falls_to_zero():
    config = TrainingConfig(learning_rate=0.1, warmup=0.1)
    schedule = learning_rate_schedule(config, 100)
    rates = np.array([float(schedule(step)) for step in range(101)])
    assert rates[0] == 0
    assert rates.argmax() == 10
    np.testing.assert_allclose(rates[10], 0.1, rtol=1e-6)
    assert rates[100] < 1e-6
    assert learning_rate_schedule(config, 1)(1) > 0


def test_chunked_training_follows_full_training(plain):
    _, measures = train(loss="chunked", loss_chunk_items=4)
    np.testing.assert_allclose(losses(measures), losses(plain[1]), rtol=1e-5)


def test_sampled_training_with_every_item_drawn_follows_full_training(plain):
    _, measures = train(loss="sampled", num_negatives=100)
    np.testing.assert_allclose(losses(measures), losses(plain[1]), rtol=1e-5)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    """Parts have unequal numbers of requests; without dropout there is nothing else to differ."""
    model = dataclasses.replace(MODEL, dropout=0.0)
    _, whole = train(model=model)
    _, parts = train(model=model, accumulate=4)
    np.testing.assert_allclose(losses(parts), losses(whole), rtol=1e-5)
    np.testing.assert_allclose(
        [of_step["gradient_norm"] for of_step in parts],
        [of_step["gradient_norm"] for of_step in whole],
        rtol=1e-4,
    )


def test_a_poisoned_batch_changes_nothing_and_is_counted():
    def poison(number, batch):
        history, requests = batch
        if number in (1, 2):
            history = history.replace(origins=np.full_like(history.origins, np.inf))
        return history, requests

    poisoned, measures = train(num_steps=3, change=poison)
    before, _ = train(num_steps=1)
    assert [bool(np.isfinite(loss)) for loss in losses(measures)] == [True, False, False]
    assert [int(of_step["bad_steps_in_a_row"]) for of_step in measures] == [0, 1, 2]
    assert int(poisoned.bad_steps) == 2
    jax.tree.map(
        np.testing.assert_array_equal,
        (poisoned.params, poisoned.opt_state),
        (before.params, before.opt_state),
    )
    _, measures = train(num_steps=4, change=poison)
    assert int(measures[3]["bad_steps_in_a_row"]) == 0
    assert np.isfinite(measures[3]["loss"])


def test_rematerialised_blocks_give_the_same_gradients(plain):
    _, measures = train(model=dataclasses.replace(MODEL, remat=True))
    np.testing.assert_allclose(losses(measures), losses(plain[1]), rtol=1e-5)


def test_bfloat16_activations_follow_float32_and_parameters_stay_float32(plain):
    with jax.numpy_dtype_promotion("standard"):  # Flax's norms mix both inside
        state, measures = train(model=dataclasses.replace(MODEL, dtype="bfloat16"))
    np.testing.assert_allclose(losses(measures), losses(plain[1]), rtol=3e-2)  # 8 bits of mantissa
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    assert losses(measures) != losses(plain[1])
