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
NUM_CHECKED = 128  # of the last queries, against the reference
MAX_TEMP_BYTES = 8 * 2**30
SLOW_ROUND_S = 10.0
NUM_SLOW_ROUNDS = 7


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
    logits = jnp.einsum("blhd,bshd->bhls", q, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5 + bias
    weights = jax.nn.softmax(jnp.where(allowed, logits, -1e30), axis=-1)
    return jnp.einsum("bhls,bshd->blhd", weights.astype(v.dtype), v)


def jax_nn(arrays, tables, sides):
    """`jax.nn.dot_product_attention` with the bias in memory."""
    bias, allowed = dense_bias(tables, sides)
    mask = jnp.broadcast_to(allowed, (bias.shape[0], 1, *bias.shape[2:]))
    q, k, v = arrays
    return jax.nn.dot_product_attention(q, k, v, bias=bias.astype(q.dtype), mask=mask)


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


def last_answers(arrays, tables, sides):
    """Gives the reference's output for the last 128 queries of the first two rows."""
    q, k, v = (array[:2] for array in arrays)
    sides = {name: side[:2] for name, side in sides.items()}
    num_queries, num_keys = q.shape[1], k.shape[1]
    num_last = min(num_queries, NUM_CHECKED)
    order = np.broadcast_to(np.arange(num_keys, dtype=np.int32), k.shape[:2])
    queries = {
        name: sides.get(f"query_{name}", sides.get(name, order))[:, -num_last:]
        for name in ("times", "coords", "positions")
    }
    sides |= {f"query_{name}": side for name, side in queries.items()}
    return jax.jit(reference)((q[:, -num_last:], k, v), tables, sides)


def prepare(mode, inputs, expected):
    """Gives the candidates that can run, by name: (function that runs once, facts of its row)."""
    arrays, tables, sides, out_gradient = jax.tree.map(jnp.asarray, inputs)
    candidates = {}
    for candidate, function in CANDIDATES.items():
        step, step_inputs = function, [arrays, tables, sides]
        if mode == "forward+backward":
            step = functools.partial(forward_and_backward, function)
            step_inputs.append(out_gradient)
        compiled, compile_s, temp_bytes = timing.compile_timed(step, *step_inputs)
        if temp_bytes is not None and temp_bytes > MAX_TEMP_BYTES:
            print(f"{candidate} {mode}: left out, it would take {temp_bytes / 2**30:.1f} GiB.")
            continue
        out = compiled(*step_inputs)
        out = out if mode == "forward" else out[0]
        if candidate in EXACT:
            difference = jnp.abs(out[:2, -NUM_CHECKED:] - expected).max()
            error = float(difference / jnp.abs(expected).max())
            if error > 1e-4:
                raise ValueError(f"{candidate} is wrong at {arrays[0].shape}: error {error}.")
        facts = {"compile_s": round(compile_s, 2), "temp_bytes": temp_bytes}
        candidates[candidate] = functools.partial(compiled, *step_inputs), facts
    return candidates


def bench_shape(name, shape, options, peers=attention_torch_client.PEERS):
    """Gives the rows of one shape.

    Args:
      name: of the shape.
      shape: B, L, S, H, D.
      options: `rounds`, `torch_python`, `real_time`: see the command line.
      peers: the candidates of PyTorch.
    """
    num_rows, num_queries, num_keys, num_heads, width = shape
    inputs = make_inputs(shape)
    modes = ["forward", "forward+backward"] if num_queries == num_keys else ["forward"]
    expected = last_answers(*inputs[:3])
    floors = floor_ms(shape, options.real_time)
    q, k, _ = inputs[0]
    backends = stt_kernels.available_implementations(q, k, **inputs[1], **inputs[2])
    ran = next(name for name, reason in backends.items() if reason is None)
    rows = []
    for mode in modes:
        candidates = prepare(mode, inputs, expected)
        clients = {}
        if options.torch_python:
            clients = attention_torch_client.start(
                options.torch_python, inputs, mode, np.asarray(expected), peers
            )
            candidates |= {
                name: (client, {"peak_bytes": client.peak_bytes})
                for name, client in clients.items()
            }
        runs = {candidate: run for candidate, (run, _) in candidates.items()}
        load = timing.environment()["load"]
        process_ids = tuple(client.process_id for client in clients.values())
        with timing.real_time_priority(process_ids, wanted=options.real_time):
            times = alternate_patiently(runs, options.rounds)
            with timing.one_core():
                alone = timing.alternate({"ours": runs["ours"]}, min(options.rounds, 7))["ours"]
        for client in clients.values():
            client.stop()
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
                "num_rounds": len(found.times_ms),
                **candidates[candidate][1],
            }
            if "naive" in times:
                row["ratio_to_naive"] = round(found.ratio_to(times["naive"]), 3)
            if candidate != "ours":
                row["ours_to_it"] = round(times["ours"].ratio_to(found), 3)
            elif mode in floors:
                num_cores = timing.environment()["cores"]
                row["one_core_ms"] = round(alone.median_ms, 3)
                row["floor_one_core_ms"] = round(floors[mode], 3)
                row["fraction_of_floor_one_core"] = round(floors[mode] / alone.median_ms, 3)
                row["fraction_of_floor"] = round(floors[mode] / num_cores / found.median_ms, 3)
            row |= timing.environment()
            rows.append(row | {"load": load, "real_time": options.real_time})
            print_row(rows[-1])
    return rows


