import collections
import random

import ibis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stt_jax.data import clean
from stt_jax.data.engine import DuckEngine
from stt_jax.data.schema import UNKNOWN_E7


@pytest.fixture
def engine(tmp_path):
    return DuckEngine(str(tmp_path / "spill"), threads=1)


def fetch(engine, table):
    """The rows in their order; `table` may be one in memory."""
    rows = engine.fetch(engine.connection.create_table("marked", table).order_by("source_row"))
    engine.drop("marked")
    return rows


def marks(engine, table, column="dropped"):
    return fetch(engine, table)[column].to_pylist()


def marks_by_row(engine, table):
    """Source row -> why it is dropped, of the rows that a step looks at."""
    rows = fetch(engine, table)
    return dict(zip(rows["source_row"].to_pylist(), rows["dropped"].to_pylist(), strict=True))


def make(**columns):
    size = len(next(iter(columns.values())))
    arrays = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    return ibis.memtable(pa.table({"source_row": list(range(size)), **arrays}))


@pytest.mark.parametrize(
    ("condition", "values", "dropped"),
    [
        ("n<=0", ["1", "0", "-5", "10", None, "", "many"], [0, 1, 1, 0, 0, 0, 0]),
        ("n < 9", ["10", "9", "8.5"], [0, 0, 1]),
        ("n>=1e3", ["999", "1000", "2e3"], [0, 1, 1]),
        ("n=0", ["0", "00", "0.0"], [1, 0, 0]),
        ("n!=a", ["a", "b", None], [0, 1, 0]),
        ("n^=C", ["C123", "c123", "1C"], [1, 0, 0]),
        ("n>M", ["L", "N"], [0, 1]),
        ("n=a=b", ["a=b", "a"], [1, 0]),
    ],
)
def test_comparisons(engine, condition, values, dropped):
    marked = clean.mark_filtered(make(c0=values), {"n": "c0"}, drop_if=[condition])
    assert [bool(mark) for mark in marks(engine, marked)] == [bool(d) for d in dropped]


def test_the_first_reason_counts(engine):
    table = make(c0=["", "0", "5"], c1=["x", "C1", "C2"])
    marked = clean.mark_filtered(
        table, {"who": "c0", "bill": "c1"}, drop_if=["who=0", "bill^=C"], drop_missing=["who"]
    )
    assert marks(engine, marked) == ["who is empty", "who=0", "bill^=C"]


def test_comparison_without_operator_is_refused():
    with pytest.raises(ValueError, match="--drop_if=price: write COLUMN OPERATOR VALUE"):
        clean.condition_column("price")


def test_a_comparison_of_numbers_counts_what_is_none(engine):
    columns = {"price": "c0"}
    values = make(c0=["0,0", "1", "", None, "0"])
    marked = clean.mark_filtered(values, columns, drop_if=["price<=0"])
    assert marks(engine, marked) == [None, None, None, None, "price<=0"]
    passed_over = "nothing by price<=0: price is not a number"
    assert marks(engine, marked, "changed") == [passed_over, None, None, None, None]
    # Texts are compared as such.
    assert "changed" not in clean.mark_filtered(values, columns, drop_if=["price=0"]).columns


def test_bad_ids_are_marked(engine):
    table = make(user=["a", None, "c", "d\n5,e"], item=["x", "y", None, "z"])
    marked = clean.mark_bad_ids(table, "who", "what")
    assert marks(engine, marked) == [
        None,
        "who is empty",
        "what is empty",
        "who spans lines",
    ]


def test_a_domain_with_a_slash_is_no_domain(engine):
    table = make(user=["a"] * 4, item=["b/c", "c", "d", "e"], domain=["a", "a/b", None, "x\ny"])
    marked = clean.mark_bad_ids(table, "who", "what", "shelf")
    assert marks(engine, marked) == [
        None,
        "shelf contains a slash",
        "shelf is empty",
        "shelf spans lines",
    ]
    samples = fetch(engine, marked.filter(marked.dropped == "shelf contains a slash"))
    assert samples["sample"].to_pylist() == ["a, c, a/b"]


