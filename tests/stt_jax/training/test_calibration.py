"""The gates of the mixture, fitted to what is asked."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.data.protocol import MODES
from stt_jax.metrics import ranking_metrics, target_ranks
from stt_jax.training import loop
from stt_jax.training.calibration import find_biases, find_candidates, fit_gates
from stt_jax.training.loop import train_model
from stt_jax.training.ranks import asked_batches, in_mode, make_ranker, model_ranks
from stt_jax.training.run import load_run
from stt_jax.training.setup import set_up
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=12, seed=6)
MODEL = ModelConfig(
    width=8, num_heads=2, num_layers=1, attention="reference", use_boost=True, habit_share=0.2
)
EVERY = np.ones((1, 1, 1), bool)  # item may be ranked
TRAINING = TrainingConfig(window=16, requests=8, batch_rows=4, epochs=2, learning_rate=1e-2)


def mean_reciprocal_rank(log_gates, masses, targets, added):
    scores = np.einsum("nm,nmv->nv", np.exp(log_gates + added), masses)
    own = np.take_along_axis(scores, targets[:, None], axis=1)
    return np.mean(1 / (scores[:, 1:] >= own).sum(axis=1))


def made_sources(num_targets, num_items, reliability, seed):
    """Sources that each find the target first with some probability, but are equally sure."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(1, num_items + 1, num_targets)
    masses = 0.02 * rng.random((num_targets, len(reliability), num_items + 1))
    for source, share in enumerate(reliability):
        right = rng.random(num_targets) < share
        named = np.where(right, targets, rng.integers(1, num_items + 1, num_targets))
        masses[np.arange(num_targets), source, named] += rng.uniform(0.5, 0.9, num_targets)
    masses[:, :, 0] = 0
    return masses.astype(np.float32), targets.astype(np.int32)


def test_the_more_reliable_source_gets_more_weight_and_the_list_gets_better():
    masses, targets = made_sources(3000, 50, (0.2, 0.6, 0.4), seed=0)
    log_gates = np.log(np.full((3000, 3), 1 / 3, np.float32))
    found, counted = find_candidates(log_gates[None], masses[None], targets[None], EVERY)
    added = find_biases(log_gates, np.asarray(found[0]), np.asarray(counted[0]), 3)
    assert added[1] > added[2] > added[0]
    before, after = (
        mean_reciprocal_rank(log_gates, masses, targets, move) for move in (0 * added, added)
    )
    assert after > before + 0.02
    # Chosen on some targets, it is better on others.
    masses, targets = made_sources(3000, 50, (0.2, 0.6, 0.4), seed=1)
    before, after = (
        mean_reciprocal_rank(log_gates, masses, targets, move) for move in (0 * added, added)
    )
    assert after > before + 0.02


def test_it_looks_for_the_metric_that_is_asked_for():
    """One source has a third of the answers first and the others nowhere, one has all among ten."""
    num_targets = 600
    targets = np.ones(num_targets, np.int32)
    right = np.arange(num_targets) % 3 == 0
    masses = np.zeros((num_targets, 2, 51), np.float32)
    masses[right, 0, 1] = 0.03
    masses[~right, 0, 20:32] = 0.05
    masses[:, 1, 1] = 0.1
    masses[:, 1, 2:9] = 0.2
    log_gates = np.log(np.full((num_targets, 2), 0.5, np.float32))
    found, counted = find_candidates(log_gates[None], masses[None], targets[None], EVERY)
    found, counted = np.asarray(found[0]), np.asarray(counted[0])

    def qualities(metric):
        added = find_biases(log_gates, found, counted, 2, metric)
        scores = np.einsum("nm,nmv->nv", np.exp(log_gates + added), masses)
        scores[:, 0] = -np.inf
        return ranking_metrics(target_ranks(scores, targets), (1, 10))

    assert qualities("hr@10")["hr@10"] == 1
    for metric in ("mrr", "accuracy@1", "ndcg@10"):
        assert qualities(metric)["hr@10"] == qualities(metric)["accuracy@1"] == 1 / 3


