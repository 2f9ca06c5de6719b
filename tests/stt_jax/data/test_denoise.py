import numpy as np

from stt_jax.data import denoise
from stt_jax.data.columns import distance_km
from tests.stt_jax.data.event_columns import make_columns


def test_a_stray_fix_goes_and_the_events_after_it_stay():
    # One degree of longitude on the equator is 111.2 km.
    columns = make_columns(
        [0, 0, 0, 0, 1],
        places=[(0, 0), (0, 1), (0, 0.01), None, (50, 50)],
        times_s=[0, 60, 120, 130, 140],
    )
    assert denoise.too_fast(columns, 1000).tolist() == [False, True, False, False, False]
    slow = make_columns([0, 0], places=[(0, 0), (0, 1)], times_s=[0, 3600])
    assert denoise.too_fast(slow, 112).tolist() == [False, False]
    assert denoise.too_fast(slow, 111).tolist() == [False, True]


def test_a_stray_first_fix_does_not_take_everything_after_it_along():
    home = (40.0, -74.0)
    # London, then at home every half hour: from the second event there on, two agree.
    columns = make_columns(
        [0] * 60 + [1] * 3,
        places=[(51.5, -0.1), home, None, *[home] * 57, home, (51.5, -0.1), home],
        times_s=[*range(0, 60 * 1800, 1800), 0, 60, 120],
    )
    found = np.flatnonzero(denoise.too_fast(columns, 150)).tolist()
    assert found == [1, 61]  # and the other person's stray one, after a good one


def test_a_stray_fix_after_two_that_agree_never_becomes_the_true_one():
    home, away = (40.0, -74.0), (51.5, -0.1)
    columns = make_columns([0] * 6, places=[home, home, away, away, away, home])
    assert denoise.too_fast(columns, 150).tolist() == [False, False, True, True, True, False]


def test_two_stray_fixes_that_disagree_are_both_left_out():
    columns = make_columns([0] * 4, places=[(0, 0), (0, 50), (0, 100), (0, 100)])
    assert denoise.too_fast(columns, 150).tolist() == [False, True, True, False]


def test_what_comes_later_decides_over_no_earlier_event():
    rng = np.random.default_rng(8)
    places = [(0, float(d)) for d in rng.choice([0, 0.01, 5, 5.01], 40)]
    whole = denoise.too_fast(make_columns([0] * 40, places=places), 150)
    for size in range(1, 40):
        columns = make_columns([0] * size, places=places[:size])
        np.testing.assert_array_equal(denoise.too_fast(columns, 150), whole[:size])


def test_a_test_event_takes_no_training_event_out():
    columns = make_columns(
        [0, 0, 0], places=[(0, 0), (0, 9), (0, 9)], times_s=[0, 1, 2], parts=[0, 2, 0]
    )
    assert denoise.too_fast(columns, 100).tolist() == [False, True, True]
    columns.latitudes_e7[0] = columns.latitudes_e7[2]
    columns.longitudes_e7[0] = columns.longitudes_e7[2]
    columns.longitudes_e7[1] = 0
    assert denoise.too_fast(columns, 100).tolist() == [False, True, False]


def test_a_kalman_filter_comes_nearer_to_the_true_path():
    rng = np.random.default_rng(3)
    steps = np.arange(300)
    true = np.stack([40 + steps * 1e-4, -74 + steps * 2e-4], 1)  # about 20 m every 10 s
    noisy = true + rng.normal(0, 30 / 111_195, true.shape)
    columns = make_columns([0] * 300, places=noisy.tolist(), times_s=steps * 10)
    exact = make_columns([0] * 300, places=true.tolist())
    found = denoise.filter_places(columns, 30.0)

    def mean_error_m(latitudes_e7, longitudes_e7):
        error_km = distance_km(latitudes_e7, longitudes_e7, exact.latitudes_e7, exact.longitudes_e7)
        return 1000 * error_km[20:].mean()

    assert mean_error_m(*found) < 0.8 * mean_error_m(columns.latitudes_e7, columns.longitudes_e7)


def test_a_kalman_filter_agrees_with_matrices():
    """The same by the textbook's matrices, along one axis."""
    rng = np.random.default_rng(4)
    times_s = np.cumsum(rng.integers(1, 900, 30))
    latitudes = 40 + np.cumsum(rng.normal(0, 1e-3, 30))
    columns = make_columns([0] * 30, places=[(x, 0) for x in latitudes], times_s=times_s)
    found, _ = denoise.filter_places(columns, 25.0)
    state, spread = None, None
    for i in range(30):
        measured = float(columns.latitudes_e7[i])
        if state is None:
            state, spread = np.array([measured, 0.0]), np.diag([625.0, 900.0])
        else:
            dt = float(times_s[i] - times_s[i - 1])
            move = np.array([[1, dt], [0, 1]])
            drift = 0.25 * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]])
            state, spread = move @ state, move @ spread @ move.T + drift
            gain = spread[:, 0] / (spread[0, 0] + 625.0)
            state = state + gain * (measured - state[0])
            spread = spread - np.outer(gain, spread[0])
        assert abs(found[i] - state[0]) <= 1, i


def test_unknown_places_stay_unknown_and_a_long_pause_begins_anew():
    columns = make_columns(
        [0, 0, 0, 0], places=[(1, 1), None, (1.001, 1), (3, 3)], times_s=[0, 5, 10, 90_000]
    )
    latitudes, longitudes = denoise.filter_places(columns, 50.0)
    assert latitudes[1] == longitudes[1] == -(2**31)
    assert 10_000_000 < latitudes[2] < 10_010_000
    assert (latitudes[3], longitudes[3]) == (30_000_000, 30_000_000)


def test_the_date_line_is_no_jump():
    columns = make_columns([0] * 3, places=[(0, 179.9999), (0, -179.9999), (0, -179.9998)])
    _, longitudes = denoise.filter_places(columns, 5.0)
    assert np.all(np.abs(longitudes.astype(np.int64)) > 1_799_990_000)
