"""The report of a trained model: both request modes, groups, baselines and the best possible."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from stt_jax.baseline_tuning import evaluate_baselines
from stt_jax.config import DeviceConfig, EvaluationConfig, ProtocolConfig
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import MODES, Targets, find_targets
from stt_jax.data.store import TEST, VALIDATION, open_log
from stt_jax.metrics import (
    finite_or_none,
    grouped_metrics,
    length_groups,
    ranking_metrics,
    standard_errors,
)
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.relations import model_catalogue
from stt_jax.training.ranks import make_ranker, model_ranks
from stt_jax.training.run import Run
from stt_jax.training.sharding import make_placement

_OPTIMUM_METRICS = ("recall@1", "recall@5", "recall@10", "recall@20", "ndcg@10", "mrr")


def evaluate_model(
    run: Run,
    log: PreparedLog,
    config: EvaluationConfig,
    devices: DeviceConfig | None = None,
    others: Sequence[Run] = (),
) -> dict[str, Any]:
    """Evaluates a run on one part of its log.

    Args:
      run: of `load_run` or `train_model`.
      log: the log that it was trained on.
      config: what to ask and what to compare with.
      devices: what to compute on; default `DeviceConfig()`, one device.
      others: runs like it but for their seeds, whose probabilities are averaged with its own.

    Returns:
      A report that `write_report` takes: the protocol and the split's hash; counts of targets; by
      request mode the metrics of the model, of the baselines and the best possible on targets
      whose person and item occur in training ("known"; in that of `known_in`, too); the model's
      standard errors over people, its metrics with unseen people and items as they come ("all"),
      and by groups. `best_possible_is_bound` is False where targets are left out for their item:
      the best possible is over all places, so that it may be passed.

    Raises:
      ValueError: no target in that part, an optimum file of another log or where it is no
        bound, runs that are not alike, or likely times of a private run.
    """
    for other in others:
        _check_alike(run, other)
    if len({one.directory.resolve() for one in (run, *others)}) <= len(others):
        raise ValueError(f"{run.directory} and the runs together with it: one is named twice")
    run = _asked_as(run, config)
    protocol = _asked_protocol(run, config)
    if config.optimum:
        _check_bound(log, protocol)
    part = TEST if config.part == "test" else VALIDATION
    every = find_targets(log, part, targets=protocol.targets, context=protocol.context)
    everything = every.sample(config.max_targets, seed=0)
    known = everything.known(log)
    if config.known_in:
        known &= everything.known_in(log, open_log(config.known_in))
    targets = everything[known]
    if len(targets) == 0:
        elsewhere = f" and in that of --known_in={config.known_in}" if config.known_in else ""
        raise ValueError(
            f"{log.directory} has no {config.part} target whose person and item occur in training"
            f"{elsewhere}; prepare it with another --split, or evaluate another --part"
        )
    optimum = _best_possible(config.optimum, log, targets) if config.optimum else {}
    ranks = _ranks_of_runs(run, others, log, everything, protocol, devices or DeviceConfig())
    report = _head(run, others, log, config, protocol)
    report["num_targets"] = {
        "in_part": len(every),
        "evaluated": len(everything),
        "known": len(targets),
        "unseen_person": int(np.sum(everything.users >= log.num_train_users)),
        "unseen_item": int(np.sum(log.items[everything.events] == 0)),
    }
    groups = _groups(log, targets)
    report["modes"] = {mode: _of_model(targets, groups, ranks[mode], known) for mode in MODES}
    if config.baselines:
        _add_baselines(report, log, targets, protocol)
    for mode, metrics in optimum.items():
        report["modes"][mode]["best_possible"] = metrics
    if optimum:
        # Who only counts places that training knows does better than the best over all of them.
        of_known_people = everything.users < log.num_train_users
        report["best_possible_is_bound"] = not np.any(of_known_people & ~known)
    return report


def _asked_as(run: Run, config: EvaluationConfig) -> Run:
    """The run with what the evaluation changes of how it is asked; nothing of it is learned."""
    training, model_config = run.training, run.model_config
    if config.asked_window:
        training = dataclasses.replace(training, asked_window=config.asked_window)
    if config.habit_share >= 0:
        model_config = dataclasses.replace(model_config, habit_share=config.habit_share)
    if config.likely_times >= 0:
        model_config = dataclasses.replace(model_config, likely_times=config.likely_times)
    if training.dp_epsilon and model_config.likely_times:
        raise ValueError(
            f"{run.directory} was trained with --dp_epsilon, which does not cover the waits of "
            "people that --likely_times asks at: give --likely_times=0"
        )
    model = SpatiotemporalTransformer(model_config, run.model.sizes)
    return dataclasses.replace(run, training=training, model_config=model_config, model=model)


def _asked_protocol(run: Run, config: EvaluationConfig) -> ProtocolConfig:
    """The protocol of the run's validation, but for what the evaluation says itself."""
    told = {field.name: getattr(config, field.name) for field in dataclasses.fields(ProtocolConfig)}
    return dataclasses.replace(
        run.protocol, **{name: value for name, value in told.items() if value != "as_run"}
    )


