import json
from typing import ClassVar

import numpy as np
import pytest

from benchmarks import bench_rectools
from stt_jax.data.schema import TEST, VALIDATION
from tests.stt_jax.tiny_logs import random_log


@pytest.fixture
def log():
    return random_log(num_users=30)


class Peer:
    """Better on validation with the higher rate, and best after ten epochs."""

    asked: ClassVar[list] = []

    def __init__(self, python, server, options, environment):
        self._rate, self._epochs = options["learning_rate"], 1
        self._log = random_log(num_users=30)
        self.ready = {"parameters": 5, "versions": {"rectools": "0"}}
        assert options["length"] == 200  # of configs/ml100k.flags

    def __call__(self, **request):
        if "epochs" in request:
            self._epochs += request["epochs"]
            return {"seconds": 1.0, "events": 1}
        assert request["leave_out_seen"]  # as of the flagfile
        Peer.asked.append((self._rate, self._epochs, request["part"]))
        known = self._log.items[self._log.parts == request["part"]] > 0
        rank = abs(self._epochs - 10) + (1 if self._rate > 0.001 else 2)
        return {"ranks": np.where(known, rank, 0).tolist(), "time": "unknown"}

    def stop(self):
        pass


def test_the_state_that_validation_likes_best_is_asked_for_the_test_part(
    tmp_path, monkeypatch, log
):
    monkeypatch.setattr(bench_rectools, "Client", Peer)
    monkeypatch.setattr(bench_rectools, "open_log", lambda folder: log)
    path = tmp_path / "ml100k.json"
    path.write_text(json.dumps({"split_hash": log.meta.split_hash, "rows": []}))
    flags = ["", "--data=x", "--rectools=y", "--models=sasrec", f"--output={tmp_path}"]
    assert bench_rectools.main(flags) == 0
    (row,) = json.loads(path.read_text())["peers"]
    assert row["name"] == "RecTools SASRec"
    assert row["learning_rate"] == 0.003
    assert row["epochs"] == [10]
    # Rank 1 for every known item: unknown ones are left out, as from our own rows.
    assert row["metrics"]["mrr"]["mean"] == 1.0
    assert (log.items[log.parts == TEST] == 0).any()
    # Five and ten epochs were better than before, fifteen and twenty were not.
    of_rate = [asked[1:] for asked in Peer.asked if asked[0] == 0.003]
    assert of_rate == [
        (5, VALIDATION), (5, TEST), (10, VALIDATION), (10, TEST), (15, VALIDATION), (20, VALIDATION)
    ]  # fmt: skip


def test_a_table_of_another_split_is_refused(tmp_path, monkeypatch, log, capsys):
    monkeypatch.setattr(bench_rectools, "open_log", lambda folder: log)
    (tmp_path / "ml100k.json").write_text(json.dumps({"split_hash": "another", "rows": []}))
    flags = ["", "--data=x", "--rectools=y", f"--output={tmp_path}"]
    assert bench_rectools.main(flags) == 2
    assert "another split" in capsys.readouterr().err
