"""The training loop: batches in, checkpoints and metrics out; stops early, goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from stt_jax.config import ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.data.pipeline import TrainingBatches, catalogue
from stt_jax.data.protocol import Targets, find_targets
from stt_jax.data.store import VALIDATION, PreparedLog
from stt_jax.metrics import ranking_metrics
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.training import run as runs
from stt_jax.training.ranks import make_ranker, model_ranks
from stt_jax.training.reporting import Reporter
from stt_jax.training.step import TrainState, init_state, make_optimizer, make_train_step

_REPORT_EVERY = 20  # steps
_READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is, besides its parameters."""

    finished: bool = False
    best_mrr: float = -1.0
    best_step: int = 0
    validations_since_best: int = 0


def train_model(
    log: PreparedLog,
    training: TrainingConfig,
    model_config: ModelConfig | None = None,
    protocol: ProtocolConfig | None = None,
) -> runs.Run:
    """Trains a model on the training part of a log and returns it at its best validation.

    Called again with the same run directory and options it goes on from the latest checkpoint.

    Args:
      log: a prepared log.
      training: how; `training.run` is the run directory.
      model_config: which network; default `ModelConfig()`.
      protocol: what validation asks; default `ProtocolConfig()`.

    Raises:
      ValueError: no run directory given, or one that holds a run with other options or data.
      KeyboardInterrupt: as raised by the user, after a checkpoint was written.
    """
    model_config = model_config or ModelConfig()
    protocol = protocol or ProtocolConfig()
    directory = _open_directory(log, training, model_config, protocol)
    model = SpatiotemporalTransformer(runs.fit_to_log(model_config, log), runs.model_sizes(log))

    batches = TrainingBatches(
        log,
        window=training.window,
        requests=training.requests,
        batch_rows=training.batch_rows,
        seed=training.seed,
    )
    num_steps = batches.num_steps(training.epochs)
    optimizer = make_optimizer(training, num_steps)
    items = jax.tree.map(jax.numpy.asarray, catalogue(log))
    state = init_state(model, optimizer, items, *batches[0], training.seed)
    progress = Progress()

    with runs.checkpoint_manager(directory, training.keep) as manager:
        data = iter(grain.MapDataset.source(batches).to_iter_dataset(_READ_AHEAD))
        if manager.latest_step() is not None:
            state, progress = _restore(manager, state, data)
        reporter = Reporter(directory, num_steps, int(state.step))
        try:
            _print_start(reporter, log, state, batches, num_steps)
            if not progress.finished:
                _train(
                    model,
                    optimizer,
                    training,
                    log,
                    items,
                    state,
                    progress,
                    data,
                    batches,
                    num_steps,
                    _validation_targets(log, training, protocol),
                    manager,
                    reporter,
                )
        finally:
            reporter.close()
    return runs.load_run(directory, log)


def _train(
    model: SpatiotemporalTransformer,
    optimizer: Any,
    training: TrainingConfig,
    log: PreparedLog,
    items: Any,
    state: TrainState,
    progress: Progress,
    data: Any,
    batches: TrainingBatches,
    num_steps: int,
    targets: Targets,
    manager: ocp.CheckpointManager,
    reporter: Reporter,
) -> None:
    train_step = make_train_step(model, optimizer, training)
    ranker = make_ranker(model)
    validate_every = max(1, batches.num_steps(training.validation_every))
    step = int(state.step)
    clock, events = time.perf_counter(), 0
    with _stop_requests() as stop:
        while step < num_steps and not progress.finished:
            history, requests = next(data)
            state, measures = train_step(state, items, history, requests)
            step += 1
            events += int(np.count_nonzero(requests.targets))
            if step % _REPORT_EVERY == 0 or step == num_steps:
                report = _report(measures, events, time.perf_counter() - clock)
                reporter.write(step, "train", report)
                reporter.advance(
                    step, f"loss {report['loss']:.3f}, {report['events_per_s']:,.0f} events/s"
                )
                clock, events = time.perf_counter(), 0
            if step % validate_every == 0 or step == num_steps:
                metrics = _validate(ranker, state, items, log, targets, training, reporter, step)
                progress = _next_progress(progress, metrics, step, training)
                progress = dataclasses.replace(
                    progress, finished=progress.finished or step == num_steps
                )
                _save(manager, state, data, progress, metrics)
                clock = time.perf_counter()
            if stop.is_set() and not progress.finished:
                if manager.latest_step() != step:
                    _save(manager, state, data, progress, None)
                manager.wait_until_finished()
                reporter.line(f"stopped at step {step}; the same command goes on from here")
                raise KeyboardInterrupt
    if progress.best_step:
        reporter.line(f"best validation MRR {progress.best_mrr:.4f} at step {progress.best_step}")


@contextlib.contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that the loop stops between two steps.

    A second Ctrl-C interrupts at once. Outside the main thread signals are left alone.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous: dict[int, Any] = {}

    def request(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, request)
    try:
        yield stop
    finally:
        for known, handler in previous.items():
            signal.signal(known, handler)


