"""The gates of the mixture, fitted to what is asked."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.training import loop
from stt_jax.training.calibration import find_biases, fit_gates
from stt_jax.training.loop import train_model
from stt_jax.training.ranks import MODES, asked_batches, in_mode
from stt_jax.training.run import load_run
from stt_jax.training.setup import set_up
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=12, seed=6)
MODEL = ModelConfig(width=8, num_heads=2, num_layers=1, attention="reference", use_boost=True)
TRAINING = TrainingConfig(window=16, requests=8, batch_rows=4, epochs=2, learning_rate=1e-2)


def loss(log_gates, masses, added):
    logits = log_gates + added
    weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return -np.log((weights * masses).sum(axis=1)).mean()


def log_softmax(logits):
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def test_weights_that_are_wrong_by_a_constant_are_put_right():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4000, 3))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    # A target comes from one source, which is sure of it; the others think it unlikely.
    source = (rng.random((4000, 1)) > np.cumsum(true, axis=1)).sum(axis=1)
    masses = np.where(np.arange(3) == source[:, None], 0.9, 0.001).astype(np.float32)
    shift = np.array([1.5, -1.0, 0.0])
    wrong = log_softmax(logits + shift)
    added = find_biases(wrong, masses, np.ones_like(masses))
    np.testing.assert_allclose(added - added.mean(), shift.mean() - shift, atol=0.15)
    assert loss(wrong, masses, added) < loss(wrong, masses, 0) - 0.05


def test_a_source_is_not_blamed_for_what_the_answer_may_not_be():
    """Two sources as good as each other; half of what the first says has been seen."""
    rng = np.random.default_rng(1)
    first = (rng.random(4000) < 0.5)[:, None]
    masses = np.where(np.hstack([first, ~first]), 0.8, 0.001).astype(np.float32)
    allowed = np.ones_like(masses)
    logits = np.zeros_like(masses)
    fair = find_biases(log_softmax(logits), masses, allowed)
    masses[:, 0] *= 0.5
    allowed[:, 0] = 0.5
    blind = find_biases(log_softmax(logits), masses, np.ones_like(masses))
    seeing = find_biases(log_softmax(logits), masses, allowed)
    assert abs(fair[0] - fair[1]) < 0.05
    assert abs(blind[0] - blind[1]) < 0.05  # all of its weight, and half of it lost
    np.testing.assert_allclose(seeing[0] - seeing[1], np.log(2), atol=0.05)


@pytest.fixture(scope="module")
def setup():
    return set_up(LOG, TRAINING, MODEL, ProtocolConfig(), DeviceConfig())


@pytest.fixture(scope="module")
def params(setup):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32),
        setup.initial_state().params,
    )


@pytest.mark.parametrize("seen", [False, True])
def test_gates_and_masses_are_those_of_the_answer(setup, params, seen):
    variables, model = {"params": params}, setup.model

    @jax.jit
    def both(history, asked, allowed):
        states = model.apply(variables, history, deterministic=True, method=model.encode)
        arguments = (variables, setup.asked_items, history, asked, states)
        return (
            *model.apply(*arguments, allowed, method=model.target_masses),
            model.apply(*arguments, method=model.item_probabilities),
        )

    asking = {"window": 16, "leave_out_seen": seen, "name_domains": False, "placement": None}
    for history, requests, allowed, index in asked_batches(LOG, setup.targets, **asking):
        for mode in MODES:
            log_gates, masses, allowed_masses, whole = both(
                history, in_mode(requests, mode), allowed
            )
            kept = np.ones(whole.shape, bool) if allowed is None else allowed
            expected = np.where(kept, whole, 0).sum(-1)
            found = (jnp.exp(log_gates) * allowed_masses).sum(-1)
            np.testing.assert_allclose(found[index >= 0], expected[index >= 0], atol=1e-5)
            np.testing.assert_allclose(jnp.exp(log_gates).sum(-1)[index >= 0], 1, rtol=1e-5)
            expected = np.take_along_axis(np.asarray(whole), requests.targets[..., None], -1)
            found = (jnp.exp(log_gates) * masses).sum(-1)[..., None]
            np.testing.assert_allclose(found[index >= 0], expected[index >= 0], atol=1e-6)


def test_only_the_bias_of_the_gate_changes(setup, params):
    fitted = fit_gates(
        setup.model,
        params,
        setup.asked_items,
        LOG,
        setup.targets,
        window=16,
        leave_out_seen=False,
        name_domains=False,
        placement=setup.placement,
    )
    changed = jax.tree.map(lambda one, two: bool(np.any(one != two)), params, fitted)
    paths = [path for path, is_new in jax.tree_util.tree_leaves_with_path(changed) if is_new]
    assert [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths] == [
        "mixer/gate/bias"
    ]


def train(directory, **changes):
    training = dataclasses.replace(TRAINING, run=str(directory), calibrate=True, **changes)
    model = dataclasses.replace(MODEL, use_crowd=False, use_boost=False)  # compiles sooner
    return train_model(LOG, training, model)


def test_it_comes_last_once_and_is_kept_if_it_is_better(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit_gates", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed")
    before = load_run(tmp_path / "killed", LOG)
    shutil.copytree(tmp_path / "killed", tmp_path / "worse")
    last = max_step(tmp_path / "killed")
    whole, later = train(tmp_path / "whole"), train(tmp_path / "killed")
    assert whole.step == later.step == max_step(tmp_path / "whole") == last + 1
    jax.tree.map(np.testing.assert_array_equal, later.params, whole.params)
    assert np.any(before.params["mixer"]["gate"]["bias"] != whole.params["mixer"]["gate"]["bias"])
    assert train(tmp_path / "whole").step == max_step(tmp_path / "whole") == last + 1

    # Biases that make it worse, here no numbers at all, are written down as tried, and not used.
    with monkeypatch.context() as patch:
        spoil = np.full(3, np.nan, np.float32)
        patch.setattr("stt_jax.training.calibration.find_biases", lambda *_: spoil)
        worse = train(tmp_path / "worse")
    assert worse.step == before.step
    jax.tree.map(np.testing.assert_array_equal, worse.params, before.params)
    assert train(tmp_path / "worse").step == before.step


def max_step(directory):
    return max(int(path.name) for path in (directory / "checkpoints").iterdir())


def test_a_private_training_refuses():
    with pytest.raises(ValueError, match="--dp_epsilon does not cover what --calibrate fits"):
        TrainingConfig(dp_epsilon=1.0, calibrate=True)