def _check_alike(run: Run, other: Run) -> None:
    if other.info.data_hash != run.info.data_hash:
        raise ValueError(f"{other.directory} and {run.directory} were trained on different logs")
    ours, theirs = (
        dataclasses.asdict(one.model_config)
        | {name: getattr(one.training, name) for name in ("window", "asked_window")}
        for one in (run, other)
    )
    for name, value in ours.items():
        if theirs[name] != value:
            raise ValueError(
                f"{other.directory} has --{name}={theirs[name]}, {run.directory} --{name}={value}: "
                "only runs that differ in their seeds can answer together"
            )


def _ranks_of_runs(
    run: Run,
    others: Sequence[Run],
    log: PreparedLog,
    targets: Targets,
    protocol: ProtocolConfig,
    devices: DeviceConfig,
) -> dict[str, np.ndarray]:
    """Of every target by request mode, under the runs together."""
    placement = make_placement(devices)

    def put(params: Any) -> Any:
        return placement.put_whole(params, placement.params(params))

    with jax.set_mesh(placement.mesh):
        return model_ranks(
            make_ranker(run.model),
            put(run.params),
            placement.put_whole(
                model_catalogue(log, run.model_config, live_trends=protocol.trends == "live"),
                placement.replicated,
            ),
            log,
            targets,
            window=run.training.asked_tokens,
            others=[put(other.params) for other in others],
            leave_out_seen=protocol.seen == "leave_out",
            name_domains=protocol.domains == "named",
            placement=placement,
        )


def _head(
    run: Run,
    others: Sequence[Run],
    log: PreparedLog,
    config: EvaluationConfig,
    protocol: ProtocolConfig,
) -> dict[str, Any]:
    """What the report says before any number: who was asked, on what, under which protocol."""
    return {
        "run": str(run.directory),
        "together_with": [str(other.directory) for other in others],
        "step": run.step,
        "part": config.part,
        "targets": protocol.targets,
        "context": protocol.context,
        "seen": protocol.seen,
        "trends": protocol.trends,
        "domains": protocol.domains if log.domain_values else None,
        "asked_window": run.training.asked_tokens,
        "habit_share": run.model_config.habit_share,
        "likely_times": run.model_config.likely_times,
        "known_in": config.known_in or None,
        "data_hash": log.meta.data_hash,
        "split_hash": log.meta.split_hash,
        "versions": run.info.versions,
    }


def _of_model(
    targets: Targets, groups: dict[str, np.ndarray], ranks: np.ndarray, known: np.ndarray
) -> dict[str, Any]:
    """The model's part of the report in one request mode.

    Args:
      targets: those whose person and item are known.
      groups: of `_groups`, labels of these.
      ranks: int32, of these and the others.
      known: bool, which of the ranks are of `targets`.
    """
    known_ranks = ranks[known]
    return {
        "model": ranking_metrics(known_ranks),
        "standard_errors": standard_errors(known_ranks, clusters=targets.users),
        "all": ranking_metrics(ranks),
        "groups": {name: grouped_metrics(known_ranks, labels) for name, labels in groups.items()},
    }


