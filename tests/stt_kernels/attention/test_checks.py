"""What the public functions refuse, and how they say it."""

import importlib.metadata
import inspect
import pathlib
import runpy

import jax
import numpy as np
import pytest

import stt_kernels
from stt_kernels.attention import checks
from tests.stt_kernels.attention import cases
from tests.stt_kernels.attention.cases import Case


def attend(**changes):
    (q, k, v), tables, options, _ = cases.build(Case(8, packed=True))
    arguments = {"q": q, "k": k, "v": v, **tables, **options, **changes}
    return stt_kernels.spatiotemporal_attention(**arguments)


def attend_others(**changes):
    (q, k, v), tables, options, _ = cases.build(Case(4, 8, packed=True))
    arguments = {"q": q, "k": k, "v": v, **tables, **options, **changes}
    return stt_kernels.spatiotemporal_attention(**arguments)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": zeros(2, 8, 16)}, r"q must be \[B, length, H, D\]; got shape \[2, 8, 16\]"),
        ({"q": zeros(2, 8, 2, 8, dtype=np.float16)}, "q must be float32 or bfloat16; got float16"),
        ({"k": zeros(2, 8, 2, 4)}, r"k must be float32 as q but for S = \[2, 8, 2, 8\]"),
        (
            {"v": zeros(2, 9, 2, 8)},
            r"v must be float32 as k = \[2, 8, 2, 8\]; got .*\[2, 9, 2, 8\]",
        ),
        ({"times": zeros(2, 8)}, r"times must be int32 \[B, S\] = \[2, 8\]; got float32 \[2, 8\]"),
        ({"times": zeros(2, 8, dtype=np.int64)}, "Subtract the row's first timestamp in int64"),
        ({"times": None}, r"time_table needs times \[B, S\]; got None"),
        ({"coords": None}, r"space_table needs coords \[B, S, 3\]; got None"),
        ({"coords": zeros(2, 8, 2)}, r"coords must be float32 \[B, S, 3\] = \[2, 8, 3\]"),
        ({"phases": None}, "cycle_table needs phases"),
        ({"positions": zeros(2, 8)}, "positions must be int32"),
        ({"segment_ids": zeros(8, dtype=np.int32)}, r"segment_ids must be int32 \[B, S\]"),
        (
            {"segment_ids": None, "query_segment_ids": zeros(2, 8, dtype=np.int32)},
            "query_segment_ids needs segment_ids",
        ),
        (
            {"time_table": zeros(3, 64)},
            r"time_table must be float32 \[H, entries\] = \[2, 1\.\.256\]",
        ),
        ({"space_table": zeros(2, 257)}, r"space_table must be .* got float32 \[2, 257\]"),
        ({"cycle_table": zeros(2, 256)}, r"cycle_table must be .* = \[2, 1\.\.255\]"),
        ({"order_table": zeros(2, 20, dtype=np.int32)}, "order_table must be float32"),
        ({"normalizer": "sparsemax"}, "normalizer must be 'softmax' or 'silu'; got 'sparsemax'"),
        ({"silu_denominator": 4.0}, "silu_denominator must be > 0 and goes with normalizer='silu'"),
        ({"normalizer": "silu", "silu_denominator": 0.0}, "silu_denominator must be > 0"),
        ({"scale": float("nan")}, "scale must be a finite number"),
        ({"implementation": "cudnn"}, "implementation must be None, one of mosaic_tpu, reference"),
    ],
)
def test_wrong_input_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        attend(**changes)


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("query_times", "time_table"),
        ("query_coords", "space_table"),
        ("query_phases", "cycle_table"),
        ("query_positions", "causal"),
        ("query_segment_ids", "segment_ids"),
    ],
)
def test_queries_of_their_own_need_encodings_of_their_own(name, user):
    with pytest.raises(ValueError, match=rf"{name} .* must be given where L != S and {user} is"):
        attend_others(**{name: None})


