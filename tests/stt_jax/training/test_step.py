import dataclasses

import jax
import numpy as np
import pytest

from stt_jax.config import ModelConfig, TrainingConfig
from stt_jax.data.pipeline import TrainingBatches
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.relations import model_catalogue
from stt_jax.training.run import model_sizes
from stt_jax.training.step import (
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


def train(
    num_steps=3, model=MODEL, change=lambda number, batch: batch, target_weight=None, **changes
):
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
    if target_weight is not None:
        items = items.replace(target_weights=jax.numpy.full(items.is_item.shape, target_weight))
    initialise = jax.jit(init_state, static_argnums=(0, 1, 5))
    state = initialise(module, optimizer, items, *batches[0], config.seed)
    step = make_train_step(module, optimizer, config)
    measures = []
    for number in range(num_steps):
        state, of_step = step(state, items, *change(number, batches[number]))
        measures.append(jax.tree.map(float, of_step))
    return state, measures


@pytest.fixture(scope="module")
def plain():
    return train()


def losses(measures):
    return [of_step["loss"] for of_step in measures]


def test_learning_rate_rises_and_then_falls_to_zero():
    config = TrainingConfig(learning_rate=0.1, warmup=0.1)
    schedule = learning_rate_schedule(config, 100)
    rates = np.array([float(schedule(step)) for step in range(101)])
    assert rates[0] == 0
    assert rates.argmax() == 10
    np.testing.assert_allclose(rates[10], 0.1, rtol=1e-6)
    assert rates[100] < 1e-6
    assert learning_rate_schedule(config, 1)(0) > 0  # the only step learns


def test_without_a_warm_up_the_first_step_learns():
    schedule = learning_rate_schedule(TrainingConfig(learning_rate=0.1, warmup=0), 100)
    rates = np.array([float(schedule(step)) for step in range(101)])
    np.testing.assert_allclose(rates[0], 0.1, rtol=1e-6)
    assert (np.diff(rates) < 0).all()
    assert rates[100] < 1e-6


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


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_batch_of_targets_that_count_twice_counts_twice(accumulate):
    """Of one domain alone, for instance; the batch's own weights must not cancel out."""
    model = dataclasses.replace(MODEL, dropout=0.0)
    (once,), (twice,) = (
        train(1, model=model, accumulate=accumulate, target_weight=weight)[1]
        for weight in (1.0, 2.0)
    )
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(twice[name], 2 * once[name], rtol=1e-4)
    assert twice["requests"] == once["requests"]


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
