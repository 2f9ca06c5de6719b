"""How good are the recommendations? Trains rows of a suite over several seeds and evaluates them.

    python -m benchmarks.bench_quality --suite=city
    python -m benchmarks.bench_quality --suite=nyc --data_root=prepared

Full-catalogue ranking on the test part, ties against the model, mean and standard deviation over
seeds; hyper-parameters are those of the flagfile. Writes
benchmarks/results/quality/SUITE.json, from which `benchmarks.tables` fills the README.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from stt_jax import command
from stt_jax.config import EvaluationConfig, option
from stt_jax.data.store import PreparedLog, open_log
from stt_jax.evaluation import evaluate_model
from stt_jax.training.loop import train_model
from stt_jax.training.run import FLAG_GROUPS

_METRICS = ("accuracy@1", "recall@10", "f1@10", "hr@5", "hr@10", "hr@20", "ndcg@10", "mrr")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: a flagfile and what is changed in its model."""

    name: str
    flagfile: str
    model_changes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Suite:
    """Rows on one log; each run is evaluated with each of the contexts."""

    rows: tuple[Row, ...]
    contexts: tuple[str, ...] = ("all",)
    optimum: str = ""


def _log_suite(name: str, contexts: tuple[str, ...] = ("all",)) -> Suite:
    return Suite((Row("whole model", f"configs/{name}.flags"),), contexts)


_BLIND = {"use_time": False, "use_place": False}
SUITES = {
    "city": Suite(
        (
            Row("whole model", "configs/quickstart.flags"),
            Row("blind to time and place", "configs/quickstart.flags", _BLIND),
        ),
        optimum="city/optimum.arrow",
    ),
    "nyc": _log_suite("nyc", ("strict", "all")),
    "ml100k": _log_suite("ml100k"),
    "gowalla": _log_suite("gowalla"),
    "calgary": _log_suite("calgary"),
    "online_retail": _log_suite("online_retail"),
    "globo": _log_suite("globo"),
}


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """Which suite is run, and how often."""

    suite: str = option("city", "The suite.", choices=tuple(SUITES))
    seeds: int = option(3, "Seeds, from 0.")
    data_root: str = option("", "Folder of the prepared log's folder; empty = as the flagfile.")
    max_targets: int = option(20_000, "Most test targets, drawn by a fixed seed; 0 = all.")
    runs: str = option("runs/quality", "Folder for the runs; finished ones are not trained again.")
    output: str = option("benchmarks/results/quality", "Folder for SUITE.json.")


def bench(quality: QualityConfig) -> None:
    """Trains and evaluates a suite and writes its results."""
    suite = SUITES[quality.suite]
    results: dict[str, Any] = {
        "suite": quality.suite,
        "python": platform.python_version(),
        "machine": f"{jax.device_count()} {jax.devices()[0].device_kind}, {platform.processor()}",
        "rows": [],
    }
    for number, row in enumerate(suite.rows):
        configs = command.from_flagfile(row.flagfile, FLAG_GROUPS)
        log = _open(quality, configs["training"].data)
        reports = []
        for seed in range(quality.seeds):
            reports.append(_train_and_evaluate(quality, suite, row, configs, log, seed, number))
        results["split_hash"], results["data_hash"] = log.meta.split_hash, log.meta.data_hash
        results["versions"] = reports[0]["versions"]
        results["rows"].append({"name": row.name, "flagfile": row.flagfile} | _summary(reports))
        if number == 0:
            results["baselines"] = reports[0]["baselines"]
            results["num_targets"] = reports[0]["num_targets"]
    path = pathlib.Path(quality.output) / f"{quality.suite}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"results in {path}")


def _open(quality: QualityConfig, data: str) -> PreparedLog:
    path = pathlib.Path(data)
    return open_log(pathlib.Path(quality.data_root) / path.name if quality.data_root else path)


def _train_and_evaluate(
    quality: QualityConfig,
    suite: Suite,
    row: Row,
    configs: dict[str, Any],
    log: PreparedLog,
    seed: int,
    number: int,
) -> dict[str, Any]:
    directory = pathlib.Path(quality.runs) / f"{quality.suite}-{number}-{seed}"
    training = dataclasses.replace(configs["training"], run=str(directory), seed=seed)
    model_config = dataclasses.replace(configs["model"], **row.model_changes)
    start = time.perf_counter()
    run = train_model(log, training, model_config, configs["validation"])
    minutes = (time.perf_counter() - start) / 60
    minutes_file = directory / "minutes.txt"  # of the training, not of finding it done
    if minutes_file.exists():
        minutes = float(minutes_file.read_text())
    minutes_file.write_text(f"{minutes}\n")
    out: dict[str, Any] = {
        "versions": run.info.versions,
        "minutes": minutes,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.params)),
        "metrics": {},
        "baselines": {},
    }
    for context in suite.contexts:
        config = EvaluationConfig(
            context=context,
            optimum=suite.optimum,
            max_targets=quality.max_targets,
            baselines=number == 0 and seed == 0,
        )
        report = evaluate_model(run, log, config)
        out["num_targets"] = report["num_targets"]
        for mode, values in report["modes"].items():
            key = f"{context}/{mode}"
            out["metrics"][key] = {name: values["model"][name] for name in _METRICS}
            others = dict(values.get("baselines", {}))
            if "best_possible" in values:
                others["best possible"] = values["best_possible"]
            out["baselines"][key] = {
                name: {metric: other[metric] for metric in _METRICS if metric in other}
                for name, other in others.items()
            }
    print(f"{row.name}, seed {seed}: {json.dumps(out['metrics'])}", flush=True)
    return out


def _summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for key in reports[0]["metrics"]:
        metrics[key] = {}
        for name in _METRICS:
            values = [report["metrics"][key][name] for report in reports]
            metrics[key][name] = {
                "mean": statistics.fmean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
                "values": values,
            }
    return {
        "parameters": reports[0]["parameters"],
        "minutes": statistics.fmean(report["minutes"] for report in reports),
        "metrics": metrics,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(bench, {"quality": QualityConfig}, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
