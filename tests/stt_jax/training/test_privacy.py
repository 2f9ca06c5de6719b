"""What one person can change is bounded, hidden in noise, and counted."""

import dataclasses
import json
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from stt_jax.config import DeviceConfig, ModelConfig, TrainingConfig
from stt_jax.data.pipeline import PersonBatches
from stt_jax.export import model_card
from stt_jax.training import checkpoint, privacy, setup
from stt_jax.training import run as runs
from stt_jax.training.loop import train_model
from stt_jax.training.privacy import Account, make_account, most_people, private_gradients
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=60, seed=6)
MODEL = ModelConfig(
    width=8,
    num_heads=2,
    num_layers=1,
    use_time=False,
    use_crowd=False,
    use_place=False,
    use_person=False,
    use_pointer=False,
    attention="reference",
)
TRAINING = TrainingConfig(
    window=16, requests=8, batch_rows=12, epochs=2, dp_epsilon=4.0, dp_delta=1e-3, patience=0
)


def gradient_of_row(row, key):
    """A row is its own gradient."""
    return {"w": row[0], "b": row[0][:1]}, {"requests": jnp.float32(1)}


def gradients(rows, *, noise=0.0, clip_norm=1.0, key=0):
    return private_gradients(
        gradient_of_row,
        jnp.asarray(rows, jnp.float32),
        jax.random.key(key),
        account=Account(noise=noise, rate=0.1, delta=1e-6),
        clip_norm=clip_norm,
        chunk_rows=2,
        expected_people=5,
    )


def test_each_persons_gradient_is_clipped_over_all_parameters_before_they_are_added():
    rows = np.random.default_rng(0).normal(size=(6, 3)) * np.array([[0.1, 1, 10, 100, 0, 3]]).T
    found, sums = gradients(rows)
    norms = np.sqrt((rows**2).sum(1) + rows[:, 0] ** 2)
    scale = np.minimum(1, 1 / np.maximum(norms, 1e-12))[:, None]
    np.testing.assert_allclose(found["w"], (rows * scale).sum(0) / 5, rtol=1e-5)
    np.testing.assert_allclose(found["b"], (rows * scale).sum(0)[:1] / 5, rtol=1e-5)
    assert float(sums["requests"]) == 6


def test_one_person_can_move_the_sum_by_the_clip_norm_at_most():
    rows = np.random.default_rng(0).normal(size=(6, 3))
    for worst in (1e6, np.inf, np.nan):
        changed = rows.copy()
        changed[2] = worst
        with_it, without = gradients(changed)[0], gradients(np.delete(changed, [2, 3], 0))[0]
        moved = np.concatenate([5 * (with_it[name] - without[name]) for name in ("w", "b")])
        assert np.linalg.norm(moved) <= 2 + 1e-5  # two people were left out


def test_noise_has_the_deviation_that_the_account_says():
    rows = np.zeros((2, 50_000))
    found, _ = gradients(rows, noise=3.0, clip_norm=0.5)
    assert abs(float(np.std(found["w"])) * 5 / 1.5 - 1) < 0.02
    again, _ = gradients(rows, noise=3.0, clip_norm=0.5)
    other, _ = gradients(rows, noise=3.0, clip_norm=0.5, key=1)
    np.testing.assert_array_equal(found["w"], again["w"])
    assert np.mean(np.asarray(found["w"]) == np.asarray(other["w"])) < 0.01


def test_the_account_spends_what_was_asked_for_and_no_more():
    config = dataclasses.replace(TRAINING, batch_rows=100, dp_epsilon=2.0, dp_delta=1e-5)
    account = make_account(config, 10_000, 500)
    assert 1.95 < account.epsilon(500) <= 2.0
    assert account.epsilon(0) == 0
    assert account.epsilon(100) < account.epsilon(500)
    # Gaussian without sampling has a closed form to compare with (Balle and Wang, 2018):
    # delta(e) = Phi(m/2 - e/m) - exp(e) Phi(-m/2 - e/m), m = sqrt(steps) / noise.
    plain = Account(noise=10.0, rate=1.0, delta=1e-5)
    m = np.sqrt(4) / 10.0
    e = plain.epsilon(4)
    delta = norm.cdf(m / 2 - e / m) - np.exp(e) * norm.cdf(-m / 2 - e / m)
    np.testing.assert_allclose(delta, 1e-5, rtol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_rows": 100}, "--batch_rows=100 is the expected number of people"),
        ({"dp_delta": 0.5}, "--dp_delta=0.5 must be below 1 / 59"),
    ],
)
def test_an_account_that_means_nothing_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_account(dataclasses.replace(TRAINING, **change), LOG.num_train_users, 10)


