"""Buckets against integer and float64 arithmetic, at every edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stt_kernels import buckets, encode_coords, space_bucket, time_bucket


def exact_bucket(value: float, step: int, n: int) -> int:
    """The definition in plain arithmetic: octave of `value`, cut in 2**step equal parts."""
    exponent = int(np.floor(np.log2(value)))
    exponent += (value >= 2.0 ** (exponent + 1)) - (value < 2.0**exponent)
    part = int((value / 2.0**exponent - 1.0) * 2**step)
    return min(max((exponent << step) + part, 0), n - 1)


def exact_time_bucket(gap_s: int, n: int) -> int:
    return exact_bucket(float(np.float32(1 + abs(gap_s))), 1, n)


TIME_EDGES = [edge for e in range(31) for edge in (2**e, 3 * 2**e // 2)]


def test_time_buckets_are_exact_around_every_edge():
    gaps = {edge + offset - 1 for edge in TIME_EDGES for offset in (-2, -1, 0, 1, 2)}
    gaps = sorted({gap for gap in gaps if 0 <= gap < 2**31} | {2**31 - 1})
    for n in (1, 5, 62, 64, 256):
        found = time_bucket(jnp.asarray(gaps, jnp.int32), n)
        assert found.tolist() == [exact_time_bucket(gap, n) for gap in gaps]


@settings(deadline=None)  # the first call of a shape compiles
@given(st.integers(-(2**31) + 1, 2**31 - 1), st.integers(1, 256))
def test_time_bucket_is_exact(gap_s, n):
    assert int(time_bucket(np.asarray(gap_s, np.int32), n)) == exact_time_bucket(gap_s, n)


@settings(deadline=None)  # the first call of a shape compiles
@given(st.integers(0, 2**31 - 2))
def test_time_buckets_grow_with_the_gap(gap_s):
    low, high = time_bucket(jnp.asarray([gap_s, gap_s + 1], jnp.int32), 256).tolist()
    assert low <= high <= 62


def test_documented_time_buckets():
    gaps_s = [0, 60, 3600, 86_400, 7 * 86_400, 365 * 86_400, 2**31 - 2]
    found = time_bucket(jnp.asarray(gaps_s, jnp.int32), 64).tolist()
    assert found[:6] == [0, 11, 23, 32, 38, 49]
    assert found[6] <= 62


@pytest.mark.parametrize(("n", "step"), [(48, 0), (64, 0), (65, 1), (128, 1), (129, 2), (256, 2)])
def test_space_buckets_are_exact_around_every_edge(n, step):
    values = []
    for octave in range(1, 48):
        for part in range(2**step):
            edge = np.float32(2.0**octave * (1 + part / 2**step)) - np.float32(1)
            values += [np.nextafter(edge, np.float32(0)), edge, np.nextafter(edge, np.inf)]
    values = np.asarray(values, np.float32)
    expected = [exact_bucket(float(value + np.float32(1)), step, n) for value in values]
    assert space_bucket(jnp.asarray(values), n).tolist() == expected


@settings(deadline=None)  # the first call of a shape compiles
@given(st.floats(0, 2.0**48, width=32), st.integers(1, 256))
def test_space_bucket_is_exact(squared_distance_m2, n):
    value = np.float32(squared_distance_m2)
    expected = exact_bucket(float(value + np.float32(1)), buckets.space_step(n), n)
    assert int(space_bucket(np.asarray(value), n)) == expected


@pytest.mark.parametrize("n", [1, 48, 64, 128, 256])
def test_unknown_places_fall_in_the_last_space_bucket_whatever_the_sign_of_nan(n):
    unknown = np.asarray([np.nan, -np.nan, np.inf], np.float32)
    assert space_bucket(jnp.asarray(unknown), n).tolist() == [n - 1] * 3
    assert jax.jit(space_bucket, static_argnums=1)(unknown, n).tolist() == [n - 1] * 3


def test_documented_space_buckets():
    distances_m = {1: 1, 2: 1.74, 4: 3.9, 8: 16, 12: 64, 16: 256, 20: 1.03e3, 24: 4.1e3, 28: 16.4e3}
    distances_m |= {32: 65.6e3, 36: 263e3, 40: 1.049e6, 44: 4.195e6, 47: 11.864e6}
    squares = jnp.asarray([d**2 for d in distances_m.values()], jnp.float32)
    assert space_bucket(squares, 64).tolist() == list(distances_m)
    antipode = jnp.asarray((2 * buckets.EARTH_RADIUS_M) ** 2, jnp.float32)
    assert [int(space_bucket(antipode, n)) for n in (64, 128, 256)] == [47, 94, 188]


@pytest.mark.parametrize("n", [0, 257])
def test_bucket_counts_out_of_range_are_refused(n):
    with pytest.raises(ValueError, match=r"n must be 1\.\.256"):
        time_bucket(jnp.zeros((1,), jnp.int32), n)
    with pytest.raises(ValueError, match=r"n must be 1\.\.256"):
        space_bucket(jnp.zeros((1,), jnp.float32), n)


def test_buckets_refuse_the_wrong_dtype():
    with pytest.raises(ValueError, match="gap_s must be int32"):
        time_bucket(jnp.zeros((1,), jnp.float32), 64)
    with pytest.raises(ValueError, match="squared_distance_m2 must be float32"):
        space_bucket(jnp.zeros((1,), jnp.int32), 64)


def true_chord_m(latitudes_deg, longitudes_deg):
    """Chord from the first place to each, in extended precision, by haversines."""
    latitudes, longitudes = np.radians(np.asarray([latitudes_deg, longitudes_deg], np.longdouble))
    haversines = (
        np.sin((latitudes - latitudes[0]) / 2) ** 2
        + np.cos(latitudes) * np.cos(latitudes[0]) * np.sin((longitudes - longitudes[0]) / 2) ** 2
    )
    return 2 * buckets.EARTH_RADIUS_M * np.sqrt(haversines)


@pytest.mark.parametrize(("reach_deg", "tolerance_m"), [(0.009, 1e-3), (0.9, 5e-2), (180.0, 2.0)])
def test_encoded_places_keep_their_distances(reach_deg, tolerance_m):
    random = np.random.default_rng(0)
    latitudes = np.clip(40.7 + random.uniform(-reach_deg, reach_deg, 500), -90, 90)
    longitudes = -74.0 + random.uniform(-reach_deg, reach_deg, 500)
    coords = encode_coords(latitudes, longitudes).astype(np.float64)
    found = np.sqrt(np.sum((coords - coords[0]) ** 2, axis=-1))
    assert np.abs(found - true_chord_m(latitudes, longitudes)).max() < tolerance_m


def test_antipodes_are_finite():
    coords = encode_coords(np.array([40.0, -40.0]), np.array([-74.0, 106.0]))
    distance_m = np.linalg.norm(coords[1].astype(np.float64))
    assert distance_m == pytest.approx(2 * buckets.EARTH_RADIUS_M, rel=1e-6)


def test_coords_are_relative_to_the_first_known_place_of_each_row():
    latitudes = np.array([[np.nan, 40.0, 40.1], [10.0, np.nan, 10.1], [np.nan] * 3])
    coords = encode_coords(latitudes, np.zeros_like(latitudes))
    assert coords.dtype == np.float32
    assert coords.shape == (3, 3, 3)
    np.testing.assert_array_equal(coords[0, 1], 0.0)
    np.testing.assert_array_equal(coords[1, 0], 0.0)
    np.testing.assert_array_equal(np.isnan(coords).all(-1), np.isnan(latitudes))


def test_one_unknown_degree_makes_the_place_unknown():
    coords = encode_coords(np.array([40.0, 41.0]), np.array([np.nan, 2.0]))
    assert np.isnan(coords[0]).all()
    np.testing.assert_array_equal(coords[1], 0.0)


def test_no_places_at_all_are_fine():
    assert encode_coords(np.zeros((2, 0)), np.zeros((2, 0))).shape == (2, 0, 3)


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        ([91.0], [0.0], r"latitude_deg must lie in -90\.\.90"),
        ([0.0], [np.inf], r"longitude_deg must lie in -360\.\.360"),
        ([0.0, 1.0], [0.0], r"one shape \[\.\.\., S\]; got \[2\] and \[1\]"),
        (0.0, 0.0, r"one shape \[\.\.\., S\]"),
    ],
)
def test_impossible_places_are_refused(latitude, longitude, message):
    with pytest.raises(ValueError, match=message):
        encode_coords(np.asarray(latitude), np.asarray(longitude))