def test_a_source_without_a_gate_keeps_its_share():
    masses, targets = made_sources(3000, 50, (0.2, 0.6, 0.4), seed=0)
    gates = np.tile(np.array([0.35, 0.35, 0.3], np.float32), (3000, 1))
    found, counted = find_candidates(np.log(gates)[None], masses[None], targets[None], EVERY)
    added = find_biases(np.log(gates), np.asarray(found[0]), np.asarray(counted[0]), 2)

    def quality(added):
        moved = gates[:, :2] * np.exp(added)
        moved *= 0.7 / moved.sum(axis=1, keepdims=True)
        log_gates = np.log(np.concatenate([moved, gates[:, 2:]], axis=1))
        return mean_reciprocal_rank(log_gates, masses, targets, np.zeros(3))

    assert added.shape == (2,)
    assert added[1] > added[0]
    for source in range(2):
        for move in (-1.0, -0.25, 0.25, 1.0):  # what was found, in the answer as it will be
            assert quality(added + move * np.eye(2)[source]) <= quality(added) + 1e-6


@pytest.mark.parametrize("added", [np.zeros(3), np.array([2.0, -1.0, 0.5])])
def test_a_rank_among_the_candidates_is_that_among_all_items(added):
    masses, targets = made_sources(300, 50, (0.2, 0.6, 0.4), seed=2)
    log_gates = np.log(np.random.default_rng(0).dirichlet(np.ones(3), 300)).astype(np.float32)
    found, counted = find_candidates(log_gates[None], masses[None], targets[None], EVERY)
    scores = np.einsum("nm,nmc->nc", np.exp(log_gates + added), found[0])
    ranks = 1 + (np.asarray(counted[0]) & (scores >= scores[:, :1])).sum(axis=1)
    expected = mean_reciprocal_rank(log_gates, masses, targets, added)
    np.testing.assert_allclose(np.mean(1 / ranks), expected, rtol=1e-6)


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


def test_the_sources_add_up_to_the_answer(setup, params):
    variables, model = {"params": params}, setup.model

    @jax.jit
    def both(history, asked):
        states = model.apply(variables, history, deterministic=True, method=model.encode)
        arguments = (variables, setup.asked_items, history, asked, states)
        return (
            *model.apply(*arguments, method=model.source_masses),
            model.apply(*arguments, method=model.item_probabilities),
        )

    asking = {"window": 16, "leave_out_seen": True, "name_domains": False, "placement": None}
    for history, requests, _, index in asked_batches(LOG, setup.targets, **asking):
        for mode in MODES:
            log_gates, masses, whole = both(history, in_mode(requests, mode))
            np.testing.assert_allclose(jnp.exp(log_gates).sum(-1)[index >= 0], 1, rtol=1e-5)
            found = jnp.einsum("brm,brmv->brv", jnp.exp(log_gates), masses)
            np.testing.assert_allclose(found[index >= 0], whole[index >= 0], atol=1e-5)


def test_it_is_fitted_to_the_ranks_that_validation_has(monkeypatch):
    """Also where requests name their domain, and items of others are not ranked."""
    log = random_log(num_users=30, num_items=40, seed=3, has_domains=True)
    setup = set_up(log, TRAINING, MODEL, ProtocolConfig(), DeviceConfig())
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32),
        setup.initial_state().params,
    )
    asking = {"window": 16, "leave_out_seen": False, "placement": setup.placement}
    found = {}

    def spy(log_gates, masses, counted, num_gated, metric):
        scores = np.einsum("nm,nmc->nc", np.exp(log_gates), masses)
        found["mrr"] = ranking_metrics(1 + (counted & (scores >= scores[:, :1])).sum(1))["mrr"]
        return np.zeros(num_gated, np.float32)

    monkeypatch.setattr("stt_jax.training.calibration.find_biases", spy)
    for name_domains in (False, True):
        arguments = (params, setup.asked_items, log, setup.targets)
        fit_gates(setup.model, *arguments, **asking, name_domains=name_domains)
        ranks = model_ranks(
            make_ranker(setup.model), *arguments, **asking, name_domains=name_domains
        )
        validated = np.mean([ranking_metrics(of_mode)["mrr"] for of_mode in ranks.values()])
        np.testing.assert_allclose(found["mrr"], validated, rtol=1e-6)


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
