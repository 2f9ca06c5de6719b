"""The attack counts what it says, members and others are apart, and what is done stays done."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import bench_privacy, privacy_speed
from benchmarks.membership_inference import (
    auc,
    draw_people,
    mean_log_likelihoods,
    select_people,
    split_people,
)
from benchmarks.privacy_tables import privacy_table
from stt_jax.config import ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.data.pipeline import target_batches
from stt_jax.data.protocol import find_targets
from stt_jax.data.store import TRAIN
from stt_jax.relations import model_catalogue
from stt_jax.training import setup
from stt_jax.training.privacy import Account
from stt_jax.training.ranks import in_mode
from stt_jax.training.run import Run, fit_to_log, run_info
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=14, seed=4)
MODEL = ModelConfig(
    width=8,
    num_heads=2,
    num_layers=1,
    use_crowd=False,
    use_person=False,
    use_sequel=False,
    attention="reference",
)
TRAINING = TrainingConfig(window=32, requests=32, batch_rows=4, dp_delta=1e-3)


def brute_force(members, others):
    """The area, and DeLong's error of it, pair by pair."""
    wins = np.array([[float(m > o) + 0.5 * (m == o) for o in others] for m in members])
    variances = wins.mean(1).var(ddof=1) / len(members), wins.mean(0).var(ddof=1) / len(others)
    return wins.mean(), np.sqrt(sum(variances))


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_the_area_and_its_error_are_those_of_all_pairs_a_tie_counting_half(levels):
    random = np.random.default_rng(levels)
    members, others = random.integers(0, levels, 31) + 0.3 * levels, random.integers(0, levels, 17)
    members = np.round(members)
    np.testing.assert_allclose(auc(members, others), brute_force(members, others), rtol=1e-12)
    area, error = auc(others, members)
    np.testing.assert_allclose((1 - area, error), auc(members, others), rtol=1e-12)


def test_scores_that_are_apart_or_all_the_same_have_the_areas_that_they_must():
    low, high = np.arange(5.0), np.arange(5.0) + 10
    assert auc(high, low) == (1.0, 0.0)
    assert auc(low, high) == (0.0, 0.0)
    assert auc(np.ones(4), np.ones(3)) == (0.5, 0.0)
    for members in (np.ones(1), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="two scores or more each"):
            auc(members, low)


def test_the_error_is_how_far_areas_of_other_draws_lie_apart():
    random = np.random.default_rng(0)

    def draw():
        return auc(random.normal(0.5, 1, 60), random.normal(0, 1, 40))

    areas, errors = np.array([draw() for _ in range(1000)]).T
    assert abs(errors.mean() / areas.std() - 1) < 0.1


def test_members_and_others_share_nobody_and_keep_their_events():
    members, others = split_people(LOG, share=0.5, seed=1)
    assert len(members) == round(LOG.num_train_users / 2)
    assert sorted([*members, *others]) == list(range(LOG.num_train_users))
    part = select_people(LOG, members)
    assert part.num_users == part.num_train_users == len(members)
    assert part.item_ids == LOG.item_ids
    for row, old in enumerate(members):
        assert part.user_ids[row] == LOG.user_ids[old]
        assert part.user_traits["job"][row] == LOG.user_traits["job"][old]
        new, was = (slice(*log.user_offsets[r : r + 2]) for log, r in ((part, row), (LOG, old)))
        for name in ("items", "times", "parts", "categories"):
            np.testing.assert_array_equal(getattr(part, name)[new], getattr(LOG, name)[was])
        np.testing.assert_array_equal(part.contexts["device"][new], LOG.contexts["device"][was])
    trained = part.items[part.parts == TRAIN]
    np.testing.assert_array_equal(
        part.item_train_counts, np.bincount(trained, minlength=LOG.num_items + 1)
    )
    hashes = {select_people(LOG, rows).meta.data_hash for rows in (members, others)}
    assert len(hashes | {LOG.meta.data_hash}) == 3
    few = draw_people(members, 3, seed=0)
    assert len(few) == 3
    assert set(few) < set(members)
    assert list(few) == sorted(few)


