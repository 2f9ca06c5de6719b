"""Training end to end on a tiny log."""

import dataclasses
import errno
import json
import signal

import jax
import numpy as np
import pytest

from stt_jax.config import ModelConfig, ProtocolConfig, TrainingConfig, WatchConfig
from stt_jax.data.schema import VALIDATION
from stt_jax.training import checkpoint, loop, setup
from stt_jax.training import run as runs
from stt_jax.training.loop import train_model
from stt_jax.training.reporting import Reporter
from stt_jax.training.run import load_run
from tests.stt_jax.person_logs import make_log, split_by_position
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=20, seed=6, has_numbers=True)
MODEL = ModelConfig(
    width=8,
    num_heads=2,
    num_layers=1,
    dropout=0.1,
    attention="reference",
    use_place=False,
    use_sequel=False,
    use_crowd=False,
)
# As many epochs wherever it does not matter: with another number the step is compiled again.
TRAINING = TrainingConfig(
    window=16, requests=8, batch_rows=4, epochs=4, validation_every=1, learning_rate=1e-2
)


def options(directory, **changes):
    return dataclasses.replace(TRAINING, run=str(directory), **changes)


def metric_lines(directory):
    """Everything that was reported, but for times and speeds."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key != "time_s"}
        for line in lines
        if line["kind"] != "speed"
    ]


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped, with all its checkpoints."""
    directory = tmp_path_factory.mktemp("whole")
    return train_model(LOG, options(directory, keep=100, patience=0), MODEL)


def test_training_learns(whole):
    lines = metric_lines(whole.directory)
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0] or len(losses) == 1
    validations = [line for line in lines if line["kind"] == "validation"]
    assert len(validations) == 4
    assert max(v["mrr"] for v in validations) > 0.2  # eleven items, ties against: 0.28 by luck


