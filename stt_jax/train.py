"""Train a model on a prepared log.

    python -m stt_jax.train --data=prepared/nyc --run=runs/nyc --flagfile=configs/nyc.flags

The same command goes on where a stopped run was. Ctrl-C writes a checkpoint first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from stt_jax import command
from stt_jax.config import ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.data.store import open_log
from stt_jax.training.loop import train_model
from stt_jax.training.run import FLAG_GROUPS


def train(training: TrainingConfig, model: ModelConfig, validation: ProtocolConfig) -> None:
    """Opens the log, trains, and says where the run is."""
    if not training.data:
        raise ValueError("--data is missing: name a directory made by python -m stt_jax.prepare")
    run = train_model(open_log(training.data), training, model, validation)
    print(f"step {run.step} is the best; python -m stt_jax.evaluate --run={run.directory}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(train, FLAG_GROUPS, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
