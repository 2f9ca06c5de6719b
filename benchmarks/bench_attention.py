"""How fast is attention with time and distance tables, against the best other ways to compute it?

Every candidate gives the same answer from the same inputs (checked against the reference first; a
wrong one is not timed), and all take turns in one process, or by turns with a process of their own
for PyTorch.

    python -m benchmarks.bench_attention --quick
    python -m benchmarks.bench_attention --output=benchmarks/results/attention_cpu.json
        --torch-python=/path/to/an/environment/with/torch/bin/python
"""

import argparse
import functools
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import stt_kernels
from benchmarks import timing
from benchmarks.peers import attention_torch_client
from stt_kernels.attention import geometry

# B, L, S, H, D. The second is the model's own training shape; the last a decode step.
SHAPES = {
    "sessions": (128, 50, 50, 2, 32),
    "training": (16, 128, 128, 4, 32),
    "short": (32, 256, 256, 4, 32),
    "sequential": (128, 200, 200, 2, 32),
    "medium": (32, 512, 512, 8, 32),
    "long": (16, 1024, 1024, 8, 32),
    "longest": (4, 4096, 4096, 4, 64),
    "decode": (64, 1, 1024, 8, 32),
}
QUICK = ("sessions", "training", "decode")
NUM_ENTRIES = 64  # of either table


def make_inputs(shape, seed=0):
    """Gives (arrays, tables, sides, out_gradient): people with bursts, homes and a few places."""
    num_rows, num_queries, num_keys, num_heads, width = shape
    random = np.random.default_rng(seed)
    times, coords = [], []
    for _ in range(num_rows):
        bursts = random.exponential(120.0, num_keys)
        pauses = random.lognormal(math.log(6 * 3600.0), 1.5, num_keys)
        in_burst = random.random(num_keys) < 0.7
        times.append(np.cumsum(np.where(in_burst, bursts, pauses)).astype(np.int32))
        home = np.array([random.uniform(-60, 60), random.uniform(-170, 170)])
        spread = np.repeat([0.06, 1.2], [40, 10])[:, None]
        places = home + spread * random.standard_normal((50, 2))
        visited = places[np.minimum(random.zipf(1.5, num_keys), 50) - 1]
        coords.append(stt_kernels.encode_coords(visited[:, 0], visited[:, 1]))

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    tables = {
        "time_table": 0.5 * normal(num_heads, NUM_ENTRIES),
        "space_table": 0.5 * normal(num_heads, NUM_ENTRIES),
    }
    sides = {"times": np.stack(times), "coords": np.stack(coords)}
    if num_queries != num_keys:
        last = np.full((num_rows, num_queries), num_keys - 1, np.int32)
        sides |= {
            "query_times": sides["times"][:, -num_queries:],
            "query_coords": sides["coords"][:, -num_queries:],
            "query_positions": last,
        }
    heads = (num_heads, width)
    q, k, v = (normal(num_rows, n, *heads) for n in (num_queries, num_keys, num_keys))
    return (q, k, v), tables, sides, normal(*q.shape)


def ours(arrays, tables, sides, implementation=None):
    """`spatiotemporal_attention` with the backend of this platform."""
    q, k, v = arrays
    options: dict[str, Any] = {**tables, **sides, "implementation": implementation}
    return stt_kernels.spatiotemporal_attention(q, k, v, **options)


def ours_without_tables(arrays, tables, sides):
    """The same without time and distance: what the encodings cost."""
    q, k, v = arrays
    positions = sides.get("query_positions")
    return stt_kernels.spatiotemporal_attention(q, k, v, query_positions=positions)


def reference(arrays, tables, sides):
    """The definition, to compare with."""
    return ours(arrays, tables, sides, implementation="reference")


