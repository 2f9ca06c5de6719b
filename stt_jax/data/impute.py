"""Missing values: filled by a constant, a statistic, the neighbours in time or a fitted model.

Every statistic and every model is made from the training part only. Interpolation looks at the
next known value within the training part; later events carry the last known value on, because at
their time nobody knew the next.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from stt_jax.data import dateline, imputation_models
from stt_jax.data.columns import Columns
from stt_jax.data.numerics import Stage, parse_rule
from stt_jax.data.schema import LARGEST_IN_WORDS, NUMBER_OVERFLOW, UNKNOWN_E7

_STATISTICS = ("mean", "median", "mode")
_GROUPS = {"item": "items", "user": "users"}
METHODS = {
    "constant": None,
    "interpolate": None,
    "model": None,
    # Longer names first: they are alternatives of a pattern.
    **{f"{name}_{group}": None for name in _STATISTICS for group in _GROUPS},
    **{name: None for name in _STATISTICS},
}


@dataclasses.dataclass(frozen=True)
class Fill:
    """One fill: of `column` by `method` with `argument`."""

    column: str
    method: str
    argument: str


def parse_fill(text: str) -> Fill:
    """Reads "COLUMN:METHOD" or "COLUMN:constant:VALUE"; ValueError names the methods."""
    column, method, argument = parse_rule("fill", text, METHODS)
    if (method == "constant") != bool(argument):
        raise ValueError(f"--fill={text}: only constant takes a value, as in price:constant:0")
    return Fill(column, method, argument)


def constant_number(name: str, fill: Fill) -> float:
    """The number of a constant fill of a numeric column; ValueError says what is none."""
    try:
        value = float(fill.argument)
    except ValueError:
        value = np.nan
    if not abs(value) < NUMBER_OVERFLOW:
        raise ValueError(
            f"--fill={name}:constant:{fill.argument}: {name} is numeric; give a number within "
            f"{LARGEST_IN_WORDS}"
        )
    return value


def fill_numbers(columns: Columns, name: str, fill: Fill) -> Stage | None:
    """Fills unknown values of a numeric column; the stage for serving if it is one value."""
    values, train = columns.numbers[name], columns.train_mask & ~np.isnan(columns.numbers[name])
    if fill.method == "interpolate":
        columns.numbers[name] = _interpolate_numbers(columns, values)
        return None
    if fill.method == "model":
        found = imputation_models.predict_number(columns, name, train)
        columns.numbers[name] = np.where(np.isnan(values), found, values)
        return None
    statistic, _, group = fill.method.partition("_")
    if group:
        groups = getattr(columns, _GROUPS[group])
        found = group_statistic(groups, values, train, statistic)
        columns.numbers[name] = np.where(np.isnan(values), found[groups], values)
        return None
    if fill.method == "constant":
        value = constant_number(name, fill)
    else:
        whole = np.zeros(len(values), np.int64)
        value = float(group_statistic(whole, values, train, statistic)[0])
    columns.numbers[name] = np.where(np.isnan(values), value, values)
    return {"kind": "fill", "value": value} if np.isfinite(value) else None


def fill_texts(columns: Columns, name: str, fill: Fill) -> None:
    """Fills unknown values of a categorical column."""
    codes = columns.codes[name]
    train = columns.train_mask & (codes > 0)
    if fill.method == "constant":
        if fill.argument not in columns.texts[name]:
            # Codes are in byte order; a new value goes last, and the vocabulary sorts anew.
            columns.texts[name] = [*columns.texts[name], fill.argument]
        found = np.full(len(codes), columns.texts[name].index(fill.argument))
    elif fill.method == "model":
        found = imputation_models.predict_text(columns, name, train)
    elif fill.method.startswith("mode"):
        group = fill.method.removeprefix("mode").removeprefix("_")
        groups = getattr(columns, _GROUPS[group]) if group else np.zeros(len(codes), np.int64)
        values = np.where(codes > 0, codes.astype(np.float64), np.nan)
        found = np.nan_to_num(group_statistic(groups, values, train, "mode"))[groups]
    else:
        raise ValueError(
            f"--fill={name}:{fill.method}: {name} is categorical; give constant, mode, mode_item, "
            "mode_user or model"
        )
    columns.codes[name] = np.where(codes == 0, found, codes).astype(np.int32)


def fill_places(columns: Columns, fill: Fill) -> None:
    """Fills unknown places."""
    known = columns.place_mask
    if fill.method == "interpolate":
        latitudes, longitudes = _interpolate_places(columns, known)
    elif fill.method == "model":
        latitudes, longitudes = imputation_models.predict_place(columns, known & columns.train_mask)
    elif fill.method.startswith("median"):
        group = fill.method.removeprefix("median").removeprefix("_")
        groups = getattr(columns, _GROUPS[group]) if group else np.zeros(len(known), np.int64)
        latitudes, longitudes = (degrees[groups] for degrees in median_places(columns, groups))
    else:
        raise ValueError(
            f"--fill={fill.column}:{fill.method}: {fill.column} is a coordinate; give interpolate, "
            "median, median_item, median_user or model"
        )
    found = ~known & ~np.isnan(latitudes) & ~np.isnan(longitudes)
    columns.latitudes_e7 = _put(columns.latitudes_e7, latitudes, found)
    columns.longitudes_e7 = _put(columns.longitudes_e7, longitudes, found)


def _put(degrees_e7: np.ndarray, values: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(where, np.rint(np.where(where, values, UNKNOWN_E7)), degrees_e7).astype(
        np.int32
    )


def median_places(columns: Columns, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower medians of each group's places in training: latitudes and longitudes.

    Args:
      columns: events.
      groups: int [N], from 0.

    Returns:
      two float64 [largest group + 1] in 1e-7 degrees, NaN for a group without a known place.
    """
    mask = columns.place_mask & columns.train_mask
    cuts = dateline.find_cuts(groups, columns.longitudes_e7, mask)
    unrolled = dateline.unroll(columns.longitudes_e7, cuts[groups])
    return (
        group_statistic(groups, columns.latitudes_e7.astype(np.float64), mask, "low"),
        dateline.roll(group_statistic(groups, unrolled, mask, "low")),
    )


