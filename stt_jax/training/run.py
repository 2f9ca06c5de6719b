"""A run on disk: what was trained, on what, and its checkpoints.

run.flags        every option, ready for --flagfile
run.json         format version, hashes of the data, sizes of the vocabularies, versions
checkpoints/     parameters, optimiser, position in the data, progress: `training.checkpoint`
metrics.jsonl    one line a report;  tensorboard/ the same for TensorBoard
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
from typing import Any

from stt_jax import command
from stt_jax.config import ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.data.store import PreparedLog
from stt_jax.model.stt import ModelSizes, SpatiotemporalTransformer
from stt_jax.training import checkpoint

FORMAT_VERSION = 2
FLAG_GROUPS = {"training": TrainingConfig, "model": ModelConfig, "validation": ProtocolConfig}
_PACKAGES = ("stt_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What a run must agree with to be continued or used."""

    format_version: int
    data_hash: str
    split_hash: str
    sizes: ModelSizes
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model: everything that evaluation and serving need but the log."""

    directory: pathlib.Path
    training: TrainingConfig
    model_config: ModelConfig
    protocol: ProtocolConfig
    info: RunInfo
    model: SpatiotemporalTransformer
    params: Any
    step: int


def model_sizes(log: PreparedLog) -> ModelSizes:
    """The sizes of a model for a log."""
    return ModelSizes(
        num_items=log.num_items,
        num_categories=log.num_categories,
        num_users=log.num_train_users,
        contexts=tuple((name, len(values) - 1) for name, values in log.context_values.items()),
    )


def fit_to_log(config: ModelConfig, log: PreparedLog) -> ModelConfig:
    """Switches off what the log cannot show: times or places that it does not have."""
    return dataclasses.replace(
        config,
        use_time=config.use_time and log.meta.has_times,
        use_place=config.use_place and log.meta.has_places,
    )


def run_info(log: PreparedLog) -> RunInfo:
    """The identity of a run on this log with the installed packages."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "source"
    return RunInfo(
        FORMAT_VERSION, log.meta.data_hash, log.meta.split_hash, model_sizes(log), versions
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
    _write(directory / "run.flags", command.to_flagfile(training, model, protocol))
    _write(directory / "run.json", json.dumps(dataclasses.asdict(info), indent=1) + "\n")


def _write(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all, whenever the process may be killed."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(text)
    aside.replace(path)


def identity(directory: pathlib.Path, info: RunInfo) -> str:
    """A short name of what a run is: its data and options, but not where they lie."""
    lines = (directory / "run.flags").read_text().splitlines()
    options = [line for line in lines if not line.startswith(("--run=", "--data="))]
    return hashlib.sha256("\n".join([info.data_hash, *options]).encode()).hexdigest()[:16]


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
    contexts = tuple((name, size) for name, size in sizes.pop("contexts"))
    info = RunInfo(**values, sizes=ModelSizes(**sizes, contexts=contexts))
    return info, command.from_flagfile(directory / "run.flags", FLAG_GROUPS)


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
        params, step = checkpoint.restore_params(manager, identity(directory, info))
    return Run(
        directory,
        configs["training"],
        model_config,
        configs["validation"],
        info,
        model,
        params,
        step,
    )


def check_same_log(directory: pathlib.Path, info: RunInfo, log: PreparedLog) -> None:
    """Raises ValueError if the run was trained on another prepared log."""
    if info.data_hash != log.meta.data_hash:
        raise ValueError(
            f"--run={directory} was trained on a log with hash {info.data_hash[:12]}, but "
            f"{log.directory} has hash {log.meta.data_hash[:12]}; give the log of the run by "
            "--data, or train a new run on this one"
        )
