import numpy as np
import pytest

from stt_jax.data import features
from tests.stt_jax.data.event_columns import make_columns

MONDAY = 1_333_324_800  # 2012-04-02 00:00 UTC
HOUR, DAY = 3600, 86_400


def numbers_of(columns, feature):
    features.add_numbers(columns, feature)
    return [columns.numbers[name].tolist() for name in features.NUMBERS[feature]]


def test_gaps_and_steps_are_since_the_last_event_of_the_user():
    columns = make_columns(
        [0, 0, 0, 1], places=[(0, 0), None, (0, 1), (5, 5)], times_s=[0, 1800, 7200, 9]
    )
    (gaps,), (steps,) = numbers_of(columns, "gap_h"), numbers_of(columns, "step_km")
    np.testing.assert_allclose(gaps, [np.nan, 0.5, 1.5, np.nan])
    np.testing.assert_allclose(steps, [np.nan, np.nan, 111.195, np.nan], atol=1e-2)


def test_hours_and_weekdays_are_points_on_a_circle():
    columns = make_columns([0] * 4, times_s=MONDAY + np.array([0, 6, 12, 12 + 3.5 * 24]) * HOUR)
    sines, cosines = numbers_of(columns, "hour")
    np.testing.assert_allclose(sines, [0, 1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(cosines, [1, 0, -1, 1], atol=1e-9)
    sines, cosines = numbers_of(columns, "weekday")
    np.testing.assert_allclose(cosines[0], 1, atol=1e-9)
    np.testing.assert_allclose(
        [sines[3], cosines[3]], np.cos([np.pi / 2 - 8 * np.pi / 7, 8 * np.pi / 7])
    )
    columns.utc_offsets_s[:] = 6 * HOUR
    assert numbers_of(columns, "hour")[0][0] == pytest.approx(1)


def test_the_centre_of_a_person_is_that_of_the_training_part():
    columns = make_columns(
        [0, 0, 0, 0, 1],
        places=[(0, 0), (0, 1), (0, 2), (0, 50), (7, 7)],
        parts=[0, 0, 0, 2, 2],
    )
    ((centre,),) = [numbers_of(columns, "centre_km")]
    np.testing.assert_allclose(centre[:4], np.array([1, 0, 1, 49]) * 111.195, rtol=1e-4)
    assert np.isnan(centre[4])  # no training, no centre


def test_the_centre_of_a_person_may_be_at_the_date_line():
    columns = make_columns([0] * 3, places=[(0, 179.9), (0, -179.9), (0, -179.8)])
    ((centre,),) = [numbers_of(columns, "centre_km")]
    np.testing.assert_allclose(centre, np.array([0.2, 0, 0.1]) * 111.195, rtol=1e-4)


def scenarios(columns):
    features.add_scenario(columns)
    return [columns.texts["scenario"][code] for code in columns.codes["scenario"]]


def test_home_and_work_are_where_nights_and_office_hours_were_spent():
    nights = [MONDAY + day * DAY + 23 * HOUR for day in range(4)]
    offices = [MONDAY + day * DAY + 10 * HOUR for day in range(4)]
    times_s = nights + offices + [MONDAY + 19 * HOUR, MONDAY + 20 * HOUR, MONDAY + 9 * DAY]
    items = [0] * 4 + [1] * 4 + [2, 3, 0]
    assert scenarios(make_columns([0] * 11, times_s=times_s, items=items)) == (
        ["home"] * 4 + ["work"] * 4 + ["other", "other", "home"]
    )
    places = [(0, 0)] * 4 + [(0, 1)] * 4 + [(0, 1.001), (0, 0.5), (9, 9)]
    # With places, nearness decides and not the item.
    assert scenarios(make_columns([0] * 11, times_s=times_s, items=items, places=places)) == (
        ["home"] * 4 + ["work"] * 5 + ["other", "other"]
    )
    # Three nights are needed, in the training part; people without one have no scenario.
    parts = [2, 2, 2] + [0] * 8
    assert (
        scenarios(make_columns([0] * 11, times_s=times_s, items=items, parts=parts))[3] == "other"
    )
    assert scenarios(make_columns([0] * 11, times_s=times_s, parts=[1] * 11)) == [""] * 11


def test_cells_are_those_of_the_library():
    h3 = pytest.importorskip("h3", reason="h3 of the extra 'cells' is not installed")
    columns = make_columns([0] * 3, places=[(40.7, -74), None, (48.2, 16.4)])
    for resolution in (7, 9):
        features.add_cells(columns, resolution)
        name = f"cell_{resolution}"
        found = [columns.texts[name][code] for code in columns.codes[name]]
        assert found[1] == ""
        assert found[0] == h3.latlng_to_cell(40.7, -74, resolution)
        assert found[2] == h3.latlng_to_cell(48.2, 16.4, resolution)
