"""On a GPU: how fast are attention and the training step, beside what stores the bias?

Attention: what `bench_attention` compares, in bfloat16 and float32, at a device's sizes. Training:
the whole step of a model of 8 layers, 512 wide, in bfloat16, with the fused kernel and with the
dense bias; events/s and the share of a large matrix product's operations that it reaches. All
candidates of one size take turns.

    python -m benchmarks.bench_accelerator --output=benchmarks/results/accelerator_h100.json
        --torch-python=/path/to/an/environment/with/torch/bin/python
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import pathlib
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import bench_attention, timing
from benchmarks.made_log import make_log
from benchmarks.peers import attention_torch_client
from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.model.cost import step_flops
from stt_jax.training import speed
from stt_jax.training.setup import set_up
from stt_jax.training.step import make_train_step

# B, L, S, H, D
SHAPES = {"long": (16, 1024, 1024, 8, 64), "longest": (4, 4096, 4096, 8, 64)}
DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
WINDOWS = (1024, 4096)
ATTENTIONS = ("auto", "reference")
TOKENS = 16_384  # of a training step
LAYERS, WIDTH, HEADS = 8, 512, 8
NUM_ITEMS = 10_000
NUM_RUNS = 10  # of attention, in a row


def ours_xla(arrays, tables, sides):
    """Our own tiles without a kernel for the device."""
    return bench_attention.ours(arrays, tables, sides, implementation="xla")


CANDIDATES = {**bench_attention.CANDIDATES, "ours_xla": ours_xla}


def bench_shape(name, shape, dtype, num_rounds, torch_python) -> Iterator[list[dict[str, Any]]]:
    """Gives the rows of one shape in one type: of forward, then of both directions."""
    (q, k, v), tables, sides, out_gradient = bench_attention.make_inputs(shape)
    rounded = [np.asarray(a.astype(dtype).astype(np.float32)) for a in (q, k, v)]
    expected = np.asarray(bench_attention.last_answers(rounded, tables, sides))
    on_device = jax.tree.map(jnp.asarray, (rounded, tables, sides, out_gradient))
    arrays, tables_there, sides_there, gradient = on_device
    inputs = tuple(a.astype(dtype) for a in arrays), tables_there, sides_there
    for mode in ("forward", "forward+backward"):
        rows = []
        steps: dict[str, Any] = {}
        for candidate, function in CANDIDATES.items():
            if mode == "forward":
                steps[candidate] = function, inputs
            else:
                step = functools.partial(bench_attention.forward_and_backward, function)
                steps[candidate] = step, (*inputs, gradient.astype(dtype))
        made = _compile(steps)
        runs, facts = {}, {}
        for candidate, (compiled, compile_s, temp_bytes) in made.items():
            out = compiled(*steps[candidate][1])
            out = out if mode == "forward" else out[0]
            _check(candidate, out, expected, dtype)
            runs[candidate] = _mean_ms(functools.partial(compiled, *steps[candidate][1]))
            facts[candidate] = {"compile_s": round(compile_s, 2), "temp_bytes": temp_bytes}
        clients = {}
        if torch_python:
            clients = attention_torch_client.start(
                torch_python,
                (rounded, tables, sides, out_gradient),
                mode,
                expected,
                dtype=np.dtype(dtype).name,
            )
        facts |= {name: {"temp_bytes": client.peak_bytes} for name, client in clients.items()}
        times = timing.alternate(runs | clients, num_rounds)
        for client in clients.values():
            client.stop()
        for candidate, found in times.items():
            row = {
                "part": "attention",
                "shape": name,
                **dict(zip("BLSHD", shape, strict=True)),
                "dtype": np.dtype(dtype).name,
                "mode": mode,
                "candidate": candidate,
                "median_ms": round(found.median_ms, 3),
                "spread_ms": round(found.spread_ms, 3),
                "num_rounds": num_rounds,
                **facts[candidate],
                "ours_to_it": round(times["ours"].ratio_to(found), 3),
            }
            rows.append(row | timing.environment())
            memory = (row["temp_bytes"] or 0) / 2**20
            print(
                f"{name:8s} {row['dtype']:9s} {mode:17s} {candidate:20s} {row['median_ms']:9.3f} ms"
                f"  ours / it {row['ours_to_it']:6.3f}  {memory:9.1f} MiB",
                flush=True,
            )
        yield rows


def _mean_ms(run):
    """Gives what tells the milliseconds of one of several runs, the next told ahead of time."""

    def runs():
        start = time.perf_counter()
        for _ in range(NUM_RUNS):
            out = run()
        jax.block_until_ready(out)
        return (time.perf_counter() - start) * 1e3 / NUM_RUNS

    return runs


def _check(candidate, out, expected, dtype) -> None:
    if candidate not in (*bench_attention.EXACT, "ours_xla"):
        return
    last = np.asarray(out[:2, -expected.shape[1] :].astype(jnp.float32))
    error = float(np.abs(last - expected).max() / np.abs(expected).max())
    # The dense ways to write it down multiply float32 as the device likes best: TF32 on a GPU.
    digits = "float32" if candidate.startswith("ours") and dtype == np.float32 else "bfloat16"
    if not error <= attention_torch_client.MOST_ERRORS[digits]:
        raise ValueError(f"{candidate} is wrong: error {error}.")


def _compile(steps):
    """Compiles (function, arguments) by name, all at once."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = {
            name: pool.submit(timing.compile_timed, function, *arguments)
            for name, (function, arguments) in steps.items()
        }
        return {name: future.result() for name, future in made.items()}


