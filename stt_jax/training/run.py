"""A run on disk: what was trained, on what, and its checkpoints.

run.flags        every option, ready for --flagfile
run.json         format version, hashes of the data, sizes of the vocabularies, versions
checkpoints/     parameters, optimiser, position in the data, progress: `training.checkpoint`
metrics.jsonl    one line a report;  tensorboard/ the same for TensorBoard
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from stt_jax.config import ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.config.flagfile import from_flagfile, to_flagfile
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.model.stt import ModelSizes, SpatiotemporalTransformer
from stt_jax.training import checkpoint

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FORMAT_VERSION = 2
FLAG_GROUPS = {"training": TrainingConfig, "model": ModelConfig, "validation": ProtocolConfig}
_FREE = ("run", "data", "keep", "checkpoint_every", "max_bad_steps")  # may change as a run goes on
_PLACES = ("run", "data", "resume_from")  # options that say where something lies, not what it is
_PACKAGES = ("stt_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What a run must agree with to be continued or used.

    `origin` names the run and step that it began from, wherever they lie; "" = from nothing.
    """

    format_version: int
    data_hash: str
    split_hash: str
    sizes: ModelSizes
    versions: dict[str, str]
    origin: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model: everything that evaluation and serving need but the log.

    `epsilon` is what a private training has spent until its latest checkpoint; None = not private.
    """

    directory: pathlib.Path
    training: TrainingConfig
    model_config: ModelConfig
    protocol: ProtocolConfig
    info: RunInfo
    model: SpatiotemporalTransformer
    params: Any
    step: int
    epsilon: float | None = None


def model_sizes(log: PreparedLog) -> ModelSizes:
    """The sizes of a model for a log."""
    return ModelSizes(
        num_items=log.num_items,
        num_categories=log.num_categories,
        num_users=log.num_train_users,
        contexts=tuple((name, len(values) - 1) for name, values in log.context_values.items()),
        item_traits=tuple(
            (name, len(log.item_trait_values[name]) - 1, column.shape[1])
            for name, column in log.item_traits.items()
        ),
        user_traits=tuple((name, len(log.user_trait_values[name]) - 1) for name in log.user_traits),
        numbers=tuple(sorted(log.numbers)),
    )


def fit_to_log(config: ModelConfig, log: PreparedLog) -> ModelConfig:
    """Switches off times or places that the log does not have; without times, order stands in."""
    use_time = config.use_time and log.meta.has_times
    return dataclasses.replace(
        config,
        use_time=use_time,
        use_place=config.use_place and log.meta.has_places,
        use_order=config.use_order or not use_time,
    )


def run_info(log: PreparedLog, origin: str = "") -> RunInfo:
    """The identity of a run on this log with the installed packages."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "source"
    return RunInfo(
        FORMAT_VERSION, log.meta.data_hash, log.meta.split_hash, model_sizes(log), versions, origin
    )


def write_run_files(
    directory: pathlib.Path,
    info: RunInfo,
    training: TrainingConfig,
    model: ModelConfig,
    protocol: ProtocolConfig,
) -> None:
    """Writes run.flags, then run.json: a directory with a run.json holds a run."""
    (directory / "checkpoints").mkdir(parents=True, exist_ok=True)
    _write(directory / "run.flags", to_flagfile(training, model, protocol))
    _write(directory / "run.json", json.dumps(dataclasses.asdict(info), indent=1) + "\n")


