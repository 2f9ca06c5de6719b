"""Evaluate a trained run over the full catalogue, beside the counting baselines.

    python -m stt_jax.evaluate --run=runs/nyc

Prints a table for each request mode (request time unknown and known) and writes a JSON report.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import rich.box
import rich.table

from stt_jax import command
from stt_jax.config import DeviceConfig, EvaluationConfig
from stt_jax.data.store import open_log
from stt_jax.evaluation import evaluate_model, write_report
from stt_jax.training.run import load_run, read_run_files
from stt_jax.training.sharding import connect

_COLUMNS = {
    "accuracy@1": "accuracy",
    "recall@10": "recall@10",
    "f1@10": "F1@10",
    "hr@10": "HR@10",
    "ndcg@10": "NDCG@10",
    "mrr": "MRR",
}


def evaluate(evaluation: EvaluationConfig, devices: DeviceConfig) -> None:
    """Evaluates, prints and writes the report."""
    if not evaluation.run:
        raise ValueError("--run is missing: name the directory of a trained run")
    connect(devices)
    directory = pathlib.Path(evaluation.run)
    _, configs = read_run_files(directory)
    output = pathlib.Path(evaluation.output or directory / f"evaluation-{evaluation.part}.json")
    if jax.process_index() == 0:
        _make_place(output)
    log = open_log(evaluation.data or configs["training"].data)
    others = [load_run(other, log) for other in evaluation.together_with]
    report = evaluate_model(load_run(directory, log), log, evaluation, devices, others)
    if jax.process_index() != 0:
        return
    write_report(report, output)
    print_report(report)
    print(f"report in {output}")


def _make_place(output: pathlib.Path) -> None:
    """Makes the folder of the report, before any work is done for it.

    Raises:
      ValueError: the report cannot lie there.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output={output}: its folder cannot be made: {error}") from error
    if output.is_dir() or not os.access(output if output.exists() else output.parent, os.W_OK):
        raise ValueError(f"--output={output} is a folder or may not be written; name another file")


def print_report(report: dict[str, Any]) -> None:
    """Prints one table a request mode."""
    console = command.table_console()
    counts = report["num_targets"]
    console.print(
        f"{report['part']}: {counts['known']:,} targets ({report['targets']}, context "
        f"{report['context']}), split {report['split_hash'][:12]}; left out as unseen in training: "
        f"{counts['unseen_person']:,} of new people, {counts['unseen_item']:,} of new items; "
        f"{counts['in_part'] - counts['evaluated']:,} not drawn",
        soft_wrap=True,
    )
    if report.get("baselines_tuned_on") == 0:
        console.print("no target to validate on: the baselines have default options")
    if not report.get("best_possible_is_bound", True):
        console.print(
            "the best possible is over all places, also those that training does not know, whose "
            "targets are left out here: it may be passed",
            soft_wrap=True,
        )
    for mode, results in report["modes"].items():
        table = rich.table.Table(
            title=f"request time {mode}", title_justify="left", box=rich.box.SIMPLE
        )
        table.add_column("", no_wrap=True)
        for title in _COLUMNS.values():
            table.add_column(title, justify="right", no_wrap=True)
        rows = {**results.get("baselines", {}), "model": results["model"]}
        if "best_possible" in results:
            rows["best possible"] = results["best_possible"]
        for name, metrics in rows.items():
            table.add_row(name, *(f"{metrics[key]:.4f}" for key in _COLUMNS))
        console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    groups = {"evaluation": EvaluationConfig, "devices": DeviceConfig}
    return command.run(evaluate, groups, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
