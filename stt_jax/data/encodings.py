"""Places and times as the model reads them: metres from the Earth's centre, hours, seconds."""

from __future__ import annotations

import numpy as np

from stt_jax.batch import HOURS_PER_WEEK
from stt_jax.data.schema import UNKNOWN_E7

EARTH_RADIUS_M = 6_371_008.8
_INT32_MAX = 2**31 - 1
_EPOCH_HOUR_OF_WEEK = 72  # 1970-01-01 00:00 UTC was a Thursday; Monday 00:00 is hour 0


def earth_coords(latitudes_e7: np.ndarray, longitudes_e7: np.ndarray) -> np.ndarray:
    """Places on a sphere, float64 [..., 3] earth-centred metres; NaN where unknown."""
    unknown = (latitudes_e7 == UNKNOWN_E7) | (longitudes_e7 == UNKNOWN_E7)
    latitude = np.radians(latitudes_e7 * 1e-7)
    longitude = np.radians(longitudes_e7 * 1e-7)
    xyz = EARTH_RADIUS_M * np.stack(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.sin(latitude),
        ],
        axis=-1,
    )
    xyz[unknown] = np.nan
    return xyz


def hour_of_week(times: np.ndarray, utc_offsets_s: np.ndarray | int) -> np.ndarray:
    """int32, local hour of the week in 0..167, Monday 00:00 is 0.

    Args:
      times: int64, unix seconds.
      utc_offsets_s: int, seconds to add for local time.
    """
    hours = (times + utc_offsets_s) // 3600 + _EPOCH_HOUR_OF_WEEK
    return (hours % HOURS_PER_WEEK).astype(np.int32)


def int32_seconds(seconds: np.ndarray) -> np.ndarray:
    """Clips seconds to what int32 holds either way, 68 years."""
    return np.clip(seconds, -_INT32_MAX, _INT32_MAX).astype(np.int32)
