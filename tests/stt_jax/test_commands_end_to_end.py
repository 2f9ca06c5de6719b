"""The five commands, one after the other, as a user runs them, and the same as a library."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from stt_jax import evaluate, recommend, train
from stt_jax.config import EvaluationConfig, RequestConfig
from stt_jax.config.flagfile import from_flagfile
from stt_jax.data.store import TEST, open_log
from stt_jax.evaluation import evaluate_model
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.recommender import recommend_items
from stt_jax.training.run import load_run

SMALL = [
    "--width=16", "--num_layers=1", "--num_heads=2", "--window=64", "--requests=64",
    "--batch_rows=8", "--epochs=1", "--learning_rate=0.01", "--validation_targets=100",
]  # fmt: skip


def run(module, *arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-m", f"stt_jax.{module}", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a city, its prepared log and a trained run."""
    folder = tmp_path_factory.mktemp("place")
    run("generate", "--num_users=30", "--num_places=40", "--num_days=21", cwd=folder)
    run(
        "prepare", "--input=city/log.csv.gz", "--output=prepared", "--user=user_id",
        "--item=place_id", "--time=time", "--utc_offset_column=utc_offset_min",
        "--latitude=latitude", "--longitude=longitude", "--category=category", "--name=name",
        cwd=folder,
    )  # fmt: skip
    devices = ("--cpu_devices=2", "--mesh_data=2")
    out = run("train", "--data=prepared", "--run=runs/x", *SMALL, *devices, cwd=folder)
    assert "2 x 1 of 2 cpu devices" in out
    assert "python -m stt_jax.evaluate --run=runs/x" in out
    return folder


@pytest.fixture
def inside(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def call(module, capsys, *arguments):
    code = module.main([module.__name__, *arguments])
    return code, capsys.readouterr()


def test_a_run_leaves_what_the_readme_says(place):
    directory = place / "runs" / "x"
    assert {path.name for path in directory.iterdir()} >= {
        "run.flags", "run.json", "checkpoints", "metrics.jsonl", "tensorboard"
    }  # fmt: skip
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"train", "validation", "speed"}
    assert list((directory / "tensorboard").iterdir())


def test_the_written_flags_run_again(inside, capsys):
    code, output = call(train, capsys, "--flagfile=runs/x/run.flags")
    assert code == 0, output.err


def test_evaluate_prints_model_baselines_and_optimum_in_both_modes(inside, capsys):
    code, output = call(evaluate, capsys, "--run=runs/x", "--optimum=city/optimum.arrow")
    assert code == 0, output.err
    for mode in ("unknown", "known"):
        assert f"request time {mode}" in output.out
    for row in ("popularity", "own_hour", "mix", "model", "best possible"):
        assert output.out.count(row) >= 2
    report = json.loads((inside / "runs/x/evaluation-test.json").read_text())
    log = open_log("prepared")
    assert report["split_hash"] == log.meta.split_hash
    assert report["num_targets"]["in_part"] == int(np.sum(log.parts == TEST))
    for results in report["modes"].values():
        best = results["best_possible"]
        assert results["model"]["accuracy@1"] < best["accuracy@1"] + 0.1
        groups = results["groups"]["item"]
        total = sum(group["num_targets"] for group in groups.values())
        assert total == report["num_targets"]["known"]


def test_evaluation_is_the_same_to_the_last_digit(inside):
    log = open_log("prepared")
    config = EvaluationConfig(run="runs/x", baselines=False, max_targets=50)
    reports = [evaluate_model(load_run("runs/x", log), log, config) for _ in range(2)]
    assert reports[0] == reports[1]
    same = evaluate_model(
        load_run("runs/x", log), log, dataclasses.replace(config, known_in="prepared")
    )
    assert same == reports[0] | {"known_in": "prepared"}


def test_how_a_run_is_asked_can_be_tried_before_it_is_trained_so(inside, capsys):
    """Other habits and a longer history than the run's own, as if it had been trained with them."""
    log = open_log("prepared")
    config = EvaluationConfig(baselines=False, max_targets=50)
    run = load_run("runs/x", log)
    model_config = dataclasses.replace(run.model_config, habit_share=0.3)
    so = dataclasses.replace(
        run,
        training=dataclasses.replace(run.training, asked_window=16),
        model_config=model_config,
        model=SpatiotemporalTransformer(model_config, run.model.sizes),
    )
    tried = dataclasses.replace(config, habit_share=0.3, asked_window=16)
    reports = [
        evaluate_model(one, log, c) for one, c in ((run, config), (run, tried), (so, config))
    ]
    assert reports[0]["modes"] != reports[1]["modes"] == reports[2]["modes"]
    asked = [(report["asked_window"], report["habit_share"]) for report in reports]
    assert asked == [(64, 0.0), (16, 0.3), (16, 0.3)]
    for one in ("--habit_share=0.3", "--asked_window=16", "--likely_times=4"):
        flags = ("--run=runs/x", "--baselines=false", "--max_targets=50", "--output=tried.json")
        code, output = call(evaluate, capsys, *flags, one)
        assert code == 0, output.err
        assert json.loads((inside / "tried.json").read_text())["modes"] != reports[0]["modes"]
    code, output = call(evaluate, capsys, "--run=runs/x", "--habit_share=1")
    assert code == 2
    assert "--habit_share=1.0 must be in [0, 1), or -1 for that of the run" in output.err


