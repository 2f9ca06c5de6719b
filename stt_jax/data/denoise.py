"""Noise in places: impossible speeds, and a Kalman filter along each person's path."""

from __future__ import annotations

import numpy as np

from stt_jax.data.columns import Columns, distance_km, in_step
from stt_jax.data.schema import UNKNOWN_E7

_ACCELERATION = 0.5  # m/s², how hard people change their speed
_LARGEST_GAP_S = 1800  # after a longer pause the speed before it says nothing


def too_fast(columns: Columns, max_speed_kmh: float) -> np.ndarray:
    """bool [N], True where the user could come from the last kept event only above the speed.

    An event that is too fast is left out at once, so one stray fix does not take the good event
    after it along. Two events of one second may be up to a second's way apart. Events without a
    place are kept and passed over.

    A user's first fix may be the stray one. As long as no event was in reach of it, the second of
    two events in a row that are in reach of each other, and not of it, is kept, and what follows is
    measured from there. The stray fix stays then and one good event is lost: to take the first one
    out for what comes later would be to look ahead.
    """

    def find(rows: np.ndarray) -> np.ndarray:
        users, known = columns.users[rows], columns.place_mask[rows]
        result = np.zeros(len(rows), bool)
        num_users = len(np.unique(users))
        # By slot: the last kept row with a place, the last one left out since, and whether two
        # events that were in reach of each other have been kept.
        last, left_out = np.full(num_users, -1), np.full(num_users, -1)
        is_sure = np.zeros(num_users, bool)
        for slots, places in in_step(users):
            slots, places = slots[known[places]], places[known[places]]
            now = rows[places]
            is_first = last[slots] < 0
            fast = ~is_first & _is_faster(columns, rows[last[slots]], now, max_speed_kmh)
            agree = fast & ~is_sure[slots] & (left_out[slots] >= 0)
            agree &= ~_is_faster(columns, rows[left_out[slots]], now, max_speed_kmh)
            fast &= ~agree
            is_sure[slots] |= ~fast & ~is_first
            result[places] = fast
            last[slots[~fast]] = places[~fast]
            left_out[slots[fast]] = places[fast]
        return result

    return columns.causally(find)


def _is_faster(
    columns: Columns, before: np.ndarray, now: np.ndarray, max_speed_kmh: float
) -> np.ndarray:
    """bool [n], whether the way between two rows each took more than the speed."""
    gap_s = np.maximum(columns.times_s[now] - columns.times_s[before], 1)
    distances = distance_km(
        columns.latitudes_e7[before],
        columns.longitudes_e7[before],
        columns.latitudes_e7[now],
        columns.longitudes_e7[now],
    )
    return distances * 3600 > max_speed_kmh * gap_s


def filter_places(columns: Columns, fix_error_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Places as a constant-velocity Kalman filter sees them, from the past of each event only.

    The state is place and velocity, east and north apart; between two events the velocity drifts
    like white noise of acceleration. It is a filter, not a smoother: a smoother would move an event
    towards where the person went next, which is what a model is to find out.

    Args:
      columns: events; unknown places stay unknown and are passed over.
      fix_error_m: standard deviation of a written coordinate, metres.

    Returns:
      latitudes_e7, longitudes_e7: int32 [N].
    """

    def run(rows: np.ndarray) -> np.ndarray:
        return _filter_rows(columns, rows, fix_error_m)

    places = columns.causally(run)
    return places[:, 0], places[:, 1]


def _filter_rows(columns: Columns, rows: np.ndarray, fix_error_m: float) -> np.ndarray:
    """int32 [n, 2], filtered latitude and longitude of the given rows."""
    users, known = columns.users[rows], columns.place_mask[rows]
    degrees = np.stack([columns.latitudes_e7[rows], columns.longitudes_e7[rows]], 1)
    result = degrees.copy()
    num_users = len(np.unique(users))
    # By slot: place [east, north] in 1e-7 degrees, velocity in 1e-7 degrees a second, and the
    # covariance of (place, velocity) in metres, the same for both directions.
    place, velocity = np.zeros((num_users, 2)), np.zeros((num_users, 2))
    variance = np.zeros((num_users, 3))  # place², place·velocity, velocity²
    last_s = np.full(num_users, -(2**62))
    noise, error = _ACCELERATION**2, fix_error_m**2
    for slots, where in in_step(users):
        slots, where = slots[known[where]], where[known[where]]
        now_s = columns.times_s[rows[where]]
        gap_s = now_s - last_s[slots]
        fresh = (last_s[slots] == -(2**62)) | (gap_s > _LARGEST_GAP_S)
        gap = np.where(fresh, 0, gap_s).astype(np.float64)[:, None]
        measured = degrees[where].astype(np.float64)
        # Predict.
        expected = place[slots] + velocity[slots] * gap
        pp, pv, vv = variance[slots].T
        step = gap[:, 0]
        pp = pp + 2 * step * pv + step**2 * vv + noise * step**3 / 3
        pv = pv + step * vv + noise * step**2 / 2
        vv = vv + noise * step
        # Correct.
        gain_place, gain_velocity = pp / (pp + error), pv / (pp + error)
        surprise = measured - expected
        surprise[:, 1] -= np.rint(surprise[:, 1] / 3.6e9) * 3.6e9  # across the date line
        place[slots] = np.where(fresh[:, None], measured, expected + gain_place[:, None] * surprise)
        velocity[slots] = np.where(
            fresh[:, None], 0.0, velocity[slots] + gain_velocity[:, None] * surprise
        )
        start = np.array([error, 0.0, (_ACCELERATION * 60) ** 2])
        corrected = np.stack(
            [(1 - gain_place) * pp, (1 - gain_place) * pv, vv - gain_velocity * pv], 1
        )
        variance[slots] = np.where(fresh[:, None], start, corrected)
        last_s[slots] = now_s
        found = place[slots]
        found[:, 0] = np.clip(found[:, 0], -9e8, 9e8)
        found[:, 1] -= np.rint(found[:, 1] / 3.6e9) * 3.6e9
        result[where] = np.rint(found).astype(np.int32)
    result[~known] = UNKNOWN_E7
    return result
