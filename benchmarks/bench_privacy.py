"""What does privacy for people cost in accuracy and speed, and does it keep an attack out?

    python -m stt_jax.generate --output=city/100k --num_users=100000 --num_days=14
    python -m stt_jax.prepare --flagfile=configs/prepare/city.flags --input=city/100k/log.csv.gz
        --output=prepared/city100k
    python -m benchmarks.bench_privacy --suite=city --data=prepared/city100k

    python -m stt_jax.prepare --flagfile=configs/prepare/ml100k.flags --data_root=PATH
        --output=prepared/ml100k
    python -m benchmarks.bench_privacy --suite=ml100k --data=prepared/ml100k

Half of the people are drawn to be members, the others are held out entirely. A small model (width
32, one block, windows of 64 events, no counts of the crowd, no embedding per person) is trained on
the members, for each epsilon with the same options; inf is the ordinary training. Nothing is chosen
by validation: a model is that of its last step. It is asked

- for the test part of members, request time known, among all items; beside counting models, which
  count what everybody did and are not private;
- for the training part of members and of others, to tell one from the other by the likelihood: the
  attack of `benchmarks.membership_inference`. To see whether that can work at all, it is also tried
  on a model that was trained on few people for long, without dropout.

A private step is timed against ordinary ones by `benchmarks.privacy_speed`.

The vocabularies are those of members and others. On two cores that nothing else uses each suite
should take less than 20 minutes, and generating the city 4 more. Every row is written to
benchmarks/results/privacy.json when it is there; rows that are there with the same settings are not
made again, and a training that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from benchmarks.membership_inference import (
    auc,
    draw_people,
    mean_log_likelihoods,
    select_people,
    split_people,
)
from benchmarks.privacy_speed import step_speed
from benchmarks.privacy_suites import BY_HEART, BY_HEART_MODEL, OVERFITTED, SUITES, Suite
from stt_jax import command
from stt_jax.baseline_tuning import evaluate_baselines
from stt_jax.config import (
    DeviceConfig,
    EvaluationConfig,
    ModelConfig,
    ProtocolConfig,
    TrainingConfig,
    option,
)
from stt_jax.config.options import check
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import find_targets
from stt_jax.data.store import TEST, VALIDATION, open_log
from stt_jax.evaluation import evaluate_model
from stt_jax.metrics import ranking_metrics
from stt_jax.training.loop import train_model
from stt_jax.training.run import Run
from stt_jax.training.setup import set_up

MODE = "known"
METRICS = ("accuracy@1", "hr@10", "ndcg@10", "mrr")
_TUNING_TARGETS = 1000  # of the counting models


@dataclasses.dataclass(frozen=True)
class PrivacyBenchConfig:
    """Which suite, which budgets, and how much is asked."""

    suite: str = option("city", "The suite.", choices=tuple(SUITES))
    data: str = option("", "The prepared log.")
    epsilons: tuple[str, ...] = option(("inf", "16", "8", "4", "1"), "Budgets; inf = not private.")
    epochs: float = option(0.0, "Passes over the members' events; 0 = the suite's.")
    batch_rows: int = option(0, "Expected people, or rows, in a step; 0 = the suite's.")
    learning_rate: float = option(0.0, "Peak learning rate; 0 = the suite's.")
    max_targets: int = option(2000, "Most test targets, drawn by a fixed seed.")
    attack_people: int = option(5000, "Most members, and most others, that the attack is tried on.")
    overfit_people: int = option(200, "Members that the overfitted model is trained on.")
    overfit_epochs: float = option(60.0, "How often it sees them; 0 = leave it out.")
    timed_rows: int = option(0, "Expected people in a timed step; 0 = as in training.")
    rounds: int = option(20, "Timed steps of each kind; 0 = time nothing.")
    seed: int = option(0, "Seed of who is a member, and of the trainings.")
    work: str = option("runs/privacy", "Folder for the runs.")
    output: str = option("benchmarks/results/privacy.json", "The results.")

    def __post_init__(self) -> None:
        """Refuses budgets that are none."""
        for text in self.epsilons:
            try:
                positive = float(text) > 0
            except ValueError:
                positive = False
            check(positive, f"--epsilons must be inf or positive numbers; got {text!r}")


def bench(privacy: PrivacyBenchConfig) -> None:
    """Splits the people, trains, asks, attacks and writes."""
    suite = SUITES[privacy.suite]
    given = {
        name: value
        for name in ("epochs", "batch_rows", "learning_rate")
        if (value := getattr(privacy, name))
    }
    training = dataclasses.replace(suite.training, **given, seed=privacy.seed)
    log = open_log(privacy.data)
    member_rows, other_rows = split_people(log, share=0.5, seed=privacy.seed)
    members = select_people(log, member_rows)
    of_suite, write = _open_results(privacy, suite, training, members, len(other_rows))
    rows, work = of_suite["rows"], pathlib.Path(privacy.work) / of_suite["settings_hash"]
    protocol = suite.protocol

    def both(num_people: int, from_members: np.ndarray) -> tuple[PreparedLog, PreparedLog]:
        """Members of a training and as many others, at most so many each, for the attack."""
        chosen = (from_members, other_rows)
        drawn = (draw_people(one, num_people, seed=privacy.seed + 1) for one in chosen)
        first, second = (select_people(log, one) for one in drawn)
        return first, second

    if "baselines" not in of_suite:
        of_suite["baselines"] = _baselines(members, protocol, privacy.max_targets)
        write()
    if privacy.rounds and "speed" not in of_suite:
        timed_rows = privacy.timed_rows or training.batch_rows
        timed = dataclasses.replace(training, batch_rows=timed_rows)
        of_suite["speed"] = step_speed(members, timed, suite.model, privacy.rounds)
        write()
    measured = functools.partial(_measure, test_log=members, max_targets=privacy.max_targets)
    for epsilon in map(float, privacy.epsilons):
        name = f"{epsilon:g}"
        if name in rows:
            continue
        budget = 0.0 if math.isinf(epsilon) else epsilon
        rows[name] = measured(
            members,
            dataclasses.replace(training, dp_epsilon=budget, run=str(work / f"epsilon-{name}")),
            suite.model,
            protocol,
            attacked=both(privacy.attack_people, member_rows),
        )
        write()
    if privacy.overfit_epochs and OVERFITTED not in rows:
        few = draw_people(member_rows, privacy.overfit_people, seed=privacy.seed + 2)
        rows[OVERFITTED] = measured(
            select_people(log, few),
            dataclasses.replace(
                training, **BY_HEART, epochs=privacy.overfit_epochs, run=str(work / OVERFITTED)
            ),
            dataclasses.replace(suite.model, **BY_HEART_MODEL),
            protocol,
            attacked=both(len(few), few),
        )
        write()
    print(f"results in {privacy.output}")


def _open_results(
    privacy: PrivacyBenchConfig,
    suite: Suite,
    training: TrainingConfig,
    members: PreparedLog,
    num_others: int,
) -> tuple[dict[str, Any], Callable[[], None]]:
    """The results of the suite, empty if they were made with other settings, and their writer."""
    path = pathlib.Path(privacy.output)
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    settings = {
        "training": dataclasses.asdict(training),
        "model": dataclasses.asdict(suite.model),
        "protocol": dataclasses.asdict(suite.protocol),
        "overfitted": BY_HEART | BY_HEART_MODEL,
        **{
            name: getattr(privacy, name)
            for name in ("max_targets", "attack_people", "overfit_people", "overfit_epochs")
        },
        "data_hash": members.meta.data_hash,
    }
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    of_suite = results.setdefault(privacy.suite, {})
    if of_suite.get("settings_hash") != name:
        of_suite.clear()
    of_suite |= {
        "settings_hash": name,
        "settings": settings,
        "split_hash": members.meta.split_hash,
        "mode": MODE,
        "members": members.num_users,
        "others": num_others,
        "items": members.num_items,
    }
    of_suite.setdefault("rows", {})

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    return of_suite, write


def _measure(
    log: PreparedLog,
    training: TrainingConfig,
    model: ModelConfig,
    protocol: ProtocolConfig,
    *,
    test_log: PreparedLog,
    max_targets: int,
    attacked: tuple[PreparedLog, PreparedLog],
) -> dict[str, Any]:
    """Trains a model, asks it for the test part and attacks it.

    Args:
      log, training, model, protocol: as of `train_model`.
      test_log: whose test part is asked for.
      max_targets: of the test.
      attacked: people of `log`, and others.
    """
    # The only validation is that of the last step.
    training = dataclasses.replace(training, data=str(log.directory))
    training = dataclasses.replace(training, validation_every=training.epochs)
    setup = set_up(log, training, model, protocol, DeviceConfig())
    fresh, start = not pathlib.Path(training.run).exists(), time.perf_counter()
    run = train_model(log, training, model, protocol)
    minutes = (time.perf_counter() - start) / 60
    asked = EvaluationConfig(max_targets=max_targets, baselines=False)
    report = evaluate_model(run, test_log, asked)
    found = report["modes"][MODE]
    account = setup.account
    row = {
        "people": log.num_users,
        "steps": run.step,
        "batch_rows": training.batch_rows,
        "sampling_rate": account.rate if account else None,
        "noise": account.noise if account else None,
        "delta": account.delta if account else None,
        "epsilon_spent": run.epsilon,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.params)),
        "minutes": round(minutes, 2) if fresh else None,  # None: it went on from a checkpoint
        "num_targets": report["num_targets"]["known"],
        **{name: found["model"][name] for name in METRICS},
        **{f"{name} s.e.": found["standard_errors"][name] for name in METRICS},
        "attack": _attack(run, *attacked),
        **timing.environment(),
    }
    shown = {name: round(row[name], 4) for name in METRICS}
    print(pathlib.Path(training.run).name, row["epsilon_spent"], shown, row["attack"], flush=True)
    return row


def _attack(run: Run, members: PreparedLog, others: PreparedLog) -> dict[str, Any]:
    scores = [mean_log_likelihoods(run, log, mode=MODE) for log in (members, others)]
    of_members, of_others = (one[~np.isnan(one)] for one in scores)
    area, error = auc(of_members, of_others)
    return {
        "auc": area,
        "auc s.e.": error,
        "members": len(of_members),
        "others": len(of_others),
        "log_likelihood of members": float(of_members.mean()),
        "log_likelihood of others": float(of_others.mean()),
    }


def _baselines(log: PreparedLog, protocol: ProtocolConfig, max_targets: int) -> dict[str, Any]:
    """Name -> measures of the counting models, on the targets that the models are asked for."""

    def targets(part: int, most: int) -> Any:
        every = find_targets(log, part, targets=protocol.targets, context=protocol.context)
        drawn = every.sample(most, seed=0)
        return drawn[drawn.known(log)]

    found = evaluate_baselines(
        log,
        targets(VALIDATION, 0),
        targets(TEST, max_targets),
        modes=(MODE,),
        max_tuning_targets=_TUNING_TARGETS,
    )[MODE]
    rows = {}
    for name, result in found.items():
        metrics = ranking_metrics(result.ranks)
        rows[name] = {metric: metrics[metric] for metric in METRICS}
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(bench, {"privacy": PrivacyBenchConfig}, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