def test_people_are_drawn_independently_with_the_stated_rate():
    account = Account(1.0, 0.2, 1e-6)
    rows = most_people(account, LOG.num_train_users)
    source = PersonBatches(LOG, window=16, requests=8, batch_rows=rows, rate=0.2, seed=7)
    drawn = np.zeros((300, LOG.num_train_users + 1))
    for step in range(300):
        _, requests = source[step]
        for row in range(rows):
            people = np.unique(requests.users[row][requests.segment_ids[row] > 0])
            assert len(people) <= 1
            drawn[step, people] += 1
            assert np.all((requests.segment_ids[row] > 0) == (requests.users[row] > 0))
    assert drawn.max() == 1
    assert np.all(np.abs(drawn[:, 1:].mean(0) - 0.2) < 5 * np.sqrt(0.16 / 300))
    together = np.corrcoef(drawn[:, 1:].T)
    assert np.abs(together[~np.eye(len(together), dtype=bool)]).max() < 5 / np.sqrt(300)
    again, _ = source[3]
    np.testing.assert_array_equal(again.items, source[3][0].items)


def spent_by_step(run):
    """Step -> epsilon, of the run's log; a step that was logged twice must have said the same."""
    lines = (run.directory / "metrics.jsonl").read_text().splitlines()
    rows = [line for line in map(json.loads, lines) if line["kind"] == "privacy"]
    pairs = {(row["step"], row["epsilon"]) for row in rows}
    assert len(pairs) == len(dict(pairs))
    return dict(sorted(pairs))


def test_a_private_run_counts_epsilon_goes_on_to_the_same_bits_and_forgets_its_key(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(privacy.secrets, "token_hex", lambda size: "0123456789abcdef")
    whole = train_model(LOG, dataclasses.replace(TRAINING, run=str(tmp_path / "whole")), MODEL)
    spent = spent_by_step(whole)
    assert list(spent.values()) == sorted(spent.values())
    assert 3.5 < max(spent.values()) <= 4.0
    assert not (whole.directory / "noise.key").exists()
    # The latest checkpoint says what its step has spent, and so does the card of an export.
    assert whole.epsilon == spent[max(spent)]
    owner = runs.identity(whole.directory, whole.info)
    with checkpoint.open_manager(whole.directory, TRAINING.keep, read_only=True) as manager:
        assert manager.latest_step() == max(spent)
        assert checkpoint.spent_epsilon(manager, owner) == whole.epsilon
    card = model_card(whole, LOG, 5)
    assert f"epsilon {whole.epsilon:.3f} spent at delta 0.001" in card
    without = model_card(dataclasses.replace(whole, epsilon=None), LOG, 5)
    assert "without differential privacy" in without
    assert "epsilon" not in without

    stopped = tmp_path / "stopped"
    make = setup.make_train_step

    def stopping(*arguments):
        step, calls = make(*arguments), []

        def stop_after_a_checkpoint(*inputs):
            calls.append(1)
            if len(calls) == min(spent) + 3:
                key = stopped / "noise.key"
                assert stat.S_IMODE(key.stat().st_mode) == 0o600
                raise KeyboardInterrupt
            return step(*inputs)

        return stop_after_a_checkpoint

    config = dataclasses.replace(TRAINING, run=str(stopped))
    monkeypatch.setattr(setup, "make_train_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_model(LOG, config, MODEL)
    monkeypatch.setattr(setup, "make_train_step", make)
    resumed = train_model(LOG, config, MODEL)
    assert f"going on from step {min(spent)}" in capsys.readouterr().err
    assert spent_by_step(resumed) == spent
    assert resumed.epsilon == whole.epsilon
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


def test_a_mesh_is_refused_in_a_private_run(tmp_path):
    with pytest.raises(NotImplementedError, match="--dp_epsilon works on one device"):
        train_model(
            LOG,
            dataclasses.replace(TRAINING, run=str(tmp_path)),
            MODEL,
            devices=DeviceConfig(mesh_data=2),
        )


@pytest.mark.parametrize(
    ("counted", "without"),
    [
        ({"use_crowd": True}, "use_crowd=false"),
        ({"use_popularity": True}, "use_popularity=false"),
        ({"likely_times": 4}, "likely_times=0"),
    ],
)
def test_counts_of_the_crowd_are_refused_in_a_private_run(tmp_path, counted, without):
    with pytest.raises(ValueError, match=f"not what is counted: give --{without}"):
        train_model(
            LOG,
            dataclasses.replace(TRAINING, run=str(tmp_path)),
            dataclasses.replace(MODEL, **counted),
        )


def test_weights_counted_over_everybody_are_refused_in_a_private_run(tmp_path):
    config = dataclasses.replace(TRAINING, run=str(tmp_path), balance_domains=0.5)
    with pytest.raises(ValueError, match="not what is counted: give --balance_domains=0"):
        train_model(random_log(num_users=60, seed=6, has_domains=True), config, MODEL)