def make_step(window: int, attention: str) -> dict[str, Any]:
    """Sets up and compiles a training step."""
    training = TrainingConfig(
        window=window, requests=window, batch_rows=TOKENS // window, loss="chunked"
    )
    model = ModelConfig(
        num_layers=LAYERS,
        width=WIDTH,
        num_heads=HEADS,
        dtype="bfloat16",
        attention=attention,
        use_crowd=False,  # counts for random logs take long and say nothing
    )
    log = make_log(
        pathlib.Path("unwritten"),
        2 * training.batch_rows * (window + 1),
        num_items=NUM_ITEMS,
        person_events=window + 1,
        vary=False,
    )
    setup = set_up(log, training, model, ProtocolConfig(), DeviceConfig())
    step = make_train_step(setup.model, setup.optimizer, training, setup.placement, setup.shardings)
    history, requests = setup.put(setup.batches[0])
    arguments = (setup.items, history, requests)
    with jax.set_mesh(setup.placement.mesh):
        state = setup.initial_state()
        compiled = step.lower(state, *arguments).compile()
    flops = step_flops(
        setup.model.config,
        setup.model.sizes,
        rows=training.batch_rows,
        tokens=window,
        requests=window,
    )
    return {"step": compiled, "state": state, "arguments": arguments, "flops": flops}


def bench_window(window: int, made: dict[str, Any], num_rounds: int) -> list[dict[str, Any]]:
    """Gives the rows of one window."""
    peak = speed.peak_flops("bfloat16")
    events = {}

    def runner(attention):
        one = made[attention]

        def run():
            one["state"], measures = one["step"](one["state"], *one["arguments"])
            events[attention] = measures["requests"]
            return measures

        return run

    times = timing.alternate({attention: runner(attention) for attention in made}, num_rounds)
    rows = []
    for attention, found in times.items():
        row = {
            "part": "training",
            "window": window,
            "batch_rows": TOKENS // window,
            "layers": LAYERS,
            "width": WIDTH,
            "heads": HEADS,
            "items": NUM_ITEMS,
            "dtype": "bfloat16",
            "attention": attention,
            "step_ms": round(found.median_ms, 2),
            "spread_ms": round(found.spread_ms, 2),
            "num_rounds": num_rounds,
            "events_per_s": round(1e3 * float(events[attention]) / found.median_ms),
            "flops_utilisation": round(
                made[attention]["flops"] / (peak * found.median_ms / 1e3), 3
            ),
            "peak_tflops": round(peak / 1e12),
            "temp_bytes": int(made[attention]["step"].memory_analysis().temp_size_in_bytes),
        }
        if "reference" in times:
            row["speed_up"] = round(1 / found.ratio_to(times["reference"]), 2)
        rows.append(row | timing.environment())
        print(
            f"window {window:5d} {attention:10s} {row['step_ms']:9.2f} ms a step"
            f" {row['events_per_s']:9,} events/s  MFU {row['flops_utilisation']:.3f}"
            f"  {row['temp_bytes'] / 2**30:6.2f} GiB",
            flush=True,
        )
    return rows


def main(argv=None) -> int:
    """Measures every size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--parts", default="attention,training")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="of attention")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="of attention")
    parser.add_argument("--torch-python", help="python of an environment with PyTorch")
    parser.add_argument("--output", type=pathlib.Path, help="where to write one JSON row each")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated")
    rows: list[dict[str, Any]] = []

    def add(found):
        rows.extend(found)
        if options.output:
            timing.write_rows(options.output, rows)

    if "training" in options.parts:
        sizes = [(window, attention) for window in WINDOWS for attention in ATTENTIONS]
        with concurrent.futures.ThreadPoolExecutor() as pool:  # compiling takes most of the time
            made = dict(zip(sizes, pool.map(make_step, *zip(*sizes, strict=True)), strict=True))
        for window in WINDOWS:
            steps = {attention: made.pop((window, attention)) for attention in ATTENTIONS}
            add(bench_window(window, steps, options.rounds))
    if "attention" in options.parts:
        for name in options.shapes.split(","):
            for dtype in options.dtypes.split(","):
                made_of = name, SHAPES[name], DTYPES[dtype]
                for found in bench_shape(*made_of, options.rounds, options.torch_python):
                    add(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