def group_statistic(
    groups: np.ndarray, values: np.ndarray, mask: np.ndarray, statistic: str
) -> np.ndarray:
    """A statistic of the masked values of each group.

    Args:
      groups: int [N], from 0.
      values: float64 [N].
      mask: bool [N], True for the values that count.
      statistic: mean, median, mode (ties: the least) or low (the lower one of two middle values).

    Returns:
      float64 [largest group + 1], NaN for a group without values.
    """
    num_groups = int(groups.max()) + 1 if len(groups) else 0
    result = np.full(num_groups, np.nan)
    order = np.lexsort((values[mask], groups[mask]))
    groups, values = groups[mask][order], values[mask][order]
    if len(groups) == 0:
        return result
    found, starts, counts = np.unique(groups, return_index=True, return_counts=True)
    if statistic == "mean":
        result[found] = np.add.reduceat(values, starts) / counts
    elif statistic == "low":
        result[found] = values[starts + (counts - 1) // 2]
    elif statistic == "median":
        result[found] = (values[starts + (counts - 1) // 2] + values[starts + counts // 2]) / 2
    else:
        new = np.append(True, (np.diff(groups) != 0) | (np.diff(values) != 0))
        firsts = np.flatnonzero(new)
        sizes = np.diff(np.append(firsts, len(values)))
        best = np.lexsort((values[firsts], -sizes, groups[firsts]))
        winners = firsts[best]
        _, first_of_group = np.unique(groups[winners], return_index=True)
        result[found] = values[winners[first_of_group]]
    return result


def _neighbours(columns: Columns, known: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the known value before and after each event (-1: none), and how far along, 0..1."""
    before = columns.previous(known)
    after = np.full(len(columns), -1)
    rows = np.flatnonzero(columns.train_mask)
    marks = np.where(known[rows], rows, len(columns))
    # The row itself may count: it is only asked for where it is unknown.
    nearest = np.minimum.accumulate(marks[::-1])[::-1]
    inside = nearest < len(columns)
    inside[inside] &= columns.users[nearest[inside]] == columns.users[rows[inside]]
    after[rows] = np.where(inside, nearest, -1)
    after[before < 0] = -1  # between two known values, or after one: never before all of them
    start_s = columns.times_s[np.maximum(before, 0)]
    gaps_s = columns.times_s[np.maximum(after, 0)] - start_s
    passed_s = columns.times_s - start_s
    fraction = np.where((after >= 0) & (gaps_s > 0), passed_s / np.maximum(gaps_s, 1), 0.0)
    return before, after, fraction


def _interpolate_numbers(columns: Columns, values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    before, after, fraction = _neighbours(columns, known)
    start = values[np.maximum(before, 0)]
    end = np.where(after >= 0, values[np.maximum(after, 0)], start)
    return np.where(known | (before < 0), values, start + fraction * (end - start))


def _interpolate_places(columns: Columns, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    before, after, fraction = _neighbours(columns, known)
    start, end = (_unit_vectors(columns, np.maximum(rows, 0)) for rows in (before, after))
    end = np.where((after >= 0)[:, None], end, start)
    angle = np.arctan2(
        np.linalg.norm(np.cross(start, end), axis=1), np.einsum("ni,ni->n", start, end)
    )
    sine = np.where(np.sin(angle) > 1e-12, np.sin(angle), 1.0)
    near = np.sin(angle) <= 1e-12
    weights = [
        np.where(near, straight, np.sin(straight * angle) / sine)
        for straight in (1 - fraction, fraction)
    ]
    point = weights[0][:, None] * start + weights[1][:, None] * end
    latitudes = np.degrees(np.arctan2(point[:, 2], np.hypot(point[:, 0], point[:, 1]))) * 1e7
    longitudes = np.degrees(np.arctan2(point[:, 1], point[:, 0])) * 1e7
    nowhere = before < 0
    return np.where(nowhere, np.nan, latitudes), np.where(nowhere, np.nan, longitudes)


def _unit_vectors(columns: Columns, rows: np.ndarray) -> np.ndarray:
    latitude = np.radians(columns.latitudes_e7[rows] * 1e-7)
    longitude = np.radians(columns.longitudes_e7[rows] * 1e-7)
    return np.stack(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ],
        axis=1,
    )
