"""The training loop: batches in, checkpoints and metrics out; stops early, goes on where it was."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils

from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig, WatchConfig
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.metrics import ranking_metrics
from stt_jax.training import checkpoint, privacy, speed
from stt_jax.training import run as runs
from stt_jax.training.calibration import fit_gates
from stt_jax.training.checkpoint import Progress
from stt_jax.training.ranks import make_ranker, model_ranks
from stt_jax.training.reporting import Reporter
from stt_jax.training.setup import Training, set_up
from stt_jax.training.sharding import make_placement
from stt_jax.training.step import TrainState
from stt_jax.training.warm_start import open_source, transfer_params

_REPORT_EVERY = 20  # steps
_FEW_STEPS = 200  # below, the default rate and batch teach little
_AGREE_EVERY = 10  # steps between asking all processes whether one was told to stop
READ_AHEAD = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)


def train_model(
    log: PreparedLog,
    training: TrainingConfig,
    model_config: ModelConfig | None = None,
    protocol: ProtocolConfig | None = None,
    devices: DeviceConfig | None = None,
    watch: WatchConfig | None = None,
) -> runs.Run:
    """Trains a model on the training part of a log and returns it at its best validation.

    Called again with the same run directory and options it goes on from the latest checkpoint, on
    the same devices to the same bits, on others with the same batches. `training.resume_from` is
    looked at before there is a checkpoint, and never again.

    Args:
      log: a prepared log.
      training: how; `training.run` is the run directory.
      model_config: which network; default `ModelConfig()`.
      protocol: what validation asks; default `ProtocolConfig()`.
      devices: what to compute on; default `DeviceConfig()`, one device.
      watch: what to look at besides; default `WatchConfig()`. A dry run is `inspection.describe`.

    Raises:
      ValueError: no run directory given, or one that holds a run with other options or data; a
        damaged checkpoint; a run to resume from, or a mesh, that does not fit; too many steps in a
        row without a finite loss.
      OSError: the run directory cannot be written.
      KeyboardInterrupt: as raised by the user, after a checkpoint was written.
    """
    model_config = model_config or ModelConfig()
    protocol = protocol or ProtocolConfig()
    first = jax.process_index() == 0
    devices = devices or DeviceConfig()
    make_placement(devices)  # refuses before anything is written
    source = open_source(log, training, model_config)
    origin = source.origin if source else None
    directory = runs.open_directory(log, training, model_config, protocol, origin, write=first)
    _meet("run directory")  # process 0 makes what the others read
    secret = privacy.secret_of(directory) if training.dp_epsilon else 0
    setup = set_up(log, training, model_config, protocol, devices, secret)
    watch = watch or WatchConfig()
    if watch.profile_steps and watch.profiled().start >= setup.num_steps:
        raise ValueError(
            f"--profile_steps={watch.profile_steps}: the run has {setup.num_steps} steps, from 0"
        )
    if first:
        runs.begin(directory, log, training, model_config, protocol, origin)
    _meet("run files")
    owner = runs.identity(directory, runs.read_run_files(directory)[0])
    with (
        runs.locked(directory) if first else contextlib.nullcontext(),
        jax.set_mesh(setup.placement.mesh),
        checkpoint.open_manager(directory, training.keep) as manager,
    ):
        data = iter(grain.MapDataset.source(setup.batches).to_iter_dataset(READ_AHEAD))
        transferred = None
        if manager.latest_step() is None:
            state, progress = setup.initial_state(), Progress()
            if source is not None:
                transferred = transfer_params(source, log, setup.shapes.params)
                state = dataclasses.replace(state, params=transferred.params)
        else:
            state, progress, position = checkpoint.restore(manager, setup.shapes, owner)
            data.set_state(position)
        reporter = Reporter(directory, setup.num_steps, int(state.step), enabled=first)
        try:
            _print_start(reporter, setup, int(state.step))
            if transferred is not None:
                reporter.line(transferred.kept)
            if not progress.finished:
                keep = functools.partial(checkpoint.save, manager, owner)
                _train(setup, state, progress, data, keep, reporter, watch)
                checkpoint.wait(manager)
            if training.calibrate:
                _calibrate(setup, manager, owner, reporter)
            privacy.forget_secret(directory)
        finally:
            reporter.close()
    return runs.load_run(directory, log)


def _train(
    setup: Training,
    state: TrainState,
    progress: Progress,
    data: Any,
    keep: Callable[..., None],
    reporter: Reporter,
    watch: WatchConfig,
) -> None:
    config = setup.config
    train_step = setup.make_step()
    ranker = make_ranker(setup.model)
    validate_every = max(1, setup.batches.num_steps(config.validation_every))
    meter = speed.Meter(setup.model, config, setup.placement.mesh, setup.batches)
    step = int(state.step)
    unchecked: collections.deque[Any] = collections.deque()
    with (
        _stop_requests() as stop,
        contextlib.closing(
            speed.Trace(watch.profiled(), pathlib.Path(config.run) / "profile")
        ) as trace,
    ):
        while step < setup.num_steps and not progress.finished:
            trace.at(step)
            with meter.waiting():
                history, requests = setup.put(next(data))
            state, measures = train_step(state, setup.items, history, requests, setup.key)
            step += 1
            last = step == setup.num_steps
            meter.add(measures)
            unchecked.append((step, measures["bad_steps_in_a_row"]))
            # The step before is done by now, so that looking at it costs no waiting.
            while len(unchecked) > (0 if last else 1):
                _check_bad_steps(setup, *unchecked.popleft())
            if step % _REPORT_EVERY == 0 or last:
                _report(reporter, step, measures, meter)

            validates = step % validate_every == 0 or last
            saves = validates or (config.checkpoint_every and step % config.checkpoint_every == 0)
            stops = _agree(stop.is_set(), step) and not last
            quality = None
            # Parameters may have blown up, and a checkpoint takes the place of an older one.
            in_doubt = (saves or stops) and int(measures["bad_steps_in_a_row"]) > 0
            if in_doubt:
                reporter.line(
                    f"step {step}: loss or gradient is not finite: not validated"
                    + ("" if last else ", not saved")
                )
            elif validates:
                quality = _validate(setup, ranker, state, reporter, step)
                progress = _next_progress(progress, quality, step, config)
            progress = dataclasses.replace(progress, finished=progress.finished or last)
            if (saves or stops) and (last or not in_doubt):
                if setup.account is not None:
                    progress = _spend(setup.account, progress, step, reporter)
                keep(state, data.get_state(), progress, quality)
                meter.restart()
            if stops and not progress.finished:
                where = "its last checkpoint" if in_doubt else "here"
                reporter.line(f"stopped at step {step}; the same command goes on from {where}")
                raise KeyboardInterrupt
    if progress.best_step:
        reporter.line(_best(config, progress))


def _calibrate(setup: Training, manager: Any, owner: str, reporter: Reporter) -> None:
    """Fits the gates of the best parameters, and keeps that one step on if it is better."""
    state, progress, position = checkpoint.restore(manager, setup.shapes, owner)
    if progress.calibrated or len(setup.targets) == 0:
        return
    params, _ = checkpoint.restore_params(manager, owner)
    params = setup.placement.put_whole(params, setup.placement.params(params))
    fitted = fit_gates(
        setup.model,
        params,
        setup.asked_items,
        setup.log,
        setup.targets,
        window=setup.config.asked_tokens,
        leave_out_seen=setup.protocol.seen == "leave_out",
        name_domains=setup.protocol.domains == "named",
        placement=setup.placement,
        metric=setup.config.select_by,
    )
    step = int(state.step) + 1
    reporter.line(f"step {step}: the gates are fitted to the validation part")
    candidate = dataclasses.replace(state, step=state.step + 1, params=fitted)
    quality = _validate(setup, make_ranker(setup.model), candidate, reporter, step)
    assert quality is not None
    progress = dataclasses.replace(progress, calibrated=True)
    if quality > progress.best:
        progress = dataclasses.replace(progress, best=quality, best_step=step)
    reporter.line(_best(setup.config, progress))
    checkpoint.save(manager, owner, candidate, position, progress, quality)
    checkpoint.wait(manager)


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


def _agree(wish: bool, step: int) -> bool:
    """Whether any process was told to stop: all must stop after the same step."""
    if jax.process_count() == 1:
        return wish
    if step % _AGREE_EVERY:
        return False
    return bool(multihost_utils.process_allgather(np.asarray(wish)).any())


def _meet(where: str) -> None:
    """Waits until every process is there."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def _check_bad_steps(setup: Training, step: int, in_a_row: jax.Array) -> None:
    """Raises when too many steps in a row were left out, and writes down what was in them."""
    count = int(in_a_row)
    if count < setup.config.max_bad_steps:
        return
    log = setup.log
    found = []
    for index in range(step - count, step):
        _, requests = setup.batches[index]
        asked = requests.targets > 0
        found.append(
            {
                "step": index,
                "users": [log.user_ids[user - 1] for user in requests.users[asked] if user > 0],
                "items": [log.item_ids[item] for item in requests.targets[asked]],
            }
        )
    run = pathlib.Path(setup.config.run)
    path = run / f"bad_batches_{jax.process_index()}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    raise ValueError(
        f"loss or gradient was not finite in {count} steps in a row, up to step {step}; none of "
        f"them changed a parameter. Their people and items are in {path}. Try a lower "
        "--learning_rate in another --run"
        + (
            ", or go on from the last checkpoint with a higher --max_bad_steps"
            if checkpoint.whole_steps(run)
            else ""
        )
    )


