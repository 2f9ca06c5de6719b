"""Features of time and place: cells, distances, gaps, hours, home and work.

What is a property of the person (the centre, home, work) is estimated from the training part and
is unknown for people without one. Everything else depends on the event and on those before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stt_jax.data.columns import Columns, distance_km
from stt_jax.data.impute import group_statistic, median_places
from stt_jax.data.schema import UNKNOWN_E7

_DAY_S, _HOUR_S = 86_400, 3_600
_NIGHT_HOURS = (22, 6)  # local: from 22:00 to 6:00 people are at home
_OFFICE_HOURS = (9, 17)  # Monday to Friday
_FEWEST_EVENTS = 3  # in those hours, before a place is called home or work
_NEARBY_KM = 0.25
# name of --features -> the numeric columns that it makes; scenario is categorical.
NUMBERS = {
    "gap_h": ("gap_h",),
    "step_km": ("step_km",),
    "centre_km": ("centre_km",),
    "hour": ("hour_sin", "hour_cos"),
    "weekday": ("weekday_sin", "weekday_cos"),
}
SCENARIO = "scenario"
SCENARIOS = ("home", "other", "work")


def add_numbers(columns: Columns, feature: str) -> None:
    """Adds the numeric columns of one feature; NaN where not defined."""
    if feature in ("hour", "weekday"):
        local_s = columns.times_s + columns.utc_offsets_s
        turn = (local_s % _DAY_S) / _DAY_S
        if feature == "weekday":
            turn = ((local_s // _DAY_S + 3) % 7 + turn) / 7  # 1970 began on a Thursday
        for name, function in zip(NUMBERS[feature], (np.sin, np.cos), strict=True):
            columns.numbers[name] = function(2 * np.pi * turn)
        return
    if feature == "centre_km":
        columns.numbers[feature] = distance_km(
            columns.latitudes_e7, columns.longitudes_e7, *person_centres(columns)
        )
        return
    known = columns.place_mask if feature == "step_km" else np.ones(len(columns), bool)
    before = columns.previous(known)
    if feature == "step_km":
        found = distance_km(
            columns.latitudes_e7,
            columns.longitudes_e7,
            columns.latitudes_e7[before],
            columns.longitudes_e7[before],
        )
    else:
        found = (columns.times_s - columns.times_s[before]) / _HOUR_S
    columns.numbers[feature] = np.where(before >= 0, found, np.nan)


def person_centres(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Medians of each person's places in training, for every event: latitude_e7, longitude_e7."""
    found = (degrees[columns.users] for degrees in median_places(columns, columns.users))
    latitudes, longitudes = (np.nan_to_num(d, nan=UNKNOWN_E7).astype(np.int32) for d in found)
    return latitudes, longitudes


def add_scenario(columns: Columns) -> None:
    """Adds the categorical column "scenario": home, work or other.

    Home is where a person was most often at night in the training part, work where they were most
    often in the office hours of weekdays, home apart; each with three events or more. An event is
    at one of them within 250 m or, in a log without places, at the same item.
    """
    local_s = columns.times_s + columns.utc_offsets_s
    hour, weekday = (local_s // _HOUR_S) % 24, (local_s // _DAY_S + 3) % 7
    train = columns.train_mask
    at_night = (hour >= _NIGHT_HOURS[0]) | (hour < _NIGHT_HOURS[1])
    at_office = (hour >= _OFFICE_HOURS[0]) & (hour < _OFFICE_HOURS[1]) & (weekday < 5)
    home = _most_visited(columns, train & at_night)
    is_home = _at(columns, home)
    is_work = _at(columns, _most_visited(columns, train & at_office & ~is_home)) & ~is_home
    columns.texts[SCENARIO] = ["", *SCENARIOS]
    columns.codes[SCENARIO] = np.where(is_home, 1, np.where(is_work, 3, 2)).astype(np.int32)
    has_past = np.bincount(columns.users[train], minlength=int(columns.users.max()) + 1) > 0
    columns.codes[SCENARIO][~has_past[columns.users]] = 0


def _most_visited(columns: Columns, mask: np.ndarray) -> np.ndarray:
    """int64 [N], a row at the user's most visited item among the masked events; -1: too few."""
    items = columns.items.astype(np.float64)
    best = group_statistic(columns.users, items, mask, "mode")
    at_best = mask & (items == best[columns.users])
    visits = np.bincount(columns.users[at_best], minlength=len(best))
    rows = np.full(len(best), -1)
    # Backwards, so that the first one stays.
    for candidates in (np.flatnonzero(at_best), np.flatnonzero(at_best & columns.place_mask)):
        rows[columns.users[candidates[::-1]]] = candidates[::-1]
    return np.where(visits >= _FEWEST_EVENTS, rows, -1)[columns.users]


def _at(columns: Columns, rows: np.ndarray) -> np.ndarray:
    distances = distance_km(
        columns.latitudes_e7,
        columns.longitudes_e7,
        columns.latitudes_e7[rows],
        columns.longitudes_e7[rows],
    )
    same_item = columns.items == columns.items[rows]
    near = np.where(np.isnan(distances), same_item, distances <= _NEARBY_KM)
    return near & (rows >= 0)


def add_cells(columns: Columns, resolution: int) -> None:
    """Adds the categorical column "cell_R": the H3 cell of the place at a resolution 0..15."""
    cell_of = load_h3("cells").latlng_to_cell
    known = columns.place_mask
    pairs = np.stack([columns.latitudes_e7[known], columns.longitudes_e7[known]], axis=1)
    distinct, which = np.unique(pairs, axis=0, return_inverse=True)
    cells = [cell_of(lat * 1e-7, lon * 1e-7, resolution) for lat, lon in distinct.tolist()]
    texts = sorted(set(cells))
    rows = {text: row + 1 for row, text in enumerate(texts)}
    codes = np.zeros(len(columns), np.int32)
    codes[known] = np.array([rows[cell] for cell in cells], np.int32)[which.ravel()]
    columns.texts[f"cell_{resolution}"] = ["", *texts]
    columns.codes[f"cell_{resolution}"] = codes


def load_h3(flag: str) -> Any:
    """The module h3, for the flag of that name; ValueError says how to install it."""
    try:
        import h3
    except ImportError as error:
        raise ValueError(f"--{flag} needs h3 ({error}); pip install 'stt_jax[cells]'") from error
    return h3