def test_a_person_scores_what_the_serving_view_gives_their_training_events():
    log = select_people(LOG, split_people(LOG, share=0.5, seed=1)[0])
    made = setup.set_up(log, TRAINING, MODEL, ProtocolConfig(), setup.DeviceConfig())
    with jax.set_mesh(made.placement.mesh):
        params = made.initial_state().params
    config = fit_to_log(MODEL, log)
    run = Run(
        log.directory, TRAINING, config, ProtocolConfig(), run_info(log), made.model, params, 1
    )
    found = mean_log_likelihoods(run, log, mode="known")

    targets = find_targets(log, TRAIN)
    ((history, requests, index),) = target_batches(
        log, targets, window=32, row_requests=1, batch_rows=len(targets)
    )

    @jax.jit
    def serve(params, items, history, requests):
        variables = {"params": params}
        states = made.model.apply(variables, history, deterministic=True, method="encode")
        return made.model.apply(
            variables, items, history, requests, states, method="item_probabilities"
        )

    asked_for = in_mode(requests, "known")
    probabilities = np.asarray(serve(params, model_catalogue(log, config), history, asked_for))
    asked = requests.targets[:, 0] > 0
    of_target = probabilities[np.arange(len(targets)), 0, requests.targets[:, 0]]
    users = targets.users[index[:, 0]]
    for user in range(log.num_users):
        own = asked & (users == user)
        np.testing.assert_allclose(found[user], np.log(of_target[own]).mean(), rtol=1e-4)

    knows_people = dataclasses.replace(
        run, model_config=dataclasses.replace(config, use_person=True)
    )
    with pytest.raises(ValueError, match="--use_person=false"):
        mean_log_likelihoods(knows_people, log, mode="known")


def test_ordinary_and_private_steps_are_timed_on_the_same_rows(monkeypatch):
    account = Account(noise=1.0, rate=0.3, delta=1e-3)
    monkeypatch.setattr(setup.privacy, "make_account", lambda *arguments: account)
    given = []

    def make(model, optimizer, config, placement, shardings, account):
        def step(state, items, history, requests, key):
            given.append((account, history.items, requests.targets))
            return state, {"loss": jnp.zeros(())}

        return step

    monkeypatch.setattr(privacy_speed, "make_train_step", make)
    found = privacy_speed.step_speed(LOG, TRAINING, MODEL, num_rounds=2)
    private, same, packed = given[:3]
    assert (private[0], same[0], packed[0]) == (account, None, None)
    jax.tree.map(np.testing.assert_array_equal, private[1:], same[1:])
    kinds = list(found["kinds"].values())
    for name in ("rows", "people", "events"):
        assert kinds[0][name] == kinds[1][name]
    assert kinds[2]["rows"] == TRAINING.batch_rows
    assert kinds[0]["private_takes_times_as_long"] == 1


def measured(epsilon_spent):
    return {
        "people": 7,
        "steps": 3,
        "sampling_rate": 0.25 if epsilon_spent else None,
        "noise": 1.5 if epsilon_spent else None,
        "delta": 1e-3 if epsilon_spent else None,
        "epsilon_spent": epsilon_spent,
        "num_targets": 5,
        **{name: 0.25 for name in bench_privacy.METRICS},
        **{f"{name} s.e.": 0.125 for name in bench_privacy.METRICS},
        "attack": {"auc": 0.5, "auc s.e.": 0.01},
        "cores": 2,
        "processor": "CPU",
        "jax": "1",
    }


def test_what_an_interrupted_run_has_done_is_kept_and_not_done_again(tmp_path, monkeypatch):
    output, done = tmp_path / "privacy.json", []

    def measure(log, training, model, protocol, *, attacked, **options):
        if len(done) == 1:
            done.append("interrupted")
            raise KeyboardInterrupt
        members, others = attacked
        assert not set(members.user_ids) & set(others.user_ids)
        done.append(training.dp_epsilon)
        return measured(training.dp_epsilon or None)

    def run(*more):
        return bench_privacy.main(["bench", "--rounds=0", f"--output={output}", *more])

    monkeypatch.setattr(bench_privacy, "open_log", lambda path: LOG)
    monkeypatch.setattr(bench_privacy, "_measure", measure)
    monkeypatch.setattr(
        bench_privacy,
        "_baselines",
        lambda *arguments: {
            "popularity": dict.fromkeys(bench_privacy.METRICS, 0.1),
            "mix": dict.fromkeys(bench_privacy.METRICS, 0.2),
        },
    )
    assert "Not measured yet" in privacy_table(output)
    assert run("--epsilons=inf,8") == 130
    assert list(json.loads(output.read_text())["city"]["rows"]) == ["inf"]
    assert "| not private |" in privacy_table(output)
    assert run("--epsilons=inf,8.0,16") == 0
    assert done == [0.0, "interrupted", 8.0, 16.0, 0.0]  # the last is the overfitted one
    table = privacy_table(output)
    places = [
        table.index(start)
        for start in ("| popularity", "| mix", "| not private", "| **epsilon 16", "| **epsilon 8")
    ]
    assert places == sorted(places)
    assert table.index("overfitted to 7 people") > places[-1]
    assert "0.2500 ± 0.1250" in table
    assert "probability 0.25;" in table
    assert run("--epsilons=inf", "--epochs=2", "--suite=city") == 0  # other settings: all anew
    assert list(json.loads(output.read_text())["city"]["rows"]) == ["inf", "overfitted"]


@pytest.mark.parametrize("epsilons", ["0", "-1", "much", "nan"])
def test_a_budget_that_is_none_is_refused(epsilons, capsys):
    assert bench_privacy.main(["bench", f"--epsilons={epsilons}"]) == 2
    assert "--epsilons must be inf or positive numbers" in capsys.readouterr().err
