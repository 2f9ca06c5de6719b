"""Raw log -> prepared log: `python -m stt_jax.prepare --input=log.csv.gz --output=prepared/`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from stt_jax import command
from stt_jax.config import (
    CleaningOptions,
    ColumnOptions,
    InputOptions,
    PrepareConfig,
    ProtectionOptions,
    SplitOptions,
    ValueOptions,
)
from stt_jax.data.schema import PART_NAMES, StepCount

USAGE = """
Reads a raw log (CSV, TSV, JSON lines, Parquet, RecBole; plain or gzip), cleans it, splits it into
train, validation and test, and writes a prepared log for stt_jax.train. Prints what every step did.
"""
GROUPS = {
    "files": InputOptions,
    "columns": ColumnOptions,
    "cleaning": CleaningOptions,
    "protection": ProtectionOptions,
    "split": SplitOptions,
    "values": ValueOptions,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return command.run(prepare, GROUPS, argv, usage=USAGE)


def prepare(**groups: Any) -> None:
    """Prepares the log that the option groups describe and prints the report."""
    # The table engine is slow to import; --help and wrong flags need none of it.
    from stt_jax.data.findings import iso_time
    from stt_jax.data.preparation import prepare_log

    options = {
        field.name: getattr(group, field.name)
        for group in groups.values()
        for field in dataclasses.fields(group)
    }
    config = PrepareConfig(**options)
    print(f"{'rows in':>12} {'rows out':>12}  step", flush=True)
    log = prepare_log(config, announce=print_step)
    statistics = log.meta.statistics
    print(f"time: {log.meta.time_format}; local time: {log.meta.local_time}")
    if log.meta.has_times:
        print(f"from {iso_time(log.times.min())} to {iso_time(log.times.max())}")
    print(
        f"{log.num_users:,} users ({log.num_train_users:,} in training), {log.num_items:,} items "
        f"in training, {log.num_categories:,} categories, {statistics['num_sessions']:,} sessions"
    )
    for name in PART_NAMES:
        print(
            f"{name:>12} {statistics[f'{name}_events']:>12,} events of "
            f"{statistics[f'{name}_users']:,} users; user and item known from training: "
            f"{statistics[f'{name}_known_events']:,}"
        )
    for warning in log.meta.warnings:
        print(f"warning: {warning}")
    print(f"written to {log.directory}; split {log.meta.split_hash[:16]}")


def print_step(count: StepCount) -> None:
    """One line a step, and one for each reason to drop or change rows."""
    print(f"{count.rows_in:>12,} {count.rows_out:>12,}  {count.name}")
    for verb, reasons in (("dropped", count.dropped), ("changed", count.changed)):
        for reason, number in reasons.items():
            print(f"{'':>25}    {verb} {number:,}: {reason}")
    sys.stdout.flush()


if __name__ == "__main__":
    command.run_process(main)
