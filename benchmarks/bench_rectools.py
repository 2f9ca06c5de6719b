"""How good are RecTools' SASRec and HSTU on a suite's log? Rows for the table of bench_quality.

    python -m benchmarks.bench_rectools --suite=ml100k --data=prepared/ml100k
        --rectools=ENVIRONMENT/bin/python

Each learning rate is trained by `--step_epochs` at a time; the state with the best validation MRR
so far is the model's, and a rate is given up after `--patience` such steps without a better one.
The best rate's best state is asked for the test part: its test ranks are taken when validation
likes it best, and read only of the state that is chosen in the end. More seeds repeat the chosen
rate. Sizes and all else are the suite's window and RecTools' defaults; whether what a person has
had is left out is as in the suite's flagfile, and so is what is asked. Ranks are among all items.

Puts the rows into benchmarks/results/quality/SUITE.json, beside those of bench_quality.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.bench_training import MOVIELENS, export
from benchmarks.peers.client import Client
from stt_jax import command
from stt_jax.config import check, option
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.schema import TEST, VALIDATION
from stt_jax.data.store import open_log
from stt_jax.metrics import ranking_metrics
from stt_jax.training.run import FLAG_GROUPS

METRICS = ("accuracy@1", "recall@10", "f1@10", "hr@5", "hr@10", "hr@20", "ndcg@10", "mrr")
MODELS = {"sasrec": "RecTools SASRec", "hstu": "RecTools HSTU"}


@dataclasses.dataclass(frozen=True)
class RecToolsConfig:
    """Which log, and how long the peers are tuned."""

    suite: str = option("ml100k", "The suite of bench_quality; one that asks for the last events.")
    data: str = option("", "The prepared log.")
    rectools: str = option("", "Python of an environment with RecTools.")
    models: tuple[str, ...] = option(tuple(MODELS), "Which of sasrec, hstu.")
    learning_rates: tuple[str, ...] = option(("0.001", "0.003"), "Rates to choose from.")
    dropout: float = option(0.2, "Of both models.")
    step_epochs: int = option(5, "Epochs between validations.")
    max_epochs: int = option(40, "Most epochs of a rate.")
    patience: int = option(2, "Validations without a better one before a rate is given up.")
    seeds: int = option(1, "Seeds of the chosen rate.")
    output: str = option("benchmarks/results/quality", "Folder of SUITE.json.")

    def __post_init__(self) -> None:
        check(bool(self.data and self.rectools), "--data and --rectools must be given")
        check(set(self.models) <= set(MODELS), f"--models={','.join(self.models)} are not known")


def bench(peers: RecToolsConfig) -> None:
    """Trains, chooses, asks and writes."""
    log = open_log(peers.data)
    configs = command.from_flagfile(f"configs/{peers.suite}.flags", FLAG_GROUPS)
    if configs["validation"].targets != "last":
        raise ValueError(f"--suite={peers.suite} does not ask for the last events")
    path = pathlib.Path(peers.output) / f"{peers.suite}.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    if results["split_hash"] != log.meta.split_hash:
        raise ValueError(f"{path} is of another split than {peers.data}")
    leave_out_seen = configs["validation"].seen == "leave_out"
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "log": export(log, folder),
            "blocks": MOVIELENS["blocks"],
            "width": MOVIELENS["width"],
            "heads": MOVIELENS["heads"],
            "length": configs["training"].window,
            "rows": MOVIELENS["rows"],
            "dropout": peers.dropout,
            "folder": folder,
        }
        for name in peers.models:
            tries = [
                _train(peers, options, name, float(rate), 0, log, leave_out_seen)
                for rate in peers.learning_rates
            ]
            best = max(tries, key=lambda one: one["validation_mrr"])
            chosen = [best] + [
                _train(peers, options, name, best["rate"], seed, log, leave_out_seen)
                for seed in range(1, peers.seeds)
            ]
            row = _row(MODELS[name], chosen)
            others = [one for one in results.get("peers", []) if one["name"] != row["name"]]
            results["peers"] = sorted([*others, row], key=lambda one: one["name"])
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"results in {path}")


def _train(
    peers: RecToolsConfig,
    options: dict[str, Any],
    name: str,
    rate: float,
    seed: int,
    log: PreparedLog,
    leave_out_seen: bool,
) -> dict[str, Any]:
    """The best state of one rate and seed, by validation."""
    start = time.perf_counter()
    request = {**options, "model": name, "learning_rate": rate, "seed": seed}
    client = Client(peers.rectools, "rectools_sequential.py", request, {})
    best: dict[str, Any] = {"validation_mrr": -1.0}
    epochs, since = 1, 0  # the client has trained one to say that it is ready
    while epochs < peers.max_epochs and since < peers.patience:
        more = min(peers.step_epochs - epochs % peers.step_epochs, peers.max_epochs - epochs)
        client(epochs=more)
        epochs += more
        ask = {"rank": log.num_items, "leave_out_seen": leave_out_seen}
        found = client(part=VALIDATION, **ask)
        mrr = ranking_metrics(_of_known_items(found, log, VALIDATION), (10,))["mrr"]
        print(f"{name}, rate {rate:g}, seed {seed}: {epochs} epochs, MRR {mrr:.4f}", flush=True)
        since += 1
        if mrr > best["validation_mrr"]:
            since = 0
            ranks = _of_known_items(client(part=TEST, **ask), log, TEST)
            best = {"validation_mrr": mrr, "epochs": epochs, "ranks": ranks, "time": found["time"]}
    client.stop()
    minutes = (time.perf_counter() - start) / 60
    return {"rate": rate, "minutes": minutes, "ready": client.ready, **best}


def _of_known_items(answer: dict[str, Any], log: PreparedLog, part: int) -> np.ndarray:
    """The ranks of a part's events, without those of items that training did not know."""
    return np.array(answer["ranks"])[log.items[log.parts == part] > 0]


def _row(name: str, chosen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    metrics = [ranking_metrics(one["ranks"], (1, 5, 10, 20)) for one in chosen]
    return {
        "name": name,
        "time": chosen[0]["time"],
        "learning_rate": chosen[0]["rate"],
        "epochs": [one["epochs"] for one in chosen],
        "parameters": chosen[0]["ready"]["parameters"],
        "versions": chosen[0]["ready"]["versions"],
        "minutes": statistics.fmean(one["minutes"] for one in chosen),
        "metrics": {
            metric: {
                "mean": statistics.fmean(one[metric] for one in metrics),
                "sd": statistics.stdev(one[metric] for one in metrics) if len(metrics) > 1 else 0.0,
                "values": [one[metric] for one in metrics],
            }
            for metric in METRICS
        },
        **timing.environment(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(bench, {"peers": RecToolsConfig}, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
