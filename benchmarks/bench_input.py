"""How fast are batches made from the memory-mapped log, and how much memory does that take?

Writes a random log, opens it in a process of its own, and reads batches as training does: through
grain, one thread reading ahead. Reported are events asked for a second, tokens a second, and the
private memory of that process (the mapped file is the page cache's, which gives way when memory is
short): once the windows are packed, and the most while batches are read. What is kept is a few
numbers a window, nothing an event.

    python -m benchmarks.bench_input --quick
    python -m benchmarks.bench_input --events=1000000,10000000,100000000
        --output=benchmarks/results/input_cpu.json
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import grain

from benchmarks import timing
from benchmarks.made_log import make_log
from stt_jax.data.pipeline import TrainingBatches
from stt_jax.data.store import open_log, write_log
from stt_jax.training.loop import READ_AHEAD

NUM_ITEMS = 10_000
PERSON_EVENTS = 200
SHAPE: dict[str, Any] = {"window": 200, "requests": 200, "batch_rows": 64}
QUICK_EVENTS, QUICK_BATCHES = 20_000, 5


def read(folder: str, num_batches: int) -> dict[str, float]:
    """Opens the log in `folder` and reads so many batches; what that took."""
    start_bytes = private_bytes()
    start = time.perf_counter()
    batches = TrainingBatches(open_log(folder), **SHAPE, seed=0)
    data = iter(grain.MapDataset.source(batches).to_iter_dataset(READ_AHEAD))
    next(data)
    opened_s, packed_bytes = time.perf_counter() - start, private_bytes()
    most_bytes = packed_bytes
    tokens = events = 0
    start = time.perf_counter()
    for number in range(num_batches):
        history, requests = next(data)
        tokens += int((history.segment_ids > 0).sum())
        events += int((requests.targets > 0).sum())
        if number % 10 == 0:
            most_bytes = max(most_bytes, private_bytes())
    seconds = time.perf_counter() - start
    return {
        "opened_s": round(opened_s, 2),
        "batches": num_batches,
        "events_per_s": round(events / seconds),
        "tokens_per_s": round(tokens / seconds),
        "fill": round(batches.fill, 4),
        "start_mb": round(start_bytes / 1e6),
        "packed_mb": round(packed_bytes / 1e6),
        "most_mb": round(max(most_bytes, private_bytes()) / 1e6),
    }


def private_bytes() -> int:
    """Memory of this process that is no mapped file: RssAnon of Linux."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status does not say RssAnon: this benchmark needs Linux")


def bench(num_events: int, num_batches: int, *, apart: bool) -> dict[str, object]:
    """One row: makes the log, reads it (`apart`: in a new process), removes it."""
    with tempfile.TemporaryDirectory() as folder:
        log = make_log(
            pathlib.Path(folder) / "log",
            num_events,
            num_items=NUM_ITEMS,
            person_events=PERSON_EVENTS,
        )
        write_log(log, "")
        made = {"events": log.num_events, "people": log.num_users}
        made["file_mb"] = round(sum(f.stat().st_size for f in log.directory.iterdir()) / 1e6)
        path = str(log.directory)
        del log
        if apart:
            command = [sys.executable, "-m", "benchmarks.bench_input", "--read", path]
            command += ["--batches", str(num_batches)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        else:
            found = read(path, num_batches)
    row = {**made, **SHAPE, **found, **timing.environment()}
    print(
        f"{row['events']:12,} events  {row['events_per_s']:12,} events/s  "
        f"{row['tokens_per_s']:12,} tokens/s  opened in {row['opened_s']} s  "
        f"{row['start_mb']} -> {row['packed_mb']} -> {row['most_mb']} MB",
        flush=True,
    )
    return row


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small log, in this process")
    parser.add_argument("--events", default="1000000,10000000,100000000", help="sizes of the logs")
    parser.add_argument("--batches", type=int, default=400, help="batches that are read")
    parser.add_argument("--read", help="only read the log in this folder")
    parser.add_argument("--output", type=pathlib.Path, help="where to write the rows")
    options = parser.parse_args(argv)
    if options.read:
        print(json.dumps(read(options.read, options.batches)))
        return 0
    if options.quick:
        rows = [bench(QUICK_EVENTS, QUICK_BATCHES, apart=False)]
    else:
        sizes = [int(size) for size in options.events.split(",")]
        rows = [bench(size, options.batches, apart=True) for size in sizes]
    if options.output:
        timing.write_rows(options.output, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
