import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stt_jax.data import numerics

NAN = np.nan
ONE_USER = np.zeros(100, np.int64)


def fit(method, number, train):
    """A stage of whichever flag has the method; "quantile" with a number is of --outliers."""
    flag = "outliers" if method == "mad" or number else "transform"
    flag = "normalise" if method in numerics.SCALE_METHODS else flag
    return numerics.fit_stage(flag, method, number, np.array(train, np.float64))


def run(method, number, train, values):
    """One stage fitted to `train` and applied to `values`."""
    stage = fit(method, number, train)
    return numerics.apply_stage(stage, np.array(values, np.float64), ONE_USER[: len(values)])


@pytest.mark.parametrize(
    ("method", "number", "train", "values", "wanted"),
    [
        # Median 3, MAD 1: the bounds are 3 -+ 2 * 1.4826.
        ("mad", 2.0, [1, 2, 3, 4, 50], [0.03, 0.04, 5.96, 5.97, NAN], [NAN, 0.04, 5.96, NAN, NAN]),
        # More than half are one value, so nothing can be called far from it.
        ("mad", 2.0, [7, 7, 7, 9], [7, 1000], [7, 1000]),
        ("quantile", 0.25, [0, 1, 2, 3, 4], [0.9, 1, 3, 3.1], [NAN, 1, 3, NAN]),
        ("log1p", 0.0, [1], [0, np.e - 1, 1 - np.e, NAN], [0, 1, -1, NAN]),
        ("quantile", 0.0, [0, 0, 0, 10, 20], [-5, 0, 10, 15, 99], [0.25, 0.25, 0.75, 0.875, 1]),
        ("zscore", 0.0, [1, 3], [1, 2, 4, NAN], [-1, 0, 2, NAN]),
        ("minmax", 0.0, [2, 4], [2, 3, 5], [0, 0.5, 1.5]),
        ("robust", 0.0, [0, 1, 2, 3, 4], [2, 4], [0, 1]),
        ("zscore", 0.0, [5, 5], [5, 6], [0, 1]),
        ("zscore", 0.0, [], [5], [5]),
    ],
)
def test_known_answers(method, number, train, values, wanted):
    np.testing.assert_allclose(run(method, number, train, values), wanted, atol=5e-3)


@pytest.mark.parametrize("method", ["zscore", "minmax", "robust"])
def test_a_constant_is_its_own_centre_whatever_rounding_makes_of_its_mean(method):
    value = 0.1
    constant = np.full(97, value)
    assert np.std(constant) > 0  # by rounding
    stage = fit(method, 0.0, constant)
    assert (stage["centre"], stage["scale"]) == (value, 1.0)
    np.testing.assert_array_equal(run(method, 0.0, constant, [value, value + 1]), [0.0, 1.0])


def test_quantiles_are_of_the_flag_and_not_of_the_number():
    values = np.arange(100.0)
    assert numerics.fit_stage("transform", "quantile", 0.05, values)["kind"] == "quantile"
    assert numerics.fit_stage("outliers", "quantile", 0.05, values)["kind"] == "bounds"


def test_box_cox_finds_the_power_that_made_the_values():
    draws = np.random.default_rng(1).normal(10, 1, 4_000)
    for power in (0.5, 2.0):
        stage = fit("boxcox", 0.0, draws ** (1 / power))
        assert stage["power"] == pytest.approx(power, abs=0.35)
    logs = fit("boxcox", 0.0, np.exp(draws))
    assert logs["power"] == pytest.approx(0, abs=0.05)
    shifted = fit("boxcox", 0.0, draws - 10)
    assert np.all(np.isfinite(numerics.apply_stage(shifted, np.array([-99.0, 0.0]), ONE_USER[:2])))
    assert fit("boxcox", 0.0, np.full(3, 2.0))["power"] == 1.0


def test_moving_median_looks_back_only_and_stays_with_its_user():
    users = np.array([0, 0, 0, 0, 1, 1])
    values = np.array([1, 9, NAN, 2, 100, 0.0])
    found = numerics.moving_median(values, users, 3)
    np.testing.assert_array_equal(found, [1, 5, NAN, 2, 100, 50])


def test_exponential_mean_passes_over_the_unknown():
    users = np.array([0, 0, 0, 1, 1])
    values = np.array([4, NAN, 8, 1, 3.0])
    found = numerics.exponential_mean(values, users, 0.25)
    np.testing.assert_array_equal(found, [4, NAN, 5, 1, 1.5])


def test_a_power_is_found_for_a_column_that_spans_all_floats():
    stage = fit("boxcox", 0.0, np.array([5e-324, 1e-5, 1.0, 1e6]))
    assert np.isfinite(stage["power"])


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["log1p", "boxcox", "quantile", "zscore", "minmax", "robust"]),
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30),
)
def test_transforms_and_scales_keep_the_order(method, train, values):
    found = run(method, 0.0, train, sorted(values))
    assert np.all(np.diff(found) >= -1e-9 * np.abs(found).max())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("price", "write COLUMN:mad; the methods are mad, quantile"),
        ("price:median", "the methods are"),
        ("price:mad:many", "'many' is not a number"),
    ],
)
def test_misspelt_rules_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        numerics.rule_number("outliers", text, numerics.OUTLIER_METHODS)


def test_a_column_name_may_hold_a_colon():
    assert numerics.rule_number("outliers", "a:b:mad:3", numerics.OUTLIER_METHODS) == (
        "a:b",
        "mad",
        3.0,
    )


def test_a_stage_of_another_version_is_refused():
    with pytest.raises(ValueError, match="another version: its stage 'magic'"):
        numerics.apply_stages([{"kind": "magic"}], np.zeros(1))


def test_a_number_too_large_for_its_scale_is_infinite():
    stages = [{"kind": "zscore", "centre": 0.0, "scale": 1e-3}]
    found = numerics.apply_stages(stages, np.array([1e38, -1e37, 1.0, np.nan]))
    np.testing.assert_array_equal(found, np.array([np.inf, -np.inf, 1000, np.nan], np.float32))


def test_a_number_beyond_float32_is_as_unknown_as_in_a_log():
    values = np.array([1e308, -3.5e38, np.inf, 1.0])
    np.testing.assert_array_equal(numerics.apply_stages([], values), [NAN, NAN, NAN, 1.0])
    filled = numerics.apply_stages([{"kind": "fill", "value": 5.0}], values)
    np.testing.assert_array_equal(filled, [5.0, 5.0, 5.0, 1.0])
    assert values[0] == 1e308
