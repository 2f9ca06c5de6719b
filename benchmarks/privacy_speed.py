"""How long does a private training step take beside an ordinary one?

An ordinary step on the very same rows shows what a gradient for every person costs; one on full
rows, as ordinary training packs them, shows what a private training goes without. The steps take
turns, compiled and warmed; the input pipeline takes no part.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from stt_jax.config import DeviceConfig, ModelConfig, ProtocolConfig, TrainingConfig
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.training.privacy import Account
from stt_jax.training.setup import Training, set_up
from stt_jax.training.step import make_train_step

PRIVATE = "private"
_EPSILON = 8.0  # how much noise is added takes no time


class Stepper:
    """Makes a training step when called, always on the same batch."""

    def __init__(self, setup: Training, batch: Any, account: Account | None) -> None:
        """Compiles nothing yet: the first call does.

        Args:
          setup: of the training.
          batch: (history, requests), numpy, [B, S] and [B, R].
          account: makes the step private.
        """
        requests = batch[1]
        asked = requests.targets > 0
        self.num_rows, self.num_events = len(asked), int(asked.sum())
        self.num_people = len(np.unique(requests.users[asked]))
        self._setup = setup
        with jax.set_mesh(setup.placement.mesh):
            self._batch = setup.placement.put_rows(batch, self.num_rows)
            self._state = setup.initial_state()
        self._step = make_train_step(
            setup.model, setup.optimizer, setup.config, setup.placement, setup.shardings, account
        )

    def __call__(self) -> dict[str, jax.Array]:
        """The measures of one step."""
        setup = self._setup
        with jax.set_mesh(setup.placement.mesh):
            self._state, measures = self._step(self._state, setup.items, *self._batch, setup.key)
        return measures


def step_speed(
    log: PreparedLog, training: TrainingConfig, model: ModelConfig, num_rounds: int
) -> dict[str, Any]:
    """The time of a step, and what it learns from in a second.

    Args:
      log, training, model: as of `train_model`; `batch_rows` is the expected number of people of
        the private step, and the number of packed rows of the ordinary one.
      num_rounds: steps of each kind that count.
    """
    devices, protocol = DeviceConfig(), ProtocolConfig()
    ordinary = set_up(log, training, model, protocol, devices)
    training = dataclasses.replace(training, dp_epsilon=_EPSILON)
    private = set_up(log, training, model, protocol, devices)
    drawn = private.batches[0]
    steppers = {
        PRIVATE: Stepper(private, drawn, private.account),
        "not private, the same rows": Stepper(private, drawn, None),
        "not private, packed rows": Stepper(ordinary, ordinary.batches[0], None),
    }
    times = timing.alternate(steppers, num_rounds)
    kinds = {}
    for name, stepper in steppers.items():
        steps_per_s = 1e3 / times[name].median_ms
        kinds[name] = {
            "rows": stepper.num_rows,
            "people": stepper.num_people,
            "events": stepper.num_events,
            "step_ms": round(times[name].median_ms, 2),
            "step_ms spread": round(times[name].spread_ms, 2),
            "steps_per_s": round(steps_per_s, 3),
            "people_per_s": round(steps_per_s * stepper.num_people, 1),
            "events_per_s": round(steps_per_s * stepper.num_events, 1),
            "private_takes_times_as_long": round(times[PRIVATE].ratio_to(times[name]), 2),
        }
        print(f"step, {name}: {kinds[name]}", flush=True)
    return {"rounds": num_rounds, "kinds": kinds, **timing.environment()}
