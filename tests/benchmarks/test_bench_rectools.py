import json
import pathlib
import types

import numpy as np
import pytest

from benchmarks import bench_rectools
from stt_jax.data.schema import VALIDATION
from tests.stt_jax.tiny_logs import random_log


@pytest.fixture
def log(monkeypatch):
    log = random_log(num_users=30)
    monkeypatch.setattr(bench_rectools, "open_log", lambda folder: log)
    return log


def flags(tmp_path, *more, suite="ml100k"):
    return ["", f"--suite={suite}", "--data=x", "--rectools=python", f"--work={tmp_path / 'work'}",
            f"--output={tmp_path}", *more]  # fmt: skip


class Peer:
    """Stands in for RecTools: better on validation with the higher rate, worse on test."""

    def __init__(self):
        self.jobs = []

    def __call__(self, command, check):
        _, client, job_path, answer_path = command
        assert client.endswith("rectools_tuned.py")
        assert check
        job = json.loads(pathlib.Path(job_path).read_text())
        arrays = np.load(pathlib.Path(job_path).parent / job["log"])
        self.jobs.append(job)
        high = job["learning_rate"] > 0.001
        rank = 1 + high + job["seed"]
        answer = {
            "finished": True,
            "validation_mrr": 0.2 if high else 0.1,
            "epochs": 10,
            "ranks": {
                name.split("/")[1]: [rank] * len(arrays[name])
                for name in arrays
                if name.startswith("test/") and name.endswith("/events")
            },
            "time": "known" if job["model"] == "hstu" else "unknown",
            "parameters": 5,
            "device": "cpu",
            "versions": {"rectools": "0"},
            "minutes": 1.0,
        }
        pathlib.Path(answer_path).write_text(json.dumps(answer))


@pytest.fixture
def peer(monkeypatch):
    peer = Peer()
    monkeypatch.setattr(bench_rectools, "subprocess", types.SimpleNamespace(run=peer))
    return peer


def peers_of(tmp_path, log, *more, suite="ml100k"):
    path = tmp_path / f"{suite}.json"
    if not path.exists():
        path.write_text(json.dumps({"split_hash": log.meta.split_hash, "rows": []}))
    assert bench_rectools.main(flags(tmp_path, *more, suite=suite)) == 0
    return {row["name"]: row for row in json.loads(path.read_text())["peers"]}


def test_the_try_that_validation_likes_best_is_repeated_and_reported(tmp_path, log, peer):
    more = ["--sizes=64x2x2", "--learning_rates=0.001,0.003", "--seeds=2"]
    rows = peers_of(tmp_path, log, *more)
    row = rows["RecTools SASRec"]
    assert (row["learning_rate"], row["tries"], row["epochs"]) == (0.003, 2, [10, 10])
    # Of the better rate, though the other's test ranks were better.
    assert row["metrics"]["all/unknown"]["mrr"]["values"] == pytest.approx([1 / 2, 1 / 3])
    # Without the request's time it answers the same whether that is known or not.
    assert row["metrics"]["all/known"] == row["metrics"]["all/unknown"]
    assert set(rows["RecTools HSTU"]["metrics"]) == {"all/known"}
    tried = [(job["learning_rate"], job["seed"]) for job in peer.jobs if job["model"] == "hstu"]
    assert tried == [(0.001, 0), (0.003, 0), (0.003, 1)]
    assert {(job["length"], job["leave_out_seen"]) for job in peer.jobs} == {(200, True)}


def test_answers_that_are_there_are_not_worked_out_again(tmp_path, log, peer):
    peers_of(tmp_path, log, "--models=sasrec")
    num_jobs = len(peer.jobs)
    peers_of(tmp_path, log, "--models=sasrec")
    assert len(peer.jobs) == num_jobs
    peers_of(tmp_path, log, "--models=sasrec", "--dropout=0.3")  # other jobs of the same name
    assert len(peer.jobs) == 2 * num_jobs


def test_the_peers_are_asked_for_what_our_rows_are_asked_for(tmp_path, log, peer):
    rows = peers_of(tmp_path, log, "--models=sasrec", suite="nyc")
    assert set(rows["RecTools SASRec"]["metrics"]) == {
        "strict/unknown", "strict/known", "all/unknown", "all/known"
    }  # fmt: skip
    arrays = np.load(tmp_path / "work" / "nyc.npz")
    events = arrays["test/strict/events"]
    # The last of each session, of known people and items; the same whatever the context.
    np.testing.assert_array_equal(events, arrays["test/all/events"])
    assert (log.items[events] > 0).all()
    users = np.repeat(np.arange(log.num_users), np.diff(log.user_offsets))
    assert (users[events] < log.num_train_users).all()
    ends = arrays["test/strict/history_ends"], arrays["test/strict/session_starts"]
    assert (ends[0] <= ends[1]).all()
    assert (ends[1] <= events).all()
    assert (log.parts[arrays["validation/events"]] == VALIDATION).all()
    (length,) = {job["length"] for job in peer.jobs}
    assert length == 256  # --asked_window of configs/nyc.flags


def test_a_table_of_another_split_is_refused(tmp_path, log, capsys):
    (tmp_path / "ml100k.json").write_text(json.dumps({"split_hash": "another", "rows": []}))
    assert bench_rectools.main(flags(tmp_path)) == 2
    assert "another split" in capsys.readouterr().err
