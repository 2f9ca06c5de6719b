"""Time gaps and distances to buckets, exactly: the float's own bits, no logarithm and no table of
edges.

`B(v; k, n) = clip((bits(float32(1 + v)) >> (23 - k)) - (127 << k), 0, n - 1)` cuts every octave of
`1 + v` into `2**k` buckets of equal width: the exponent of a float32 and the first `k` bits of its
mantissa are the bucket.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

EARTH_RADIUS_M = 6_371_008.8  # mean radius (IUGG); places lie on the sphere of this radius
MAX_BUCKETS = 256

_TIME_STEP = 1
_LARGEST_GAP = 2**31 - 2  # 1 + v still fits int32, and rounds to the same float32 as the true 2**31


def time_bucket(gap_s: jax.Array, n: int) -> jax.Array:
    """Gives the bucket of a time gap: two buckets an octave of `1 + |gap_s|`.

    The lower edges of bucket 0, 1, 2, ... are `1 + |gap_s|` = 1, 1.5, 2, 3, 4, 6, 8, 12, ...
    seconds: gap 0 is bucket 0, a minute 11, an hour 23, a day 32, a week 38, a year 49, and no
    gap is beyond bucket 62. No integer gap falls in bucket 1. Gaps past the table share its
    last bucket. `1 + |gap_s|` is rounded to float32 first, so gaps over 2**24 seconds (194 days)
    move by at most 64 seconds in 2**31.

    Args:
      gap_s: int32, any shape. Seconds; its sign is ignored. -2**31, which has no positive
        counterpart, must not occur.
      n: number of buckets, 1..256.

    Returns:
      int32, shape of `gap_s`, each in 0..n-1.

    Raises:
      ValueError: `gap_s` is not int32, or `n` is out of range.
    """
    _check_num_buckets(n)
    if gap_s.dtype != jnp.int32:
        raise ValueError(
            f"gap_s must be int32 seconds; got {gap_s.dtype}. Subtract timestamps before calling."
        )
    magnitudes = jnp.minimum(jnp.abs(gap_s), _LARGEST_GAP)
    return _float_bits_bucket((magnitudes + 1).astype(jnp.float32), _TIME_STEP, n)


def space_bucket(squared_distance_m2: jax.Array, n: int) -> jax.Array:
    """Gives the bucket of a squared distance; the last bucket also means that a place is unknown
    (NaN).

    Distances are straight lines through the Earth (chords): 0.99999 of the way along the surface at
    100 km, 0.999 at 1,000 km, 0.90 at 10,000 km. The step follows the number of buckets, so that
    the far side of the Earth is always in reach:

    - n <= 64: one bucket an octave of `1 + d**2`, two an octave of distance. Lower edges `sqrt(2**i
      - 1)` metres: bucket 1 at 1 m, 2 at 1.73 m, 4 at 3.9 m, 8 at 16 m, 12 at 64 m, 16 at 256 m, 20
      at 1.02 km, 24 at 4.1 km, 28 at 16.4 km, 32 at 65.5 km, 36 at 262 km, 40 at 1,049 km, 44 at
      4,194 km, 47 at 11,863 km. With n >= 49 no known distance reaches the last bucket.
    - 64 < n <= 128: two an octave of `1 + d**2`, four of distance; the antipode is in bucket 94.
    - n > 128: four an octave of `1 + d**2`, eight of distance; the antipode is in bucket 188.

    Args:
      squared_distance_m2: float32, any shape. Square metres; NaN = unknown.
      n: number of buckets, 1..256.

    Returns:
      int32, shape of `squared_distance_m2`, each in 0..n-1.

    Raises:
      ValueError: `squared_distance_m2` is not float32, or `n` is out of range.
    """
    _check_num_buckets(n)
    if squared_distance_m2.dtype != jnp.float32:
        raise ValueError(
            f"squared_distance_m2 must be float32 square metres; got {squared_distance_m2.dtype}."
        )
    buckets = _float_bits_bucket(squared_distance_m2 + 1.0, space_step(n), n)
    # Asked by value: the sign of a NaN is not stable under XLA, so its bits may land in bucket 0.
    return jnp.where(jnp.isnan(squared_distance_m2), n - 1, buckets)


def space_step(n: int) -> int:
    """Gives `k` of the space bucket for `n` entries: the finest that reaches the antipode."""
    return 0 if n <= 64 else 1 if n <= 128 else 2


def encode_coords(latitude_deg: np.ndarray, longitude_deg: np.ndarray) -> np.ndarray:
    """Turns degrees into metres from the row's first known place, on the host in float64.

    The origin is free, because only differences of coordinates within a row are used. Near the
    places, it keeps float32 exact to < 1 mm within 1 km of the origin and < 5 cm within 100 km. A
    packed row may be put together from sequences encoded one by one, each with its own origin,
    since pairs across segments are masked.

    Args:
      latitude_deg: float64 [..., S]. Degrees in -90..90; NaN = unknown.
      longitude_deg: float64 [..., S]. Degrees in -360..360; NaN = unknown.

    Returns:
      float32 [..., S, 3]: x, y, z in metres on a sphere of radius 6,371,008.8 m, minus the first
      known place of the row (last axis of the input); NaN in all three where either degree is NaN.

    Raises:
      ValueError: shapes differ, there is no axis, or a degree is out of range.
    """
    latitude_deg = np.asarray(latitude_deg, np.float64)
    longitude_deg = np.asarray(longitude_deg, np.float64)
    if latitude_deg.shape != longitude_deg.shape or latitude_deg.ndim == 0:
        raise ValueError(
            "latitude_deg and longitude_deg must have one shape [..., S]; "
            f"got {list(latitude_deg.shape)} and {list(longitude_deg.shape)}."
        )
    for name, degrees, limit in (
        ("latitude_deg", latitude_deg, 90.0),
        ("longitude_deg", longitude_deg, 360.0),
    ):
        wrong = np.abs(degrees) > limit  # False for NaN
        if wrong.any():
            raise ValueError(
                f"{name} must lie in -{limit:g}..{limit:g} degrees or be NaN; "
                f"got {degrees[wrong][0]}."
            )
    latitudes, longitudes = np.radians(latitude_deg), np.radians(longitude_deg)
    places_m = EARTH_RADIUS_M * np.stack(
        [
            np.cos(latitudes) * np.cos(longitudes),
            np.cos(latitudes) * np.sin(longitudes),
            np.sin(latitudes),
        ],
        axis=-1,
    )
    known = ~np.isnan(places_m).any(axis=-1)
    places_m[~known] = np.nan
    if latitude_deg.shape[-1] == 0:
        return places_m.astype(np.float32)
    first_known = np.argmax(known, axis=-1)[..., None, None]
    return (places_m - np.take_along_axis(places_m, first_known, axis=-2)).astype(np.float32)


def _float_bits_bucket(values: jax.Array, step: int, n: int) -> jax.Array:
    bits = lax.bitcast_convert_type(values, jnp.int32)
    return jnp.clip((bits >> (23 - step)) - (127 << step), 0, n - 1)


def _check_num_buckets(n: int) -> None:
    if not 1 <= n <= MAX_BUCKETS:
        raise ValueError(f"n must be 1..{MAX_BUCKETS} buckets; got {n}.")
