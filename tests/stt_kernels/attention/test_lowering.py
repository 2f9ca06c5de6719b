"""The device kernels lower for the devices that are not here: shapes, dtypes and block rules."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from stt_kernels.attention import checks, mosaic_tpu, triton
from tests.stt_kernels.attention import cases
from tests.stt_kernels.attention.cases import Case

TARGETS = {
    "tpu": (mosaic_tpu, AbstractDevice("TPU v5 lite", 1, "tpu"), "tpu_custom_call"),
    "cuda": (triton, AbstractDevice("NVIDIA H100 80GB HBM3", 132, "cuda"), "__gpu$xla.gpu.triton"),
}
GRID = [
    Case(1, tables=()),
    Case(65, packed=True),
    Case(257, packed=True, normalizer="silu", width=32),
    Case(300, tables=("time", "space"), heads=4, width=64),
    Case(16, 65, packed=True),
]


@pytest.mark.parametrize("platform", TARGETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", GRID, ids=range(len(GRID)))
def test_forward_and_backward_lower(platform, dtype, case):
    backend, device, call_name = TARGETS[platform]
    arrays, tables, options, out_gradient = cases.build(case, dtype)

    def step(arrays, tables, out_gradient):
        def attend(arrays, tables):
            call = checks.check_call(*arrays[:2], **tables, **options)
            q, k, *rest = call
            return backend.attend(q, k, arrays[2], *rest)

        out, pull = jax.vjp(attend, arrays, tables)
        return out, pull(out_gradient)

    of_tables = 2 if tables and platform == "cuda" else 0
    text = lower(step, (arrays, tables, out_gradient), platform, device)
    assert text.count(call_name) == 3 + of_tables


def lower(step, inputs, platform, device):
    # jax 0.12 lowers for a GPU only if it is told which.
    mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)
    inputs = jax.tree.map(jnp.asarray, inputs)
    with use_abstract_mesh(mesh), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated")
        return jax.jit(step).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [Case(65, packed=True), Case(16, 300, width=64)], ids=range(2))
def test_a_pointer_lowers_for_a_gpu(dtype, case):
    backend, device, call_name = TARGETS["cuda"]
    (q, k, _), tables, options, _ = cases.build(case, dtype)
    ids, target_ids = (np.zeros(array.shape[:2], np.int32) for array in (k, q))

    def step(arrays, tables, out_gradient):
        def point(arrays, tables):
            q, k, *rest = checks.check_call(*arrays, **tables, **options)
            return backend.pointer_log_mass(q, k, ids, target_ids, *rest)

        out, pull = jax.vjp(point, arrays, tables)
        return out, pull(out_gradient)

    out_gradient = np.ones(q.shape[:2], np.float32)
    text = lower(step, ((q, k), tables, out_gradient), "cuda", device)
    assert text.count(call_name) == 5


@pytest.mark.parametrize(("name", "needs"), [("triton", "a GPU"), ("mosaic_tpu", "a TPU")])
def test_a_backend_says_which_device_it_lacks(name, needs):
    arrays, tables, options, out_gradient = cases.build(Case(8))
    with pytest.raises(NotImplementedError, match=rf"{name}: it needs {needs}; this is cpu"):
        cases.differentiate(arrays, tables, options, out_gradient, name)


@pytest.mark.parametrize("name", ["triton", "mosaic_tpu"])
def test_heads_too_wide_are_refused(monkeypatch, name):
    cases.interpret(monkeypatch, name)
    arrays, tables, options, out_gradient = cases.build(Case(8, tables=(), heads=16, width=256))
    with pytest.raises(NotImplementedError, match=r"width|wide"):
        cases.differentiate(arrays, tables, options, out_gradient, name)
