"""The logs and the small models of `benchmarks.bench_privacy`."""

from __future__ import annotations

import dataclasses
from typing import Any

from stt_jax.config import ModelConfig, ProtocolConfig, TrainingConfig


@dataclasses.dataclass(frozen=True)
class Suite:
    """How the models of a log are trained, and what the test asks."""

    training: TrainingConfig
    model: ModelConfig
    protocol: ProtocolConfig


_MODEL = ModelConfig(
    width=32,
    num_layers=1,
    num_heads=2,
    dropout=0.1,
    use_sequel=False,
    use_crowd=False,
    use_person=False,
)
_TRAINING = TrainingConfig(window=64, requests=64, learning_rate=0.01, patience=0)
SUITES = {
    "city": Suite(
        dataclasses.replace(_TRAINING, epochs=1.0, batch_rows=512, dp_delta=1e-6),
        _MODEL,
        ProtocolConfig(),
    ),
    "ml100k": Suite(
        dataclasses.replace(_TRAINING, epochs=10.0, batch_rows=64, dp_delta=1e-4),
        dataclasses.replace(_MODEL, use_pointer=False),  # nobody rates a film twice
        ProtocolConfig(targets="last", seen="leave_out"),
    ),
}
OVERFITTED = "overfitted"  # its row; these options make a small model learn few people by heart
BY_HEART: dict[str, Any] = {
    "batch_rows": 16,
    "label_smoothing": 0.0,
    "weight_decay": 0.0,
    "known_time_rate": 1.0,
    "known_place_rate": 0.0,
}
BY_HEART_MODEL: dict[str, Any] = {"width": 64, "dropout": 0.0}
