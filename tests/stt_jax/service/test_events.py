"""Events of the service become the columns that preparing would have made of them."""

import dataclasses

import numpy as np
import pytest

from stt_jax.config import PrepareConfig
from stt_jax.data.newitems import add_items
from stt_jax.data.preparation import prepare_log
from stt_jax.data.store import TEST
from stt_jax.service.events import person_events
from stt_jax.service.models import ServedModel
from stt_jax.service.store import StoredEvent

START_S = 1_333_324_800


@pytest.fixture(scope="module")
def raw():
    """(user, item, seconds, latitude, longitude, price); the person "late" is in the test alone."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(240):
        user = "late" if number >= 230 else f"u{rng.integers(5)}"
        place = 40 + rng.integers(8) / 100, -74 + rng.integers(8) / 100
        price = round(float(rng.lognormal(3, 1)), 2) if rng.random() < 0.7 else None
        time_s = START_S + 5000 * number + int(rng.integers(4000))
        rows.append((user, f"p{rng.integers(9)}", time_s, *place, price))
    return rows


@pytest.fixture(scope="module")
def log(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    lines = [",".join("" if v is None else str(v) for v in row) for row in raw]
    (folder / "log.csv").write_text("\n".join(["who,what,when,lat,lon,price", *lines]) + "\n")
    return prepare_log(
        PrepareConfig(
            input=(str(folder / "log.csv"),),
            output=str(folder / "prepared"),
            user="who",
            item="what",
            time="when",
            latitude="lat",
            longitude="lon",
            numeric=("price",),
            outliers=("price:mad:4",),
            smooth=("price:exponential:0.5",),
            features=("gap_h", "step_km", "centre_km", "hour", "weekday"),
            transform=("price:boxcox", "gap_h:log1p"),
            normalise=("price:zscore", "gap_h:robust", "step_km:zscore"),
        )
    )


def served(log):
    return ServedModel(None, log, None, "")


def as_sent(raw, user):
    return [
        StoredEvent(
            "somebody", str(time_s), item, time_s, 0, round(1e7 * lat), round(1e7 * lon),
            numbers={} if price is None else {"price": price},
        )
        for who, item, time_s, lat, lon, price in raw
        if who == user
    ]  # fmt: skip


def test_raw_numbers_become_those_that_the_prepared_log_has(raw, log):
    row = log.user_row("late")
    own = slice(log.user_offsets[row], log.user_offsets[row + 1])
    assert (log.parts[own] == TEST).all()
    found = person_events(as_sent(raw, "late"), served(log))
    assert len(found) == 10
    assert set(found.numbers) == set(log.numbers) >= {"price", "gap_h", "step_km", "hour_sin"}
    for name, values in found.numbers.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, log.numbers[name][own], err_msg=name)
    assert np.isnan(found.numbers["price"]).any()
    assert len(np.unique(found.numbers["price"])) > 3


def test_what_is_made_of_events_is_made_with_those_of_the_prepared_log(raw, log):
    """The last events of a person come to the service, and it has all before them."""
    row = log.user_row("u1")
    own = slice(log.user_offsets[row], log.user_offsets[row + 1])
    end, num_sent = own.stop - 3, 3
    offsets = log.user_offsets.copy()
    offsets[row + 1] = end
    shorter = dataclasses.replace(log, user_offsets=offsets)
    found = person_events(as_sent(raw, "u1")[-num_sent:], served(shorter), row)
    assert len(found) == own.stop - own.start
    for name in log.numbers.keys() - {"price"}:
        np.testing.assert_array_equal(found.numbers[name], log.numbers[name][own], err_msg=name)


def test_numbers_that_the_log_does_not_have_are_not_used(log):
    event = StoredEvent("somebody", "1", "p1", START_S, numbers={"weight": 3.0})
    found = person_events([event], served(log))
    assert "weight" not in found.numbers
    assert np.isnan(found.numbers["price"]).all()


def test_an_offset_holds_until_the_next_wherever_the_events_are_kept(log):
    """The prepared log has UTC; an event of before it told Tokyo, and one after it New York."""
    row = log.user_row("u1")
    times = log.times[log.user_offsets[row] : log.user_offsets[row + 1]]
    first, last = int(times[0]), int(times[-1])

    def stored(time_s, offset_s=None):
        return StoredEvent("somebody", str(time_s), "p1", time_s, offset_s)

    before = [stored(first - 300), stored(first - 200, 9 * 3600), stored(first - 100)]
    after = [stored(last + 100), stored(last + 200, -5 * 3600), stored(last + 300)]
    found = person_events([*before, stored(first + 1), *after], served(log), row)
    middle = len(found) - 6
    expected = [0, 9 * 3600, 9 * 3600, *[0] * middle, 0, -5 * 3600, -5 * 3600]
    np.testing.assert_array_equal(found.utc_offsets_s, expected)
    elsewhere = dataclasses.replace(log, utc_offsets_s=np.full_like(log.utc_offsets_s, 3600))
    found = person_events([stored(first - 300)], served(elsewhere), row)
    assert set(found.utc_offsets_s.tolist()) == {3600}


def test_a_place_0_0_that_was_stored_before_is_that_of_the_item(log):
    event = StoredEvent("somebody", "1", "p1", START_S, 0, 0, 0)
    found = person_events([event], served(log))
    assert found.latitudes_e7[0] == log.item_latitudes_e7[served(log).item_rows["p1"]]


def held_twice(log, events):
    """How many events of a person of a log are there more than the log's, once these are stored."""
    row = log.user_row("u1")
    num_own = int(log.user_offsets[row + 1] - log.user_offsets[row])
    return len(person_events(events, served(log), row)) - num_own


def test_an_event_that_log_and_service_hold_is_there_once_though_its_item_is_unknown(log):
    row = log.user_row("u1")
    at = int(log.user_offsets[row]) + 3
    items = log.items.copy()
    items[at] = 0  # an item without training events: its id is lost
    log, time_s = dataclasses.replace(log, items=items), int(log.times[at])
    unknown, another = (StoredEvent("u1", i, i, time_s, 0) for i in ("fresh", "fresher"))
    assert held_twice(log, [unknown]) == 0
    assert held_twice(log, [unknown, another]) == 1, "the log holds one of them"
    assert held_twice(log, [dataclasses.replace(unknown, time_s=time_s + 1)]) == 1
    assert held_twice(log, [StoredEvent("u1", "1", "p1", time_s, 0)]) == 1
    with_new = add_items(log, ["fresh"])  # told of, but not trained on
    assert held_twice(with_new, [unknown]) == 0


def test_an_event_that_a_coarse_log_holds_is_there_once(raw, log, tmp_path):
    lines = [f"{user},{item},{time_s}" for user, item, time_s, *_ in raw]
    (tmp_path / "log.csv").write_text("\n".join(["who,what,when", *lines]) + "\n")
    coarse = prepare_log(
        PrepareConfig(
            input=(str(tmp_path / "log.csv"),),
            output=str(tmp_path / "prepared"),
            user="who",
            item="what",
            time="when",
            coarsen_time_s=3600,
        )
    )
    assert (coarse.times % 3600 == 0).all()
    sent = as_sent(raw, "u1")
    assert held_twice(coarse, sent) == held_twice(log, sent) == 0
    again = dataclasses.replace(sent[3], event_id="again")
    assert held_twice(coarse, [*sent[:4], again, *sent[4:]]) == 1
    later = dataclasses.replace(sent[3], time_s=sent[3].time_s + 3600)
    assert held_twice(coarse, [later]) == 1
