"""Which tile is fastest for each Triton kernel? Times them one by one on the GPU at hand.

A backward kernel is timed together with the forward one that it needs; what stands in the rows is
that sum. `stt_kernels.attention.triton_plan.choose_tiles` holds what was chosen.

    python -m benchmarks.tune_triton --output=benchmarks/results/tiles_h100.json
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import pathlib
import statistics
import sys
import time
import warnings

import jax
import jax.numpy as jnp

from benchmarks import bench_attention, timing
from stt_kernels.attention import checks, triton
from stt_kernels.attention.triton_plan import Tiles, TileSizes

SHAPES = ((16, 1024, 1024, 8, 64), (4, 4096, 4096, 8, 64))
TILES = (
    *(TileSizes(64, 64, warps) for warps in (2, 4, 8)),
    *(TileSizes(64, 32, warps) for warps in (2, 4)),
    *(TileSizes(32, 64, warps) for warps in (2, 4)),
    *(TileSizes(32, 32, warps) for warps in (1, 2, 4)),
    *(TileSizes(queries, 64, 1) for queries in (16, 32)),
    TileSizes(32, 16, 1),
    TileSizes(128, 64, 8),
    TileSizes(64, 64, 4, num_stages=2),
)
NUM_RUNS = 5


def make_inputs(shape, dtype, with_tables):
    """Gives (arrays, tables, sides, out_gradient) on the device."""
    inputs = jax.tree.map(jnp.asarray, bench_attention.make_inputs(shape))
    arrays, tables, sides, out_gradient = inputs
    arrays = tuple(array.astype(dtype) for array in arrays)
    if not with_tables:
        tables, sides = {}, {}
    return arrays, tables, sides, out_gradient.astype(dtype)


def steps(tile):
    """Gives, by the name of the kernel, what runs it and no other but the forward one."""
    tiles = Tiles(tile, tile, tile, tile)

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

    found = {f.__name__: f for f in (forward, query_gradient, key_gradient, table_gradient)}
    return found


def compile_all(inputs, tiles):
    """Gives (tile, kernel, compiled or the error) of each, compiled side by side."""

    def compile_one(job):
        tile, name, step = job
        try:
            return tile, name, jax.jit(step).lower(*inputs).compile()
        except Exception as error:  # too much shared memory: that is the result
            return tile, name, error

    jobs = [
        (tile, name, step)
        for tile in tiles
        for name, step in steps(tile).items()
        if inputs[1] or name != "table_gradient"
    ]
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
    parser.add_argument("--output", type=pathlib.Path, help="where to write one JSON row each")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated")
    rows = []
    for shape in SHAPES:
        for dtype, with_tables in (("bfloat16", True), ("bfloat16", False), ("float32", True)):
            inputs = make_inputs(shape, dtype, with_tables)
            for tile, name, compiled in compile_all(inputs, TILES):
                row = {"shape": shape, "dtype": dtype, "tables": with_tables, "kernel": name}
                row |= vars(tile)
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
