import datetime
import zoneinfo

import ibis
import numpy as np
import pyarrow as pa
import pytest

from stt_jax.config import PrepareConfig
from stt_jax.data import clean, localtime
from stt_jax.data.engine import DuckEngine
from stt_jax.data.schema import UNKNOWN_E7

NEW_YORK = zoneinfo.ZoneInfo("America/New_York")
START = int(datetime.datetime(2011, 1, 1, tzinfo=datetime.UTC).timestamp())
YEARS_S = 3 * 365 * 86_400


@pytest.fixture(scope="module")
def connection():
    return ibis.duckdb.connect(threads=1)


def set_offsets(connection, times_s, *, is_zoned, offset_s=0, **options):
    config = PrepareConfig(input=("log.csv",), output="out", time="t", **options)
    zone = localtime.open_zone(config.timezone) if config.timezone else None
    count = len(times_s)
    rows = {
        "row": np.arange(count),
        "time_s": np.asarray(times_s, np.int64),
        "zone_s": np.full(count, 7200),
        "is_zoned": np.full(count, is_zoned),
        "utc_offset_s": np.full(count, offset_s),
    }
    table, source = localtime.set_offsets(ibis.memtable(pa.table(rows)), config, zone)
    result = connection.to_pyarrow(table.order_by("row"))
    return result["time_s"].to_numpy(), result["utc_offset_s"].to_numpy(), source


def test_offsets_of_a_zone_agree_with_zoneinfo(connection):
    times_s = np.random.default_rng(1).integers(START, START + YEARS_S, 2_000)
    moved, offsets_s, source = set_offsets(
        connection, times_s, is_zoned=True, timezone="America/New_York"
    )
    wanted = [
        datetime.datetime.fromtimestamp(int(t), NEW_YORK).utcoffset().total_seconds()
        for t in times_s
    ]
    assert moved.tolist() == times_s.tolist()
    assert offsets_s.tolist() == wanted
    assert source == "America/New_York"


def test_local_clock_readings_become_utc_as_in_python(connection):
    # Around both changes of the clock, with the hour that is skipped and the one that comes twice.
    walls = [
        datetime.datetime(2012, month, day) + datetime.timedelta(minutes=15 * i)
        for month, day in ((3, 11), (11, 4))
        for i in range(24)
    ]
    times_s = [int(wall.replace(tzinfo=datetime.UTC).timestamp()) for wall in walls]
    moved, _, _ = set_offsets(connection, times_s, is_zoned=False, timezone="America/New_York")
    assert moved.tolist() == [int(wall.replace(tzinfo=NEW_YORK).timestamp()) for wall in walls]


@pytest.mark.parametrize(
    ("options", "is_zoned", "moved_s", "offset_s"),
    [
        ({}, True, 0, 7200),  # as written with the time
        ({"utc_offset_minutes": -300}, True, 0, -18_000),
        ({"utc_offset_minutes": -300}, False, 18_000, -18_000),
        ({"utc_offset_minutes": -300, "unzoned_times": "utc"}, False, 0, -18_000),
        ({"utc_offset_column": "c"}, False, 0, -3600),
        ({"utc_offset_column": "c", "unzoned_times": "local"}, False, 3600, -3600),
        ({"timezone": "Asia/Tokyo", "unzoned_times": "utc"}, False, 0, 32_400),
    ],
)
def test_which_times_are_local(connection, options, is_zoned, moved_s, offset_s):
    given_s = -3600 if "utc_offset_column" in options else 0
    moved, offsets_s, _ = set_offsets(
        connection, [START], is_zoned=is_zoned, offset_s=given_s, **options
    )
    assert moved.tolist() == [START + moved_s]
    assert offsets_s.tolist() == [offset_s]


def test_a_zone_without_changes_has_one_offset():
    assert localtime.zone_offsets(zoneinfo.ZoneInfo("UTC"), START, START + YEARS_S) == ([0], [])


def test_wrong_zone_names_near_ones():
    with pytest.raises(ValueError, match="did you mean America/New_York"):
        localtime.open_zone("America/NewYork")
    with pytest.raises(ValueError, match=r"--timezone=\.\./x is no time zone"):
        localtime.open_zone("../x")


def test_impossible_offsets_become_zero_and_are_marked(connection):
    table = ibis.memtable({"row": [0, 1, 2, 3], "utc_offset": ["-300", "345.0", None, "9999"]})
    rows = connection.to_pyarrow(
        localtime.mark_offsets(clean.read_numbers(table, ["utc_offset"])).order_by("row")
    ).to_pylist()
    assert [row["utc_offset_s"] for row in rows] == [-18_000, 20_700, 0, 0]
    assert [bool(row["changed"]) for row in rows] == [False, False, True, True]