def test_runs_that_are_alike_are_evaluated_together(inside):
    log = open_log("prepared")
    config = EvaluationConfig(baselines=False, max_targets=50)
    run = load_run("runs/x", log)
    halves = jax.tree.map(lambda leaf: leaf / 2, run.params)
    other = dataclasses.replace(run, directory=pathlib.Path("runs/y"), params=halves)
    alone, both = (evaluate_model(run, log, config, None, o) for o in ((), (other,)))
    assert both["together_with"] == ["runs/y"]
    assert both["modes"] != alone["modes"]
    wider = dataclasses.replace(run.training, window=65)
    deeper = dataclasses.replace(run.model_config, num_layers=2)
    with pytest.raises(ValueError, match="runs/y has --window=65, runs/x --window=64"):
        evaluate_model(run, log, config, None, [dataclasses.replace(other, training=wider)])
    with pytest.raises(ValueError, match="runs/y has --num_layers=2, runs/x --num_layers=1"):
        evaluate_model(run, log, config, None, [dataclasses.replace(other, model_config=deeper)])


def test_recommend_prints_a_list(inside, capsys):
    log = open_log("prepared")
    user = log.user_ids[3]
    code, output = call(
        recommend, capsys, "--run=runs/x", f"--user={user}", "--time=2024-01-20T08:30",
        "--latitude=40.75", "--longitude=-73.99", "--k=5",
    )  # fmt: skip
    assert code == 0, output.err
    assert len(re.findall(r"^\s+[1-5]\s+p\d+", output.out, flags=re.MULTILINE)) == 5


def ask(**options):
    log = open_log("prepared")
    request = RequestConfig(run="runs/x", **({"user": log.user_ids[3]} | options))
    return recommend_items(load_run("runs/x", log), log, request), log


def test_the_list_obeys_its_rules(inside):
    whole, log = ask(k=40)
    probabilities = [item.probability for item in whole]
    assert probabilities == sorted(probabilities, reverse=True)
    assert len({item.item_id for item in whole}) == len(whole) == log.num_items

    row = log.user_row(log.user_ids[3])
    seen = {
        log.item_ids[item] for item in log.items[log.user_offsets[row] : log.user_offsets[row + 1]]
    }
    fresh, _ = ask(k=40, exclude_seen="true")
    assert {item.item_id for item in fresh} == {item.item_id for item in whole} - seen

    near, _ = ask(k=40, radius_km=2.0, latitude="40.73", longitude="-73.98")
    assert near
    assert all(item.distance_km <= 2.0 for item in near)

    varied, _ = ask(k=40, max_per_category=2)
    counts = {}
    for item in varied:
        counts[item.category] = counts.get(item.category, 0) + 1
    assert max(counts.values()) == 2
    assert [i.item_id for i in varied] == [
        i.item_id for i in whole if i.item_id in {v.item_id for v in varied}
    ]


def test_time_and_place_change_the_answer_and_a_zone_is_understood(inside):
    """City time is five hours behind UTC."""
    morning, _ = ask(time="2024-01-20T08:30")
    evening, _ = ask(time="2024-01-20T20:30")
    same, _ = ask(time="2024-01-20T13:30+00:00")
    zulu, _ = ask(time="2024-01-20T13:30Z")
    assert morning == same == zulu
    assert morning != evening
    far, _ = ask(time="2024-01-20T08:30", latitude="40.60", longitude="-74.10")
    assert [i.probability for i in far] != [i.probability for i in morning]


def test_events_after_the_request_are_not_used(inside):
    early, log = ask(time="2024-01-03T08:30")
    row = log.user_row(log.user_ids[3])
    first, end = log.user_offsets[row], log.user_offsets[row + 1]
    assert log.times[first] < 1_704_288_600 < log.times[end - 1]
    late, _ = ask(time="2024-01-24T08:30")
    assert [i.item_id for i in early] != [i.item_id for i in late]


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (train, ["--run=runs/y"], "--data is missing"),
        (train, ["--data=prepared"], "--run is missing"),
        (train, ["--data=nowhere", "--run=runs/y"], "nowhere is not a directory"),
        (train, ["--data=prepared", "--run=city/log.csv.gz"], "city/log.csv.gz"),
        (train, ["--data=prepared", "--run=runs/x"], "holds a run with other options"),
        (train, ["--data=prepared", "--run=runs/y", "--requests=999"], "--requests"),
        (evaluate, [], "--run is missing"),
        (evaluate, ["--run=runs/none"], "holds no run"),
        (evaluate, ["--run=runs/x", "--context=strict"], "needs sessions"),
        (evaluate, ["--run=runs/x", "--together_with=runs/x"], "one is named twice"),
        (evaluate, ["--run=runs/x", "--together_with=runs/none"], "holds no run"),
        (evaluate, ["--run=runs/x", "--nobaselines", "--optimum=prepared/meta.json"], "--optimum"),
        (recommend, ["--user=u000003"], "--run is missing"),
        (recommend, ["--run=runs/x", "--traits=job"], "--traits=job: write NAME=VALUE"),
        (recommend, ["--run=runs/x", "--user=nobody"], "'nobody' is not in prepared"),
        (recommend, ["--run=runs/x", "--user=u000003", "--time=noon"], "no ISO 8601 time"),
        (recommend, ["--run=runs/x", "--user=u000003", "--latitude=91", "--longitude=0"], "91"),
        (recommend, ["--run=runs/x", "--user=u000003", "--latitude=40"], "go together"),
        (recommend, ["--run=runs/x", "--user=u000003", "--k=0"], "--k=0"),
    ],
)
def test_wrong_use_gets_one_line_and_a_code(inside, capsys, module, arguments, message):
    code, output = call(module, capsys, *arguments)
    assert code == 2
    error = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert message in error[0]
    assert "Traceback" not in output.err


def test_every_training_flagfile_parses_and_says_what_it_is_for():
    paths = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.flags"))
    assert paths
    for path in paths:
        from_flagfile(path, train.FLAG_GROUPS)
        assert path.read_text().startswith("# ")
