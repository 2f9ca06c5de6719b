"""Spatiotemporal Transformers for behaviour logs: raw log in, recommendations out."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stt_jax.config import (
        CityConfig,
        EvaluationConfig,
        ModelConfig,
        PrepareConfig,
        ProtocolConfig,
        RequestConfig,
        TrainingConfig,
    )
    from stt_jax.data.preparation import prepare_log
    from stt_jax.data.prepared_log import PreparedLog
    from stt_jax.data.store import open_log
    from stt_jax.data.synthetic import generate_city, write_city
    from stt_jax.evaluation import evaluate_model
    from stt_jax.ranking import Recommendation
    from stt_jax.recommender import Recommender, recommend_items
    from stt_jax.training.loop import train_model
    from stt_jax.training.run import Run, load_run

# Names are imported when they are first used: who only prepares a log need not load JAX, and who
# only serves need not load the table engine.
_HOMES = {
    "CityConfig": "config",
    "EvaluationConfig": "config",
    "ModelConfig": "config",
    "PrepareConfig": "config",
    "PreparedLog": "data.store",
    "ProtocolConfig": "config",
    "Recommendation": "ranking",
    "Recommender": "recommender",
    "RequestConfig": "config",
    "Run": "training.run",
    "TrainingConfig": "config",
    "evaluate_model": "evaluation",
    "generate_city": "data.synthetic",
    "load_run": "training.run",
    "open_log": "data.store",
    "prepare_log": "data.preparation",
    "recommend_items": "recommender",
    "train_model": "training.loop",
    "write_city": "data.synthetic",
}

__all__ = [
    "CityConfig",
    "EvaluationConfig",
    "ModelConfig",
    "PrepareConfig",
    "PreparedLog",
    "ProtocolConfig",
    "Recommendation",
    "Recommender",
    "RequestConfig",
    "Run",
    "TrainingConfig",
    "evaluate_model",
    "generate_city",
    "load_run",
    "open_log",
    "prepare_log",
    "recommend_items",
    "train_model",
    "write_city",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stt_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stt_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
