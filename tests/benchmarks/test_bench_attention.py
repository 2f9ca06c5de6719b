"""The attention benchmark runs, and refuses to time a wrong answer."""

import json

import jax.numpy as jnp
import pytest

from benchmarks import bench_attention


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(bench_attention, "SHAPES", {"sessions": (2, 16, 16, 2, 8)})


def test_quick_measures_every_candidate(tmp_path):
    path = tmp_path / "rows.json"
    options = ["--quick", "--shapes=sessions", f"--output={path}"]
    assert bench_attention.main(options) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    measured = {(row["candidate"], row["mode"]) for row in rows}
    modes = ("forward", "forward+backward")
    assert measured == {(name, mode) for name in bench_attention.CANDIDATES for mode in modes}
    ours = [row for row in rows if row["candidate"] == "ours"]
    assert all(row["backend"] == "xla" and row["floor_one_core_ms"] > 0 for row in ours)


def test_a_wrong_answer_is_not_timed(monkeypatch):
    def wrong(arrays, tables, sides):
        return arrays[2] + jnp.float32(1)

    monkeypatch.setattr(bench_attention, "CANDIDATES", {"naive": wrong})
    with pytest.raises(ValueError, match="naive is wrong"):
        bench_attention.main(["--quick", "--shapes=sessions"])
