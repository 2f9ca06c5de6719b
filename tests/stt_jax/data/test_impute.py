import numpy as np
import pytest

from stt_jax.data import impute
from tests.stt_jax.data.event_columns import make_columns

NAN = np.nan


def fill_numbers(method, numbers, argument="", **fields):
    columns = make_columns(fields.pop("users"), numbers={"n": numbers}, **fields)
    stage = impute.fill_numbers(columns, "n", impute.Fill("n", method, argument))
    return columns.numbers["n"].tolist(), stage


@pytest.mark.parametrize(
    ("method", "argument", "value"),
    [("constant", "7.5", 7.5), ("mean", "", 4.0), ("median", "", 2.0), ("mode", "", 1.0)],
)
def test_one_value_for_all_comes_from_training_and_is_kept_for_serving(method, argument, value):
    found, stage = fill_numbers(
        method,
        [1, 1, 2, 6, 10, NAN, 999, NAN],
        argument,
        users=[0] * 8,
        parts=[0, 0, 0, 0, 0, 0, 1, 2],
    )
    assert found == [1, 1, 2, 6, 10, value, 999, value]
    assert stage == {"kind": "fill", "value": value}


@pytest.mark.parametrize(
    ("method", "values"),
    [("mean_item", [4, 10]), ("median_item", [3, 10]), ("mode_item", [1, 10])],
)
def test_by_item(method, values):
    numbers = [1, 1, 5, 9, 10, NAN, NAN, NAN]
    found, stage = fill_numbers(
        method, numbers, users=[0] * 8, items=[0, 0, 0, 0, 1, 0, 1, 2], parts=[0] * 8
    )
    assert found[5:7] == values
    assert np.isnan(found[7])  # an item that training does not know
    assert stage is None


def test_by_user():
    found, _ = fill_numbers("median_user", [1, 3, NAN, 8, NAN], users=[0, 0, 0, 1, 1])
    assert found == [1, 3, 2, 8, 8]


def test_interpolation_is_linear_in_time_and_never_looks_into_a_later_part():
    times_s = [0, 100, 400, 500, 600, 700]
    numbers = [10, NAN, 20, NAN, 90, NAN]
    found, _ = fill_numbers(
        "interpolate", numbers, users=[0] * 6, times_s=times_s, parts=[0, 0, 0, 0, 1, 1]
    )
    assert found == [10, 12.5, 20, 20, 90, 90]
    found, _ = fill_numbers("interpolate", numbers, users=[0] * 6, times_s=times_s, parts=[0] * 6)
    assert found == [10, 12.5, 20, 55, 90, 90]
    # Unknown before the first known value; another user is no neighbour.
    found, _ = fill_numbers("interpolate", [NAN, 1, NAN, 5], users=[0, 0, 1, 1])
    assert [str(value) for value in found] == ["nan", "1.0", "nan", "5.0"]


def test_places_are_interpolated_along_the_great_circle():
    columns = make_columns(
        [0, 0, 0, 1, 1],
        places=[(60, -90), None, (60, 90), (10, 20), None],
        times_s=[0, 50, 100, 0, 9],
    )
    impute.fill_places(columns, impute.Fill("lat", "interpolate", ""))
    # The shortest way between two points on opposite meridians leads over the pole.
    assert columns.latitudes_e7[1] == pytest.approx(900_000_000, abs=2)
    assert columns.latitudes_e7[4] == 100_000_000
    assert columns.longitudes_e7[4] == 200_000_000
    quarter = make_columns([0, 0, 0], places=[(0, 0), None, (0, 80)], times_s=[0, 25, 100])
    impute.fill_places(quarter, impute.Fill("lat", "interpolate", ""))
    assert quarter.longitudes_e7.tolist() == [0, 200_000_000, 800_000_000]


def test_places_by_item_are_lower_medians():
    columns = make_columns([0] * 4, places=[(1, 1), (2, 5), (3, 9), None], items=[4] * 4)
    impute.fill_places(columns, impute.Fill("lat", "median_item", ""))
    assert (columns.latitudes_e7[3], columns.longitudes_e7[3]) == (20_000_000, 50_000_000)


FIJI = [(-17, 179.9), (-17, 179.95), (-17, -179.95), (-17, -179.9), (-17, -179.85)]


@pytest.mark.parametrize("method", ["median", "median_item", "median_user"])
def test_medians_of_places_are_taken_across_the_date_line(method):
    columns = make_columns([0] * 6, places=[*FIJI, None])
    impute.fill_places(columns, impute.Fill("lat", method, ""))
    assert columns.longitudes_e7[5] == -1_799_500_000
    columns = make_columns([0] * 5, places=[*FIJI[:4], None])
    impute.fill_places(columns, impute.Fill("lat", method, ""))
    assert columns.longitudes_e7[4] == 1_799_500_000  # the lower, the western one of two