def dense_bias(tables, sides):
    """Gives the bias [B, H, L, S] and the causal mask [B or 1, 1, L, S]."""
    keys = geometry.Side(times=sides["times"], coords=sides["coords"])
    queries = geometry.Side(
        times=sides.get("query_times", sides["times"]),
        coords=sides.get("query_coords", sides["coords"]),
        positions=sides.get("query_positions"),
    )
    num_queries, num_keys = queries.times.shape[1], keys.times.shape[1]
    queries, keys = geometry.number(queries, num_queries), geometry.number(keys, num_keys)
    entries = geometry.table_entries(queries, keys, {"time": NUM_ENTRIES, "space": NUM_ENTRIES})

    def look_up(name):
        rows = tables[f"{name}_table"].T
        return jnp.moveaxis(rows.at[entries[name]].get(mode="promise_in_bounds"), -1, 1)

    allowed = keys.positions[:, None, :] <= queries.positions[:, :, None]
    return look_up("time") + look_up("space"), allowed[:, None]


def naive(arrays, tables, sides):
    """Softmax attention as one writes it down, with the bias in memory."""
    q, k, v = arrays
    bias, allowed = dense_bias(tables, sides)
    logits = jnp.einsum("blhd,bshd->bhls", q, k) * q.shape[-1] ** -0.5 + bias
    weights = jax.nn.softmax(jnp.where(allowed, logits, -1e30), axis=-1)
    return jnp.einsum("bhls,bshd->blhd", weights, v)


def jax_nn(arrays, tables, sides):
    """`jax.nn.dot_product_attention` with the bias in memory."""
    bias, allowed = dense_bias(tables, sides)
    mask = jnp.broadcast_to(allowed, (bias.shape[0], 1, *bias.shape[2:]))
    q, k, v = arrays
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask)


CANDIDATES = {
    "naive": naive,
    "jax_nn": jax_nn,
    "ours": ours,
    "ours_without_tables": ours_without_tables,
}
EXACT = ("naive", "jax_nn", "ours")


def forward_and_backward(function, arrays, tables, sides, out_gradient):
    """Gives the output and the gradients of q, k, v and the tables."""
    out, pull = jax.vjp(lambda arrays, tables: function(arrays, tables, sides), arrays, tables)
    return out, pull(out_gradient)


def bench_shape(name, num_rounds, torch_python):
    """Gives the rows of one shape."""
    shape = SHAPES[name]
    num_rows, num_queries, num_keys, num_heads, width = shape
    arrays, tables, sides, out_gradient = make_inputs(shape)
    device_inputs = jax.tree.map(jnp.asarray, (arrays, tables, sides))
    with_backward = num_queries == num_keys
    modes = ["forward", "forward+backward"] if with_backward else ["forward"]
    few_rows = jax.tree.map(lambda a: a[:2], (arrays, sides))
    expected = jax.jit(reference)(few_rows[0], tables, few_rows[1])
    floors = floor_ms(shape)
    rows = []
    for mode in modes:
        runs, facts = {}, {}
        for candidate, function in CANDIDATES.items():
            if mode == "forward":
                step, inputs = function, device_inputs
            else:
                step = functools.partial(forward_and_backward, function)
                inputs = (*device_inputs, jnp.asarray(out_gradient))
            compiled, compile_s, temp_bytes = timing.compile_timed(step, *inputs)
            out = compiled(*inputs)
            out = out if mode == "forward" else out[0]
            if candidate in EXACT:
                error = float(jnp.abs(out[:2] - expected).max() / jnp.abs(expected).max())
                if error > 1e-4:
                    raise ValueError(f"{candidate} is wrong at {name}: relative error {error}.")
            facts[candidate] = {"compile_s": round(compile_s, 2), "temp_bytes": temp_bytes}
            runs[candidate] = functools.partial(compiled, *inputs)
        clients = {}
        if torch_python:
            clients = attention_torch_client.start(
                torch_python, (arrays, tables, sides, out_gradient), mode, np.asarray(expected)
            )
            runs |= clients
        times = timing.alternate(runs, num_rounds)
        for client in clients.values():
            client.stop()
        q, k, _ = arrays
        backends = stt_kernels.available_implementations(q, k, **tables, **sides)
        ran = next(name for name, reason in backends.items() if reason is None)
        for candidate, found in times.items():
            row = {
                "shape": name,
                "B": num_rows,
                "L": num_queries,
                "S": num_keys,
                "H": num_heads,
                "D": width,
                "dtype": "float32",
                "mode": mode,
                "candidate": candidate,
                "backend": ran if candidate.startswith("ours") else None,
                "median_ms": round(found.median_ms, 3),
                "spread_ms": round(found.spread_ms, 3),
                "ratio_to_naive": round(found.ratio_to(times["naive"]), 3),
                "num_rounds": num_rounds,
                **facts.get(candidate, {}),
            }
            if candidate == "ours" and mode in floors:
                row["floor_ms"] = round(floors[mode], 3)
                row["fraction_of_floor"] = round(floors[mode] / found.median_ms, 3)
            rows.append(row | timing.environment())
            print_row(rows[-1])
    return rows


