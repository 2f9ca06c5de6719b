"""Which tile is fastest for each Triton kernel? Times them one by one on the GPU at hand.

A kernel is timed together with those that it needs, a backward one with the forward one, those of
keys and tables with that of queries, too; what stands in the rows is that sum.
`stt_kernels.attention.triton_plan` holds what was chosen.

    python -m benchmarks.tune_triton --output=benchmarks/results/tiles_h200.json
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import pathlib
import statistics
import sys
import time
import warnings

import jax
import jax.numpy as jnp

from benchmarks import bench_attention, timing
from stt_kernels.attention import checks, triton, triton_plan
from stt_kernels.attention.triton_plan import TileSizes

SHAPES = ((16, 1024, 1024, 8, 64), (4, 4096, 4096, 8, 64))
TILES = (
    *(TileSizes(64, 64, warps) for warps in (4, 8)),
    *(TileSizes(64, 32, warps) for warps in (2, 4)),
    *(TileSizes(32, 64, warps) for warps in (2, 4)),
    TileSizes(32, 32, 2),
    TileSizes(128, 32, 4),
    TileSizes(128, 64, 8),
)
KEY_LAUNCHES = [(warps, stages) for warps in (4, 8) for stages in (1, 2, 3)]
TABLE_SIZES = [(queries, step, 4) for queries in (4, 8, 16) for step in (1, 2, 4)] + [(8, 2, 8)]
SCRATCHES = (2**24, 2**25, 2**26, 2**27)
NUM_RUNS = 5


def make_inputs(shape, dtype):
    """Gives (arrays, tables, sides, out_gradient) on the device, hours of the week among them."""
    inputs = jax.tree.map(jnp.asarray, bench_attention.make_inputs(shape))
    arrays, tables, sides, out_gradient = inputs
    sides["phases"] = sides["times"] // 3600 % 168
    tables["cycle_table"] = jnp.ones((shape[3], 168), jnp.float32)
    arrays = tuple(array.astype(dtype) for array in arrays)
    return arrays, tables, sides, out_gradient.astype(dtype)


def steps(tiles):
    """Gives, by the name of the kernel, what runs it and no other but those that it needs."""

    def attend(arrays, tables, sides):
        q, k, v = arrays
        call = checks.check_call(q, k, **tables, **sides)
        encodings = call.tables, call.queries, call.keys, call.rules
        return triton.attend(call.q, call.k, v, *encodings, tiles=tiles)

    def forward(arrays, tables, sides, out_gradient):
        return attend(arrays, tables, sides)

    def query_gradient(arrays, tables, sides, out_gradient):
        _, pull = jax.vjp(lambda q: attend((q, *arrays[1:]), tables, sides), arrays[0])
        return pull(out_gradient)

    def key_gradient(arrays, tables, sides, out_gradient):
        _, pull = jax.vjp(lambda k, v: attend((arrays[0], k, v), tables, sides), *arrays[1:])
        return pull(out_gradient)

    def table_gradient(arrays, tables, sides, out_gradient):
        _, pull = jax.vjp(lambda tables: attend(arrays, tables, sides), tables)
        return pull(out_gradient)

    def all_gradients(arrays, tables, sides, out_gradient):
        _, pull = jax.vjp(lambda arrays, tables: attend(arrays, tables, sides), arrays, tables)
        return pull(out_gradient)

    functions = forward, query_gradient, key_gradient, table_gradient, all_gradients
    return {function.__name__: function for function in functions}


def jobs_of(dtype):
    """Gives (kernel, what is tried of it by name, tiles) of everything to time."""
    chosen = triton_plan.choose_tiles(jnp.dtype(dtype))

    def job(kernel, **changes):
        return kernel, changes, dataclasses.replace(chosen, **changes)

    for tile in TILES:
        yield job("forward", forward=tile)
        yield job("query_gradient", query_gradient=tile)
    for warps, stages in KEY_LAUNCHES:
        yield job("key_gradient", key_warps=warps, key_stages=stages)
    for queries, step, warps in TABLE_SIZES:
        yield job("table_gradient", table_queries=queries, table_step=step, table_warps=warps)
    for numbers in SCRATCHES:
        yield job("all_gradients", scratch_numbers=numbers)


def compile_all(inputs, jobs):
    """Gives (kernel, what is tried, compiled or the error) of each, compiled side by side."""

    def compile_one(job):
        kernel, tried, tiles = job
        try:
            return kernel, tried, jax.jit(steps(tiles)[kernel]).lower(*inputs).compile()
        except Exception as error:  # too much shared memory: that is the result
            return kernel, tried, error

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(compile_one, jobs))


def median_ms(run):
    """Gives the milliseconds of one of `NUM_RUNS` runs, the next told ahead of time."""
    jax.block_until_ready(run())
    found = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(NUM_RUNS):
            out = run()
        jax.block_until_ready(out)
        found.append((time.perf_counter() - start) * 1e3 / NUM_RUNS)
    return statistics.median(found)


def main(argv=None) -> int:
    """Times every tile at every shape, prints and writes one row each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="how many of the shapes")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--output", type=pathlib.Path, help="where to write one JSON row each")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated")
    rows = []
    for shape in SHAPES[: options.shapes]:
        for dtype in options.dtypes.split(","):
            inputs = make_inputs(shape, dtype)
            for kernel, tried, compiled in compile_all(inputs, jobs_of(dtype)):
                row = {"shape": shape, "dtype": dtype, "kernel": kernel}
                for name, value in tried.items():
                    row |= vars(value) if isinstance(value, TileSizes) else {name: value}
                if isinstance(compiled, Exception):
                    row["error"] = " ".join(str(compiled).split())[:200]
                else:
                    row["ms"] = round(median_ms(functools.partial(compiled, *inputs)), 3)
                rows.append(row | timing.environment())
                print(row, flush=True)
                if options.output:
                    timing.write_rows(options.output, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