def test_a_model_of_places_does_not_jump_at_the_date_line():
    pytest.importorskip("sklearn", reason="scikit-learn of the extra 'impute' is not installed")
    rng = np.random.default_rng(3)
    size = 300
    hours = rng.integers(0, 24, size)
    degrees = 179.9 + 0.2 * (hours >= 12) + rng.normal(0, 0.05, size)
    places = [(-17, (d + 180) % 360 - 180) for d in degrees]
    for hidden in range(0, size, 5):
        places[hidden] = None
    columns = make_columns(
        [0] * size, places=places, times_s=np.arange(size) * 86_400 + hours * 3600
    )
    impute.fill_places(columns, impute.Fill("lat", "model", ""))
    found = (columns.longitudes_e7[::5] * 1e-7) % 360
    np.testing.assert_allclose(found, 179.9 + 0.2 * (hours[::5] >= 12), atol=0.15)
    # A number that goes by the side of the line is found by the place on it, at one cut.
    numbers = np.where(np.arange(size) % 7 == 0, NAN, degrees)
    columns.numbers["n"] = numbers.copy()
    impute.fill_numbers(columns, "n", impute.Fill("n", "model", ""))
    assert np.abs(columns.numbers["n"] - degrees)[::7].max() < 0.3


def texts_after(method, argument="", **fields):
    columns = make_columns(
        [0, 0, 0, 1, 1],
        codes={"kind": [1, 2, 2, 1, 0]},
        texts={"kind": ["", "bar", "zoo"]},
        **fields,
    )
    impute.fill_texts(columns, "kind", impute.Fill("kind", method, argument))
    return [columns.texts["kind"][code] for code in columns.codes["kind"]][4]


def test_categories():
    assert texts_after("mode") == "bar"  # a tie goes to the first in byte order
    assert texts_after("mode_user") == "bar"
    assert texts_after("mode_item", items=[7, 7, 7, 3, 7]) == "zoo"
    assert texts_after("mode", parts=[0, 0, 0, 1, 1]) == "zoo"
    assert texts_after("constant", "shop") == "shop"
    assert texts_after("constant", "zoo") == "zoo"
    with pytest.raises(ValueError, match="--fill=kind:mean: kind is categorical"):
        texts_after("mean")


def test_a_model_finds_what_the_other_columns_tell():
    pytest.importorskip("sklearn", reason="scikit-learn of the extra 'impute' is not installed")
    rng = np.random.default_rng(2)
    size = 400
    hours = rng.integers(0, 24, size)
    places = [(40 + float(hour >= 12), -74) for hour in hours]
    number = np.where(hours >= 12, 50.0, 10.0)
    hidden = rng.random(size) < 0.2
    columns = make_columns(
        [0] * size,
        places=places,
        times_s=np.arange(size) * 86_400 + hours * 3600,
        numbers={"n": np.where(hidden, NAN, number)},
        codes={"kind": np.where(hidden, 0, np.where(hours >= 12, 2, 1))},
        texts={"kind": ["", "bar", "zoo"]},
        parts=[0] * 300 + [1] * 100,
    )
    impute.fill_numbers(columns, "n", impute.Fill("n", "model", ""))
    np.testing.assert_allclose(columns.numbers["n"], number, atol=1)
    impute.fill_texts(columns, "kind", impute.Fill("kind", "model", ""))
    np.testing.assert_array_equal(columns.codes["kind"], np.where(hours >= 12, 2, 1))
    where = np.flatnonzero(hidden)
    wanted = columns.latitudes_e7.copy()
    columns.latitudes_e7[where] = columns.longitudes_e7[where] = -(2**31)
    impute.fill_places(columns, impute.Fill("lat", "model", ""))
    np.testing.assert_allclose(columns.latitudes_e7, wanted, atol=2e5)


@pytest.mark.parametrize("filled", ["number", "text", "place"])
def test_a_model_passes_over_columns_without_a_known_value_to_fit_to(filled):
    """A log without coordinates, and a column that only the test part has."""
    pytest.importorskip("sklearn", reason="scikit-learn of the extra 'impute' is not installed")
    size, cut = 100, 60
    even = np.arange(size) % 2 == 0
    columns = make_columns(
        [0] * size,
        places=[(1, 2)] * 10 + [None] * 90 if filled == "place" else None,
        times_s=np.arange(size) * 43_200,
        numbers={
            "n": np.where(np.arange(size) < cut, np.where(even, 5.0, 9.0), NAN),
            "late": np.where(np.arange(size) < cut, NAN, 1.0),
        },
        codes={"kind": np.where(np.arange(size) < cut, np.where(even, 1, 2), 0)},
        texts={"kind": ["", "bar", "zoo"]},
        parts=[0] * cut + [2] * (size - cut),
    )
    if filled == "number":
        impute.fill_numbers(columns, "n", impute.Fill("n", "model", ""))
        np.testing.assert_allclose(columns.numbers["n"], np.where(even, 5, 9), atol=1)
    elif filled == "text":
        impute.fill_texts(columns, "kind", impute.Fill("kind", "model", ""))
        np.testing.assert_array_equal(columns.codes["kind"], np.where(even, 1, 2))
    else:
        impute.fill_places(columns, impute.Fill("lat", "model", ""))
        assert set(columns.latitudes_e7) == {10_000_000}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("price", "write COLUMN:constant"),
        ("price:best", "the methods are constant, interpolate, model, mean_item"),
        ("price:constant", "only constant takes a value"),
        ("price:mean:3", "only constant takes a value"),
    ],
)
def test_misspelt_fills_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        impute.parse_fill(text)


def test_a_constant_for_a_number_must_be_one():
    with pytest.raises(ValueError, match="n is numeric; give a number"):
        fill_numbers("constant", [NAN], "many", users=[0])
