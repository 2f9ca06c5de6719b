"""What is repairing a log worth to the model that is trained on it?

    python -m benchmarks.bench_repair_value --data=prepared/nyc --recipe=configs/nyc.flags
    python -m benchmarks.bench_repair_value --data=prepared/gowalla \
        --recipe=configs/gowalla.flags

Writes a prepared log out as raw files, damaged in one way; prepares them with each repair and with
none; trains on what comes out and asks the questions of the test part. Every damage is drawn once
by a fixed seed, so rows of one damage differ by the repair alone. The log as it was is trained
with several seeds: a difference smaller than their spread says nothing.

Values are hidden, and places moved, in all parts. Events are copied or thrown far away in the
training and validation parts only, so that every row has the same test events.

Adds its log to benchmarks/results/repair_value.json.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.raw_log import event_rows, prepare_rows
from stt_jax import command
from stt_jax.config import EvaluationConfig, check, option
from stt_jax.config.flagfile import from_flagfile
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.schema import TEST
from stt_jax.data.store import open_log
from stt_jax.evaluation import evaluate_model
from stt_jax.training.loop import train_model
from stt_jax.training.run import FLAG_GROUPS

_METRICS = ("accuracy@1", "hr@10", "mrr")
_METRES_PER_DEGREE = 111_195.0
_THROWN_KM = 300.0


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is done to a log, and what `prepare` can be asked to do about it.

    Attributes:
      kind: see `damage_events`.
      amount: share of the events or items, or metres of noise.
      repairs: name -> options of `PrepareConfig`.
    """

    kind: str
    amount: float
    repairs: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        """As in the table."""
        amount = f"{self.amount:g} m" if self.kind == "places moved by" else f"{self.amount:.0%}"
        return f"{self.kind} {amount}"


def _fills(column: str, *methods: str) -> dict[str, dict[str, Any]]:
    return {method: {"fill": (f"{column}:{method}",)} for method in methods}


CATEGORIES = (
    Damage("categories hidden of events", 0.1, _fills("category", "mode_item")),
    Damage("categories hidden of events", 0.3, _fills("category", "mode_item", "model")),
    Damage("categories hidden of items", 0.3, _fills("category", "mode_user", "model")),
)
PLACES = (
    Damage("places hidden of events", 0.1, _fills("latitude", "median_item")),
    Damage("places hidden of events", 0.3, _fills("latitude", "median_item", "interpolate")),
    Damage(
        "places hidden of items", 0.3, _fills("latitude", "median_user", "interpolate", "model")
    ),
    Damage("places moved by", 300.0, {"kalman": {"smooth": ("latitude:kalman:300",)}}),
    Damage("events thrown away from", 0.1, {"speed filter": {"max_speed_kmh": 900.0}}),
)
COPIES = (Damage("events copied of", 0.3, {"window": {"dedupe_window_s": 120.0}}),)


@dataclasses.dataclass(frozen=True)
class RepairConfig:
    """Which log, and how it is learned."""

    data: str = option("", "The prepared log.")
    recipe: str = option("configs/nyc.flags", "How models are trained and asked.")
    epochs: float = option(2.0, "Passes over the training events of each model.")
    seeds: int = option(3, "Seeds of the log as it was, at least 2; the others have one.")
    max_targets: int = option(5000, "Most test targets; 0 = all.")
    models: bool = option(True, "Fill by boosted trees too (extra 'impute').")
    work: str = option("runs/repair", "Folder for logs and runs; finished ones are kept.")
    output: str = option("benchmarks/results/repair_value.json", "The results.")

    def __post_init__(self) -> None:
        check(bool(self.data), "--data is missing: name a prepared log")
        check(self.seeds > 1, "--seeds must be 2 or more: their spread says what is noise")


def bench(repair: RepairConfig) -> None:
    """Damages, repairs, trains, asks and writes."""
    log = open_log(repair.data)
    name = pathlib.Path(repair.data).name
    path = pathlib.Path(repair.output)
    work = pathlib.Path(repair.work) / name
    events = event_rows(log)
    intact = [
        _learn(repair, prepare_rows(events, work / "intact"), work / f"intact-{seed}", seed)
        for seed in range(repair.seeds)
    ]
    metrics = {
        metric: {
            "mean": statistics.fmean(found[metric] for found in intact),
            "sd": statistics.stdev(found[metric] for found in intact),
        }
        for metric in _METRICS
    }
    rows: list[dict[str, Any]] = []
    for damage in damages_of(log):
        damaged = damage_events(events, damage, np.random.default_rng(7))
        for method, options in {"none": {}, **damage.repairs}.items():
            if method == "model" and not repair.models:
                continue
            folder = work / f"{damage.name}-{method}".replace(" ", "_")
            repaired = prepare_rows(damaged, folder, **options)
            found = _learn(repair, repaired, folder / "run", 0)
            rows.append({"damage": damage.name, "repair": method, **found})
            print(json.dumps(rows[-1]), flush=True)
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results[name] = {
        "split_hash": log.meta.split_hash,
        "jax": jax.__version__,
        "recipe": repair.recipe,
        "epochs": repair.epochs,
        "seeds": repair.seeds,
        "intact": metrics,
        "rows": rows,
    }
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"results in {path}")


