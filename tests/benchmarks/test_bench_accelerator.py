"""What is measured on a GPU runs here too, tiny, the kernels in Pallas's interpreter."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import bench_accelerator, tune_triton
from stt_kernels import triton_device
from stt_kernels.attention.triton_plan import TileSizes

SHAPE = (2, 32, 32, 2, 16)


@pytest.fixture(autouse=True)
def promotion():
    """Flax's norms mix types; set for every thread, because steps are compiled in several."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_attention_and_training_are_compared_with_the_dense_bias(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_accelerator, "SHAPES", {"tiny": SHAPE})
    for name, value in {
        "WINDOWS": (16,),
        "TOKENS": 32,
        "LAYERS": 1,
        "WIDTH": 16,
        "HEADS": 1,
    }.items():
        monkeypatch.setattr(bench_accelerator, name, value)
    monkeypatch.setattr(bench_accelerator, "NUM_ITEMS", 50)
    monkeypatch.setattr(bench_accelerator, "DTYPES", {"bfloat16": jnp.bfloat16})
    path = tmp_path / "rows.json"
    assert bench_accelerator.main(["--rounds=2", f"--output={path}"]) == 0
    training = [row for row in rows_of(path) if row["part"] == "training"]
    assert [row["attention"] for row in training] == ["auto", "reference"]
    assert all(row["flops_utilisation"] > 0 < row["events_per_s"] for row in training)
    attention = [row for row in rows_of(path) if row["part"] == "attention"]
    measured = {(row["candidate"], row["mode"]) for row in attention}
    assert len(measured) == len(attention) == 2 * len(bench_accelerator.CANDIDATES)


def test_a_wrong_answer_is_not_timed(monkeypatch):
    def wrong(arrays, tables, sides):
        return arrays[2]

    monkeypatch.setattr(bench_accelerator, "SHAPES", {"tiny": SHAPE})
    monkeypatch.setattr(bench_accelerator, "CANDIDATES", {"ours": wrong})
    with pytest.raises(ValueError, match="ours is wrong"):
        bench_accelerator.main(["--rounds=2", "--parts=attention"])


def test_every_kernel_is_timed_with_every_tile(monkeypatch, tmp_path):
    monkeypatch.setattr(triton_device, "INTERPRET", True)
    monkeypatch.setattr(tune_triton, "SHAPES", (SHAPE,))
    tiles = (TileSizes(16, 16, 1), TileSizes(32, 16, 1))
    monkeypatch.setattr(tune_triton, "TILES", tiles)
    monkeypatch.setattr(tune_triton, "KEY_LAUNCHES", [(2, 1)])
    monkeypatch.setattr(tune_triton, "TABLE_SIZES", [(8, 2, 1)])
    monkeypatch.setattr(tune_triton, "SCRATCHES", (1, 2**20))
    path = tmp_path / "rows.json"
    assert tune_triton.main([f"--output={path}"]) == 0
    rows = rows_of(path)
    assert all(row["ms"] > 0 for row in rows)
    # Two types: two kernels with each tile, the others with what is tried of them, two scratches.
    assert len(rows) == 2 * (2 * len(tiles) + 1 + 1 + 2)
