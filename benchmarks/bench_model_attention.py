"""How much faster does the model train with the tiled attention than with the dense one?

The whole training step, `--attention=auto` and `--attention=reference` in turn in one process: at
the sizes of a flagfile, and at another window.

    python -m benchmarks.bench_model_attention --data=prepared/nyc
        --output=benchmarks/results/model_attention_cpu.json
"""

import argparse
import dataclasses
import functools
import pathlib
import sys

import jax

from benchmarks import timing
from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.data.store import open_log
from stt_jax.training.setup import set_up
from stt_jax.training.step import make_train_step

WINDOWS = (TrainingConfig().window, 512)  # configs/nyc.flags leaves the default
ATTENTIONS = ("auto", "reference")


def make_step(log, window, attention):
    """Gives (a function that runs one step from the same state, temporary bytes)."""
    training = dataclasses.replace(TrainingConfig(), window=window)
    model = ModelConfig(attention=attention, use_crowd=False)  # as configs/nyc.flags
    setup = set_up(log, training, model, ProtocolConfig(), DeviceConfig())
    step = make_train_step(setup.model, setup.optimizer, training, setup.placement, setup.shardings)
    batch = setup.put(setup.batches[0])
    state = setup.initial_state()
    with jax.set_mesh(setup.placement.mesh):
        compiled = step.lower(state, setup.items, *batch).compile()
    states = [state]  # the step takes its state over: the next run goes on from what this one gave

    def run():
        states[0], measures = compiled(states[0], setup.items, *batch)
        return measures

    return run, training, compiled.memory_analysis().temp_size_in_bytes


def bench_window(log, window, num_rounds, real_time):
    """Gives the rows of one window."""
    made = {attention: make_step(log, window, attention) for attention in ATTENTIONS}
    with timing.real_time_priority((), wanted=real_time):
        times = timing.alternate({name: run for name, (run, *_) in made.items()}, num_rounds)
    rows = []
    for attention, found in times.items():
        _, training, temp_bytes = made[attention]
        row = {
            "window": window,
            "batch_rows": training.batch_rows,
            "attention": attention,
            "step_ms": round(found.median_ms, 2),
            "spread_ms": round(found.spread_ms, 2),
            "temp_bytes": temp_bytes,
            "speed_up": round(1 / found.ratio_to(times["reference"]), 2),
            "num_rounds": num_rounds,
            "real_time": real_time,
        }
        rows.append(row | timing.environment())
        print(
            f"window {window}: {attention:10s} {row['step_ms']:9.1f} ms a step, "
            f"{temp_bytes / 2**20:8.1f} MiB, {row['speed_up']:.2f} x as fast as reference",
            flush=True,
        )
    return rows


def main(argv=None):
    """Measures every window."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a prepared log")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--windows", default=",".join(map(str, WINDOWS)))
    parser.add_argument("--quick", action="store_true", help="a short window, two rounds")
    parser.add_argument("--real-time", action="store_true", help="before all else on the machine")
    parser.add_argument("--output", type=pathlib.Path, help="where to write the rows")
    options = parser.parse_args(argv)
    log = open_log(options.data)
    windows = [32] if options.quick else [int(window) for window in options.windows.split(",")]
    rounds = 2 if options.quick else options.rounds
    measure = functools.partial(bench_window, num_rounds=rounds, real_time=options.real_time)
    rows = [row for window in windows for row in measure(log, window)]
    if options.output:
        timing.write_rows(options.output, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