def zone_rows(engine, **columns):
    size = len(columns["time_s"])
    fixed = {
        "source_row": list(range(size)),
        "user": ["a"] * size,
        "item": ["x"] * size,
        "time_us": [0] * size,
        "zone_s": [0] * size,
        "part": pa.array([0] * size, pa.int8()),
    }
    rows = pa.table(fixed | columns)
    return engine.insert("rows", rows.schema, [rows])


def test_a_column_of_zones_gives_each_event_its_own_clock(tmp_path):
    engine = DuckEngine(str(tmp_path), threads=1)
    zones = ["America/New_York", "Europe/Vienna", "America/New_York", None, "Mars/Base"]
    noon = int(datetime.datetime(2012, 1, 10, 12, tzinfo=datetime.UTC).timestamp())
    table = zone_rows(
        engine,
        time_s=[noon, noon, noon, noon, noon],
        zone=pa.array(zones),
        is_zoned=[False, False, True, False, False],
    )
    config = PrepareConfig(input=("x",), output="y", time="t", zone_column="z")
    found = engine.fetch(localtime.mark_zones(table, engine, config).order_by("source_row"))
    assert found["utc_offset_s"].to_pylist() == [-18_000, 3_600, -18_000, 0, 0]
    moved = [time_s - noon for time_s in found["time_s"].to_pylist()]
    assert moved == [18_000, -3_600, 0, 0, 0]
    assert found["changed"].to_pylist() == [None] * 3 + ["zone is empty", "zone is not known"]


def test_offsets_of_arrays_are_those_of_expressions(connection):
    times_s = np.random.default_rng(2).integers(START, START + YEARS_S, 500)
    offsets_s, starts_s = localtime.zone_offsets(NEW_YORK, START - 200_000, START + YEARS_S)
    table = ibis.memtable({"row": np.arange(500), "t": times_s})
    for wall in (False, True):
        by_table = table.mutate(o=localtime.local_offset(table.t, offsets_s, starts_s, wall=wall))
        wanted = connection.to_pyarrow(by_table.order_by("row"))["o"].to_numpy()
        np.testing.assert_array_equal(localtime._offsets_at(NEW_YORK, times_s, wall=wall), wanted)


def test_zones_come_from_places_and_are_carried_on(tmp_path):
    pytest.importorskip("timezonefinder", reason="timezonefinder of 'zones' is not installed")
    engine = DuckEngine(str(tmp_path), threads=1)
    july = int(datetime.datetime(2012, 7, 1, tzinfo=datetime.UTC).timestamp())
    u = UNKNOWN_E7
    table = zone_rows(
        engine,
        time_s=[july + i for i in range(4)],
        utc_offset_s=[0] * 4,
        latitude_e7=pa.array([u, 407_000_000, u, 482_000_000], pa.int32()),
        longitude_e7=pa.array([u, -740_000_000, u, 163_000_000], pa.int32()),
    )
    found = engine.fetch(localtime.mark_zones_of_places(table, engine).order_by("source_row"))
    assert found["utc_offset_s"].to_pylist() == [0, -14_400, -14_400, 7_200]
    assert found["changed"].to_pylist() == [
        "no place and none before: UTC",
        None,
        "no place: zone of the user's last one",
        None,
    ]


def test_zones_are_known_at_the_pole_and_the_date_line(tmp_path):
    pytest.importorskip("timezonefinder", reason="timezonefinder of 'zones' is not installed")
    engine = DuckEngine(str(tmp_path), threads=1)
    july = int(datetime.datetime(2012, 7, 1, tzinfo=datetime.UTC).timestamp())
    places = [(-17.0, 180.0), (-17.0, -180.0), (90.0, 16.3), (90.0, 180.0), (-90.0, 0.0)]
    table = zone_rows(
        engine,
        time_s=[july] * len(places),
        utc_offset_s=[0] * len(places),
        latitude_e7=pa.array([round(latitude * 1e7) for latitude, _ in places], pa.int32()),
        longitude_e7=pa.array([round(longitude * 1e7) for _, longitude in places], pa.int32()),
    )
    found = engine.fetch(localtime.mark_zones_of_places(table, engine).order_by("source_row"))
    assert found["utc_offset_s"].to_pylist()[:2] == [43_200, 43_200]
    assert found["changed"].to_pylist() == [None] * len(places)