def test_impossible_places_become_unknown(engine):
    places = [
        ("40.7128001", "-74.0059999", None),
        ("-90", "180", None),
        (None, None, None),
        ("40.5", None, "only one of two coordinates"),
        ("north", "5", "coordinate is not a number"),
        ("nan", "5", "coordinate is not a number"),
        ("91", "105", "latitude beyond 90"),
        ("5", "-180.01", "longitude beyond 180"),
        ("0.0", "0", "place is 0, 0"),
        ("0", "5", None),
    ]
    table = make(latitude=[p[0] for p in places], longitude=[p[1] for p in places])
    marked = clean.mark_places(clean.read_places(table))
    assert marks(engine, marked, "changed") == [p[2] for p in places]
    # The texts are only kept to be shown.
    samples = [f"{p[0] or ''}, {p[1] or ''}" if p[2] else None for p in places]
    assert marks(engine, marked, "sample") == samples
    latitudes = marks(engine, marked, "latitude_e7")
    longitudes = marks(engine, marked, "longitude_e7")
    assert latitudes[:3] == [407_128_001, -900_000_000, UNKNOWN_E7]
    assert longitudes[:3] == [-740_059_999, 1_800_000_000, UNKNOWN_E7]
    assert set(latitudes[3:9]) == set(longitudes[3:9]) == {UNKNOWN_E7}
    assert (latitudes[9], longitudes[9]) == (0, 50_000_000)


def test_degrees_are_rounded_not_cut(engine):
    texts = [f"{degree + 0.1234567:.7f}" for degree in range(-89, 89)]
    marked = clean.mark_places(clean.read_places(make(latitude=texts, longitude=texts)))
    wanted = [int(text.replace(".", "")) for text in texts]
    assert marks(engine, marked, "latitude_e7") == wanted


def test_duplicates_equal_in_every_column_the_first_stays(engine):
    table = make(
        user=["a", "a", "a", "b", "a", "a", "c", "c"],
        item=["i", "i", "i", "i", "i", "j", "i", "i"],
        name=["x", None, "x", "x", None, "x", "x", "x"],
    ).mutate(time_s=7)
    assert marks_by_row(engine, clean.mark_duplicates(table)) == {
        0: None,
        1: None,
        2: "equals an earlier row",
        4: "equals an earlier row",
        6: None,
        7: "equals an earlier row",
    }
    later = table.mutate(time_s=table.source_row)
    assert marks(engine, clean.mark_duplicates(later)) == []


def test_revisits_are_all_events_of_who_was_there_twice(engine):
    table = make(user=["a", "a", "b", "a", "b", "b"], item=["i", "j", "i", "i", "k", "k"]).mutate(
        time_s=7
    )
    found = clean.find_revisits(table)
    assert sorted(marks(engine, found, "source_row")) == [0, 3, 4, 5]
    assert found.columns == table.columns


def plain_core(rows, min_user_events, min_item_events):
    while True:
        users = collections.Counter(user for _, user, _ in rows)
        items = collections.Counter(item for _, _, item in rows)
        kept = [
            row
            for row in rows
            if users[row[1]] >= min_user_events and items[row[2]] >= min_item_events
        ]
        if kept == rows:
            return kept
        rows = kept


def test_core_is_the_fixed_point(engine):
    draw = random.Random(3)
    rows = [
        (i, f"u{int(draw.expovariate(0.1))}", f"p{int(draw.expovariate(0.1))}") for i in range(600)
    ]
    table = make(user=[row[1] for row in rows], item=[row[2] for row in rows])
    log = engine.connection.create_table("log", table)
    kept, dropped = clean.keep_core(log, engine, min_user_events=9, min_item_events=7)
    source_rows = marks(engine, kept, "source_row")
    wanted = plain_core(rows, 9, 7)
    assert 0 < len(wanted) < len(rows)
    assert source_rows == [row[0] for row in wanted]
    assert sum(dropped.values()) == len(rows) - len(wanted)
    assert next(iter(dropped)) == "round 1: users below 9 events"
    assert any(reason.startswith("round 2") for reason in dropped)


def test_swapped_coordinates_are_put_right(engine):
    table = make(latitude=["-114.1", "95", "200"], longitude=["51.04", "95", "51"])
    marked = clean.mark_places(clean.read_places(table))
    assert marks(engine, marked, "changed") == [
        "latitude and longitude swapped",
        "latitude beyond 90",
        "latitude beyond 90",
    ]
    assert marks(engine, marked, "latitude_e7") == [510_400_000, UNKNOWN_E7, UNKNOWN_E7]
    assert marks(engine, marked, "longitude_e7") == [-1_141_000_000, UNKNOWN_E7, UNKNOWN_E7]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", 12.0),
        (" -0.5 ", -0.5),
        ("+.5e-3", 0.0005),
        ("7.", 7.0),
        ("1e38", 1e38),
        *((text, None) for text in ("1e999", "nan", "inf", "1d", "0x1F", "1_000", "5\n", "", "e5")),
    ],
)
def test_numbers_are_what_every_engine_reads_alike(engine, text, number):
    marked = clean.mark_numbers(
        clean.read_numbers(make(price=[text]), ["price"]), {"price": "Price"}
    )
    assert marks(engine, marked, "price") == [number]
    assert marks(engine, marked, "changed") == [None if number else "Price is not a number"]


