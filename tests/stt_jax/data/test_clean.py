import collections
import random

import ibis
import pyarrow as pa
import pytest

from stt_jax.data import clean
from stt_jax.data.schema import UNKNOWN_E7


@pytest.fixture
def connection():
    return ibis.duckdb.connect(threads=1)


def marks(connection, table, column="dropped"):
    return connection.to_pyarrow(table.order_by("source_row"))[column].to_pylist()


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
def test_comparisons(connection, condition, values, dropped):
    marked = clean.mark_filtered(make(c0=values), {"n": "c0"}, drop_if=[condition])
    assert [bool(mark) for mark in marks(connection, marked)] == [bool(d) for d in dropped]


def test_the_first_reason_counts(connection):
    table = make(c0=["", "0", "5"], c1=["x", "C1", "C2"])
    marked = clean.mark_filtered(
        table, {"who": "c0", "bill": "c1"}, drop_if=["who=0", "bill^=C"], drop_missing=["who"]
    )
    assert marks(connection, marked) == ["who is empty", "who=0", "bill^=C"]


def test_comparison_without_operator_is_refused():
    with pytest.raises(ValueError, match="--drop_if=price: write COLUMN OPERATOR VALUE"):
        clean.condition_column("price")


def test_bad_ids_are_marked(connection):
    table = make(user=["a", None, "c", "d\n5,e"], item=["x", "y", None, "z"])
    marked = clean.mark_bad_ids(table, "who", "what")
    assert marks(connection, marked) == [
        None,
        "who is empty",
        "what is empty",
        "who spans lines",
    ]


def test_impossible_places_become_unknown(connection):
    places = [
        ("40.7128001", "-74.0059999", None),
        ("-90", "180", None),
        (None, None, None),
        ("40.5", None, "only one of two coordinates"),
        ("north", "5", "coordinate is not a number"),
        ("nan", "5", "coordinate is not a number"),
        ("91", "5", "latitude beyond 90"),
        ("5", "-180.01", "longitude beyond 180"),
        ("0.0", "0", "place is 0, 0"),
        ("0", "5", None),
    ]
    table = make(latitude=[p[0] for p in places], longitude=[p[1] for p in places])
    marked = clean.mark_places(table)
    assert marks(connection, marked, "changed") == [p[2] for p in places]
    latitudes = marks(connection, marked, "latitude_e7")
    longitudes = marks(connection, marked, "longitude_e7")
    assert latitudes[:3] == [407_128_001, -900_000_000, UNKNOWN_E7]
    assert longitudes[:3] == [-740_059_999, 1_800_000_000, UNKNOWN_E7]
    assert set(latitudes[3:9]) == set(longitudes[3:9]) == {UNKNOWN_E7}
    assert (latitudes[9], longitudes[9]) == (0, 50_000_000)


def test_degrees_are_rounded_not_cut(connection):
    texts = [f"{degree + 0.1234567:.7f}" for degree in range(-89, 89)]
    marked = clean.mark_places(make(latitude=texts, longitude=texts))
    wanted = [int(text.replace(".", "")) for text in texts]
    assert marks(connection, marked, "latitude_e7") == wanted


def test_duplicates_equal_in_every_column_the_first_stays(connection):
    table = make(user=["a", "a", "a", "b", "a"], name=["x", None, "x", "x", None])
    assert marks(connection, clean.mark_duplicates(table)) == [
        None,
        None,
        "equals an earlier row",
        None,
        "equals an earlier row",
    ]


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


def test_core_is_the_fixed_point(connection):
    draw = random.Random(3)
    rows = [
        (i, f"u{int(draw.expovariate(0.1))}", f"p{int(draw.expovariate(0.1))}") for i in range(600)
    ]
    table = make(user=[row[1] for row in rows], item=[row[2] for row in rows])
    kept, dropped = clean.keep_core(
        connection.create_table("log", table), connection, min_user_events=9, min_item_events=7
    )
    source_rows = connection.to_pyarrow(kept.order_by("source_row"))["source_row"].to_pylist()
    wanted = plain_core(rows, 9, 7)
    assert 0 < len(wanted) < len(rows)
    assert source_rows == [row[0] for row in wanted]
    assert sum(dropped.values()) == len(rows) - len(wanted)
    assert next(iter(dropped)) == "round 1: users below 9 events"
    assert any(reason.startswith("round 2") for reason in dropped)
