"""Spatiotemporal Transformers for behaviour logs: raw log in, recommendations out."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stt_jax.config import (
        CityConfig,
        DeviceConfig,
        EvaluationConfig,
        ListsConfig,
        ModelConfig,
        PrepareConfig,
        ProtocolConfig,
        RequestConfig,
        TrainingConfig,
        WatchConfig,
    )
    from stt_jax.data.forgetting import forget_person
    from stt_jax.data.preparation import prepare_log
    from stt_jax.data.prepared_log import PreparedLog
    from stt_jax.data.store import open_log
    from stt_jax.data.synthetic import generate_city, write_city
    from stt_jax.evaluation import evaluate_model, write_report
    from stt_jax.export import export_run
    from stt_jax.lists import write_lists
    from stt_jax.model.stt import ModelSizes, SpatiotemporalTransformer
    from stt_jax.ranking import Recommendation
    from stt_jax.recommender import Recommender, recommend_items
    from stt_jax.training.loop import train_model
    from stt_jax.training.run import Run, load_run

    __version__: str

# Names are imported when they are first used: who only prepares a log need not load JAX, and who
# only serves need not load the table engine.
_HOMES = {
    "CityConfig": "config",
    "DeviceConfig": "config",
    "EvaluationConfig": "config",
    "ListsConfig": "config",
    "ModelConfig": "config",
    "ModelSizes": "model.stt",
    "PrepareConfig": "config",
    "PreparedLog": "data.prepared_log",
    "ProtocolConfig": "config",
    "Recommendation": "ranking",
    "Recommender": "recommender",
    "RequestConfig": "config",
    "Run": "training.run",
    "SpatiotemporalTransformer": "model.stt",
    "TrainingConfig": "config",
    "WatchConfig": "config",
    "evaluate_model": "evaluation",
    "export_run": "export",
    "forget_person": "data.forgetting",
    "generate_city": "data.synthetic",
    "load_run": "training.run",
    "open_log": "data.store",
    "prepare_log": "data.preparation",
    "recommend_items": "recommender",
    "train_model": "training.loop",
    "write_city": "data.synthetic",
    "write_lists": "lists",
    "write_report": "evaluation",
}

__all__ = [
    "CityConfig",
    "DeviceConfig",
    "EvaluationConfig",
    "ListsConfig",
    "ModelConfig",
    "ModelSizes",
    "PrepareConfig",
    "PreparedLog",
    "ProtocolConfig",
    "Recommendation",
    "Recommender",
    "RequestConfig",
    "Run",
    "SpatiotemporalTransformer",
    "TrainingConfig",
    "WatchConfig",
    "__version__",
    "evaluate_model",
    "export_run",
    "forget_person",
    "generate_city",
    "load_run",
    "open_log",
    "prepare_log",
    "recommend_items",
    "train_model",
    "write_city",
    "write_lists",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module 'stt_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"stt_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    try:
        return importlib.metadata.version("stt_jax")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"  # imported from a checkout that is not installed
