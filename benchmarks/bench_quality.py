"""How good are the recommendations? Trains rows of a suite over several seeds and evaluates them.

    python -m benchmarks.bench_quality --suite=city
    python -m benchmarks.bench_quality --suite=nyc --data_root=prepared

Full-catalogue ranking on the test part, ties against the model, mean and standard deviation over
seeds; hyper-parameters are those of the flagfile. Writes
benchmarks/results/quality/SUITE.json, from which `benchmarks.tables` fills the documents. With
`--rows` some rows are run and the others of the file stay.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from stt_jax import command
from stt_jax.config import DeviceConfig, EvaluationConfig, option
from stt_jax.config.flagfile import from_flagfile
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.store import open_log
from stt_jax.evaluation import evaluate_model
from stt_jax.model.block import TABLE_SCALE
from stt_jax.training.loop import train_model
from stt_jax.training.run import FLAG_GROUPS, Run
from stt_jax.training.sharding import connect

_METRICS = ("accuracy@1", "recall@10", "f1@10", "hr@5", "hr@10", "hr@20", "ndcg@10", "mrr")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: a flagfile and what is changed in its model and in what is asked.

    `data` names another prepared log of the same test events, of which training sees more, or less
    (`knows`). With `together` the seeds are also asked as one model.
    """

    name: str
    flagfile: str
    data: str = ""
    knows: str = "more"
    model_changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    protocol_changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    together: bool = False


@dataclasses.dataclass(frozen=True)
class Suite:
    """Rows on one log; each run is evaluated with each of the contexts."""

    rows: tuple[Row, ...]
    contexts: tuple[str, ...] = ("all",)
    optimum: str = ""


def _log_suite(name: str) -> Suite:
    flagfile = f"configs/{name}.flags"
    if name.startswith("amazon"):
        more = Row("trained on most of the validation part, too", flagfile, f"{name}_more")
        return Suite((Row("whole model", flagfile, together=True), more))
    rows = [Row("whole model", flagfile)]
    if name == "ml100k":  # what other models of it are told
        rows.append(Row("not told the genres", flagfile, "ml100k_ids", knows="less"))
    return Suite(tuple(rows))


_PLAIN = ("ml100k", "ml1m", "amazon_beauty", "amazon_sports", "amazon_toys", "gowalla", "calgary",
          "online_retail")  # fmt: skip
_BLIND = {"use_time": False, "use_place": False}
_ABLATIONS: dict[str, dict[str, Any]] = {
    "without time": {"use_time": False},
    "without place": {"use_place": False},
    "without time and place": _BLIND,
    "without the gate": {"use_gate": False},
    "without the decoder": {"use_decoder": False},
    "without habits": {"habit_share": 0.0},
    "without the sequel": {"use_sequel": False},
    "without pointing": {"use_pointer": False},
}
SUITES = {
    "city": Suite(
        (
            Row("whole model", "configs/city.flags", together=True),
            Row("blind to time and place", "configs/city.flags", model_changes=_BLIND),
            Row(
                "trained on most of the validation part, too",
                "configs/city.flags",
                "city_more",
                together=True,
            ),
        ),
        optimum="city/optimum.arrow",
    ),
    "nyc": Suite(
        (
            Row("whole model", "configs/nyc.flags", together=True),
            *(
                Row(name, "configs/nyc.flags", model_changes=changes)
                for name, changes in _ABLATIONS.items()
            ),
            Row(
                "trained on the validation part, too",
                "configs/nyc.flags",
                "nyc_more",
                together=True,
            ),
        ),
        ("strict", "all"),
    ),
    "globo": Suite(
        (
            Row("whole model", "configs/globo.flags"),
            Row(
                "trends of the training part",
                "configs/globo.flags",
                protocol_changes={"trends": "training"},
            ),
        ),
    ),
    **{name: _log_suite(name) for name in _PLAIN},
}


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """Which suite is run, and how often."""

    suite: str = option("city", "The suite.", choices=tuple(SUITES))
    seeds: int = option(3, "Seeds, from 0.")
    rows: tuple[str, ...] = option((), "Numbers of the rows to run, from 0; empty = all.")
    data_root: str = option("", "Folder of the prepared log's folder; empty = as the flagfile.")
    max_targets: int = option(20_000, "Most test targets, drawn by a fixed seed; 0 = all.")
    cpu_devices: int = option(0, "Devices that the CPU is cut into, as of stt_jax.train.")
    runs: str = option("runs/quality", "Folder for the runs; finished ones are not trained again.")
    output: str = option("benchmarks/results/quality", "Folder for SUITE.json.")


