"""Numeric columns: outliers, smoothing, transforms and scales, fitted once and applied anywhere.

Everything that is done to a numeric column is a list of plain mappings, one a stage, which the
prepared log keeps in `meta.numerics`. `apply_stages` repeats it on new values, so a served event
gets the number that preparing it would have given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stt_jax.data.columns import in_step
from stt_jax.data.schema import NUMBER_OVERFLOW

Stage = dict[str, Any]

_NORMAL_MAD = 1.482602218505602  # standard deviation of a normal distribution with MAD 1
_NUM_QUANTILES = 129

OUTLIER_METHODS = {"mad": 5.0, "quantile": 0.001}  # method -> default of its number
SMOOTH_METHODS = {"median": 5.0, "exponential": 0.3}
TRANSFORM_METHODS: dict[str, float] = {"log1p": 0.0, "boxcox": 0.0, "quantile": 0.0}
SCALE_METHODS: dict[str, float] = {"zscore": 0.0, "minmax": 0.0, "robust": 0.0}
NUMBERLESS = ("transform", "normalise")  # flags whose methods take no number


def parse_rule(flag: str, text: str, methods: Mapping[str, Any]) -> tuple[str, str, str]:
    """Splits "COLUMN:METHOD" or "COLUMN:METHOD:ARGUMENT".

    Raises:
      ValueError: it is not of that form, or METHOD is not one of `methods`.
    """
    match = re.match(rf"^(.+?):({'|'.join(methods)})(?::(.*))?$", text, re.DOTALL)
    if match is None:
        example = f"COLUMN:{next(iter(methods))}"
        raise ValueError(f"--{flag}={text}: write {example}; the methods are {', '.join(methods)}")
    return match[1], match[2], match[3] or ""


def rule_number(flag: str, text: str, methods: Mapping[str, float]) -> tuple[str, str, float]:
    """The same with a number for an argument, or the default that `methods` gives."""
    column, method, argument = parse_rule(flag, text, methods)
    if argument and flag in NUMBERLESS:
        raise ValueError(
            f"--{flag}={text}: {method} takes no number, {argument}; write {column}:{method}"
        )
    try:
        number = float(argument) if argument else methods[method]
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"--{flag}={text}: {argument!r} is not a number")
    return column, method, number


def fit_stage(flag: str, method: str, number: float, train_values: np.ndarray) -> Stage:
    """Fits one stage of a numeric column.

    Args:
      flag: outliers, transform or normalise: two of them have a method "quantile".
      method: of OUTLIER_METHODS, TRANSFORM_METHODS or SCALE_METHODS, by `flag`.
      number: its number; 0 for the transforms and scales, which have none.
      train_values: float64 [n], the known values of the training part as the stages before have
        left them.

    Returns:
      a mapping with "kind" and what `apply_stages` needs; see `is_finite` for too large values.
    """
    values = np.sort(train_values)  # of one order, so sums are the same whatever came first
    if len(values) == 0:
        values = np.zeros(1)
    with np.errstate(over="ignore", invalid="ignore"):
        if flag == "normalise":
            return _fit_scale(values, method)
        if flag == "outliers":
            return _fit_mad(values, number) if method == "mad" else _fit_tails(values, number)
        if method == "quantile":
            return _fit_quantiles(values)
        return _fit_boxcox(values) if method == "boxcox" else {"kind": "log1p"}


def is_finite(stage: Stage) -> bool:
    """Whether all numbers of a stage are; differences and squares of 1e308 are not."""
    fitted = [value for value in stage.values() if not isinstance(value, str | None)]
    return all(bool(np.all(np.isfinite(value))) for value in fitted)


def _fit_mad(values: np.ndarray, number: float) -> Stage:
    middle = float(np.median(values))
    reach = number * _NORMAL_MAD * float(np.median(np.abs(values - middle)))
    # More than half of the values are one and the same: what is far from it cannot be told.
    low, high = (middle - reach, middle + reach) if reach > 0 else (-np.inf, np.inf)
    return {"kind": "bounds", "low": _finite(low), "high": _finite(high)}


def _fit_tails(values: np.ndarray, number: float) -> Stage:
    low, high = np.quantile(values, [number, 1 - number])
    return {"kind": "bounds", "low": float(low), "high": float(high)}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None  # JSON has no infinity


def _fit_quantiles(values: np.ndarray) -> Stage:
    return {
        "kind": "quantile",
        "knots": np.quantile(values, np.linspace(0, 1, _NUM_QUANTILES)).tolist(),
    }


def _fit_boxcox(values: np.ndarray) -> Stage:
    shift = 0.0 if values[0] > 0 else float(1 - values[0])
    logs = np.log(values + shift)

    def loss(power: float) -> float:
        # A column of millions and of 1e-300 has powers beyond any float: those are the worst.
        with np.errstate(over="ignore", invalid="ignore"):
            powers = logs if power == 0 else np.expm1(power * logs) / power
            spread = max(float(np.var(powers)), 1e-300)
        if not np.isfinite(spread):
            return 1e100  # worse than any true one, and its square is still a number
        return len(logs) / 2 * np.log(spread) - (power - 1) * float(np.sum(logs))

    import scipy.optimize  # slow to import, and only this needs it

    found = scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded")
    # Four digits do for a power, and hide how another machine rounds on the way to it.
    power = round(float(found.x), 4) if len(np.unique(values)) > 1 else 1.0
    return {"kind": "boxcox", "power": power, "shift": shift, "least": float(values[0]) + shift}


def _fit_scale(values: np.ndarray, method: str) -> Stage:
    if values[0] == values[-1]:  # the mean of equal numbers may be another by rounding
        centre, scale = float(values[0]), 1.0
    elif method == "zscore":
        centre, scale = float(np.mean(values)), float(np.std(values))
    elif method == "minmax":
        centre, scale = float(values[0]), float(values[-1] - values[0])
    else:
        low, centre, high = (float(q) for q in np.quantile(values, [0.25, 0.5, 0.75]))
        scale = high - low
    return {"kind": method, "centre": centre, "scale": scale or 1.0}


def apply_stage(stage: Mapping[str, Any], values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """One stage on float64 values of events by user; NaN is unknown and stays so, but for "fill".

    Args:
      stage: of `fit_stage`, or {"kind": "fill", "value"}, {"kind": "median", "window"} or
        {"kind": "exponential", "weight"}.
      values: float64 [N], in the order of each user's events.
      users: int [N], ascending.
    """
    kind = stage["kind"]
    if kind == "bounds":
        low = -np.inf if stage["low"] is None else stage["low"]
        high = np.inf if stage["high"] is None else stage["high"]
        return np.where((values < low) | (values > high), np.nan, values)
    if kind == "fill":
        return np.where(np.isnan(values), stage["value"], values)
    if kind == "median":
        return moving_median(values, users, int(stage["window"]))
    if kind == "exponential":
        return exponential_mean(values, users, stage["weight"])
    if kind == "log1p":
        return np.sign(values) * np.log1p(np.abs(values))
    if kind == "boxcox":
        logs = np.log(np.maximum(values + stage["shift"], stage["least"]))
        return logs if stage["power"] == 0 else np.expm1(stage["power"] * logs) / stage["power"]
    if kind == "quantile":
        knots, first = np.unique(stage["knots"], return_index=True)
        # A value that fills several quantiles stands for the middle of them.
        last = np.append(first[1:], len(stage["knots"])) - 1
        levels = (first + last) / 2 / (len(stage["knots"]) - 1)
        return np.where(np.isnan(values), np.nan, np.interp(values, knots, levels))
    if kind in SCALE_METHODS:
        return (values - stage["centre"]) / stage["scale"]
    raise ValueError(f"a prepared log of another version: its stage {kind!r} is not known")


def apply_stages(stages: Sequence[Mapping[str, Any]], values: np.ndarray) -> np.ndarray:
    """What preparation made of a numeric column, for new values of one person.

    Args:
      stages: `log.meta.numerics[column]`.
      values: float [n], one person's values in the order of their events, NaN where unknown, as is
        what float32 does not hold. Only smoothing looks at more than one of them, and only back.

    Returns:
      float32 [n], NaN where no stage knew a value. Fills by item, by person, by model or along
      time leave a value to the next fill, as they do for whom they do not know.
    """
    result = np.asarray(values, np.float64)
    result = np.where(np.abs(result) < NUMBER_OVERFLOW, result, np.nan)
    # A number that is too large for a stage, or for float32, becomes infinite.
    with np.errstate(over="ignore"):
        for stage in stages:
            result = apply_stage(stage, result, np.zeros(len(result), np.int64))
        return result.astype(np.float32)


def moving_median(values: np.ndarray, users: np.ndarray, window: int) -> np.ndarray:
    """The median of a user's last `window` known values up to each event, where it is known."""
    known = np.flatnonzero(~np.isnan(values))
    result = values.copy()
    starts = np.searchsorted(users[known], users[known])
    for first in range(0, len(known), 65_536):  # a block of windows at a time
        places = np.arange(first, min(first + 65_536, len(known)))
        back = places[:, None] - np.arange(window)
        inside = back >= starts[places][:, None]
        windows = np.where(inside, values[known[np.maximum(back, 0)]], np.nan)
        result[known[places]] = np.nanmedian(windows, axis=1)
    return result


def exponential_mean(values: np.ndarray, users: np.ndarray, weight: float) -> np.ndarray:
    """s = weight * value + (1 - weight) * s of the user's last known value; the first is itself."""
    result = values.copy()
    state = np.full(len(np.unique(users)), np.nan)
    for slots, rows in in_step(users):
        new, old = values[rows], state[slots]
        mean = np.where(np.isnan(old), new, weight * new + (1 - weight) * old)
        state[slots] = np.where(np.isnan(new), old, mean)
        result[rows] = mean
    return result
