import json

import pyarrow.csv

from benchmarks import bench_prepare


def test_synthetic_events_are_the_same_on_every_run(tmp_path):
    for name in ("a.csv", "b.csv"):
        bench_prepare.write_events(tmp_path / name, 5_000)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    table = pyarrow.csv.read_csv(tmp_path / "a.csv")
    assert len(table) == 5_000
    assert len(set(table["user_id"].to_pylist())) > 40


def test_quick_measures_a_row(capsys):
    assert bench_prepare.main(["--quick"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["rows_read"] == 10_000
    assert 0 < row["events"] <= 10_000
    assert row["cpu_seconds"] > 0
    assert 0.1 < row["peak_gb"] < 6


def test_rows_replace_those_of_their_name(tmp_path):
    path = tmp_path / "rows.json"
    bench_prepare.merge_results(path, [{"name": "a", "seconds": 1}, {"name": "b", "seconds": 2}])
    bench_prepare.merge_results(path, [{"name": "c", "seconds": 3}, {"name": "a", "seconds": 4}])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["name"], row["seconds"]) for row in rows] == [("a", 4), ("b", 2), ("c", 3)]
