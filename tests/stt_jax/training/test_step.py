import jax
import numpy as np

from stt_jax.config import TrainingConfig
from stt_jax.data.pipeline import TrainingBatches
from stt_jax.training.step import hide, learning_rate_schedule
from tests.stt_jax.tiny_logs import random_log


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


def test_learning_rate_rises_and_then_falls_to_zero():
    config = TrainingConfig(learning_rate=0.1, warmup=0.1)
    schedule = learning_rate_schedule(config, 100)
    rates = np.array([float(schedule(step)) for step in range(101)])
    assert rates[0] == 0
    assert rates.argmax() == 10
    np.testing.assert_allclose(rates[10], 0.1, rtol=1e-6)
    assert rates[100] < 1e-6
    assert learning_rate_schedule(config, 1)(1) > 0