def open_directory(
    log: PreparedLog,
    training: TrainingConfig,
    model: ModelConfig,
    protocol: ProtocolConfig,
    origin: str | None,
    *,
    write: bool,
) -> pathlib.Path:
    """The directory of a run that is to begin or to go on; with `write` it is made if missing.

    Nothing of a run is in it before `begin`.

    Args:
      log, training, model, protocol: as in `loop.train_model`.
      origin: what the run begins from, see `RunInfo`; None = nothing, or it has begun already.
      write: of several processes one writes.

    Raises:
      ValueError: no directory given, or one that holds a run with other options, data or origin.
      OSError: it cannot be written.
    """
    if not training.run:
        raise ValueError("--run is missing: name a directory for checkpoints and metrics")
    directory = pathlib.Path(training.run)
    if (directory / "run.json").exists():
        _check_same_run(directory, log, training, model, protocol, origin)
        return directory
    if not write:
        return directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"--run={directory} cannot be made: {error.strerror}") from error
    if not os.access(directory, os.W_OK):
        raise OSError(f"--run={directory} cannot be written; choose another directory")
    return directory


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from training a run, as long as this one lives and is in here.

    Two that train the same run would delete each other's checkpoints.

    Raises:
      ValueError: another process trains it.
    """
    if fcntl is None:
        yield
        return
    with (directory / "train.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process trains --run={directory}: wait for it, stop it, or give "
                "another --run"
            ) from error
        except OSError:
            pass  # a file system without locks, of which some clusters have one
        yield


def begin(
    directory: pathlib.Path,
    log: PreparedLog,
    training: TrainingConfig,
    model: ModelConfig,
    protocol: ProtocolConfig,
    origin: str | None,
) -> None:
    """Writes the files of a run that begins; one that goes on has them, and they stay.

    Called when nothing of the options is left to refuse: the files bind the directory to them.

    Args:
      directory: of `open_directory`.
      log, training, model, protocol, origin: as there.

    Raises:
      ValueError: another run has begun there meanwhile, with other options, data or origin.
    """
    if (directory / "run.json").exists():
        _check_same_run(directory, log, training, model, protocol, origin)
    else:
        write_run_files(directory, run_info(log, origin or ""), training, model, protocol)


def _check_same_run(
    directory: pathlib.Path,
    log: PreparedLog,
    training: TrainingConfig,
    model: ModelConfig,
    protocol: ProtocolConfig,
    origin: str | None,
) -> None:
    info, old = read_run_files(directory)
    check_same_log(directory, info, log)
    numbers = model_sizes(log).numbers
    if info.sizes.numbers != numbers:
        raise ValueError(
            f"--run={directory} began with a stt_jax whose model did not read the numeric columns "
            f"{', '.join(numbers)} of {log.directory}; it can be used, but not trained on: train "
            "a new --run"
        )
    before = (old["training"], old["model"], old["validation"])
    changed = [
        change
        for now, then in zip((training, model, protocol), before, strict=True)
        for change in _changes(then, now)
    ]
    if origin is not None and origin != info.origin:
        changed.append(f"--resume_from={training.resume_from} is not what it began from")
    if changed:
        raise ValueError(
            f"--run={directory} holds a run with other options ({'; '.join(changed)}); "
            "give the same options to go on, or another --run"
        )


def _changes(before: Any, now: Any) -> list[str]:
    """The options of two configs that differ, but for those that change no number."""
    changes = []
    for name in sorted(field.name for field in dataclasses.fields(now)):
        then, given = getattr(before, name), getattr(now, name)
        # Where the run it began from lies is the user's; whether there is one is not.
        same = bool(then) == bool(given) if name == "resume_from" else then == given
        if not same and name not in _FREE:
            changes.append(f"--{name}={then} before, --{name}={given} now")
    return changes


def _write(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all, whenever the process may be killed."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(text)
    aside.replace(path)


def identity(directory: pathlib.Path, info: RunInfo) -> str:
    """A short name of what a run is: its data, origin and options, but not where they lie."""
    return identity_of(directory, info.data_hash, info.origin)


def identity_of(directory: pathlib.Path, data_hash: str, origin: str) -> str:
    """`identity` of a run with these in its run.json."""
    lines = (directory / "run.flags").read_text().splitlines()
    places = tuple(f"--{name}=" for name in _PLACES)
    options = [line for line in lines if not line.startswith(places)]
    return hashlib.sha256("\n".join([data_hash + origin, *options]).encode()).hexdigest()[:16]


def read_run_files(directory: pathlib.Path) -> tuple[RunInfo, dict[str, Any]]:
    """Reads what `write_run_files` wrote: the info, and the configs by group.

    Raises:
      ValueError: no run there, a damaged file, or a run of another format version.
    """
    path = directory / "run.json"
    if not path.is_file():
        raise ValueError(
            f"--run={directory} holds no run (no run.json); train one with python -m stt_jax.train"
        )
    try:
        values = json.loads(path.read_text())
        version = values["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); train the run again") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"--run={directory} has format version {version}, this program reads "
            f"{FORMAT_VERSION}; use the stt_jax {values.get('versions', {}).get('stt_jax', '?')} "
            "that made it, or train again"
        )
    sizes = values.pop("sizes")
    for name in ("contexts", "item_traits", "user_traits"):
        sizes[name] = tuple(tuple(entry) for entry in sizes.get(name, ()))
    sizes["numbers"] = tuple(sizes.get("numbers", ()))
    info = RunInfo(**values, sizes=ModelSizes(**sizes))
    return info, from_flagfile(directory / "run.flags", FLAG_GROUPS)


def load_run(directory: str | os.PathLike, log: PreparedLog) -> Run:
    """Loads the best checkpoint of a run (the latest where nothing was validated).

    Raises:
      ValueError: no run, no checkpoint or a damaged one, another format version, or a run of
        another log.
    """
    directory = pathlib.Path(directory)
    info, configs = read_run_files(directory)
    check_same_log(directory, info, log)
    model_config = fit_to_log(configs["model"], log)
    model = SpatiotemporalTransformer(model_config, info.sizes)
    with checkpoint.open_manager(directory, configs["training"].keep, read_only=True) as manager:
        owner = identity(directory, info)
        params, step = checkpoint.restore_params(manager, owner)
        private = bool(configs["training"].dp_epsilon)
        epsilon = checkpoint.spent_epsilon(manager, owner) if private else None
    return Run(
        directory,
        configs["training"],
        model_config,
        configs["validation"],
        info,
        model,
        params,
        step,
        epsilon,
    )


def _forgotten(info: RunInfo, log: PreparedLog) -> str:
    if info.data_hash not in log.meta.former_hashes:
        return ""
    return " (it is the run's log, of which a person was forgotten since)"


def check_same_log(directory: pathlib.Path, info: RunInfo, log: PreparedLog) -> None:
    """Raises ValueError if the run was trained on another prepared log."""
    if info.data_hash != log.meta.data_hash:
        raise ValueError(
            f"--run={directory} was trained on a log with hash {info.data_hash[:12]}, but "
            f"{log.directory} has hash {log.meta.data_hash[:12]}; give the log of the run by "
            f"--data, or train a new run on this one{_forgotten(info, log)}"
        )
