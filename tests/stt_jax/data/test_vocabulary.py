import ibis
import pyarrow as pa

from stt_jax.data import vocabulary
from stt_jax.data.schema import TEST, TRAIN, UNKNOWN_E7


def make_events(rows, columns):
    """A table of rows, with a running source_row and the part in the first column."""
    table = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
    return ibis.memtable(
        pa.table(table | {"source_row": list(range(len(rows)))}),
    )


def test_values_are_numbered_by_training_count_then_bytes():
    rows = [(TRAIN, v) for v in ["b", "a", "a", "é", "Z", None]] + [(TEST, "new"), (TEST, "b")] * 5
    counts = vocabulary.count_events(make_events(rows, ["part", "kind"]), ["kind"])
    values = vocabulary.number_values(counts, "kind")
    table = values.order_by("row").to_pyarrow().to_pydict()
    assert table["value"] == ["a", "Z", "b", "é"]
    assert table["row"] == [1, 2, 3, 4]
    assert table["train_count"] == [2, 1, 1, 1]


def test_items_without_training_events_are_numbered_last():
    rows = [(TEST, "a"), (TEST, "a"), (TRAIN, "c"), (TRAIN, "b"), (TEST, "b"), (TEST, "0")]
    counts = vocabulary.count_events(make_events(rows, ["part", "item"]), ["item"])
    table = vocabulary.number_items(counts).order_by("row").to_pyarrow().to_pydict()
    assert table["value"] == ["b", "c", "0", "a"]
    assert table["row"] == [1, 2, 3, 4]
    assert table["train_count"] == [1, 1, 0, 0]


def test_users_with_training_events_come_first():
    rows = [(TEST, "a"), (TRAIN, "c"), (TRAIN, "b"), (TEST, "b"), (TEST, "0")]
    users = vocabulary.number_users(make_events(rows, ["part", "user"]))
    table = users.order_by("user_row").to_pyarrow().to_pydict()
    assert table["user"] == ["b", "c", "0", "a"]
    assert table["train_count"] == [1, 1, 0, 0]


def test_an_item_is_described_by_its_training_events():
    u = UNKNOWN_E7
    rows = [
        (TRAIN, "x", "Bar", "b", 10, 7),
        (TRAIN, "x", "Bär", "a", 30, 7),
        (TRAIN, "x", "Bar", None, 20, 9),
        (TRAIN, "x", None, None, 40, 9),
        (TRAIN, "x", None, None, u, u),
        (TEST, "x", "Zoo", "z", 99, 99),
        (TEST, "x", "Zoo", "z", 99, 99),
        (TEST, "x", "Zoo", "z", 99, 99),
        (TRAIN, "y", None, None, u, u),
        (TEST, "z", "Zoo", "z", 99, 99),
    ]
    described = ["item", "name", "category", "latitude_e7", "longitude_e7"]
    counts = vocabulary.count_events(make_events(rows, ["part", *described]), described)
    items = vocabulary.describe_items(counts, vocabulary.number_items(counts), ())
    found = items.to_pyarrow().to_pylist()
    assert [row["value"] for row in found] == ["x", "y"]
    # Most frequent, ties by bytes; the lower one of two middle values.
    assert (found[0]["name"], found[0]["category"]) == ("Bar", "a")
    assert (found[0]["latitude_e7"], found[0]["longitude_e7"]) == (20, 7)
    assert (found[1]["name"], found[1]["category"]) == (None, None)
    assert (found[1]["latitude_e7"], found[1]["longitude_e7"]) == (u, u)


def test_an_item_is_described_by_events_not_by_the_ways_to_describe_it():
    rows = [(TRAIN, "x", "A", "b", 10, 7)] * 3
    rows += [(TRAIN, "x", "A", "a", 30, 8), (TRAIN, "x", "B", "a", 40, 9)]
    described = ["item", "name", "category", "latitude_e7", "longitude_e7"]
    counts = vocabulary.count_events(make_events(rows, ["part", *described]), described)
    (found,) = (
        vocabulary.describe_items(counts, vocabulary.number_items(counts), ())
        .to_pyarrow()
        .to_pylist()
    )
    assert (found["name"], found["category"], found["train_count"]) == ("A", "b", 5)
    assert (found["latitude_e7"], found["longitude_e7"]) == (10, 7)


def test_the_place_of_an_item_at_the_date_line_is_there():
    def e7(degrees):
        return UNKNOWN_E7 if degrees is None else round(degrees * 1e7)

    places = {
        "a": [179.9, 179.95, -179.95, -179.9, -179.85],
        "b": [179.9, 179.9, 179.95, -179.95, -179.9],
        "c": [-180.0, 180.0, None],
        "d": [-74.0, 2.0, 139.0],  # two oceans apart, but not across the line
        "e": [-90.0, 90.0],
        "f": [None],
    }
    rows = [(TRAIN, item, e7(d)) for item, degrees in places.items() for d in degrees]
    events = make_events(rows, ["part", "item", "longitude_e7"])
    events = events.mutate(
        longitude_e7=events.longitude_e7.cast("int32"),
        latitude_e7=events.longitude_e7.cast("int32"),
        name=ibis.null("string"),
        category=ibis.null("string"),
    )
    described = ["item", "name", "category", "latitude_e7", "longitude_e7"]
    counts = vocabulary.count_events(events, described)
    items = vocabulary.describe_items(counts, vocabulary.number_items(counts), ()).to_pyarrow()
    found = dict(zip(items["value"].to_pylist(), items["longitude_e7"].to_pylist(), strict=True))
    assert found == {
        name: e7(degrees)
        for name, degrees in zip("abcdef", [-179.95, 179.95, 180.0, 2.0, -90.0, None], strict=True)
    }
