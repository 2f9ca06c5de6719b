import numpy as np
import pytest

from stt_jax.data.encodings import earth_coords, hour_of_week
from stt_jax.data.schema import UNKNOWN_E7
from tests.stt_jax.tiny_logs import FIRST_MONDAY


@pytest.mark.parametrize(
    ("seconds", "offset", "expected"),
    [(0, 0, 0), (3599, 0, 0), (3600, 0, 1), (-1, 0, 167), (0, -3600, 167), (7 * 86400, 0, 0)],
)
def test_hour_of_week_starts_on_monday_midnight(seconds, offset, expected):
    assert hour_of_week(np.array([FIRST_MONDAY + seconds]), offset)[0] == expected


def test_earth_coords_of_known_places():
    xyz = earth_coords(np.array([0, 900_000_000, UNKNOWN_E7]), np.array([0, 0, 0]))
    np.testing.assert_allclose(xyz[0], [6_371_008.8, 0, 0])
    np.testing.assert_allclose(xyz[1], [0, 0, 6_371_008.8], atol=1e-6)
    assert np.isnan(xyz[2]).all()
