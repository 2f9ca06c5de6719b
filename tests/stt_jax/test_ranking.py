"""Which items rules let into a list, and how a list is shown."""

import numpy as np
import pytest

from stt_jax.config import RequestConfig
from stt_jax.data.encodings import earth_coords
from stt_jax.ranking import (
    Recommendation,
    Rules,
    allowed_items,
    describe,
    item_coords,
    item_distances_km,
    named_rows,
)
from stt_jax.recommend import print_list
from tests.stt_jax.tiny_logs import random_log

LOG = random_log(num_users=6, seed=5)
COORDS = item_coords(LOG)
HERE = earth_coords(np.asarray(407_000_000), np.asarray(-740_000_000))


def test_an_item_is_shown_with_its_own_distance():
    coords = COORDS.copy()
    coords[7] = np.nan
    items, probabilities = np.array([5, 7, 2]), np.array([0.5, 0.3, 0.1], np.float32)
    shown = describe(LOG, items, probabilities, coords, HERE)
    assert [one.item_id for one in shown] == ["i5", "i7", "i2"]
    assert [one.category for one in shown] == ["a", "c", "b"]
    assert [one.probability for one in shown] == pytest.approx([0.5, 0.3, 0.1])
    assert shown[1].distance_km is None
    for one, item in ((shown[0], 5), (shown[2], 2)):
        north = (LOG.item_latitudes_e7[item] - 407_000_000) * 1e-7 * 111.19
        east = (
            (LOG.item_longitudes_e7[item] + 740_000_000) * 1e-7 * 111.19 * np.cos(np.radians(40.7))
        )
        assert one.distance_km == pytest.approx(np.hypot(north, east), rel=1e-3)
    assert [one.distance_km for one in describe(LOG, items, probabilities, coords, None)] == [
        None
    ] * 3
    assert describe(LOG, items[:0], probabilities[:0], coords, HERE) == []


def test_rules_let_in_what_they_say_and_never_the_unknown_item():
    categories, domains = LOG.item_categories, np.arange(LOG.num_items + 1) % 3
    assert allowed_items(Rules(), categories, domains, COORDS, HERE) is None
    within = allowed_items(Rules(radius_km=0.2), categories, domains, COORDS, HERE)
    np.testing.assert_array_equal(within, item_distances_km(COORDS, HERE) <= 0.2)
    assert 0 < within.sum() < 11
    only = allowed_items(
        Rules(categories=np.array([1]), excluded=np.array([0, 5])),
        categories,
        domains,
        COORDS,
        None,
    )
    np.testing.assert_array_equal(np.flatnonzero(only), [1, 9])
    of_domains = allowed_items(Rules(domains=np.array([1, 2])), categories, domains, COORDS, None)
    np.testing.assert_array_equal(np.flatnonzero(of_domains), np.flatnonzero(domains > 0))


def test_names_become_rows_and_an_unknown_one_is_told_what_there_is():
    rows = {"": 3, **{name: row for row, name in enumerate("abcdefg", start=4)}}
    np.testing.assert_array_equal(named_rows("categories", ("b", "a"), rows), [5, 4])
    assert named_rows("categories", (), rows) is None
    message = r"^kinds: 'z' is not in the model's log; it has e\.g\. a, b, c, d, e$"
    with pytest.raises(ValueError, match=message):
        named_rows("kinds", ("a", "z"), rows)
    with pytest.raises(ValueError, match=r"it has e\.g\. none$"):
        named_rows("kinds", ("z",), {})


@pytest.mark.parametrize(("user", "whom"), [("u1", "u1"), ("", "somebody new")])
def test_a_list_says_whom_it_is_for(capsys, user, whom):
    request = RequestConfig(user=user, time="2012-05-01T08:30")
    print_list([Recommendation("i1", "item 1", "a", 0.5, None)], request)
    assert capsys.readouterr().out.splitlines()[0].strip() == f"next for {whom} at 2012-05-01T08:30"