def _validate(
    ranker: Any,
    state: TrainState,
    items: Any,
    log: PreparedLog,
    targets: Targets,
    training: TrainingConfig,
    reporter: Reporter,
    step: int,
) -> dict[str, float] | None:
    """Mean metrics over both request modes, on people and items that training knows."""
    if len(targets) == 0:
        return None
    ranks = model_ranks(ranker, state.params, items, log, targets, window=training.window)
    by_mode = {mode: ranking_metrics(mode_ranks, (1, 10)) for mode, mode_ranks in ranks.items()}
    metrics = {
        name: float(np.mean([values[name] for values in by_mode.values()]))
        for name in ("mrr", "accuracy@1", "hr@10", "ndcg@10")
    }
    reporter.write(step, "validation", metrics)
    modes = ", ".join(
        f"{mode} time: accuracy {values['accuracy@1']:.4f}, MRR {values['mrr']:.4f}"
        for mode, values in by_mode.items()
    )
    reporter.line(f"step {step}: validation with {modes}")
    return metrics


def _next_progress(
    progress: Progress, metrics: dict[str, float] | None, step: int, training: TrainingConfig
) -> Progress:
    if metrics is None:
        return progress
    if metrics["mrr"] > progress.best_mrr:
        return Progress(best_mrr=metrics["mrr"], best_step=step)
    since = progress.validations_since_best + 1
    finished = 0 < training.patience <= since
    return dataclasses.replace(progress, validations_since_best=since, finished=finished)


def _report(measures: dict[str, jax.Array], events: int, seconds: float) -> dict[str, float]:
    requests = max(1.0, float(measures["requests"]))
    return {
        "loss": float(measures["loss"]),
        "gradient_norm": float(measures["gradient_norm"]),
        "log_likelihood": float(measures["log_likelihood"]) / requests,
        "generating": float(measures["generating"]) / requests,
        "events_per_s": events / seconds,
    }


def _save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    data: Any,
    progress: Progress,
    metrics: dict[str, float] | None,
) -> None:
    manager.save(
        int(state.step),
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizer=ocp.args.StandardSave(state.opt_state),
            data=ocp.args.JsonSave(data.get_state()),
            progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
        ),
        # Never the best unless it is the only one.
        metrics=metrics or {"mrr": -1.0},
    )


def _restore(
    manager: ocp.CheckpointManager, state: TrainState, data: Any
) -> tuple[TrainState, Progress]:
    step = manager.latest_step()
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardRestore(state.params),
            optimizer=ocp.args.StandardRestore(state.opt_state),
            data=ocp.args.JsonRestore(),
            progress=ocp.args.JsonRestore(),
        ),
    )
    data.set_state(restored["data"])
    state = TrainState(
        jax.numpy.asarray(step, jax.numpy.int32), restored["params"], restored["optimizer"]
    )
    return state, Progress(**restored["progress"])


def _validation_targets(
    log: PreparedLog, training: TrainingConfig, protocol: ProtocolConfig
) -> Targets:
    targets = find_targets(log, VALIDATION, targets=protocol.targets, context=protocol.context)
    return targets[targets.known(log)].sample(training.validation_targets, seed=0)


def _open_directory(
    log: PreparedLog,
    training: TrainingConfig,
    model_config: ModelConfig,
    protocol: ProtocolConfig,
) -> pathlib.Path:
    if not training.run:
        raise ValueError("--run is missing: name a directory for checkpoints and metrics")
    directory = pathlib.Path(training.run)
    info = runs.run_info(log)
    if (directory / "run.json").exists():
        old_info, old = runs.read_run_files(directory)
        runs.check_same_log(directory, old_info, log)
        before = (old["training"], old["model"], old["validation"])
        changed = [
            change
            for now, then in zip((training, model_config, protocol), before, strict=True)
            for change in _changes(then, now)
        ]
        if changed:
            raise ValueError(
                f"--run={directory} holds a run with other options ({'; '.join(changed)}); "
                "give the same options to go on, or another --run"
            )
        return directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--run={directory} cannot be made: {error.strerror}") from error
    if not os.access(directory, os.W_OK):
        raise OSError(f"--run={directory} cannot be written; choose another directory")
    runs.write_run_files(directory, info, training, model_config, protocol)
    return directory


def _changes(before: Any, now: Any) -> list[str]:
    """The options of two configs that differ, but for where things are."""
    names = {field.name for field in dataclasses.fields(now)} - {"run", "data"}
    return [
        f"--{name}={getattr(before, name)} before, --{name}={getattr(now, name)} now"
        for name in sorted(names)
        if getattr(before, name) != getattr(now, name)
    ]


def _print_start(
    reporter: Reporter,
    log: PreparedLog,
    state: TrainState,
    batches: TrainingBatches,
    num_steps: int,
) -> None:
    num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    reporter.line(
        f"{log.directory}: {log.num_train_users:,} people, {log.num_items:,} items, split "
        f"{log.meta.split_hash[:12]}; {num_params:,} parameters; {num_steps:,} steps, "
        f"{batches.fill:.0%} of tokens filled, on {jax.device_count()} {jax.default_backend()}"
    )
    if int(state.step):
        reporter.line(f"going on from step {int(state.step)}")