def test_numbers_beyond_float32_are_unknown_and_counted(engine):
    """The log keeps float32, where they would be infinite."""
    texts = ["3.4028235e38", "3.4028236e38", "-1.7e308", "x", "-3.4e38"]
    marked = clean.mark_numbers(
        clean.read_numbers(make(price=texts), ["price"]), {"price": "Price"}
    )
    assert marks(engine, marked, "price") == [3.4028235e38, None, None, None, -3.4e38]
    assert np.isfinite(np.float32(3.4028235e38))
    beyond = "Price is beyond 3.4e38, the largest number of a log"
    assert marks(engine, marked, "changed") == [None, beyond, beyond, "Price is not a number", None]
    assert float(marks(engine, marked, "sample")[2]) == -1.7e308


@pytest.mark.parametrize("bound", [10.5, -3.5])
def test_a_bound_within_a_second_is_compared_with_what_follows_the_second(engine, bound):
    times = [bound - 1, bound - 0.25, bound - 1e-6, bound, bound + 0.25]
    bound_us = round(bound * 1e6)
    before = [
        reason is not None
        for reason in marks(engine, clean.mark_outside(make_events(*times), bound_us, None))
    ]
    assert before == [True, True, True, False, False]
    after = [
        reason is not None
        for reason in marks(engine, clean.mark_outside(make_events(*times), None, bound_us))
    ]
    assert after == [False, False, False, True, True]


def make_events(*events, user="a", item="x"):
    """A table of events given as seconds or (seconds, overriding columns)."""
    rows = [(event, {}) if isinstance(event, int | float) else event for event in events]
    columns = {
        "source_row": list(range(len(rows))),
        "time_s": [int(time // 1) for time, _ in rows],
        "time_us": [round(time % 1 * 1e6) for time, _ in rows],
        "utc_offset_s": [0] * len(rows),
        "part": [0] * len(rows),
        "user": [user] * len(rows),
        "item": [item] * len(rows),
    }
    for row, (_, changes) in enumerate(rows):
        for name, value in changes.items():
            columns[name][row] = value
    return ibis.memtable(pa.table(columns))


def test_near_duplicates_leave_the_first_of_a_chain(engine):
    events = make_events(
        *(100, 109, 118, 128, (109, {"item": "y"}), (110, {"user": "b"}), 137.9),
        *((119, {"part": 2}), (200, {"item": "z"}), (209, {"item": "z"})),
    )
    revisits = clean.find_revisits(events)
    dropped = marks_by_row(engine, clean.mark_near_duplicates(revisits, 10))
    reason = "within 10 s of the same user's last event at the item"
    chain = {0: None, 1: reason, 2: reason, 3: None, 6: reason}
    assert dropped == {**chain, 7: None, 8: None, 9: reason}, "4 and 5 stand alone"


def test_events_outside_the_time_window_go(engine):
    dropped = marks(engine, clean.mark_outside(make_events(9, 10, 19, 20), 10**7, 2 * 10**7))
    assert dropped == ["before --time_from", None, None, "at --time_to or later"]
    assert marks(engine, clean.mark_outside(make_events(9, 10), None, 10**7))[0] is None


def test_a_bot_is_dropped_from_its_first_event_too_many_on(engine):
    day = 86_400
    events = make_events(
        0, day, day + 1, day + 2, 5 * day, *((day + i, {"user": "b"}) for i in (0, 1))
    )
    dropped = marks_by_row(engine, clean.mark_bots(events, 2))
    reason = "from a user's first day with more than 2 events on"
    assert dropped == {0: None, 1: None, 2: None, 3: reason, 4: reason}, "b is not looked at"
    # The day is the local one: an hour later, two of the events fall on the next day.
    late = make_events(*((day - 3 + i, {"utc_offset_s": 1}) for i in range(3)))
    assert not any(marks(engine, clean.mark_bots(late, 2)))
    assert any(marks(engine, clean.mark_bots(make_events(0, 1, 2), 2)))
    # Rows that an earlier step has taken out are another table's.
    left = events.anti_join(make_events(0), "source_row")
    assert marks_by_row(engine, clean.mark_bots(left, 2)) == {
        1: None,
        2: None,
        3: reason,
        4: reason,
    }


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), min_size=1, max_size=20))
def test_a_second_cleaning_finds_nothing_more(engine, events):
    """Near duplicates and bots: what stays is clean, and counts add up."""
    for mark in (lambda t: clean.mark_near_duplicates(t, 5), lambda t: clean.mark_bots(t, 4)):
        table = make_events(*((float(time), {"user": user}) for user, time in events))
        dropped = {row for row, reason in marks_by_row(engine, mark(table)).items() if reason}
        kept = [event for row, event in enumerate(events) if row not in dropped]
        assert len(kept) + len(dropped) == len(events)
        again = make_events(*((float(time), {"user": user}) for user, time in kept))
        assert not any(marks(engine, mark(again)))