def alternate_patiently(runs, num_rounds):
    """As `timing.alternate`, with few rounds where one takes more than `SLOW_ROUND_S`."""
    warm = timing.alternate(runs, 1, num_warmups=1)
    round_s = sum(found.median_ms for found in warm.values()) / 1e3
    num_rounds = min(num_rounds, NUM_SLOW_ROUNDS) if round_s > SLOW_ROUND_S else num_rounds
    return timing.alternate(runs, num_rounds, num_warmups=0)


def floor_ms(shape, real_time):
    """Gives the time of the arithmetic alone on one core: its parts, each timed by itself.

    Causal pairs only; matmuls, exponentials, look-ups, additions to a table, and the geometry of a
    pair once for all heads. None of it is overlapped or loses anything between the parts. The
    arithmetic of rows of the batch is independent, so several cores could share it without loss.
    """
    num_rows, num_queries, num_keys, num_heads, width = shape
    if num_queries != num_keys:
        return {}
    side, rows = min(128, num_queries), 4
    pairs = rows * side * side
    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    tile, heads = normal(rows, num_heads, side, side), normal(rows, num_heads, side, width)
    turned = jnp.swapaxes(heads, 2, 3)
    table = normal(NUM_ENTRIES, num_heads)
    entries = jnp.asarray(random.integers(0, NUM_ENTRIES, (rows, side, side)), jnp.int32)
    times = jnp.asarray(random.integers(0, 10**6, (rows, side)), jnp.int32)
    events = geometry.Side(times=times, coords=normal(rows, side, 3))
    sizes = {"time": NUM_ENTRIES, "space": NUM_ENTRIES}
    by_pair = jnp.moveaxis(tile, 1, -1)
    parts: dict[str, tuple[Callable, tuple]] = {
        "product": (lambda a, b: jnp.einsum("bhid,bhjd->bhij", a, b), (heads, heads)),
        "sum": (lambda a, b: jnp.einsum("bhij,bhjd->bhid", a, b), (tile, heads)),
        "key_sum": (lambda a, b: jnp.einsum("bhdi,bhij->bhdj", a, b), (turned, tile)),
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
    with timing.one_core(), timing.real_time_priority((), wanted=real_time):
        found = {name: min(t.times_ms) for name, t in timing.alternate(runs, 40).items()}
    tiles = num_rows * num_keys * (num_keys + 1) / 2 / pairs
    forward = sum(found[name] for name in ("product", "sum", "exp", "look_up", "geometry"))
    backward = 2 * found["product"] + found["sum"] + 2 * found["key_sum"] + found["add"]
    backward += found["exp"] + found["look_up"] + found["geometry"]
    return {"forward": tiles * forward, "forward+backward": tiles * (forward + backward)}


def print_row(row):
    """Prints one result."""
    num_bytes = row.get("temp_bytes", row.get("peak_bytes"))
    memory = "" if num_bytes is None else f"{num_bytes / 2**20:9.1f} MiB"
    ratio = f"{row['ratio_to_naive']:6.2f} x naive" if "ratio_to_naive" in row else ""
    floor = ""
    if "fraction_of_floor" in row:
        floor = f"  {row['fraction_of_floor']:.2f} of the floor, "
        floor += f"{row['fraction_of_floor_one_core']:.2f} on one core"
    print(
        f"{row['shape']:10s} {row['mode']:16s} {row['candidate']:22s} {row['median_ms']:9.2f} ms "
        f"(+-{row['spread_ms']:.2f})  {ratio} {memory}{floor}",
        flush=True,
    )


def add_options(parser):
    """Adds what every script that times attention takes."""
    parser.add_argument("--quick", action="store_true", help="small shapes, under a minute on CPU")
    parser.add_argument("--rounds", type=int, help="runs of each candidate; default 20, quick 3")
    parser.add_argument("--torch-python", help="python of an environment that has PyTorch")
    parser.add_argument(
        "--real-time", action="store_true", help="run what is timed before all else on the machine"
    )
    parser.add_argument("--output", type=pathlib.Path, help="where to write the rows")


def main(argv=None):
    """Runs the shapes asked for and writes one JSON row a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--shapes", help=f"of {','.join(SHAPES)}")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (3 if options.quick else 20)
    chosen = options.shapes.split(",") if options.shapes else None
    rows = []
    for name in chosen or (QUICK if options.quick else SHAPES):
        rows += bench_shape(name, SHAPES[name], options)
        if options.output:
            timing.write_rows(options.output, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