def test_the_best_validation_is_what_is_loaded(whole):
    validations = [line for line in metric_lines(whole.directory) if line["kind"] == "validation"]
    best = max(validations, key=lambda line: line["mrr"])
    assert whole.step == best["step"]
    assert_same(load_run(whole.directory, LOG).params, whole.params)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(whole, tmp_path):
    again = train_model(LOG, options(tmp_path / "again", keep=100, patience=0), MODEL)
    assert_same(again.params, whole.params)
    assert metric_lines(again.directory) == metric_lines(whole.directory)
    other = train_model(LOG, options(tmp_path / "other", patience=0, seed=1), MODEL)
    leaf = jax.tree.leaves(other.params)[0]
    assert np.any(np.asarray(leaf) != np.asarray(jax.tree.leaves(whole.params)[0]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_it_goes_on_to_the_same_bits(whole, tmp_path, monkeypatch, number):
    make = setup.make_train_step

    def stopping(*arguments):
        step, calls = make(*arguments), []

        def stop_in_the_sixth(*inputs):
            calls.append(1)
            if len(calls) == 6:
                signal.raise_signal(number)
            return step(*inputs)

        return stop_in_the_sixth

    monkeypatch.setattr(setup, "make_train_step", stopping)
    config = options(tmp_path / "stopped", keep=100, patience=0)
    with pytest.raises(KeyboardInterrupt):
        train_model(LOG, config, MODEL)
    monkeypatch.undo()
    resumed = train_model(LOG, config, MODEL)
    assert resumed.step == whole.step
    assert_same(resumed.params, whole.params)
    assert [line for line in metric_lines(resumed.directory) if line["kind"] == "validation"] == [
        line for line in metric_lines(whole.directory) if line["kind"] == "validation"
    ]


def test_a_finished_run_trains_no_further(whole):
    before = metric_lines(whole.directory)
    train_model(LOG, options(whole.directory, keep=100, patience=0), MODEL)
    assert metric_lines(whole.directory) == before


def test_a_training_that_nothing_judges_or_that_is_short_says_so(tmp_path, capsys):
    items = np.where(LOG.parts == VALIDATION, 0, LOG.items)
    train_model(dataclasses.replace(LOG, items=items), options(tmp_path), MODEL)
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert "the last step is taken, and --patience and --select_by have no effect" in said
    assert "steps: a small log learns more by smaller batches" in said


def test_patience_ends_a_run_that_no_longer_improves(tmp_path):
    run = train_model(
        LOG, options(tmp_path, epochs=50, patience=2, learning_rate=0.3, keep=1), MODEL
    )
    validations = [line for line in metric_lines(run.directory) if line["kind"] == "validation"]
    assert len(validations) < 50
    best = max(range(len(validations)), key=lambda i: validations[i]["mrr"])
    assert len(validations) == best + 1 + 2


@pytest.mark.parametrize(("select_by", "best"), [("accuracy@1", 1), ("hr@10", 2)])
def test_the_best_step_is_the_best_by_what_was_asked_for(
    tmp_path, monkeypatch, capsys, select_by, best
):
    """First a third of the answers is right and the rest is nowhere, then all are among ten."""
    found = iter([[1, 500, 500], [4, 4, 5], [600, 600, 600], [600, 600, 600]])

    def ranks_in_turn(*_, **asked):
        assert asked["window"] == 24
        return {"unknown": np.array(next(found))}

    monkeypatch.setattr(loop, "model_ranks", ranks_in_turn)
    config = options(tmp_path, patience=0, select_by=select_by, asked_window=24)
    run = train_model(LOG, config, MODEL)
    steps = [line["step"] for line in metric_lines(tmp_path) if line["kind"] == "validation"]
    assert run.step == steps[best - 1]
    printed = capsys.readouterr()
    title = {"accuracy@1": "accuracy"}.get(select_by, select_by.upper())
    assert (printed.err + printed.out).count(f"{title} ") == 4 + 1, "each validation, the best"


def test_of_validations_that_are_level_the_first_is_the_best(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "model_ranks", lambda *_, **__: {"unknown": np.array([1, 4])})
    run = train_model(LOG, options(tmp_path, patience=0, keep=100), MODEL)
    steps = [line["step"] for line in metric_lines(tmp_path) if line["kind"] == "validation"]
    assert len(steps) == 4
    assert run.step == steps[0]
    printed = capsys.readouterr()
    assert f"at step {steps[0]}\n" in printed.err + printed.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.5}, "--learning_rate=0.01 before, --learning_rate=0.5 now"),
        ({"seed": 3}, "--seed=0 before, --seed=3 now"),
    ],
)
def test_a_run_directory_with_other_options_is_refused(whole, change, message):
    with pytest.raises(ValueError, match=message):
        train_model(LOG, options(whole.directory, keep=100, patience=0, **change), MODEL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_rows": 5, "accumulate": 2}, "--batch_rows=5"),
        ({"dp_epsilon": 3.0, "accumulate": 2}, "works on one device and without --accumulate"),
    ],
)
def test_options_that_were_refused_leave_no_run_to_the_corrected_command(tmp_path, change, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        train_model(LOG, options(tmp_path / "run", **change), MODEL)
    assert not (tmp_path / "run/run.json").exists()
    config = options(tmp_path / "run", epochs=1)
    assert train_model(LOG, config, MODEL).training == config


def test_of_two_trainings_that_begin_in_one_directory_the_later_is_refused(tmp_path, monkeypatch):
    first, second = options(tmp_path, epochs=1), options(tmp_path, epochs=1, seed=1)
    set_up = loop.set_up

    def while_another_begins(*arguments):
        monkeypatch.setattr(loop, "set_up", set_up)
        train_model(LOG, first, MODEL)
        return set_up(*arguments)

    monkeypatch.setattr(loop, "set_up", while_another_begins)
    with pytest.raises(ValueError, match="--seed=0 before, --seed=1 now"):
        train_model(LOG, second, MODEL)
    assert load_run(tmp_path, LOG).training == first


def test_a_run_on_another_log_is_refused(whole):
    other = dataclasses.replace(LOG, meta=dataclasses.replace(LOG.meta, data_hash="f" * 64))
    with pytest.raises(ValueError, match="trained on a log with hash 000000000000"):
        train_model(other, options(whole.directory, keep=100, patience=0), MODEL)
    with pytest.raises(ValueError, match="--data"):
        load_run(whole.directory, other)


def test_a_run_of_another_version_is_refused(whole, tmp_path):
    values = json.loads((whole.directory / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(values | {"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99, this program reads 2"):
        load_run(tmp_path, LOG)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        load_run(tmp_path, LOG)
    with pytest.raises(ValueError, match="holds no run"):
        load_run(tmp_path / "nothing", LOG)


def test_without_a_run_directory_nothing_starts():
    with pytest.raises(ValueError, match="--run is missing"):
        train_model(LOG, TRAINING, MODEL)


def test_logs_without_times_or_places_train_too(tmp_path):
    log = random_log(num_users=12, has_times=False, has_places=False)
    model = dataclasses.replace(MODEL, use_place=True)
    run = train_model(log, options(tmp_path, epochs=1), model, ProtocolConfig(targets="last"))
    assert not run.model_config.use_time
    assert not run.model_config.use_place


def test_a_training_that_has_blown_up_stops_and_says_with_whom(tmp_path):
    config = options(tmp_path, learning_rate=1e30, warmup=0.0, max_bad_steps=3)
    with pytest.raises(ValueError, match="not finite in 3 steps in a row, up to step 4; none"):
        train_model(LOG, config, MODEL)
    found = json.loads((tmp_path / "bad_batches_0.json").read_text())
    assert [batch["step"] for batch in found] == [1, 2, 3]  # step 0 was finite, and too far
    assert set(found[0]["users"]) <= set(LOG.user_ids)
    assert set(found[0]["items"]) <= set(LOG.item_ids[1:])
    assert found[0]["items"]


def test_what_has_blown_up_takes_the_place_of_no_checkpoint_and_can_be_gone_on_from(
    tmp_path, monkeypatch
):
    """Not finite after step 10: what was saved before stays the newest."""
    make_step = setup.Training.make_step

    def poisoned(self):
        step = make_step(self)

        def poison(state, items, history, requests, key):
            new, measures = step(state, items, history, requests, key)
            in_a_row = max(0, int(new.step) - 10)
            return new, measures | {"bad_steps_in_a_row": jax.numpy.asarray(in_a_row)}

        return poison

    monkeypatch.setattr(setup.Training, "make_step", poisoned)
    config = options(tmp_path, checkpoint_every=1, keep=2, max_bad_steps=8)
    with pytest.raises(ValueError, match="go on from the last checkpoint with a higher --max_bad"):
        train_model(LOG, config, MODEL)
    steps = checkpoint.whole_steps(tmp_path)
    assert max(steps) == 10
    assert len(steps) >= 2
    validated = [line["step"] for line in metric_lines(tmp_path) if line["kind"] == "validation"]
    assert validated
    assert max(validated) <= 10

    monkeypatch.setattr(setup.Training, "make_step", make_step)
    on = dataclasses.replace(config, max_bad_steps=100, keep=3, checkpoint_every=0)
    run = train_model(LOG, on, MODEL)
    never = train_model(LOG, options(tmp_path / "never"), MODEL)
    assert run.step == never.step
    assert_same(run.params, never.params)


def test_a_training_that_has_blown_up_before_its_first_checkpoint_offers_none(tmp_path):
    config = options(tmp_path, learning_rate=1e30, warmup=0.0, max_bad_steps=2)
    with pytest.raises(ValueError, match=r"lower --learning_rate in another --run$"):
        train_model(LOG, config, MODEL)


def test_reports_of_bad_steps_are_json(tmp_path):
    reporter = Reporter(tmp_path, 10, 0)
    reporter.write(1, "train", {"loss": float("nan"), "gradient_norm": float("inf"), "fine": 1.0})
    reporter.close()

    def refuse(text):
        raise AssertionError(text)

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=refuse)
    assert (found["loss"], found["gradient_norm"], found["fine"]) == (None, None, 1.0)


def test_two_do_not_train_one_run(tmp_path):
    config = options(tmp_path, epochs=1)
    (tmp_path / "train.lock").touch()
    with runs.locked(tmp_path), pytest.raises(ValueError, match="another process trains --run="):
        train_model(LOG, config, MODEL)
    assert not checkpoint.whole_steps(tmp_path)
    train_model(LOG, config, MODEL)


def test_where_nothing_can_be_locked_training_goes_on(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(runs.fcntl, "flock", no_locks)
    with runs.locked(tmp_path):
        pass


def test_steps_to_trace_must_be_there(tmp_path):
    config = options(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"--profile_steps=900:910: the run has .* steps, from 0"):
        train_model(LOG, config, MODEL, watch=WatchConfig(profile_steps="900:910"))


def test_speed_is_reported_and_steps_can_be_traced(tmp_path):
    train_model(LOG, options(tmp_path), MODEL, watch=WatchConfig(profile_steps="3:5"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    speed = [line for line in lines if line["kind"] == "speed"][-1]
    assert speed["events_per_s"] > 0
    assert speed["tokens_per_s"] > 0
    assert 0 < speed["data_fraction"] < 1
    assert 0 < speed["flops_utilisation"] < 1
    assert speed["memory_gb"] > 0.01
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", ["3", "5:3", "a:b", "3:"])
def test_steps_to_trace_must_be_a_range(steps):
    with pytest.raises(ValueError, match=f"--profile_steps={steps} must be a:b"):
        WatchConfig(profile_steps=steps)


def test_what_only_a_number_tells_is_learned(tmp_path):
    """Items are drawn at random, and each event's number says which one comes next."""
    rng = np.random.default_rng(0)
    items = rng.integers(1, 5, (40, 24))
    parts = np.tile(split_by_position(24), 40)
    log = make_log(np.repeat(np.arange(40), 24), items.ravel(), 0 * parts, parts, has_times=False)
    told = (np.roll(items, -1, axis=1).ravel() - 2.5).astype(np.float32)
    model = dataclasses.replace(MODEL, width=16, dropout=0.0, use_pointer=False, use_person=False)
    changes = dict(batch_rows=16, epochs=24, validation_every=24, learning_rate=0.02, patience=0)
    train_model(
        dataclasses.replace(log, numbers={"hint": told}), options(tmp_path, **changes), model
    )
    best = max(line["mrr"] for line in metric_lines(tmp_path) if line["kind"] == "validation")
    # Without the number nobody can know more than that the four items are as likely: the right one
    # is first, second, third or fourth.
    chance = np.mean(1 / np.arange(1, 5))
    assert chance < 0.55
    assert best > 0.9
