"""Does one model of several domains know people across them, and does it cost a domain anything?

    python -m benchmarks.bench_domains --suite=city
    python -m benchmarks.bench_domains --suite=nyc --data=prepared/nyc
    python -m benchmarks.bench_domains --suite=joint \
        --data=prepared/online_retail,prepared/globo,prepared/nyc

city: a generated city whose places to eat and drink are one domain, all others the second. Of a
fifth of the people only the second is known; what is asked of them is in the first. The best that
can be known of them is known too (`stt_jax.data.synthetic_domains`).
nyc: check-ins at places to eat and drink, and at all others, by the same people: one model of both
domains against one each.
joint: logs of a shop, of news and of places that share nobody: one model against one each, every
log cut to `--max_train_events` of its people's events.

Requests name their domain, know their time and see everything before them; ranks are within the
domain. Adds the suite to benchmarks/results/domains.json, a city of another `--num_users` beside
the usual one.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.domain_logs import (
    FOOD,
    REST,
    CityDomains,
    city_domains,
    event_table,
    hidden_categories,
    is_food,
    prepare_domains,
)
from stt_jax import command
from stt_jax.baseline_tuning import evaluate_baselines
from stt_jax.config import CityConfig, ModelConfig, ProtocolConfig, TrainingConfig, check, option
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import Targets, find_targets
from stt_jax.data.store import TEST, open_log
from stt_jax.data.synthetic import generate_city
from stt_jax.data.synthetic_domains import best_without
from stt_jax.metrics import ranking_metrics, standard_errors, target_ranks
from stt_jax.relations import model_catalogue
from stt_jax.training.loop import train_model
from stt_jax.training.ranks import make_ranker, model_ranks
from stt_jax.training.run import Run

_METRICS = ("accuracy@1", "hr@10", "ndcg@10", "mrr")
Keys = list[tuple[str, int, str]]  # person, unix seconds and item of each target


@dataclasses.dataclass(frozen=True)
class DomainsConfig:
    """Which suite, and how large."""

    suite: str = option("city", "The suite.", choices=("city", "nyc", "joint"))
    data: tuple[str, ...] = option((), "Prepared logs: one for nyc, one a domain for joint.")
    epochs: float = option(8.0, "Passes over the training events of each model.")
    learning_rate: float = option(0.01, "Peak rate of the trainings.")
    width: int = option(48, "Width of the models.")
    balance_domains: float = option(0.5, "Of the models of several domains.")
    hide_domain_rate: float = option(0.3, "Of all models.")
    known_domain_rate: float = option(1.0, "Of all models: requests are asked with their domain.")
    generate_weight: float = option(0.3, "Of all models.")
    dropout: float = option(0.3, "Of all models.")
    use_event_norm: bool = option(False, "Of all models.")
    max_train_events: int = option(60_000, "joint: events of the training part of each log.")
    max_targets: int = option(4000, "Most targets a domain.")
    num_users: int = option(800, "city: people.")
    num_days: int = option(40, "city: days.")
    city_seed: int = option(1, "city: which city; another one to choose options on.")
    per_person: int = option(5, "city: targets of each person of whom one domain is hidden.")
    num_draws: int = option(200, "city: what is hidden is drawn so often for the best ranking.")
    seed: int = option(0, "Seed of the trainings.")
    work: str = option("runs/domains", "Folder for the logs and runs.")
    output: str = option("benchmarks/results/domains.json", "The results.")

    def __post_init__(self) -> None:
        needed = {"city": 0, "nyc": 1}.get(self.suite)
        fits = len(self.data) == needed if needed is not None else len(self.data) > 1
        check(fits, f"--suite={self.suite} does not fit --data={','.join(self.data)}")


def bench(domains: DomainsConfig) -> None:
    """Makes the logs, trains, asks and writes."""
    work = pathlib.Path(domains.work) / domains.suite
    path = pathlib.Path(domains.output)
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    options = {
        name: getattr(domains, name)
        for name in (
            "epochs",
            "learning_rate",
            "width",
            "balance_domains",
            "hide_domain_rate",
            "known_domain_rate",
            "generate_weight",
            "dropout",
            "use_event_norm",
            "max_targets",
            "num_users",
            "city_seed",
            "seed",
        )
    }
    found = {"city": _city, "nyc": _nyc, "joint": _joint}[domains.suite](domains, work)
    results[_key(domains)] = {"options": options, "jax": jax.__version__, **found}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"results in {path}")


def _key(domains: DomainsConfig) -> str:
    """What the results stand under: a city of another size beside the usual one."""
    if domains.suite != "city" or domains.num_users == DomainsConfig().num_users:
        return domains.suite
    return f"city of {domains.num_users:,} people"


def _city(domains: DomainsConfig, work: pathlib.Path) -> dict[str, Any]:
    config = CityConfig(
        num_users=domains.num_users, num_days=domains.num_days, seed=domains.city_seed
    )
    made = city_domains(
        generate_city(config), work / "log", share=0.2, per_person=domains.per_person
    )
    log = made.log
    run, minutes = _train(log, domains, work / "run")
    targets = _asked(made)
    rows = {"model": _measures(_ranks(run, log, targets), targets.users)}
    compared = evaluate_baselines(
        log, targets, targets, modes=("known",), names=("popularity", "recent_popularity"),
        name_domains=True,
    )["known"]  # fmt: skip
    for name, result in compared.items():
        rows[name] = _measures(result.ranks, targets.users)
    best = best_without(
        made.city, made.targets, "known", hidden_categories(), num_draws=domains.num_draws
    )
    food = hidden_categories()[made.city.place_categories]
    scores = np.concatenate(
        [np.full((len(best), 1), -np.inf), np.where(food, best, -np.inf)], axis=1
    )
    ranks = target_ranks(scores, made.city.event_places[made.targets] + 1)
    rows["best possible"] = _measures(ranks, targets.users)
    way = {
        name: (rows["model"][name] - rows["popularity"][name])
        / (rows["best possible"][name] - rows["popularity"][name])
        for name in _METRICS
    }
    print("way from popularity to the best possible", way, flush=True)
    return {
        "split_hash": log.meta.split_hash,
        "num_targets": len(targets),
        "minutes": minutes,
        "rows": rows,
        "way": way,
    }


def _asked(made: CityDomains) -> Targets:
    """The last event of every person that is asked."""
    rows = np.array([made.log.user_row(user) for user in made.asked])
    starts, ends = made.log.user_offsets[rows], made.log.user_offsets[rows + 1]
    return Targets(rows, ends - 1, starts, ends - 1, ends - 1)


def _nyc(domains: DomainsConfig, work: pathlib.Path) -> dict[str, Any]:
    log = open_log(domains.data[0])
    names = np.array([FOOD if is_food(name) else REST for name in log.category_values])
    table = event_table(log, names[log.item_categories])
    tables = {name: table.filter(np.asarray(table["domain"]) == name) for name in (FOOD, REST)}
    return _against_each(domains, work, tables)


def _joint(domains: DomainsConfig, work: pathlib.Path) -> dict[str, Any]:
    tables = {}
    for data in domains.data:
        log, name = open_log(data), pathlib.Path(data).name
        tables[name] = event_table(
            log,
            np.full(log.num_items + 1, name),
            person_prefix=f"{name}:",
            max_train_events=domains.max_train_events,
        )
    return _against_each(domains, work, tables)


def _against_each(
    domains: DomainsConfig, work: pathlib.Path, tables: dict[str, Any]
) -> dict[str, Any]:
    """One model of all tables against one of each."""
    log = prepare_domains(list(tables.values()), work / "together-log")
    together, minutes = _train(log, domains, work / "together")
    found: dict[str, Any] = {
        "split_hash": log.meta.split_hash, "minutes": minutes, "domains": {}
    }  # fmt: skip
    of_log = find_targets(log, TEST)
    place = {key: index for index, key in enumerate(_keys(log, of_log))}
    for name, table in tables.items():
        own_log = prepare_domains([table], work / f"{name}-log")
        own, own_minutes = _train(own_log, domains, work / name)
        targets = find_targets(own_log, TEST)
        targets = targets[targets.known(own_log)]
        targets = _unambiguous(own_log, targets).sample(domains.max_targets, seed=0)
        there = of_log[np.array([place[key] for key in _keys(own_log, targets)])]
        ranks = _ranks(own, own_log, targets), _ranks(together, log, there)
        rows = {
            "own model": _measures(ranks[0], targets.users),
            "one model": _measures(ranks[1], targets.users),
        }
        found["domains"][name] = {
            "num_targets": len(targets),
            "train_events": int(own_log.item_train_counts.sum()),
            "items": own_log.num_items,
            "minutes": own_minutes,
            "rows": rows,
            "difference": _difference(*ranks, targets.users),
        }
        print(name, json.dumps(found["domains"][name]), flush=True)
    return found


def _train(log: PreparedLog, domains: DomainsConfig, run: pathlib.Path) -> tuple[Run, float]:
    began = time.monotonic()
    trained = train_model(
        log,
        TrainingConfig(
            data=str(log.directory),
            run=str(run),
            epochs=domains.epochs,
            learning_rate=domains.learning_rate,
            loss="chunked",
            balance_domains=domains.balance_domains,
            hide_domain_rate=domains.hide_domain_rate,
            known_domain_rate=domains.known_domain_rate,
            generate_weight=domains.generate_weight,
            validation_every=domains.epochs / 4,
            validation_targets=1000,
            seed=domains.seed,
        ),
        # People are known by what they did, not by a vector of their own.
        ModelConfig(
            width=domains.width,
            num_layers=1,
            use_person=False,
            dropout=domains.dropout,
            use_event_norm=domains.use_event_norm,
        ),
        ProtocolConfig(),
    )
    return trained, (time.monotonic() - began) / 60


def _ranks(run: Run, log: PreparedLog, targets: Targets) -> np.ndarray:
    return model_ranks(
        make_ranker(run.model),
        run.params,
        model_catalogue(log, run.model_config),
        log,
        targets,
        modes=("known",),
        window=run.training.asked_tokens,
        name_domains=True,
    )["known"]


def _keys(log: PreparedLog, targets: Targets) -> Keys:
    return [
        (log.user_ids[user], int(log.times[event]), log.item_ids[log.items[event]])
        for user, event in zip(targets.users.tolist(), targets.events.tolist(), strict=True)
    ]


def _unambiguous(log: PreparedLog, targets: Targets) -> Targets:
    """Without targets that a person had twice in the same second."""
    keys = _keys(log, targets)
    counts = collections.Counter(keys)
    return targets[np.array([counts[key] == 1 for key in keys], bool)]


def _measures(ranks: np.ndarray, people: np.ndarray) -> dict[str, float]:
    metrics, errors = ranking_metrics(ranks), standard_errors(ranks, clusters=people)
    named = {name: metrics[name] for name in _METRICS}
    return named | {f"{name} s.e.": errors[name] for name in _METRICS}


def _difference(own: np.ndarray, one: np.ndarray, people: np.ndarray) -> dict[str, float]:
    """Of the reciprocal ranks, one model less own: mean, its error over people, and relative."""
    gains = [np.where(ranks > 0, 1 / np.maximum(ranks, 1), 0.0) for ranks in (own, one)]
    apart = gains[1] - gains[0]
    _, groups = np.unique(people, return_inverse=True)
    sums = np.bincount(groups, weights=apart - apart.mean())
    return {
        "mrr": float(apart.mean()),
        "mrr s.e.": float(np.sqrt(np.square(sums).sum()) / len(apart)),
        "relative": float(apart.mean() / gains[0].mean()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(bench, {"domains": DomainsConfig}, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
