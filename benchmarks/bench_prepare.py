"""How long does preparing take, how much memory, and does it grow with the events only?

    python -m benchmarks.bench_prepare --sizes=1e6,1e7 --data=../shared/data
    python -m benchmarks.bench_prepare --quick

Each row runs the command line in a process of its own and takes its wall time, its time on the
CPUs (of all threads: what counts where others compute as well), its peak of resident memory, and
the wall time of each step (loading the table engine is in the first one's).
Synthetic events are drawn here (a skewed catalogue, people of many activity levels, one place an
item) and written as CSV; making them is not timed. Real logs run by their flagfiles.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv

from benchmarks import timing

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "prepare.json"
LOGS = ("nyc", "globo")
ROUNDS = 5  # of a real log, which takes seconds; the row is the run in the middle
_BLOCK = 1_000_000
_START_S, _SPAN_S = 1_600_000_000, 365 * 86_400
# What every synthetic run is asked to do.
FLAGS = (
    "--user=user_id",
    "--item=item_id",
    "--time=time",
    "--latitude=latitude",
    "--longitude=longitude",
    "--category=category",
    "--utc_offset_minutes=60",
    "--unzoned_times=utc",
    "--dedupe_window_s=30",
    "--max_events_per_day=500",
    "--session_gap_h=12",
    "--memory_gb=4",
)
_MEASURE = """
import json, resource, sys, time
from stt_jax import command, prepare
steps, last = [], time.perf_counter()
def take_time(count, step=prepare.print_step):
    step(count)
    end_step(count.name)
def end_step(name):
    global last
    steps.append([name, round(time.perf_counter() - last, 2)])
    last = time.perf_counter()
prepare.print_step = take_time
def main():
    code = prepare.main(["prepare.py", *sys.argv[1:]])
    end_step("assemble, write, report")
    used = resource.getrusage(resource.RUSAGE_SELF)
    measured = {"cpu": used.ru_utime + used.ru_stime, "peak_kb": used.ru_maxrss, "steps": steps}
    print(json.dumps(measured), file=sys.stderr)
    return code
command.run_process(main)
"""


def write_events(path: pathlib.Path, num_events: int, seed: int = 1) -> None:
    """A CSV of synthetic events in the order of time: about 100 events a user, 10 an item."""
    rng = np.random.default_rng(seed)
    num_users, num_items = max(10, num_events // 100), max(20, min(200_000, num_events // 10))
    places = np.stack([rng.normal(48, 2, num_items), rng.normal(11, 4, num_items)], 1).round(6)
    with pyarrow.csv.CSVWriter(path, _table(rng, 0, 0, 1, num_users, places).schema) as writer:
        for first in range(0, num_events, _BLOCK):
            count = min(_BLOCK, num_events - first)
            writer.write_table(_table(rng, first, count, num_events, num_users, places))


def _table(
    rng: np.random.Generator,
    first: int,
    count: int,
    num_events: int,
    num_users: int,
    places: np.ndarray,
) -> pa.Table:
    users = (num_users * rng.random(count) ** 2).astype(np.int64)
    items = (len(places) * rng.random(count) ** 3).astype(np.int64)
    times = _START_S + (np.arange(first, first + count) * (_SPAN_S / num_events)).astype(np.int64)
    return pa.table(
        {
            "user_id": users,
            "item_id": items,
            "time": times,
            "latitude": places[items, 0],
            "longitude": places[items, 1],
            "category": items % 97,
        }
    )


def measure(flags: Sequence[str], name: str, cache: str) -> dict:
    """Runs one preparation; a row for the result file. `cache` is a folder for bytecode."""
    load = round(os.getloadavg()[0], 1)
    # Modules are compiled once, as those of an installed package are.
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", "PYTHONPYCACHEPREFIX": cache}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *flags],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip()}")
    measured = json.loads(done.stderr.splitlines()[-1])
    output = pathlib.Path(next(f for f in flags if f.startswith("--output=")).split("=", 1)[1])
    meta = json.loads((output / "meta.json").read_text(encoding="utf-8"))
    return {
        "name": name,
        "rows_read": sum(s["rows_in"] for s in meta["steps"] if s["name"].startswith("read ")),
        "events": meta["statistics"]["num_events"],
        "seconds": round(seconds, 2),
        "cpu_seconds": round(measured["cpu"], 2),
        "peak_gb": round(measured["peak_kb"] * 1024 / 1e9, 2),
        "load_before": load,
        "step_seconds": measured["steps"],
    }


def measure_synthetic(num_events: int, folder: str) -> dict:
    """A row of drawn events; files and bytecode go to `folder`."""
    path = pathlib.Path(folder) / "events.csv"
    write_events(path, num_events)
    flags = [f"--input={path}", f"--output={folder}/{num_events}", "--overwrite", *FLAGS]
    row = measure(flags, f"synthetic {num_events:,}", f"{folder}/cache")
    return row | {"csv_gb": round(path.stat().st_size / 1e9, 3)}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1e6,1e7", help="synthetic events; empty: none")
    parser.add_argument("--data", help="folder of the real logs; left out: none of them")
    parser.add_argument("--quick", action="store_true", help="ten thousand events, no file")
    parser.add_argument("--output", default=str(RESULTS), help="rows of other names there stay")
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench_prepare_") as folder:
        if not options.quick:  # whoever is first compiles every module
            measure_synthetic(10_000, folder)
        for log in LOGS if options.data and not options.quick else ():
            flags = [
                f"--flagfile=configs/prepare/{log}.flags",
                f"--data_root={pathlib.Path(options.data).absolute()}",
                f"--output={folder}/{log}",
            ]
            runs = [measure([*flags, "--overwrite"], log, f"{folder}/cache") for _ in range(ROUNDS)]
            rows.append(sorted(runs, key=lambda row: row["seconds"])[ROUNDS // 2])
            print(json.dumps(rows[-1]), flush=True)
        sizes = [1e4] if options.quick else map(float, filter(None, options.sizes.split(",")))
        for size in map(int, sizes):
            rows.append(measure_synthetic(size, folder))
            print(json.dumps(rows[-1]), flush=True)
    if not options.quick:
        merge_results(pathlib.Path(options.output), rows)
    return 0


def merge_results(path: pathlib.Path, rows: Sequence[dict]) -> None:
    """Puts rows into a result file, each in the place of the one of its name there."""
    before = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    found = {row["name"]: row for row in [*before, *rows]}
    results = {"environment": timing.environment(), "rows": list(found.values())}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
