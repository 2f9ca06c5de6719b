"""Does a training that is killed again and again end with the bits of one that never was?

A run on a generated city is killed by SIGKILL after a random time and started again with the same
command, as often as asked. Parameters, validation metrics and training losses at the end are
compared with those of a run that nobody touched.

    python -m benchmarks.bench_resume --kills=10 --output=benchmarks/results/resume.json
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from benchmarks import timing
from stt_jax.config import CityConfig, PrepareConfig
from stt_jax.data.preparation import prepare_log
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.store import open_log
from stt_jax.data.synthetic import LOG_NAME, generate_city, write_city
from stt_jax.training.run import load_run

OPTIONS = (
    "--window=32",
    "--requests=16",
    "--batch_rows=8",
    "--width=16",
    "--num_layers=1",
    # These keep nothing over a step, and compiling them takes longest.
    "--attention=reference",
    "--use_sequel=false",
    "--use_crowd=false",
    "--patience=0",
    "--checkpoint_every=7",
    "--keep=3",
)
QUICK = ("--use_pointer=false", "--use_place=false")  # compiles in two thirds of the time


def make_log(folder: pathlib.Path) -> PreparedLog:
    """A small city's prepared log."""
    city = CityConfig(output=str(folder / "city"), num_users=40, num_days=14)
    write_city(generate_city(city), city.output)
    return prepare_log(
        PrepareConfig(
            input=(str(folder / "city" / LOG_NAME),),
            output=str(folder / "log"),
            item="place_id",
            time="time",
            latitude="latitude",
            longitude="longitude",
            utc_offset_column="utc_offset_min",
        )
    )


def command(log: PreparedLog, run: pathlib.Path, *options: str) -> list[str]:
    """The command line that trains on `log` into `run`."""
    where = [f"--data={log.directory}", f"--run={run}"]
    return [sys.executable, "-m", "stt_jax.train", *where, *OPTIONS, *options]


def reports(run: pathlib.Path) -> list[dict]:
    """What a run has reported, but for times and speeds."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name != "time_s"}
        for line in lines
        if line["kind"] != "speed"
    ]


def kill_and_finish(arguments: list[str], run: pathlib.Path, kills: int, seed: int) -> list[int]:
    """Kills a training so many times, each after a new checkpoint, then lets it end.

    Returns:
      The newest checkpoint at each kill.
    """
    draw = random.Random(seed)
    newest = [0]
    for number in range(kills):
        log_path = run.parent / f"{run.name}-{number}.log"
        with log_path.open("wb") as output:
            process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT)
        while newest_checkpoint(run) <= newest[-1] and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        if process.poll() is not None:
            raise RuntimeError(f"it ended before it was killed: {log_path.read_text()[-2000:]}")
        process.kill()
        process.wait()
        newest.append(newest_checkpoint(run))
    subprocess.run(arguments, check=True, capture_output=True)
    return newest[1:]


def newest_checkpoint(run: pathlib.Path) -> int:
    """Its step; 0 = none."""
    folder = run / "checkpoints"
    return max([0, *(int(path.name) for path in folder.glob("*") if path.name.isdecimal())])


def main(argv=None):
    """Runs both, compares, and writes one JSON row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--epochs", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    parser.add_argument("--quick", action="store_true", help="one kill, a smaller model")
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args(argv)
    kills, epochs = (1, 4.0) if options.quick else (options.kills, options.epochs)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        log = make_log(folder)
        whole, killed = folder / "whole", folder / "killed"
        chosen = (f"--epochs={epochs}", *(QUICK if options.quick else ()))
        subprocess.run(command(log, whole, *chosen), check=True, capture_output=True)
        steps = kill_and_finish(command(log, killed, *chosen), killed, kills, options.seed)
        left, right = (load_run(run, open_log(log.directory)) for run in (whole, killed))
        pairs = zip(jax.tree.leaves(left.params), jax.tree.leaves(right.params), strict=True)
        row = {
            "kills": kills,
            "newest_checkpoints_at_kills": steps,
            "steps": reports(whole)[-1]["step"],
            "same_parameters": all(np.array_equal(a, b) for a, b in pairs),
            "same_reports": reports(whole) == reports(killed),
            **timing.environment(),
        }
    print(json.dumps(row, indent=1))
    if options.output:
        timing.write_rows(options.output, [row])
    return int(not (row["same_parameters"] and row["same_reports"]))


if __name__ == "__main__":
    sys.exit(main())