def _add_baselines(
    report: dict[str, Any], log: PreparedLog, targets: Targets, protocol: ProtocolConfig
) -> None:
    """Tunes the counting models on the validation part and adds what they do on the targets."""
    tuning = find_targets(log, VALIDATION, targets=protocol.targets, context=protocol.context)
    tuning = tuning[tuning.known(log)]
    report["baselines_tuned_on"] = len(tuning)
    compared = evaluate_baselines(
        log,
        tuning,
        targets,
        modes=MODES,
        name_domains=protocol.domains == "named",
        live_trends=protocol.trends == "live",
    )
    for mode, results in compared.items():
        report["modes"][mode]["baselines"] = {
            name: {**ranking_metrics(result.ranks), "options": result.options}
            for name, result in results.items()
        }


def write_report(report: dict[str, Any], path: str | os.PathLike) -> None:
    """Writes a report of `evaluate_model` as JSON, null for what is no number."""
    text = json.dumps(finite_or_none(report), indent=1, allow_nan=False)
    pathlib.Path(path).write_text(text + "\n", encoding="utf-8")


def _groups(log: PreparedLog, targets: Targets) -> dict[str, np.ndarray]:
    """Labels of each target: its context's length, whether its item is in there, its hour."""
    contexts = [targets.context(t) for t in range(len(targets))]
    wanted = log.items[targets.events]
    seen = [item in log.items[context] for item, context in zip(wanted, contexts, strict=True)]
    groups = {
        "history_length": length_groups([len(context) for context in contexts]),
        "item": np.where(seen, "seen before", "new to the person"),
    }
    if log.domain_values:
        groups["domain"] = np.array(log.domain_values)[log.item_domains[wanted]]
    if log.meta.has_times:
        hours = (log.times[targets.events] + log.utc_offsets_s[targets.events]) // 3600 % 24
        groups["hour_of_day"] = np.array([f"{hour:02d}" for hour in hours])
    return groups


def _check_bound(log: PreparedLog, protocol: ProtocolConfig) -> None:
    """Raises ValueError where fewer items are ranked than the best possible ranks."""
    if log.domain_values and protocol.domains == "named":
        narrower, instead = "--domains=named ranks within one domain", "--domains=any"
    elif protocol.seen == "leave_out":
        narrower, instead = "--seen=leave_out ranks what is new to the person", "--seen=keep"
    else:
        return
    raise ValueError(
        f"--optimum is the best over all places, but {narrower}, so that it would be no bound: "
        f"give {instead}, or leave out --optimum"
    )


def _best_possible(path: str, log: PreparedLog, targets: Targets) -> dict[str, dict[str, float]]:
    """Means of the best possible metrics over the targets, joined by (user id, time)."""
    try:
        table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"--optimum={path} was not written by stt_jax.generate ({error}); give "
            "city/optimum.arrow"
        ) from error
    of_modes = {mode: {name: f"{name}_{mode}" for name in _OPTIMUM_METRICS} for mode in MODES}
    wanted = ["user_id", "time_s", *(c for columns in of_modes.values() for c in columns.values())]
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise ValueError(
            f"--optimum={path} is no optimum.arrow of stt_jax.generate: it has no column "
            f"{', '.join(missing[:3])}; its columns are {', '.join(table.column_names)}"
        )
    keys = zip(table["user_id"].to_pylist(), table["time_s"].to_pylist(), strict=True)
    row_of = {key: row for row, key in enumerate(keys)}
    rows = []
    for user, event in zip(targets.users, targets.events, strict=True):
        key = (log.user_ids[user], int(log.times[event]))
        if key not in row_of:
            raise ValueError(
                f"--optimum={path} has no row for user {key[0]} at {key[1]} s; it belongs to "
                "another log: generate and prepare the city again"
            )
        rows.append(row_of[key])
    best = {}
    for mode, columns in of_modes.items():
        means = {name: float(table[c].to_numpy()[rows].mean()) for name, c in columns.items()}
        best[mode] = {"accuracy@1": means["recall@1"], **means}
        for k in (1, 5, 10, 20):
            best[mode][f"hr@{k}"] = means[f"recall@{k}"]
            best[mode][f"precision@{k}"] = means[f"recall@{k}"] / k
            best[mode][f"f1@{k}"] = 2 * means[f"recall@{k}"] / (k + 1)
    return best
