"""The values of the events: outliers, fills, smoothing, features, transforms, scales.

In this order, and after the split, because all of it is fitted to the training part.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from ibis.expr import types as ir

from stt_jax.config import PrepareConfig
from stt_jax.data import denoise, features, impute, numerics
from stt_jax.data.columns import PLACE, Columns, fetch_columns, to_table
from stt_jax.data.steps import Steps

DEFAULT_FIX_ERROR_M = 20.0
# A stored place is exact to a centimetre, and no place on Earth is further than this from another.
_FIX_ERRORS_M = (0.01, 2e7)
_LARGEST_WINDOW = 1000  # events; the windows of many events at a time are in memory


@dataclasses.dataclass
class Values:
    """What the events have besides the columns of every log.

    Attributes:
      contexts: name -> text column of the table.
      numbers: name -> float64 column of the table, null = unknown.
      flags: name -> int8 column of the table, 1 where the log had no value to use.
      stages: name -> what was done to a numeric column, for serving.
      num_missing: name -> events without a value before and after.
    """

    contexts: dict[str, str]
    numbers: dict[str, str] = dataclasses.field(default_factory=dict)
    flags: dict[str, str] = dataclasses.field(default_factory=dict)
    stages: dict[str, list[numerics.Stage]] = dataclasses.field(default_factory=dict)
    num_missing: dict[str, list[int]] = dataclasses.field(default_factory=dict)


def check_rules(config: PrepareConfig) -> None:
    """Raises ValueError for a rule that is misspelt or names a column that is not in use."""
    numbers = set(config.numeric)
    made = {name for feature in config.features for name in features.NUMBERS.get(feature, ())}
    texts = {config.category, *config.context} - {""}
    places = {config.latitude, config.longitude} - {""}
    for text in config.fill:
        fill = impute.parse_fill(text)
        _require("fill", text, fill.column, numbers | texts | places)
        if fill.method == "constant" and fill.column in numbers - places:
            impute.constant_number(fill.column, fill)
    for text in config.smooth:
        if text.partition(":")[0] in places:
            least, largest = _FIX_ERRORS_M
            if not least <= _kalman_rule(text)[2] <= largest:
                raise ValueError(
                    f"--smooth={text}: the error of a fix is {least:g} to {largest:,.0f} metres, "
                    f"e.g. kalman:{DEFAULT_FIX_ERROR_M:g}"
                )
        else:
            column, method, number = numerics.rule_number("smooth", text, numerics.SMOOTH_METHODS)
            _require("smooth", text, column, numbers | places)
            is_window = number.is_integer() and 1 <= number <= _LARGEST_WINDOW
            if not (is_window if method == "median" else 0 < number <= 1):
                raise ValueError(
                    f"--smooth={text}: a median takes 1 to {_LARGEST_WINDOW} events, an "
                    "exponential mean a weight in (0, 1]"
                )
    for flag, methods, allowed in (
        ("outliers", numerics.OUTLIER_METHODS, numbers),
        ("transform", numerics.TRANSFORM_METHODS, numbers | made),
        ("normalise", numerics.SCALE_METHODS, numbers | made),
    ):
        for text in getattr(config, flag):
            column, method, number = numerics.rule_number(flag, text, methods)
            _require(flag, text, column, allowed)
            if flag == "outliers" and not (number > 0 and (method == "mad" or number < 0.5)):
                raise ValueError(f"--outliers={text}: give mad:NUMBER > 0 or quantile:0 to 0.5")


def _require(flag: str, text: str, column: str, allowed: set[str]) -> None:
    if column not in allowed:
        names = ", ".join(sorted(allowed)) or "none: name columns by --numeric"
        raise ValueError(f"--{flag}={text}: {column!r} is no column for it; these are {names}")


def _kalman_rule(text: str) -> tuple[str, str, float]:
    return numerics.rule_number("smooth", text, {"kalman": DEFAULT_FIX_ERROR_M})


def refine_values(steps: Steps, config: PrepareConfig) -> Values:
    """Takes `steps.table` through everything that changes or adds values."""
    values = Values(contexts={name: f"context_{i}" for i, name in enumerate(config.context)})
    if not (config.numeric or config.fill or config.smooth or config.features or config.cells):
        return values
    texts = values.contexts | ({config.category: "category"} if config.category else {})
    columns = fetch_columns(
        steps.engine,
        steps.table,
        numbers={name: f"numeric_{i}" for i, name in enumerate(config.numeric)},
        texts=texts,
    )
    stages: dict[str, list[numerics.Stage]] = {name: [] for name in config.numeric}
    _drop_outliers(steps, config, columns, stages)
    _fill(steps, config, columns, values, stages)
    _smooth(steps, config, columns, stages)
    _add_features(steps, config, columns, stages)
    _scale(steps, config, columns, stages)
    values.stages = stages
    values.numbers = {name: f"number_{i}" for i, name in enumerate(columns.numbers)}
    values.flags = {name: f"missing_{i}" for i, name in enumerate(columns.was_missing)}
    for i, name in enumerate(n for n in columns.codes if n not in texts):
        values.contexts[name] = f"context_{len(config.context) + i}"
    steps.table = _join(steps, columns, values, config)
    return values


def _join(steps: Steps, columns: Columns, values: Values, config: PrepareConfig) -> ir.Table:
    texts = dict(values.contexts)
    found = to_table(columns, numbers=values.numbers, texts=texts, flags=values.flags)
    if config.category:
        with_category = to_table(columns, texts={config.category: "category"})
        found = found.append_column("category", with_category["category"])
    table = steps.engine.insert("refined", found.schema, [found])
    old = {*found.column_names, *(f"numeric_{i}" for i in range(len(config.numeric)))}
    kept = steps.table.drop(*((old & set(steps.table.columns)) - {"source_row"}))
    joined = steps.store(kept.join(table, "source_row"))
    steps.engine.drop("refined")
    return joined


def _drop_outliers(
    steps: Steps, config: PrepareConfig, columns: Columns, stages: dict[str, list[numerics.Stage]]
) -> None:
    changed = {}
    for text in config.outliers:
        name, method, number = numerics.rule_number("outliers", text, numerics.OUTLIER_METHODS)
        stage = _run_stage(columns, stages, "outliers", text, name, method, number)
        unknown = np.isnan(columns.numbers[name]) & ~np.isnan(stage.pop("before"))
        low, high = (_words(stage[bound]) for bound in ("low", "high"))
        changed[f"{name} outside {low} to {high}: unknown"] = int(np.count_nonzero(unknown))
    if config.outliers:
        steps.note("outliers", changed)


def _words(bound: float | None) -> str:
    return "anything" if bound is None else f"{bound:g}"


def _run_stage(
    columns: Columns,
    stages: dict[str, Any],
    flag: str,
    text: str,
    name: str,
    method: str,
    number: float,
) -> numerics.Stage:
    """Fits a stage to the training part and runs it; returns it with the values "before"."""
    before = columns.numbers[name]
    train = before[columns.train_mask & ~np.isnan(before)]
    stage = numerics.fit_stage(flag, method, number, train)
    if not numerics.is_finite(stage):
        raise ValueError(
            f"--{flag}={text}: the values of {name!r}, {train.min():g} to {train.max():g}, are too "
            f"large to be fitted; drop them first, e.g. --drop_if='{name}>1e30', or in front of "
            f"--normalise bring them down by --transform={name}:log1p"
        )
    columns.numbers[name] = numerics.apply_stage(stage, before, columns.users)
    stages[name].append(stage)
    return stage | {"before": before}


def _fill(
    steps: Steps,
    config: PrepareConfig,
    columns: Columns,
    values: Values,
    stages: dict[str, list[numerics.Stage]],
) -> None:
    def unknown(name: str | None) -> np.ndarray:
        if name is PLACE:
            return ~columns.place_mask
        if name in columns.numbers:
            return np.isnan(columns.numbers[name])
        return columns.codes[name] == 0

    fills = [impute.parse_fill(text) for text in config.fill]
    places = (config.latitude, config.longitude)
    targets = [PLACE if fill.column in places else fill.column for fill in fills]
    in_use = {*columns.numbers, *columns.codes}
    told = {
        name: _place_name(config, in_use) if name is PLACE else name
        for name in (*config.numeric, *targets)
    }
    for name, text in told.items():
        columns.was_missing[text] = unknown(name)
        values.num_missing[text] = [int(np.count_nonzero(columns.was_missing[text]))]
    changed = {}
    for name, fill, text in zip(targets, fills, config.fill, strict=True):
        before = unknown(name)
        if name is PLACE:
            impute.fill_places(columns, fill)
        elif name in columns.numbers:
            stage = impute.fill_numbers(columns, name, fill)
            stages[name] += [stage] if stage else []
        else:
            impute.fill_texts(columns, name, fill)
        changed[text] = int(np.count_nonzero(before & ~unknown(name)))
    for name, text in told.items():
        values.num_missing[text].append(int(np.count_nonzero(unknown(name))))
    if fills:
        steps.note("fill", changed)


def _place_name(config: PrepareConfig, in_use: set[str]) -> str:
    """What the log calls the coordinates among the columns: "place", unless one is called so."""
    name = "place"
    while name in in_use:
        name += f" ({config.latitude}, {config.longitude})"
    return name


def _smooth(
    steps: Steps, config: PrepareConfig, columns: Columns, stages: dict[str, list[numerics.Stage]]
) -> None:
    changed = {}
    for text in config.smooth:
        if text.partition(":")[0] in (config.latitude, config.longitude):
            _, _, error_m = _kalman_rule(text)
            before = (columns.latitudes_e7, columns.longitudes_e7)
            columns.latitudes_e7, columns.longitudes_e7 = denoise.filter_places(columns, error_m)
            moved = (columns.latitudes_e7 != before[0]) | (columns.longitudes_e7 != before[1])
        else:
            name, method, number = numerics.rule_number("smooth", text, numerics.SMOOTH_METHODS)
            parameter = "window" if method == "median" else "weight"
            stage = {"kind": method, parameter: int(number) if method == "median" else number}
            old = columns.numbers[name]

            def run(rows: np.ndarray, old: np.ndarray = old, stage: Any = stage) -> np.ndarray:
                return numerics.apply_stage(stage, old[rows], columns.users[rows])

            columns.numbers[name] = columns.causally(run)
            stages[name].append(stage)
            moved = ~np.isnan(old) & (columns.numbers[name] != old)
        changed[text] = int(np.count_nonzero(moved))
    if changed:
        steps.note("smooth", changed)


def _add_features(
    steps: Steps, config: PrepareConfig, columns: Columns, stages: dict[str, list[numerics.Stage]]
) -> None:
    for feature in config.features:
        if feature == features.SCENARIO:
            features.add_scenario(columns)
            continue
        features.add_numbers(columns, feature)
        stages |= {name: [] for name in features.NUMBERS[feature]}
    for resolution in config.cells:
        features.add_cells(columns, int(resolution))
    if config.features or config.cells:
        made = [*config.features, *(f"cell_{resolution}" for resolution in config.cells)]
        steps.note(f"features: {', '.join(made)}", {})


def _scale(
    steps: Steps, config: PrepareConfig, columns: Columns, stages: dict[str, list[numerics.Stage]]
) -> None:
    for flag, methods in (
        ("transform", numerics.TRANSFORM_METHODS),
        ("normalise", numerics.SCALE_METHODS),
    ):
        rules = getattr(config, flag)
        for text in rules:
            name, method, number = numerics.rule_number(flag, text, methods)
            _run_stage(columns, stages, flag, text, name, method, number)
        if rules:
            steps.note(f"{flag}: {', '.join(rules)}", {})
