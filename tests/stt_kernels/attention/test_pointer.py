"""The mass on the keys with the target's id: every backend against the float64 reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stt_kernels
from stt_kernels.attention import xla
from tests.stt_kernels.attention import cases
from tests.stt_kernels.attention.cases import Case

FLOOR = -1e9


@pytest.fixture(params=["xla", "xla blocked", "triton"])
def backend(request, monkeypatch):
    quick = not cases.is_native(request.param)
    jax.config.update("jax_disable_most_optimizations", quick)
    if request.param == "triton":
        return cases.interpret(monkeypatch, "triton")
    if request.param == "xla blocked":
        sizes = xla.TileSizes(num_rows=1, block_queries=32, block_keys=48)
        monkeypatch.setattr(xla, "choose_tile_sizes", lambda *shape: sizes)
    return request.param


def build(case, num_ids=12):
    (q, k, _), tables, options, out_gradient = cases.build(case)
    for name in ("normalizer", "silu_denominator"):
        del options[name]
    random = np.random.default_rng(7)
    options["ids"] = random.integers(0, num_ids, k.shape[:2]).astype(np.int32)
    options["target_ids"] = random.integers(0, num_ids, q.shape[:2]).astype(np.int32)
    return (q, k), tables, options, out_gradient[:, :, 0, 0]


def differentiate(arrays, tables, options, out_gradient, backend):
    sides, static = cases.split_options(options)
    return _differentiate(arrays, tables, sides, static, out_gradient, backend)


@functools.partial(jax.jit, static_argnums=(3, 5))
def _differentiate(arrays, tables, sides, static, out_gradient, backend):
    def point(arrays, tables):
        implementation = backend.split()[0]
        return stt_kernels.pointer_log_mass(
            *arrays, **tables, **sides, **dict(static), implementation=implementation
        )

    out, pull = jax.vjp(point, arrays, tables)
    (q, k), table_gradients = pull(out_gradient)
    return {"out": out, "q": q, "k": k, **table_gradients}


@functools.cache
def answer(case):
    with jax.enable_x64(True):
        arrays, tables, options, out_gradient = build(case)
        arrays, tables, out_gradient = jax.tree.map(
            lambda a: jnp.asarray(a.astype(np.float64)), (arrays, tables, out_gradient)
        )
        found = differentiate(arrays, tables, options, out_gradient, "reference")
        return {name: np.asarray(value) for name, value in found.items()}


def check(found, expected):
    missing = expected["out"] == FLOOR
    np.testing.assert_array_equal(np.asarray(found["out"]) == FLOOR, missing)
    found, expected = dict(found), dict(expected)
    found["out"] = np.where(missing, 0.0, found["out"])
    expected["out"] = np.where(missing, 0.0, expected["out"])
    cases.check(found, expected)


@pytest.mark.parametrize(
    "case",
    [
        Case(1),
        Case(31, packed=True),
        Case(65, packed=True),
        Case(257, tables=("time", "space"), batch=1),
        Case(16, 65, packed=True),
        Case(130, 70),
        Case(33, tables=(), causal=False),
    ],
    ids=str,
)
def test_values_and_gradients_match_the_reference(backend, case):
    check(differentiate(*build(case), backend), answer(case))


def test_it_is_the_mean_over_heads_of_the_weights_on_the_target(backend):
    arrays, tables, options, out_gradient = build(Case(31, packed=True))
    (q, k) = arrays
    found = differentiate(arrays, tables, options, out_gradient, backend)["out"]
    ids, target_ids = options.pop("ids"), options.pop("target_ids")
    weights = stt_kernels.attention_weights(q, k, **tables, **options)
    hits = target_ids[:, :, None] == ids[:, None]
    mass = np.asarray(weights).mean(1)
    mass = np.where(hits, mass, 0.0).sum(-1)
    has_mass = np.asarray(found) > FLOOR
    np.testing.assert_allclose(np.exp(found)[has_mass], mass[has_mass], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(mass[~has_mass], 0.0)


def test_no_mass_is_the_floor_with_no_gradient(backend):
    arrays, tables, options, out_gradient = build(Case(65, packed=True))
    options["target_ids"] = np.full_like(options["target_ids"], 99)
    found = differentiate(arrays, tables, options, out_gradient, backend)
    np.testing.assert_array_equal(np.asarray(found.pop("out")), FLOOR)
    for name, value in found.items():
        np.testing.assert_array_equal(np.asarray(value), 0.0, err_msg=name)


def test_a_mass_too_small_for_float32_keeps_its_log_and_its_gradient(backend):
    q = np.full((1, 1, 1, 1), 10.0, np.float32)
    k = np.array([0.0, 20.0], np.float32).reshape(1, 2, 1, 1)
    options = {
        "ids": np.array([[1, 2]], np.int32),
        "target_ids": np.array([[1]], np.int32),
        "causal": False,
        "scale": 1.0,
    }
    found = differentiate((q, k), {}, options, np.ones((1, 1), np.float32), backend)
    np.testing.assert_allclose(found["out"], [[-200.0]], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(found["k"]).ravel(), [10.0, -10.0], rtol=1e-6)


def test_padding_never_reaches_a_valid_row(backend):
    arrays, tables, options, out_gradient = build(Case(65, packed=True))
    clean = differentiate(arrays, tables, options, out_gradient, backend)
    padding = options["segment_ids"] == 0
    for array in arrays:
        array[padding] = np.nan
    options["ids"][padding] = 3
    options["coords"][padding] = np.inf
    dirty = differentiate(arrays, tables, options, out_gradient, backend)
    cases.check_same(dirty, clean, backend)


@pytest.mark.parametrize("name", ["ids", "target_ids"])
def test_ids_of_the_wrong_shape_are_refused(name):
    (q, k), tables, options, _ = build(Case(31))
    options[name] = options[name][:, :5]
    with pytest.raises(ValueError, match=rf"^{name} must be int32"):
        stt_kernels.pointer_log_mass(q, k, **tables, **options)


def test_a_backend_without_pointer_says_so(monkeypatch):
    name = cases.interpret(monkeypatch, "mosaic_tpu")  # it could run here if it had one
    (q, k, _), _, _, _ = cases.build(Case(8, tables=()))
    ids = np.zeros(q.shape[:2], np.int32)
    with pytest.raises(NotImplementedError, match=f"{name}: it has no pointer_log_mass"):
        stt_kernels.pointer_log_mass(q, k, ids=ids, target_ids=ids, implementation=name)
    either = (name, "xla")
    found = stt_kernels.pointer_log_mass(q, k, ids=ids, target_ids=ids, implementation=either)
    np.testing.assert_allclose(found, 0.0, atol=1e-6)
