"""How good are answers to people, and about items, that training has never seen?

    python -m benchmarks.bench_coldstart --suite=ml100k --data=prepared/ml100k_cold
    python -m benchmarks.bench_coldstart --suite=nyc --data=prepared/nyc
    python -m benchmarks.bench_coldstart --suite=globo --data=prepared/globo

A fifth of the people and a fifth of the items are held out entirely. Of each held-out person the
first 0, 1, 2, 3, 5, 10 or 20 events are known and the next ten are predicted, among all items of
training. Held-out items are added by a table, as `--items` does, and the events of the other people
at them are predicted among all items and among the held-out ones alone; where nothing is known of
items but their ids, as of the news, that is left out. Ranking is over the whole
catalogue with ties against the model; baselines choose their options on the targets that are
reported, in their favour. Adds the suite to benchmarks/results/coldstart.json.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.coldstart_baselines import ColdBaselines
from benchmarks.coldstart_split import (
    ColdLogs,
    hold_out,
    item_targets,
    join_targets,
    people_targets,
)
from stt_jax import command
from stt_jax.baseline_tuning import evaluate_baselines
from stt_jax.config import EvaluationConfig, ModelConfig, option
from stt_jax.config.flagfile import from_flagfile
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import Targets
from stt_jax.data.store import open_log
from stt_jax.evaluation import evaluate_model
from stt_jax.metrics import MISS, ranking_metrics, standard_errors
from stt_jax.relations import model_catalogue
from stt_jax.training.loop import train_model
from stt_jax.training.ranks import make_ranker, model_ranks
from stt_jax.training.run import FLAG_GROUPS, Run

NUM_KNOWN = (0, 1, 2, 3, 5, 10, 20)
NUM_NEXT = 10
NUM_ITEM_TARGETS = 2000
_METRICS = ("recall@10", "ndcg@10", "mrr")
_COUNTING = ("popularity", "recent_popularity", "markov", "item_knn")


@dataclasses.dataclass(frozen=True)
class Suite:
    """A log with its flagfile, what is other than there, and whether items come once.

    `most_targets` of each number of known events are drawn by a fixed seed; 0 = all are asked.
    """

    flagfile: str
    training: dict[str, Any]
    model: dict[str, Any]
    leave_out_seen: bool
    mode: str
    most_targets: int = 0

    def people_targets(self, logs: ColdLogs, num_known: int) -> Targets:
        """What is asked of people of whom so many events are known."""
        return people_targets(logs, num_known, NUM_NEXT).sample(self.most_targets, seed=0)


SUITES = {
    "ml100k": Suite(
        "configs/ml100k.flags",
        {"cold_rate": 0.5, "stale_rate": 0.6, "stale_events": 5.0, "calibrate": False},
        {"id_dropout": 0.1, "use_popularity": True},
        True,
        "known",
    ),
    "nyc": Suite(
        "configs/nyc.flags",
        {"cold_rate": 0.5, "stale_rate": 0.6, "stale_events": 5.0},
        {"id_dropout": 0.1, "use_popularity": True, "use_crowd": True},
        False,
        "known",
    ),
    "globo": Suite(
        "configs/globo.flags",
        {"cold_rate": 0.5, "calibrate": False},
        {"use_popularity": True},
        True,
        "known",
        most_targets=3000,
    ),
}
# Name -> what is other than in the whole model: options of the model, and of its training.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "whole model": ({}, {}),
    "without cold requests": ({}, {"cold_rate": 0.0}),
    "without stale requests": ({}, {"stale_rate": 0.0}),
    "without popularity": ({"use_popularity": False}, {}),
    "without id dropout": ({"id_dropout": 0.0}, {}),
    "without id dropout and traits": ({"id_dropout": 0.0, "use_traits": False}, {}),
}


@dataclasses.dataclass(frozen=True)
class ColdConfig:
    """Which suite, and which variants of the model."""

    suite: str = option("ml100k", "The suite.", choices=tuple(SUITES))
    data: str = option("", "The prepared log.")
    variants: tuple[str, ...] = option((), "Numbers of the variants, from 0; empty = all.")
    share: float = option(0.2, "Fraction of the people and of the items that are held out.")
    seed: int = option(0, "Seed of the draw and of the training.")
    work: str = option("runs/coldstart", "Folder for the logs and runs.")
    output: str = option("benchmarks/results/coldstart.json", "The results.")


def bench(cold: ColdConfig) -> None:
    """Holds out, trains, asks and writes."""
    suite = SUITES[cold.suite]
    work = pathlib.Path(cold.work)
    logs = hold_out(
        open_log(cold.data), work / f"{cold.suite}-log", share=cold.share, seed=cold.seed
    )
    print(
        f"{cold.suite}: {logs.num_cold_users} people and {logs.num_cold_items} items held out, "
        f"split {logs.train.meta.split_hash[:16]}",
        flush=True,
    )
    path = pathlib.Path(cold.output)
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    of_suite = results.setdefault(cold.suite, {})
    if of_suite.get("split_hash") != logs.train.meta.split_hash:
        of_suite.clear()
    of_suite |= {
        "split_hash": logs.train.meta.split_hash,
        "seed": cold.seed,
        "mode": suite.mode,
        "cold_users": logs.num_cold_users,
        "cold_items": logs.num_cold_items,
        "train_users": logs.train.num_train_users,
        "train_items": logs.train.num_items,
        "most_targets": suite.most_targets,
        "flagfile": suite.flagfile,
        "changes": suite.training | suite.model,
    }
    configs = from_flagfile(suite.flagfile, FLAG_GROUPS)
    rows = of_suite.setdefault("rows", {})
    if "popularity" not in rows:
        rows |= _baselines(logs, suite, configs["model"])
    _write(results, path)
    for number, (name, (model, training_changes)) in enumerate(VARIANTS.items()):
        wanted = not cold.variants or str(number) in cold.variants
        if not wanted or ("use_traits" in model and not logs.train.item_traits):
            continue
        training = dataclasses.replace(
            configs["training"],
            **(suite.training | training_changes),
            run=str(work / f"{cold.suite}-{number}-{cold.seed}"),
            data=str(logs.train.directory),
            seed=cold.seed,
        )
        protocol = dataclasses.replace(configs["validation"], targets="last", context="all")
        run = train_model(
            logs.train,
            training,
            dataclasses.replace(configs["model"], **(suite.model | model)),
            protocol,
        )
        rows[name] = {"jax": jax.__version__, **_model(run, logs, suite)}
        _write(results, path)
    print(f"results in {path}")


def _write(results: dict[str, Any], path: pathlib.Path) -> None:
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _model(run: Run, logs: ColdLogs, suite: Suite) -> dict[str, Any]:
    ranker = make_ranker(run.model)

    def ranks(log: PreparedLog, targets: Targets, num_left_out: int = 0) -> np.ndarray:
        catalogue = model_catalogue(log, run.model_config)
        asked = catalogue.is_item & (np.arange(len(catalogue.is_item)) > num_left_out)
        return model_ranks(
            ranker,
            run.params,
            dataclasses.replace(catalogue, is_item=asked),
            log,
            targets,
            modes=(suite.mode,),
            window=run.training.asked_tokens,
            leave_out_seen=suite.leave_out_seen,
        )[suite.mode]

    of_people = {str(n): suite.people_targets(logs, n) for n in NUM_KNOWN}
    all_ranks = ranks(logs.people, join_targets(list(of_people.values())))
    cuts = np.cumsum([len(targets) for targets in of_people.values()])[:-1]
    people = {
        name: _measures(of_name, targets)
        for (name, targets), of_name in zip(
            of_people.items(), np.split(all_ranks, cuts), strict=True
        )
    }
    print(run.directory.name, people, flush=True)
    found: dict[str, Any] = {"people": people}
    if has_content(logs.items):
        targets = item_targets(logs).sample(NUM_ITEM_TARGETS, seed=0)
        found["items"] = {
            "among_all": _measures(ranks(logs.items, targets), targets),
            "among_cold": _measures(ranks(logs.items, targets, logs.train.num_items), targets),
        }
    seen = "leave_out" if suite.leave_out_seen else "keep"
    config = EvaluationConfig(targets="last", context="all", seen=seen, baselines=False)
    warm = evaluate_model(run, logs.train, config)["modes"][suite.mode]["model"]
    found["warm"] = {name: warm[name] for name in _METRICS}
    print(run.directory.name, found.get("items"), found["warm"], flush=True)
    return found


def has_content(log: PreparedLog) -> bool:
    """Whether more is known of items than their ids."""
    return bool(log.item_traits) or log.meta.has_places or bool(log.item_categories.any())


def _baselines(logs: ColdLogs, suite: Suite, config: ModelConfig) -> dict[str, Any]:
    """Name -> measures, laid out as those of a model."""
    cold = ColdBaselines(
        logs.people,
        leave_out_seen=suite.leave_out_seen,
        num_warm_items=logs.train.num_items,
        config=config,
    )
    names = ["popularity_lately"]
    names += ["followed_lately"] if config.succession_half_lives_h else []
    names += ["content_knn"] if has_content(logs.people) else []
    names += ["popularity_of_group"] if logs.people.user_traits else []
    rows: dict[str, Any] = {name: {"people": {}} for name in ("popularity", *_COUNTING[1:], *names)}
    for num_known in NUM_KNOWN:
        targets = suite.people_targets(logs, num_known)
        counting = evaluate_baselines(
            logs.people, targets, targets, modes=(suite.mode,), names=_COUNTING
        )[suite.mode]
        for name, result in counting.items():
            rows[name]["people"][str(num_known)] = _measures(result.ranks, targets)
        for name in names:
            ranks = cold.best(name, targets)
            rows[name]["people"][str(num_known)] = _measures(ranks, targets)
        shown = {
            name: round(row["people"][str(num_known)]["ndcg@10"], 4) for name, row in rows.items()
        }
        print("baselines, NDCG@10", num_known, shown, flush=True)
    if not has_content(logs.items):
        return rows
    targets = item_targets(logs).sample(NUM_ITEM_TARGETS, seed=0)
    cold = ColdBaselines(
        logs.items, leave_out_seen=suite.leave_out_seen, num_warm_items=logs.train.num_items
    )
    rows["content_knn"]["items"] = {
        "among_all": _measures(cold.best("content_knn", targets), targets),
        "among_cold": _measures(
            cold.best("content_knn", targets, num_left_out=logs.train.num_items), targets
        ),
    }
    print("baselines, items", rows["content_knn"]["items"], flush=True)
    return rows


def _measures(ranks: np.ndarray, targets: Targets) -> dict[str, float]:
    metrics, errors = ranking_metrics(ranks), standard_errors(ranks, clusters=targets.users)
    found: dict[str, float] = {"num_targets": len(ranks), "missed": int(np.sum(ranks == MISS))}
    for name in _METRICS:
        found[name] = metrics[name]
        found[f"{name} s.e."] = errors[name]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(bench, {"cold": ColdConfig}, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