def _validate(
    setup: Training, ranker: Any, state: TrainState, reporter: Reporter, step: int
) -> float | None:
    """`--select_by`, mean over both request modes, on people and items that training knows."""
    if len(setup.targets) == 0:
        return None
    ranks = model_ranks(
        ranker,
        state.params,
        setup.asked_items,
        setup.log,
        setup.targets,
        window=setup.config.asked_tokens,
        leave_out_seen=setup.protocol.seen == "leave_out",
        name_domains=setup.protocol.domains == "named",
        placement=setup.placement,
    )
    by_mode = {mode: ranking_metrics(mode_ranks, (1, 10)) for mode, mode_ranks in ranks.items()}
    metrics = {
        name: float(np.mean([values[name] for values in by_mode.values()]))
        for name in ("mrr", "accuracy@1", "hr@10", "ndcg@10")
    }
    reporter.write(step, "validation", metrics)
    shown = dict.fromkeys(("accuracy@1", "mrr", setup.config.select_by))
    modes = ", ".join(
        f"{mode} time: " + ", ".join(f"{_title(name)} {values[name]:.4f}" for name in shown)
        for mode, values in by_mode.items()
    )
    reporter.line(f"step {step}: validation with {modes}")
    return metrics[setup.config.select_by]


def _spend(account: privacy.Account, progress: Progress, step: int, reporter: Reporter) -> Progress:
    """Brings the privacy account up to date before a checkpoint."""
    epsilon = account.epsilon(step)
    reporter.write(step, "privacy", {"epsilon": epsilon, "delta": account.delta})
    reporter.line(f"step {step}: epsilon {epsilon:.3f} spent at delta {account.delta:g}")
    return dataclasses.replace(progress, epsilon=epsilon)


