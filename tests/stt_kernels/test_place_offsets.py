"""Offsets by distance to a catalogue: values and table gradients against NumPy."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stt_kernels import place_offsets, triton_device
from tests.stt_kernels.attention.cases import interpret
from tests.stt_kernels.attention.test_lowering import TARGETS, lower

SHAPES = [(1, 1, 40), (70, 33, 40), (130, 100, 64), (257, 5, 7)]


def make_inputs(num_queries, num_items, num_distances, num_rows=5):
    """Gives (table, rows, places, coords, gradient); some places are unknown."""
    random = np.random.default_rng(num_queries)
    table = random.standard_normal((num_rows, num_distances)).astype(np.float32)
    rows = random.integers(0, num_rows, num_items).astype(np.int32)
    # Whole numbers: the squares are exact, no rounding moves a pair to another bucket.
    places = random.integers(-1000, 1000, (num_queries, 3)).astype(np.float32)
    coords = random.integers(-1000, 1000, (num_items, 3)).astype(np.float32)
    places[random.random(num_queries) < 0.2] = np.nan
    coords[random.random(num_items) < 0.2] = np.nan
    gradient = random.standard_normal((num_queries, num_items)).astype(np.float32)
    return table, rows, places, coords, gradient


@pytest.fixture(params=["xla", "triton"])
def backend(request, monkeypatch):
    if request.param == "triton":
        interpret(monkeypatch, "triton")
    return request.param


def differentiate(table, rows, places, coords, gradient, implementation):
    def offsets(table):
        return place_offsets(table, rows, places, coords, implementation=implementation)

    out, pull = jax.vjp(offsets, jnp.asarray(table))
    return out, pull(jnp.asarray(gradient))[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_table_gradient_are_those_of_the_definition(backend, shape):
    table, rows, places, coords, gradient = make_inputs(*shape)
    out, of_table = jax.jit(differentiate, static_argnums=5)(
        table, rows, places, coords, gradient, backend
    )
    squared = ((places[:, None].astype(np.float64) - coords[None]) ** 2).sum(-1)
    with np.errstate(invalid="ignore"):
        buckets = np.clip(np.floor(np.log2(squared + 1)), 0, shape[2] - 1)
    buckets = np.where(np.isnan(squared), shape[2] - 1, buckets).astype(int)
    entries = np.broadcast_to(rows[None], buckets.shape), buckets
    expected = np.zeros(table.shape)
    np.add.at(expected, entries, gradient.astype(np.float64))
    np.testing.assert_array_equal(out, table[entries])
    np.testing.assert_allclose(of_table, expected, rtol=0, atol=1e-4)


def test_arrays_of_numpy_are_taken(backend):
    inputs = make_inputs(12, 9, 40)[:4]
    expected = place_offsets(*map(jnp.asarray, inputs), implementation=backend)
    np.testing.assert_array_equal(place_offsets(*inputs, implementation=backend), expected)


def test_a_batch_of_calls_equals_the_calls(backend):
    inputs = make_inputs(12, 9, 40)
    table, rows, places, coords, gradient = inputs
    each = [
        differentiate(table, rows, place[None], coords, row[None], backend)[1]
        for place, row in zip(places, gradient, strict=True)
    ]

    def of_query(place, row):
        return differentiate(table, rows, place[None], coords, row[None], backend)[1]

    batch = jax.vmap(of_query)(jnp.asarray(places), jnp.asarray(gradient))
    np.testing.assert_allclose(batch, np.stack(each), rtol=0, atol=1e-5)


def test_it_lowers_for_a_gpu(monkeypatch):
    inputs = make_inputs(2048, 600, 40)
    _, device, call_name = TARGETS["cuda"]
    monkeypatch.setattr(triton_device, "unsupported_device", lambda: None)

    def step(*inputs):
        return differentiate(*inputs, "triton")

    assert lower(step, inputs, "cuda", device).count(call_name) == 1


@pytest.mark.parametrize(("num_items", "by_kernel"), [(64, False), (20_000, True)])
def test_on_a_gpu_few_pairs_are_left_to_xla(monkeypatch, num_items, by_kernel):
    interpret(monkeypatch, "triton")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    inputs = make_inputs(64, num_items, 40)
    program = jax.make_jaxpr(lambda *inputs: differentiate(*inputs, None))(*inputs)
    assert ("pallas_call" in str(program)) == by_kernel


def test_the_compiler_of_triton_is_imported_when_it_is_used():
    # A package of the same files whose __init__ is not run, for that imports attention.
    script = """
import sys, types
import jax.numpy as jnp
package = types.ModuleType("stt_kernels")
package.__path__ = sys.argv[1:]
sys.modules["stt_kernels"] = package
from stt_kernels.place_offsets import place_offsets
zeros = jnp.zeros((1, 3))
place_offsets(jnp.zeros((1, 8)), jnp.zeros(1, jnp.int32), zeros, zeros)
print([name for name in sys.modules if "pallas" in name or name.startswith("stt_kernels.")])
"""
    folder = str(pathlib.Path(triton_device.__file__).parent)
    command = [sys.executable, "-c", script, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "stt_kernels.place_offsets" in done.stdout
    assert "pallas" not in done.stdout


def test_an_implementation_that_cannot_run_here_is_refused():
    with pytest.raises(NotImplementedError, match="triton: it needs a GPU; this is cpu"):
        place_offsets(*make_inputs(4, 4, 40)[:4], implementation="triton")


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("table", np.zeros((5, 257), np.float32), r"table must be float32 \[C, 1..256\]"),
        ("table", np.zeros((5, 40), np.int32), r"table must be float32 \[C, K\]"),
        ("rows", np.zeros(8, np.int32), r"rows must be int32 \[V\] = \[9\]; got int32 \[8\]"),
        ("rows", np.zeros(9, np.int64), r"rows must be int32"),
        ("places", np.zeros((4, 2), np.float32), r"places must be float32 \[N, 3\] = \[4, 3\]"),
        ("coords", np.zeros((9, 3), np.int32), r"coords must be float32 \[V, 3\]"),
    ],
)
def test_what_has_the_wrong_shape_or_type_is_named(name, wrong, message):
    names = ("table", "rows", "places", "coords")
    arguments = dict(zip(names, make_inputs(4, 9, 40), strict=False)) | {name: wrong}
    with pytest.raises(ValueError, match=message):
        place_offsets(*arguments.values())
