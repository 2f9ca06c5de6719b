"""How does the time of a training step grow with what it is given?

One size is varied at a time around a small model: the window (at the same number of tokens a
step), the rows of a batch, the layers, the catalogue (with the chunked and with the sampled
softmax). For each: the median time of a step, the share of the arithmetic floor that it reaches
(`step_flops` over what a large matrix product does here), and the exponent of a power law fitted
through the points, beside the one that the operations alone have.

    python -m benchmarks.bench_scaling --quick
    python -m benchmarks.bench_scaling --output=benchmarks/results/scaling_cpu.json
        --plot=docs/scaling.svg
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from benchmarks.made_log import make_log
from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.model.cost import step_flops
from stt_jax.training import speed
from stt_jax.training.setup import set_up
from stt_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of one point."""

    window: int = 256
    rows: int = 16
    layers: int = 2
    items: int = 10_000
    loss: str = "chunked"


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of which one size grows."""

    name: str
    size: str
    points: tuple[Sizes, ...]


_TOKENS = 4096
SERIES = (
    Series(
        "window, same tokens",
        "window",
        tuple(Sizes(window=n, rows=_TOKENS // n) for n in (128, 512, 2048, 4096)),
    ),
    Series("rows", "rows", tuple(Sizes(rows=n) for n in (4, 16, 64))),
    Series("layers", "layers", tuple(Sizes(layers=n) for n in (1, 2, 4))),
    *(
        Series(
            f"items, {loss}",
            "items",
            tuple(Sizes(rows=2, items=n, loss=loss) for n in (10_000, 100_000, 1_000_000)),
        )
        for loss in ("chunked", "sampled")
    ),
)
QUICK = (Series("window, same tokens", "window", (Sizes(8, 4, 1, 50), Sizes(16, 2, 1, 50))),)
WIDTH, HEADS, NEGATIVES = 64, 2, 1024


@functools.cache
def _log(window: int, rows: int, items: int) -> Any:
    return make_log(
        pathlib.Path("unwritten"),
        4 * rows * (window + 1),
        num_items=items,
        person_events=window + 1,
        vary=False,
    )


def measure(sizes: Sizes, num_rounds: int) -> dict[str, Any]:
    """Compiles the step of one point and times it on one batch."""
    training = TrainingConfig(
        window=sizes.window,
        requests=sizes.window,
        batch_rows=sizes.rows,
        loss=sizes.loss,
        num_negatives=min(NEGATIVES, sizes.items),
    )
    # Counts of the crowd are looked up, whatever the sizes; making them for random logs takes long.
    model = ModelConfig(num_layers=sizes.layers, width=WIDTH, num_heads=HEADS, use_crowd=False)
    num_devices = jax.device_count() if sizes.rows % jax.device_count() == 0 else 1
    log = _log(sizes.window, sizes.rows, sizes.items)
    devices = DeviceConfig(mesh_data=num_devices)
    setup = set_up(log, training, model, ProtocolConfig(), devices)
    flops = step_flops(
        setup.model.config,
        setup.model.sizes,
        rows=sizes.rows,
        tokens=sizes.window,
        requests=sizes.window,
        # Its draws, and with them the targets of the whole batch.
        scored_items=None
        if sizes.loss != "sampled"
        else training.num_negatives + min(sizes.items + 1, sizes.rows * sizes.window),
    )
    with jax.set_mesh(setup.placement.mesh):
        state = setup.initial_state()
        history, requests = setup.put(setup.batches[0])
        args = (setup.items, history, requests)
        step = (
            make_train_step(
                setup.model, setup.optimizer, training, setup.placement, setup.shardings
            )
            .lower(state, *args)
            .compile()
        )

        def run() -> Any:
            nonlocal state
            state, measures = step(state, *args)
            return measures

        times = timing.alternate({"step": run}, num_rounds, num_warmups=2)["step"]
        events = float(run()["requests"])
    floor_ms = 1e3 * flops / (num_devices * speed.peak_flops("float32"))
    return {
        **dataclasses.asdict(sizes),
        "width": WIDTH,
        "devices": num_devices,
        "step_ms": round(times.median_ms, 2),
        "spread_ms": round(times.spread_ms, 2),
        "events_per_s": round(1e3 * events / times.median_ms),
        "step_gflop": round(flops / 1e9, 3),
        "floor_ms": round(floor_ms, 2),
        "fraction_of_floor": round(floor_ms / times.median_ms, 3),
        "temp_mb": round(step.memory_analysis().temp_size_in_bytes / 1e6, 1),
    }


def exponent(sizes: list[float], values: list[float]) -> float:
    """The power of the size that the values grow with, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def bench(series: Series, num_rounds: int) -> list[dict[str, Any]]:
    """The rows of one series, each with the exponents of the whole."""
    rows = []
    for sizes in series.points:
        row = {"series": series.name, **measure(sizes, num_rounds)}
        print(
            f"{series.name:20s} {row[series.size]:9,} {row['step_ms']:10.1f} ms "
            f"(+-{row['spread_ms']:.1f}) {row['events_per_s']:10,} events/s "
            f"{row['fraction_of_floor']:.2f} of floor {row['temp_mb']:8.1f} MB",
            flush=True,
        )
        rows.append(row)
    xs = [row[series.size] for row in rows]
    fitted = {
        "varied": series.size,
        "exponent": round(exponent(xs, [row["step_ms"] for row in rows]), 3),
        "flop_exponent": round(exponent(xs, [row["step_gflop"] for row in rows]), 3),
    }
    print(f"{series.name:20s} step time ~ {series.size}^{fitted['exponent']}", flush=True)
    return [row | fitted | timing.environment() for row in rows]


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Step time over size, both logarithmic, a panel a varied size."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    varied = list(dict.fromkeys(row["varied"] for row in rows))
    figure, axes = pyplot.subplots(1, len(varied), figsize=(3 * len(varied), 2.8))
    for panel, size in zip(np.atleast_1d(axes), varied, strict=True):
        for name in dict.fromkeys(row["series"] for row in rows if row["varied"] == size):
            points = [row for row in rows if row["series"] == name]
            label = f"{name}: {points[0]['exponent']:.2f}"
            panel.loglog(
                [p[size] for p in points], [p["step_ms"] for p in points], "o-", label=label
            )
        panel.set_xlabel(size)
        panel.legend(fontsize=7, title="exponent", title_fontsize=7)
        panel.grid(visible=True, which="major", alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("step, ms")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two tiny points")
    parser.add_argument("--series", help="only those whose name begins so")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each point that count")
    parser.add_argument("--output", type=pathlib.Path, help="where to write the rows")
    parser.add_argument("--plot", type=pathlib.Path, help="where to draw them (needs matplotlib)")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    if options.output and options.output.exists() and options.series:
        rows = [json.loads(line) for line in options.output.read_text().splitlines()]
    for series in QUICK if options.quick else SERIES:
        if series.name.startswith(options.series or ""):
            rows = [row for row in rows if row["series"] != series.name]
            rows += bench(series, 2 if options.quick else options.rounds)
            if options.output:
                timing.write_rows(options.output, rows)
    if options.plot:
        plot(rows, options.plot)
    return 0


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    sys.exit(main())