def _next_progress(
    progress: Progress, quality: float | None, step: int, training: TrainingConfig
) -> Progress:
    if quality is None:
        return progress
    if quality > progress.best:
        return dataclasses.replace(progress, best=quality, best_step=step, validations_since_best=0)
    since = progress.validations_since_best + 1
    finished = 0 < training.patience <= since
    return dataclasses.replace(progress, validations_since_best=since, finished=finished)


def _best(config: TrainingConfig, progress: Progress) -> str:
    name = _title(config.select_by)
    return f"best validation {name} {progress.best:.4f} at step {progress.best_step}"


def _title(metric: str) -> str:
    return "accuracy" if metric == "accuracy@1" else metric.upper()


def _report(
    reporter: Reporter, step: int, measures: dict[str, jax.Array], meter: speed.Meter
) -> None:
    requests = max(1.0, float(measures["requests"]))
    loss = float(measures["loss"])
    learned = {
        "loss": loss,
        "gradient_norm": float(measures["gradient_norm"]),
        "log_likelihood": float(measures["log_likelihood"]) / requests,
        "generating": float(measures["generating"]) / requests,
        "bad_steps_in_a_row": int(measures["bad_steps_in_a_row"]),
    }
    reporter.write(step, "train", learned)
    found = meter.report()
    reporter.write(step, "speed", found)
    reporter.advance(step, f"loss {loss:.3f}, {found['events_per_s']:,.0f} events/s")


def _print_start(reporter: Reporter, setup: Training, step: int) -> None:
    log, mesh = setup.log, setup.placement.mesh
    num_params = sum(leaf.size for leaf in jax.tree.leaves(setup.shapes.params))
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    reporter.line(
        f"{log.directory}: {log.num_train_users:,} people, {log.num_listed:,} items, split "
        f"{log.meta.split_hash[:12]}; {num_params:,} parameters; {setup.num_steps:,} steps, "
        f"{setup.batches.fill:.0%} of tokens filled; {mesh.shape['data']} x "
        f"{mesh.shape['model']} of {jax.device_count()} {jax.default_backend()} devices{processes}"
    )
    if setup.account is not None:
        reporter.line(privacy.statement(setup.account, setup.config.dp_clip, setup.num_steps))
    if not len(setup.targets):
        reporter.line(
            "no validation event has a user and an item that training knows: the last step is "
            "taken, and --patience and --select_by have no effect"
        )
    if setup.num_steps < _FEW_STEPS:
        reporter.line(
            f"only {setup.num_steps} steps: a small log learns more by smaller batches, more "
            "epochs and a higher rate, e.g. --batch_rows=4 --epochs=30 --learning_rate=0.01"
        )
    if step:
        reporter.line(f"going on from step {step}")
