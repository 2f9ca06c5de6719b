"""How good are RecTools' SASRec and HSTU on a suite's log? Rows for the table of bench_quality.

    python -m benchmarks.bench_rectools --suite=ml100k --data=prepared/ml100k
        --rectools=ENVIRONMENT/bin/python

Every size and learning rate is trained until the validation part has liked no epoch better for
`--patience` times `--step_epochs` epochs; the state that it likes best is the model's. The best
try's best state is asked for the test part: its test ranks are taken when validation likes it best,
and read only of the state that is chosen in the end. More seeds repeat the chosen try. The suite
says how long a history is (what our model is asked with), what is asked, which targets are drawn,
and whether what a person has had is left out: as for our own rows. All else is RecTools' default or
its tutorial's (`peers/rectools_tuned.py`). Ranks are among all items.

Jobs and answers lie in `--work`: an answer that is there is not worked out again, so they can also
be made elsewhere (`python rectools_tuned.py JOB ANSWER`, on a GPU if PyTorch finds one).

Puts the rows into benchmarks/results/quality/SUITE.json, beside those of bench_quality.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.bench_quality import SUITES
from stt_jax import command
from stt_jax.config import check, option
from stt_jax.config.flagfile import from_flagfile
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import Targets, find_targets
from stt_jax.data.schema import TEST, VALIDATION
from stt_jax.data.store import open_log
from stt_jax.metrics import ranking_metrics
from stt_jax.training.run import FLAG_GROUPS

METRICS = ("accuracy@1", "recall@10", "f1@10", "hr@5", "hr@10", "hr@20", "ndcg@10", "mrr")
MODELS = {"sasrec": "RecTools SASRec", "hstu": "RecTools HSTU"}
_CLIENT = pathlib.Path(__file__).parent / "peers" / "rectools_tuned.py"


@dataclasses.dataclass(frozen=True)
class RecToolsConfig:
    """Which log, and how long the peers are tuned."""

    suite: str = option("ml100k", "The suite of bench_quality.", choices=tuple(SUITES))
    data: str = option("", "The prepared log.")
    rectools: str = option("", "Python of an environment with RecTools.")
    models: tuple[str, ...] = option(tuple(MODELS), "Which of sasrec, hstu.")
    sizes: tuple[str, ...] = option(
        ("64x2x2", "256x4x2"), "To choose from: width x heads x blocks; the second is the default."
    )
    learning_rates: tuple[str, ...] = option(("0.001",), "Rates to choose from.")
    dropout: float = option(0.2, "Of both models.")
    rows: int = option(128, "Histories of a batch.")
    step_epochs: int = option(2, "Epochs between validations.")
    max_epochs: int = option(100, "Most epochs of a try.")
    patience: int = option(4, "Validations without a better one before a try is given up.")
    seeds: int = option(1, "Seeds of the chosen try.")
    max_targets: int = option(20_000, "Most test targets, as of bench_quality.")
    validation_targets: int = option(4_000, "Most validation targets, drawn by a fixed seed.")
    threads: int = option(2, "Of PyTorch.")
    work: str = option("runs/rectools", "Folder of jobs and answers.")
    output: str = option("benchmarks/results/quality", "Folder of SUITE.json.")

    def __post_init__(self) -> None:
        check(bool(self.data and self.rectools), "--data and --rectools must be given")
        check(set(self.models) <= set(MODELS), f"--models={','.join(self.models)} are not known")


def bench(peers: RecToolsConfig) -> None:
    """Trains, chooses, asks and writes."""
    log = open_log(peers.data)
    path = pathlib.Path(peers.output) / f"{peers.suite}.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    if results["split_hash"] != log.meta.split_hash:
        raise ValueError(f"{path} is of another split than {peers.data}")
    jobs = make_jobs(peers, log)
    for name in peers.models:
        of_model = [job for job in jobs if job["model"] == name]
        tries = [(job, _answer(peers, job)) for job in of_model if job["seed"] == 0]
        best, of_best = max(tries, key=lambda one: one[1]["validation_mrr"])
        more = [job for job in of_model if {**job, "seed": 0} == best and job["seed"] > 0]
        chosen = [of_best, *(_answer(peers, job) for job in more)]
        row = _row(best, chosen, num_tries=len(tries))
        others = [one for one in results.get("peers", []) if one["name"] != row["name"]]
        results["peers"] = sorted([*others, row], key=lambda one: one["name"])
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"results in {path}")


def make_jobs(peers: RecToolsConfig, log: PreparedLog) -> list[dict[str, Any]]:
    """Writes the log and what is asked of it for the peers.

    Returns:
      A job for every model, size, rate and seed. Of a job's name and content only those are to be
      run that are chosen.
    """
    work = pathlib.Path(peers.work)
    work.mkdir(parents=True, exist_ok=True)
    configs = from_flagfile(f"configs/{peers.suite}.flags", FLAG_GROUPS)
    protocol = configs["validation"]
    contexts = SUITES[peers.suite].contexts
    asked = {f"test/{one}": find_targets(log, TEST, targets=protocol.targets, context=one)
             for one in contexts}  # fmt: skip
    asked = {name: one.sample(peers.max_targets, seed=0) for name, one in asked.items()}
    judged = find_targets(log, VALIDATION, targets=protocol.targets, context=contexts[0])
    judged = judged[judged.known(log)]
    asked["validation"] = judged.sample(peers.validation_targets, seed=0)
    arrays: dict[str, Any] = {
        "users": np.repeat(np.arange(log.num_users, dtype=np.int32), np.diff(log.user_offsets)),
        "items": np.asarray(log.items, np.int32),
        "times": np.asarray(log.times),
        "parts": np.asarray(log.parts, np.int8),
    }
    for name, targets in asked.items():
        known = targets[targets.known(log)]
        for field in dataclasses.fields(Targets):
            arrays[f"{name}/{field.name}"] = getattr(known, field.name).astype(np.int32)
    np.savez_compressed(work / f"{peers.suite}.npz", **arrays)
    return [
        {
            "log": f"{peers.suite}.npz",
            "split_hash": log.meta.split_hash,
            "model": model,
            "width": width,
            "heads": heads,
            "blocks": blocks,
            "length": configs["training"].asked_tokens,
            "rows": peers.rows,
            "dropout": peers.dropout,
            "learning_rate": float(rate),
            "seed": seed,
            "step_epochs": peers.step_epochs,
            "max_epochs": peers.max_epochs,
            "patience": peers.patience,
            "leave_out_seen": protocol.seen == "leave_out",
            "with_times": log.meta.has_times,
            "threads": peers.threads,
        }
        for model in peers.models
        for width, heads, blocks in (map(int, size.split("x")) for size in peers.sizes)
        for rate in peers.learning_rates
        for seed in range(peers.seeds)
    ]


def job_name(job: dict[str, Any]) -> str:
    """Of its files."""
    size = f"{job['width']}x{job['heads']}x{job['blocks']}"
    suite = job["log"].removesuffix(".npz")
    return f"{suite}-{job['model']}-{size}-{job['learning_rate']:g}-{job['seed']}"


def _answer(peers: RecToolsConfig, job: dict[str, Any]) -> dict[str, Any]:
    """The answer to a job, worked out if it is not there."""
    path = pathlib.Path(peers.work) / f"{job_name(job)}.json"
    answer = pathlib.Path(peers.work) / f"{job_name(job)}.answer.json"
    same = path.exists() and json.loads(path.read_text(encoding="utf-8")) == job
    if not (same and answer.exists() and json.loads(answer.read_text())["finished"]):
        path.write_text(json.dumps(job), encoding="utf-8")
        subprocess.run([peers.rectools, str(_CLIENT), str(path), str(answer)], check=True)
    return json.loads(answer.read_text(encoding="utf-8"))


def _row(job: dict[str, Any], chosen: Sequence[dict[str, Any]], num_tries: int) -> dict[str, Any]:
    first = chosen[0]
    # What does not read the request's time answers the same whether it is known or not.
    modes = ("known",) if first["time"] == "known" else ("unknown", "known")
    metrics: dict[str, Any] = {}
    for context in first["ranks"]:
        found = [ranking_metrics(np.array(one["ranks"][context]), (1, 5, 10, 20)) for one in chosen]
        summary = {name: _summary([one[name] for one in found]) for name in METRICS}
        metrics |= {f"{context}/{mode}": summary for mode in modes}
    sizes = ("width", "heads", "blocks", "length", "learning_rate")
    return {
        "name": MODELS[job["model"]],
        **{name: job[name] for name in sizes},
        "tries": num_tries,
        "epochs": [one["epochs"] for one in chosen],
        "parameters": first["parameters"],
        "versions": first["versions"],
        "minutes": statistics.fmean(one["minutes"] for one in chosen),
        "device": first["device"],
        "metrics": metrics,
        "commit": timing.environment()["commit"],
    }


def _summary(values: list[float]) -> dict[str, Any]:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "sd": spread, "values": values}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(bench, {"peers": RecToolsConfig}, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