def floor_ms(shape):
    """Gives the time of the arithmetic alone: its parts, each timed by itself on a tile in cache.

    Causal pairs only; matmuls, exponentials, look-ups, additions to a table, and the geometry of a
    pair once for all heads. None of it is overlapped or loses anything between the parts.
    """
    num_rows, num_queries, num_keys, num_heads, width = shape
    if num_queries != num_keys:
        return {}
    side, rows = min(128, num_queries), 2
    pairs = rows * side * side
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    tile, heads = normal(rows, num_heads, side, side), normal(rows, num_heads, side, width)
    table = normal(NUM_ENTRIES, num_heads)
    entries = jnp.asarray(random.integers(0, NUM_ENTRIES, (rows, side, side)), jnp.int32)
    times = jnp.asarray(random.integers(0, 10**6, (rows, side)), jnp.int32)
    events = geometry.Side(times=times, coords=normal(rows, side, 3))
    sizes = {"time": NUM_ENTRIES, "space": NUM_ENTRIES}
    by_pair = jnp.moveaxis(tile, 1, -1)
    parts: dict[str, tuple[Callable, tuple]] = {
        "product": (lambda a, b: jnp.einsum("bhid,bhjd->bhij", a, b), (heads, heads)),
        "sum": (lambda a, b: jnp.einsum("bhij,bhjd->bhid", a, b), (tile, heads)),
        "exp": (jnp.exp, (tile,)),
        "look_up": (lambda t, e: t.at[e].get(mode="promise_in_bounds"), (table, entries)),
        "add": (
            lambda t, e, u: t.at[e].add(u, mode="promise_in_bounds"),
            (table, entries, by_pair),
        ),
        "geometry": (lambda a: geometry.table_entries(a, a, sizes), (events,)),
    }
    runs = {
        name: functools.partial(timing.compile_timed(function, *inputs)[0], *inputs)
        for name, (function, inputs) in parts.items()
    }
    found = {name: min(t.times_ms) for name, t in timing.alternate(runs, 40).items()}
    tiles = num_rows * num_keys * (num_keys + 1) / 2 / pairs
    forward = sum(found[name] for name in ("product", "sum", "exp", "look_up", "geometry"))
    backward = 2 * found["product"] + 3 * found["sum"] + found["add"]
    backward += found["exp"] + found["look_up"] + found["geometry"]
    return {"forward": tiles * forward, "forward+backward": tiles * (forward + backward)}


def print_row(row):
    """Prints one result."""
    memory = "" if row.get("temp_bytes") is None else f"{row['temp_bytes'] / 2**20:9.1f} MiB"
    floor = f"  {row['fraction_of_floor']:.2f} of floor" if "fraction_of_floor" in row else ""
    print(
        f"{row['shape']:10s} {row['mode']:16s} {row['candidate']:22s} {row['median_ms']:9.2f} ms "
        f"(+-{row['spread_ms']:.2f})  {row['ratio_to_naive']:6.2f} x naive {memory}{floor}",
        flush=True,
    )


def main(argv=None):
    """Runs the shapes asked for and writes one JSON row a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, under a minute on CPU")
    parser.add_argument("--shapes", help=f"of {','.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=20, help="runs of each candidate")
    parser.add_argument("--torch-python", help="python of an environment that has PyTorch")
    parser.add_argument("--output", type=pathlib.Path, help="where to write the rows")
    options = parser.parse_args(argv)
    names = (
        options.shapes.split(",") if options.shapes else list(QUICK if options.quick else SHAPES)
    )
    rows = []
    for name in names:
        rows += bench_shape(name, 5 if options.quick else options.rounds, options.torch_python)
        if options.output:
            timing.write_rows(options.output, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
