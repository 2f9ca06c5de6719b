"""Inputs for the behaviour suite, and the float64 answers to them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import stt_kernels
from stt_kernels import triton_device
from stt_kernels.attention import mosaic_tpu

TABLE_SIZES = {"time": 64, "space": 48, "order": 20, "cycle": 168}


@dataclasses.dataclass(frozen=True)
class Case:
    """One shape and what is switched on."""

    num_queries: int
    num_keys: int | None = None  # None = self-attention
    batch: int = 2
    heads: int = 2
    width: int = 8
    tables: tuple[str, ...] = ("time", "space", "order", "cycle")
    packed: bool = False  # segments and padding
    causal: bool = True
    normalizer: str = "softmax"
    silu_denominator: float | None = None
    seed: int = 0

    @property
    def keys(self) -> int:
        return self.num_queries if self.num_keys is None else self.num_keys


def build(case: Case, dtype="float32"):
    """Gives ((q, k, v), tables, options, out_gradient) as numpy arrays, for any precision."""
    random = np.random.default_rng(case.seed)
    batch, heads, num_queries, num_keys = case.batch, case.heads, case.num_queries, case.keys

    def normal(*shape):
        # Rounded to bfloat16, which float32 and float64 hold exactly.
        values = random.standard_normal(shape).astype(jnp.bfloat16)
        return np.asarray(values.astype(dtype))

    def side(length):
        # Whole metres within 1,000: the squared distances are exact in float32, so that no
        # rounding can move a pair to another bucket. Some rows are far apart by a power of two.
        coords = random.integers(-1000, 1000, (batch, length, 3)).astype(np.float32)
        coords *= 2.0 ** random.integers(0, 8, (batch, 1, 1)).astype(np.float32)
        coords[random.random((batch, length)) < 0.15] = np.nan
        gaps = np.where(random.random((batch, length)) < 0.3, 0, random.geometric(1e-4, length))
        return {
            "times": np.cumsum(gaps, axis=1).astype(np.int32),
            "coords": coords,
            "phases": random.integers(0, TABLE_SIZES["cycle"], (batch, length)).astype(np.int32),
        }

    def segments(length):
        ids = np.sort(random.integers(1, 4, (batch, length)), axis=1)
        ids[:, length - length // 5 :] = 0
        return ids.astype(np.int32)

    wanted = {"time": "times", "space": "coords", "cycle": "phases"}
    wanted = [wanted[name] for name in case.tables if name in wanted]
    keys = side(num_keys)
    options = {name: keys[name] for name in wanted}
    if case.packed:
        options["segment_ids"] = segments(num_keys)
    if case.num_keys is not None:
        queries = side(num_queries)
        options |= {f"query_{name}": queries[name] for name in wanted}
        positions = random.integers(-1, num_keys, (batch, num_queries)).astype(np.int32)
        positions[:, 0] = -1  # a request before every event
        options["query_positions"] = positions
        if case.packed:
            query_ids = random.integers(0, 4, (batch, num_queries)).astype(np.int32)
            options["query_segment_ids"] = query_ids
    options |= {
        "causal": case.causal,
        "normalizer": case.normalizer,
        "silu_denominator": case.silu_denominator,
    }
    tables = {
        f"{name}_table": random.standard_normal((heads, TABLE_SIZES[name])).astype(np.float32)
        for name in case.tables
    }
    shape = (batch, num_keys, heads, case.width)
    arrays = (normal(batch, num_queries, *shape[2:]), normal(*shape), normal(*shape))
    return arrays, tables, options, normal(*arrays[0].shape)


def split_options(options):
    """Gives the arrays of the options, and the rest as something that jit takes as static."""
    sides = {name: value for name, value in options.items() if isinstance(value, np.ndarray)}
    return sides, tuple((name, options[name]) for name in options if name not in sides)


def differentiate(arrays, tables, options, out_gradient, backend):
    """Gives the output and the gradients of q, k, v and every table, by name.

    Compiled once for all calls of one shape: `backend` may name a form after the implementation.
    """
    return _differentiate(arrays, tables, *split_options(options), out_gradient, backend)


@functools.partial(jax.jit, static_argnums=(3, 5))
def _differentiate(arrays, tables, sides, static, out_gradient, backend):
    def attend(arrays, tables):
        implementation = backend.split()[0]
        return stt_kernels.spatiotemporal_attention(
            *arrays, **tables, **sides, **dict(static), implementation=implementation
        )

    out, pull = jax.vjp(attend, arrays, tables)
    (q, k, v), table_gradients = pull(out_gradient)
    return {"out": out, "q": q, "k": k, "v": v, **table_gradients}


def interpret(monkeypatch, backend):
    """Makes a Pallas backend run in Pallas's interpreter, and takes its name.

    Not on a machine of its own: with JAX_PLATFORMS=cuda,cpu the suite runs the kernels of a GPU.
    """
    home = {"triton": triton_device, "mosaic_tpu": mosaic_tpu}[backend]
    monkeypatch.setattr(home, "INTERPRET", not is_native(backend))
    return backend


def is_native(backend):
    """Tells whether this machine is the one that a Pallas backend is for."""
    return {"triton": "gpu", "mosaic_tpu": "tpu"}.get(backend) == jax.default_backend()


def check_same(found, expected, backend):
    """Compares two answers bit by bit.

    But for table gradients of the `xla` backend on a GPU, where XLA adds in any order.
    """
    any_order = backend.startswith("xla") and jax.default_backend() == "gpu"
    for name, value in expected.items():
        close = 1e-5 if any_order and name.endswith("_table") else 0.0
        np.testing.assert_allclose(
            np.asarray(found[name]), np.asarray(value), rtol=close, atol=close, err_msg=name
        )


@functools.cache
def answer(case: Case, dtype="float32") -> dict[str, np.ndarray]:
    """The reference in float64, on the inputs as `dtype` rounds them."""
    with jax.enable_x64(True):
        arrays, tables, options, out_gradient = build(case, dtype)
        arrays, tables, out_gradient = jax.tree.map(
            lambda a: jnp.asarray(a.astype(np.float64)), (arrays, tables, out_gradient)
        )
        found = differentiate(arrays, tables, options, out_gradient, "reference")
        return {name: np.asarray(value) for name, value in found.items()}


# Sums in another order and exponentials of another library: 1e-5 of the largest entry was the most
# seen in float32. bfloat16 keeps 8 bits: weights and outputs are rounded to 1 part in 256 each.
TOLERANCES = {"float32": 5e-5, "bfloat16": 2e-2}


def check(found, expected, dtype="float32"):
    """Compares all of an answer by the largest entry of each of its arrays."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        close = TOLERANCES[dtype] * max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(
            np.asarray(found[name], np.float64), value, rtol=0, atol=close, err_msg=name
        )
