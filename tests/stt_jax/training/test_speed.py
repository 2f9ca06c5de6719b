"""How fast a training is said to be."""

import time
import types

import jax
import numpy as np
import pytest

from stt_jax.config import ModelConfig, TrainingConfig
from stt_jax.data.pipeline import PersonBatches, TrainingBatches
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.training.run import model_sizes
from stt_jax.training.speed import Meter
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=30)
WINDOW = 16
MODEL = SpatiotemporalTransformer(ModelConfig(width=8, num_heads=1), model_sizes(LOG))
CONFIG = TrainingConfig(window=WINDOW, requests=8, batch_rows=4)


def meter(batches):
    return Meter(MODEL, CONFIG, types.SimpleNamespace(size=1), batches)


@pytest.mark.parametrize("private", [False, True])
def test_tokens_are_those_in_the_batches(monkeypatch, private):
    """Also where a batch has more rows than people are expected in it."""
    options = {"window": WINDOW, "requests": 8, "seed": 0}
    batches = (
        PersonBatches(LOG, batch_rows=20, rate=4 / 29, **options)
        if private
        else TrainingBatches(LOG, batch_rows=4, **options)
    )
    steps = 400 if private else batches.num_steps(8)
    clock = iter((0.0, 10.0, 10.0))
    counted = meter(batches)
    monkeypatch.setattr(counted, "_peak", lambda: 1e9)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    counted.restart()
    for _ in range(steps):
        counted.add({"requests": jax.numpy.float32(1)})
    found = counted.report()
    tokens = sum(np.count_nonzero(batches[step][0].segment_ids) for step in range(steps))
    np.testing.assert_allclose(found["tokens_per_s"], tokens / 10, rtol=0.05)
    np.testing.assert_allclose(found["step_ms"], 1e4 / steps, rtol=1e-6)


def test_measuring_the_peak_is_not_training(monkeypatch):
    counted = meter(TrainingBatches(LOG, window=WINDOW, requests=8, batch_rows=4, seed=0))
    monkeypatch.setattr(counted, "_peak", lambda: time.sleep(1.0) or 1e9)
    counted.restart()
    counted.add({"requests": jax.numpy.float32(1)})
    assert counted.report()["step_ms"] < 900
