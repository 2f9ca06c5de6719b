"""Train a model on a prepared log.

    python -m stt_jax.train --data=prepared/nyc --run=runs/nyc --flagfile=configs/nyc.flags

The same command goes on where a stopped or killed run was. Ctrl-C writes a checkpoint first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import jax

from stt_jax import command
from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig, WatchConfig
from stt_jax.data.store import open_log
from stt_jax.training.inspection import describe
from stt_jax.training.loop import train_model
from stt_jax.training.run import FLAG_GROUPS
from stt_jax.training.sharding import connect


def train(
    training: TrainingConfig,
    model: ModelConfig,
    validation: ProtocolConfig,
    devices: DeviceConfig,
    watching: WatchConfig,
) -> None:
    """Opens the log, trains, and says where the run is; or only says what it would do."""
    if not training.data:
        raise ValueError("--data is missing: name a directory made by python -m stt_jax.prepare")
    connect(devices)
    log = open_log(training.data)
    if watching.dry_run:
        table, lines = describe(log, training, model, validation, devices)
        command.table_console().print(table)
        print("\n".join(lines))
        return
    run = train_model(log, training, model, validation, devices, watching)
    if jax.process_index() == 0:
        print(f"step {run.step} is the best; python -m stt_jax.evaluate --run={run.directory}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    groups = {**FLAG_GROUPS, "devices": DeviceConfig, "watching": WatchConfig}
    return command.run(train, groups, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
