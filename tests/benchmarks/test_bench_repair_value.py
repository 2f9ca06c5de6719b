import dataclasses
import json

import numpy as np
import pytest

from benchmarks import bench_repair_value
from benchmarks.bench_repair_value import Damage, damage_events, damages_of
from benchmarks.raw_log import event_rows
from stt_jax.data.schema import TEST, UNKNOWN_E7
from stt_jax.data.store import write_log
from tests.stt_jax.tiny_logs import random_log


@pytest.fixture(scope="module")
def log():
    return random_log(num_users=30)


def test_every_damage_does_what_it_says_and_spares_what_is_asked(log):
    events = event_rows(log)
    test = np.asarray(events["part"]) == TEST
    assert test.any()
    for damage in damages_of(log):
        damaged = damage_events(events, damage, np.random.default_rng(1))
        kind = damage.kind
        if "hidden" in kind:
            name = "category" if kind.startswith("categories") else "latitude"
            hidden = damaged[name].null_count - events[name].null_count
            assert 0 < hidden < 3 * damage.amount * len(events)
            assert damaged["item"] == events["item"]
            if kind.endswith("items"):
                known = np.asarray(damaged[name].is_valid())
                lost = np.asarray(events[name].is_valid()) & ~known
                items = np.asarray(events["item"])
                assert not set(items[known]) & set(items[lost])
        elif kind == "events copied of":
            assert len(damaged) > len(events)
            assert (np.asarray(damaged["part"]) == TEST).sum() == test.sum()
        else:
            north = damaged["latitude"].to_numpy() - events["latitude"].to_numpy()
            moved_km = np.abs(north) * 111.2
            assert np.nanmax(moved_km) > 0.1
            if kind.startswith("events thrown"):
                assert np.nanmax(moved_km[test]) == 0
            else:
                assert np.nanmedian(moved_km) < 1
    with pytest.raises(ValueError, match="is no damage"):
        damage_events(events, Damage("a wish", 0.1, {}), np.random.default_rng(1))


def test_each_repair_is_prepared_and_learned_from_beside_none(tmp_path, monkeypatch, log):
    monkeypatch.setattr(bench_repair_value, "CATEGORIES", ())
    monkeypatch.setattr(bench_repair_value, "PLACES", bench_repair_value.PLACES[2:3])
    data = tmp_path / "log"
    write_log(dataclasses.replace(log, directory=data), "")
    learned = []

    def learn(repair, prepared, run, seed):  # training is tested elsewhere
        learned.append(prepared)
        return {"num_targets": 9, "accuracy@1": 0.1 * seed, "hr@10": 0.5, "mrr": 0.2}

    monkeypatch.setattr(bench_repair_value, "_learn", learn)
    output = tmp_path / "out.json"
    work = tmp_path / "work"
    code = bench_repair_value.main(
        ["", f"--data={data}", "--seeds=2", "--models=false", f"--work={work}",
         f"--output={output}"]
    )  # fmt: skip
    assert code == 0
    found = json.loads(output.read_text())["log"]
    assert found["intact"]["accuracy@1"] == pytest.approx({"mean": 0.05, "sd": 0.1 / 2**0.5})
    of_damage = {}
    for row, prepared in zip(found["rows"], learned[2:], strict=True):
        of_damage.setdefault(row["damage"], {})[row["repair"]] = prepared
    assert set(of_damage) == {damage.name for damage in damages_of(log)}
    copied = of_damage["events copied of 30%"]
    assert copied["none"].num_events > copied["window"].num_events
    hidden = of_damage["places hidden of items 30%"]
    unknown = {name: (one.latitudes_e7 == UNKNOWN_E7).sum() for name, one in hidden.items()}
    assert unknown["none"] > unknown["interpolate"]