def bench(quality: QualityConfig) -> None:
    """Trains and evaluates a suite and writes its results."""
    connect(DeviceConfig(cpu_devices=quality.cpu_devices))
    suite = SUITES[quality.suite]
    path = pathlib.Path(quality.output) / f"{quality.suite}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results: dict[str, Any] = {"suite": quality.suite, "rows": [], "peers": []} | before
    if not quality.rows:
        results["rows"] = []
    for number, row in enumerate(suite.rows):
        if quality.rows and number not in map(int, quality.rows):
            continue
        configs = from_flagfile(row.flagfile, FLAG_GROUPS)
        log = open_log(_path(quality, row.data or configs["training"].data))
        runs, reports = [], []
        for seed in range(quality.seeds):
            run, minutes = _train(quality, row, configs, log, seed, number)
            runs.append(run)
            asked = EvaluationConfig(
                optimum=suite.optimum,
                max_targets=quality.max_targets,
                baselines=number == 0 and seed == 0,
                # The same targets, whatever else the row's log knows.
                known_in=str(_path(quality, configs["training"].data)) if row.data else "",
            )
            reports.append(_evaluate(suite, log, run, asked) | {"minutes": minutes})
            print(f"{row.name}, seed {seed}: {json.dumps(reports[-1]['metrics'])}", flush=True)
        summary = {"name": row.name, "flagfile": row.flagfile, **_where(), **_summary(reports)}
        if row.data:
            summary |= {"data": row.data, "split_hash": log.meta.split_hash, "knows": row.knows}
        if row.together and len(runs) > 1:
            asked = dataclasses.replace(asked, baselines=False)
            of_all = _evaluate(suite, log, runs[0], asked, others=runs[1:])
            of_all["minutes"] = sum(report["minutes"] for report in reports)
            summary["together"] = _where() | _summary([of_all])
            summary["together"] |= {"name": _together(row, len(runs)), "of_seeds": len(runs)}
            if row.data:
                summary["together"]["data"] = row.data
        others = [other for other in results["rows"] if other["name"] != row.name]
        names = [known.name for known in suite.rows]
        results["rows"] = sorted([*others, summary], key=lambda one: names.index(one["name"]))
        if number == 0:
            results["split_hash"], results["data_hash"] = log.meta.split_hash, log.meta.data_hash
            results["baselines"] = with_others(before, log.meta.split_hash, reports[0])
            results |= {name: reports[0][name] for name in ("num_targets", "groups", "curves")}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"results in {path}")


def _together(row: Row, num_seeds: int) -> str:
    """The name of a row of several seeds that answer as one model."""
    return f"{num_seeds} seeds of it together" + (f", {row.name}" if row.data else "")


def with_others(
    before: dict[str, Any], split_hash: str, report: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """A run's baselines, and those that others added to an earlier file about the same targets."""
    same = (split_hash, report["num_targets"])
    if (before.get("split_hash"), before.get("num_targets")) != same:
        return report["baselines"]
    return {key: before["baselines"].get(key, {}) | own for key, own in report["baselines"].items()}


def _where() -> dict[str, Any]:
    """What the row ran on and with."""
    processor = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = models[0].partition(":")[2].strip() if models else processor
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "machine": f"{jax.device_count()} {jax.devices()[0].device_kind}, {processor}, "
        f"{os.cpu_count()} cores",
        "load": round(os.getloadavg()[2], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "commit": commit,
    }


def _path(quality: QualityConfig, data: str) -> pathlib.Path:
    """Where a prepared log lies."""
    path = pathlib.Path(data)
    return pathlib.Path(quality.data_root) / path.name if quality.data_root else path


def _train(
    quality: QualityConfig,
    row: Row,
    configs: dict[str, Any],
    log: PreparedLog,
    seed: int,
    number: int,
) -> tuple[Run, float]:
    """The run and the minutes that its training took."""
    directory = pathlib.Path(quality.runs) / f"{quality.suite}-{number}-{seed}"
    training = dataclasses.replace(configs["training"], run=str(directory), seed=seed)
    model_config = dataclasses.replace(configs["model"], **row.model_changes)
    start = time.perf_counter()
    devices = DeviceConfig(mesh_data=max(1, quality.cpu_devices))
    protocol = dataclasses.replace(configs["validation"], **row.protocol_changes)
    run = train_model(log, training, model_config, protocol, devices)
    minutes = (time.perf_counter() - start) / 60
    minutes_file = directory / "minutes.txt"  # of the training, not of finding it done
    if minutes_file.exists():
        minutes = float(minutes_file.read_text())
    minutes_file.write_text(f"{minutes}\n")
    return run, minutes


def _evaluate(
    suite: Suite, log: PreparedLog, run: Run, asked: EvaluationConfig, others: Sequence[Run] = ()
) -> dict[str, Any]:
    """What a row says of a run, or of several together, in each of the suite's contexts."""
    out: dict[str, Any] = {
        "versions": run.info.versions,
        "parameters": sum(
            leaf.size for one in (run, *others) for leaf in jax.tree.leaves(one.params)
        ),
        "metrics": {},
        "baselines": {},
        "curves": _curves(run),
    }
    for context in suite.contexts:
        config = dataclasses.replace(asked, context=context)
        report = evaluate_model(run, log, config, others=others)
        out["num_targets"] = report["num_targets"]
        out.setdefault("groups", {})
        for mode, values in report["modes"].items():
            key = f"{context}/{mode}"
            out["metrics"][key] = {name: values["model"][name] for name in _METRICS}
            out["groups"][key] = {
                kind: {
                    label: {name: of_label[name] for name in ("num_targets", "accuracy@1", "mrr")}
                    for label, of_label in labels.items()
                }
                for kind, labels in values["groups"].items()
            }
            compared = dict(values.get("baselines", {}))
            if "best_possible" in values:
                compared["best possible"] = values["best_possible"]
            out["baselines"][key] = {
                name: {metric: other[metric] for metric in _METRICS if metric in other}
                for name, other in compared.items()
            }
    return out


def _curves(run: Run) -> dict[str, list[float]]:
    """The pointer's learned offsets by bucket, mean over heads: what a gap is worth to it."""
    tables = run.params.get("pointer", {}).get("encodings", {})
    return {
        name.removesuffix("_table"): (TABLE_SCALE * np.asarray(table).mean(0)).round(4).tolist()
        for name, table in tables.items()
    }


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
        "versions": reports[0]["versions"],
        "seeds": len(reports),
        "parameters": reports[0]["parameters"],
        "minutes": statistics.fmean(report["minutes"] for report in reports),
        "metrics": metrics,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(bench, {"quality": QualityConfig}, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
