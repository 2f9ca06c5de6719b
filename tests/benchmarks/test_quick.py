"""Every benchmark runs in its small form, and says what it is made to say."""

import json

import pytest

from benchmarks import bench_input, bench_scaling, bench_training


def _rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_counts_the_events_of_full_rows(tmp_path):
    output = tmp_path / "rows.json"
    output.write_text('{"suite": "movielens"}\n')
    assert bench_training.main(["--quick", "--rounds=2", "--steps=1", f"--output={output}"]) == 0
    kept, row = _rows(output)
    assert kept == {"suite": "movielens"}  # another suite's rows stay
    assert row["suite"] == "seed"
    assert row["candidate"] == "ours"
    assert row["ours_times_as_fast"] == 1.0
    assert len(row["rounds_events_per_s"]) == 2
    assert row["events_per_s"] > 0
    assert row["fill"] == pytest.approx(
        31 / 32, abs=1e-4
    )  # all but the last event of 32 are tokens
    assert row["time"]
    assert row["place"]


def test_input_reads_every_row_that_it_reports(tmp_path):
    output = tmp_path / "rows.json"
    assert bench_input.main(["--quick", f"--output={output}"]) == 0
    (row,) = _rows(output)
    assert row["batches"] == bench_input.QUICK_BATCHES
    assert 0.9 * bench_input.QUICK_EVENTS < row["events"] < 1.1 * bench_input.QUICK_EVENTS
    assert row["tokens_per_s"] > row["events_per_s"] / 2 > 0
    assert row["start_mb"] <= row["packed_mb"] <= row["most_mb"]


def test_scaling_fits_the_exponents_of_its_points(tmp_path):
    output = tmp_path / "rows.json"
    assert bench_scaling.main(["--quick", f"--output={output}"]) == 0
    rows = _rows(output)
    assert [row["window"] for row in rows] == [8, 16]
    assert all(row["step_ms"] > 0 < row["floor_ms"] for row in rows)
    assert bench_scaling.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