@pytest.mark.parametrize(
    "function",
    [
        stt_kernels.spatiotemporal_attention,
        stt_kernels.pointer_log_mass,
        stt_kernels.attention_weights,
    ],
    ids=lambda function: function.__name__,
)
def test_every_argument_that_is_checked_reaches_the_check(monkeypatch, function):
    class Seen(Exception):
        pass

    def see(*arrays, **options):
        raise Seen(dict(zip("qk", arrays, strict=True)) | options)

    given = {name: f"the {name}" for name in inspect.signature(function).parameters}
    taken = inspect.signature(checks.check_call).parameters
    monkeypatch.setattr(checks, "check_call", see)
    with pytest.raises(Seen) as seen:
        function(**given)
    assert seen.value.args[0] == {name: given[name] for name in taken if name in given}


def test_what_no_table_uses_may_be_given():
    without = attend(time_table=None, times=None)
    np.testing.assert_array_equal(attend(time_table=None), without)


def test_a_caller_can_ask_which_implementation_would_run():
    (q, k, _), tables, options, _ = cases.build(Case(8))
    reasons = stt_kernels.available_implementations(q, k, platform="cpu", **tables, **options)
    assert next(iter(reasons)) == "xla"
    assert reasons["xla"] is None
    assert reasons["reference"] is None
    with pytest.raises(ValueError, match="time_table needs times"):
        stt_kernels.available_implementations(q, k, **tables)
    with pytest.raises(ValueError, match="platform must be one of cpu, gpu, tpu; got 'cuda'"):
        stt_kernels.available_implementations(q, k, platform="cuda", **tables, **options)


def test_a_caller_can_ask_about_the_pointer(monkeypatch):
    cases.interpret(monkeypatch, "mosaic_tpu")  # it could run here if it had a pointer
    (q, k, _), _, _, _ = cases.build(Case(8, tables=()))

    def reasons(**options):
        return stt_kernels.available_implementations(q, k, platform="tpu", **options)

    assert list(reasons()) == list(reasons(function="pointer_log_mass"))
    assert reasons()["mosaic_tpu"] is None
    of_pointer = reasons(function="pointer_log_mass")
    assert of_pointer["mosaic_tpu"] == "it has no pointer_log_mass."
    assert of_pointer["xla"] is None
    expected = "function must be one of spatiotemporal_attention, pointer_log_mass; got 'attend'"
    with pytest.raises(ValueError, match=expected):
        reasons(function="attend")
    assert reasons(normalizer="silu")["xla"] is None
    with pytest.raises(ValueError, match="pointer_log_mass takes no normalizer; leave it out"):
        reasons(function="pointer_log_mass", normalizer="silu")


def test_a_platform_that_has_no_kernels_of_its_own_runs_xla(monkeypatch):
    (q, k, v), _, _, _ = cases.build(Case(8, tables=()))
    ids = np.zeros(q.shape[:2], np.int32)
    expected = attention_and_pointer(q, k, v, ids)
    monkeypatch.setattr(jax, "default_backend", lambda: "toaster")
    assert next(iter(stt_kernels.available_implementations(q, k))) == "xla"
    for found, value in zip(attention_and_pointer(q, k, v, ids), expected, strict=True):
        np.testing.assert_array_equal(found, value)
    with pytest.raises(ValueError, match="platform must be one of cpu, gpu, tpu; got 'toaster'"):
        stt_kernels.available_implementations(q, k, platform="toaster")


def attention_and_pointer(q, k, v, ids):
    out = stt_kernels.spatiotemporal_attention(q, k, v)
    return out, stt_kernels.pointer_log_mass(q, k, ids=ids, target_ids=ids)


def test_public_names_are_listed():
    assert set(stt_kernels.__all__) <= set(dir(stt_kernels))


def test_the_version_is_that_of_the_distribution_where_it_is_installed(monkeypatch):
    def imported_anew(version):
        monkeypatch.setattr(importlib.metadata, "version", version)
        return runpy.run_path(stt_kernels.__file__)["__version__"]

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    assert imported_anew({"stt_jax": "1.2.3"}.__getitem__) == "1.2.3"
    assert imported_anew(missing) == "0+unknown"


def test_the_types_are_marked_as_such():
    assert (pathlib.Path(stt_kernels.__file__).parent / "py.typed").exists()