def damages_of(log: PreparedLog) -> tuple[Damage, ...]:
    """Those that a log of its columns can suffer."""
    return (
        *(CATEGORIES if log.num_categories else ()),
        *(PLACES if log.meta.has_places else ()),
        *COPIES,
    )


def damage_events(events: pa.Table, damage: Damage, draw: np.random.Generator) -> pa.Table:
    """The rows of `event_rows`, less true than they were.

    "... hidden of events" and "... hidden of items" make values of drawn events, or of all events
    of drawn items, unknown. "places moved by" adds a normal error of so many metres north and
    east. "events thrown away from" puts drawn events 300 km off. "events copied of" repeats drawn
    events one to sixty seconds later, as a client does that sends again.
    """
    drawn = draw.random(len(events)) < damage.amount
    before_test = np.asarray(events["part"]) != TEST
    if damage.kind.endswith("hidden of items"):
        codes = events["item"].combine_chunks().dictionary_encode()
        of_item = draw.random(len(codes.dictionary)) < damage.amount
        drawn = of_item[np.asarray(codes.indices)]
    if damage.kind.startswith("categories hidden"):
        return _hide(events, "category", drawn)
    if damage.kind.startswith("places hidden"):
        return _hide(_hide(events, "latitude", drawn), "longitude", drawn)
    if damage.kind == "places moved by":
        metres = draw.normal(0, damage.amount, (2, len(events)))
        return _move(events, metres, np.ones(len(events), bool))
    if damage.kind == "events thrown away from":
        angle = draw.random(len(events)) * 2 * np.pi
        metres = 1000 * _THROWN_KM * np.stack([np.sin(angle), np.cos(angle)])
        return _move(events, metres, drawn & before_test)
    if damage.kind == "events copied of":
        copied = drawn & before_test
        copies = events.filter(pa.array(copied))
        later = np.asarray(copies["time"]) + draw.integers(1, 61, len(copies))
        place = copies.column_names.index("time")
        return pa.concat_tables([events, copies.set_column(place, "time", pa.array(later))])
    raise ValueError(f"{damage.kind} is no damage")


def _hide(events: pa.Table, name: str, hidden: np.ndarray) -> pa.Table:
    column = pc.if_else(pa.array(hidden), None, events[name])
    return events.set_column(events.column_names.index(name), name, column)


def _move(events: pa.Table, metres: np.ndarray, moved: np.ndarray) -> pa.Table:
    latitudes = np.asarray(events["latitude"].to_numpy())
    shrink = np.maximum(np.cos(np.radians(np.nan_to_num(latitudes))), 0.05)
    for name, shift in (("latitude", metres[0]), ("longitude", metres[1] / shrink)):
        degrees = events[name].to_numpy() + np.where(moved, shift / _METRES_PER_DEGREE, 0.0)
        limit = 90.0 if name == "latitude" else 180.0
        column = pa.array(np.clip(degrees, -limit, limit), from_pandas=True)
        events = events.set_column(events.column_names.index(name), name, column)
    return events


def _learn(
    config: RepairConfig, log: PreparedLog, run: pathlib.Path, seed: int
) -> dict[str, float]:
    """Trains on a log; how well its test targets are met with their time known."""
    configs = from_flagfile(config.recipe, FLAG_GROUPS)
    training = dataclasses.replace(
        configs["training"], run=str(run), seed=seed, epochs=config.epochs
    )
    trained = train_model(log, training, configs["model"], configs["validation"])
    asked = EvaluationConfig(context="all", max_targets=config.max_targets, baselines=False)
    report = evaluate_model(trained, log, asked)
    found = report["modes"]["known"]["model"]
    return {"num_targets": report["num_targets"]["known"]} | {
        name: found[name] for name in _METRICS
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(bench, {"repair": RepairConfig}, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
