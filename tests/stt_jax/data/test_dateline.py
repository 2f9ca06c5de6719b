import numpy as np
import pytest

from stt_jax.data import dateline


def cut_of(degrees):
    longitudes_e7 = np.rint(np.array(degrees) * 1e7).astype(np.int32)
    groups = np.zeros(len(degrees), np.int64)
    (cut,) = dateline.find_cuts(groups, longitudes_e7, np.ones(len(degrees), bool))
    return cut / 1e7


@pytest.mark.parametrize(
    ("degrees", "cut"),
    [
        ([10], -np.inf),
        ([-90, 90], -np.inf),
        ([-74, 2, 13, 139], -np.inf),  # the widest gap is the Pacific
        ([-179, 179], -179),
        ([-180, 180], -180),
        ([-175, -170, 100, 178, 178], -170),
        ([-120, 0, 120], -np.inf),  # of three gaps alike it is the one of the date line
    ],
)
def test_the_circle_is_cut_in_the_widest_gap(degrees, cut):
    assert cut_of(degrees) == cut


def test_each_group_has_a_cut_of_its_own_and_a_way_back():
    groups = np.array([0, 2, 0, 2, 2, 3])
    longitudes_e7 = np.array([1790, 50, -1790, -60, 0, 1800], np.int32) * 1_000_000
    mask = np.array([True] * 5 + [False])
    cuts = dateline.find_cuts(groups, longitudes_e7, mask)
    np.testing.assert_array_equal(cuts, [-1_790_000_000, -np.inf, -np.inf, -np.inf])
    unrolled = dateline.unroll(longitudes_e7, cuts[groups])
    np.testing.assert_array_equal(unrolled[[0, 2]], [1_790_000_000, 1_810_000_000])
    np.testing.assert_array_equal(unrolled[[1, 3, 4, 5]], longitudes_e7[[1, 3, 4, 5]])
    np.testing.assert_array_equal(dateline.roll(unrolled), longitudes_e7)


def test_nothing_to_cut():
    nothing = np.zeros(0, np.int64)
    assert len(dateline.find_cuts(nothing, nothing, nothing.astype(bool))) == 0
    assert np.isnan(dateline.roll(np.array([np.nan]))).all()
