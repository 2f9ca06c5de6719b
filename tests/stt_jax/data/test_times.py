import datetime
import re

import ibis
import pyarrow as pa
import pytest

from stt_jax.data import times
from stt_jax.data.engine import DuckEngine

UTC = datetime.UTC


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return DuckEngine(str(tmp_path_factory.mktemp("spill")), threads=1)


def read_times(texts, engine, time_format=""):
    """The reading that is chosen, and its rows."""
    rows = pa.table({"source_row": list(range(len(texts))), "time": pa.array(texts, pa.string())})
    table = times.read_times(ibis.memtable(rows), time_format, engine)
    reading = times.choose_reading(
        table,
        time_format=time_format,
        flag="--time=t",
        show=lambda row: f"row {row + 1} {texts[row]!r}",
    )
    marked = times.mark_times(table, reading)
    marked = marked.order_by("source_row").to_pyarrow()
    return reading, marked.to_pylist()


def moment(*parts):
    return int(datetime.datetime(*parts, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("text", "kind", "time_s", "time_us"),
    [
        ("1333476000", "seconds", 1_333_476_000, 0),
        ("1287503727.0", "seconds", 1_287_503_727, 0),
        ("1287503727.7", "seconds", 1_287_503_727, 700_000),
        ("1.3e9", "seconds", 1_300_000_000, 0),
        ("-1.5", "seconds", -2, 500_000),
        ("1506826828020", "milliseconds", 1_506_826_828, 20_000),
        ("1506826828020001", "microseconds", 1_506_826_828, 20_001),
        ("1506826828000000000", "nanoseconds", 1_506_826_828, 0),
        ("2012-04-03T18:00:09Z", "iso_zone", moment(2012, 4, 3, 18, 0, 9), 0),
        ("2012-04-03 18:00:09+00:00", "iso_zone", moment(2012, 4, 3, 18, 0, 9), 0),
        ("2012-04-03 18:00:09.25-05:30", "iso_zone", moment(2012, 4, 3, 23, 30, 9), 250_000),
        ("2012-04-03T18:00+02", "iso_zone", moment(2012, 4, 3, 16), 0),
        ("2012-04-03 18:00:09 UTC", "iso_zone", moment(2012, 4, 3, 18, 0, 9), 0),
        ("2012-04-03T18:00", "iso", moment(2012, 4, 3, 18), 0),
        ("2012-04-03 18:00:09.123456", "iso", moment(2012, 4, 3, 18, 0, 9), 123_456),
        ("1969-12-31 23:59:59.5", "iso", -1, 500_000),
        ("2012-04-03", "iso", moment(2012, 4, 3), 0),
    ],
)
def test_known_ways_to_write_a_time(engine, text, kind, time_s, time_us):
    reading, rows = read_times([text], engine)
    assert reading.kinds == (kind,)
    assert (rows[0]["time_s"], rows[0]["time_us"]) == (time_s, time_us)
    assert rows[0]["is_zoned"] == (kind != "iso")
    assert rows[0]["dropped"] is None


def test_the_zone_that_a_time_is_written_with_is_kept(engine):
    _, rows = read_times(["2012-04-03T18:00:00-05:30", "2012-04-03T18:00:00Z"], engine)
    assert [row["zone_s"] for row in rows] == [-19_800, 0]


def test_empty_and_unreadable_times_are_marked(engine):
    _, rows = read_times([None, "2012-02-30", "2012-02-28", "never"], engine)
    assert [row["dropped"] for row in rows] == [
        "time is empty",
        "time is not ISO 8601 without zone",
        None,
        "time is not ISO 8601 without zone",
    ]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["1333476000", "1333476000", "1333476000000"], "row 3 '1333476000000' reads as unix mil"),
        (["2012-04-03", "2012-04-03T10:00Z", "2012-04-03"], "row 2 '2012-04-03T10:00Z' reads as"),
        (["20120403", "20120404"], "may be a date in digits"),
        (["3/4/2012 18:18"], "row 1 '3/4/2012 18:18'. Give --time_format"),
        ([None, None], "every value is empty"),
    ],
)
def test_mixed_and_unknown_ways_are_refused_with_a_row(engine, texts, words):
    with pytest.raises(ValueError, match="--time=t: ") as error:
        read_times(texts, engine)
    assert words in str(error.value)


def test_relative_seconds_may_look_like_dates(engine):
    _, rows = read_times(["5", "20120403", "20120405"], engine)
    assert [row["time_s"] for row in rows] == [5, 20_120_403, 20_120_405]


@pytest.mark.parametrize(
    ("time_format", "text", "time_s"),
    [
        ("%d/%m/%Y %H:%M", "3/4/2012 18:18", moment(2012, 4, 3, 18, 18)),
        ("%Y%m%d", "20120403", moment(2012, 4, 3)),
        ("%a %b %d %H:%M:%S %z %Y", "Tue Apr 03 18:00:09 +0200 2012", moment(2012, 4, 3, 16, 0, 9)),
        ("seconds", "20120403", 20_120_403),
        ("milliseconds", "1500", 1),
        ("iso", "2012-04-03", moment(2012, 4, 3)),
    ],
)
def test_named_formats(engine, time_format, text, time_s):
    _, rows = read_times([text], engine, time_format)
    assert rows[0]["time_s"] == time_s


@pytest.mark.parametrize(
    ("time_format", "text", "time_s", "zone_s"),
    [
        ("%m/%d/%Y %H:%M:%S %z", "4/3/2012 18:00:09 -0530", moment(2012, 4, 3, 23, 30, 9), -19_800),
        ("%m/%d/%Y %H:%M:%S%z", "4/3/2012 18:00:09+05:30", moment(2012, 4, 3, 12, 30, 9), 19_800),
        ("%z|%Y-%m-%d", "+02|2012-04-03", moment(2012, 4, 2, 22), 7_200),
        ("%Y-%m-%d-%H%z", "2012-04-03-18-0530", moment(2012, 4, 3, 23, 30), -19_800),
        (
            "%a %b %d %H:%M:%S %z %Y",
            "Tue Apr 03 18:00:09 +0200 2012",
            moment(2012, 4, 3, 16, 0, 9),
            7_200,
        ),
        ("%d.%m.%Y %I%p [%Z]", "3.4.2012 6PM [UTC]", moment(2012, 4, 3, 18), 0),
        ("%d.%m.%Y %I%p [%Z]", "3.4.2012 6PM [America/New_York]", moment(2012, 4, 3, 22), -14_400),
        ("%d.%m.%Y %H%%z", "3.4.2012 18%z", moment(2012, 4, 3, 18), None),
        ("%d.%m.%Y %H", "3.4.2012 18", moment(2012, 4, 3, 18), None),
    ],
)
def test_a_zone_read_by_a_pattern_is_kept(engine, time_format, text, time_s, zone_s):
    _, (row, _) = read_times([text, "no time"], engine, time_format)
    assert row["dropped"] is None
    assert (row["time_s"], row["zone_s"]) == (time_s, zone_s or 0)
    assert row["is_zoned"] == (zone_s is not None)  # so that --timezone does not move it again


def test_named_format_drops_what_does_not_follow_it(engine):
    _, rows = read_times(["3/4/2012", "2012-04-03"], engine, "%d/%m/%Y")
    assert [row["dropped"] for row in rows] == [None, "time is not pattern '%d/%m/%Y'"]


def test_iso_by_name_reads_times_with_and_without_zone(engine):
    _, rows = read_times(["2012-04-03T10:00+02:00", "2012-04-03T10:00"], engine, "iso")
    assert [row["time_s"] for row in rows] == [moment(2012, 4, 3, 8), moment(2012, 4, 3, 10)]
    assert [row["is_zoned"] for row in rows] == [True, False]
    _, rows = read_times(["2012-04-03", "1333476000", "20120403"], engine, "iso")
    assert [row["dropped"] for row in rows] == [None, *["time is not ISO 8601"] * 2]


def test_moments_of_flags():
    assert times.to_moment("2012-12-21", "test_from") == moment(2012, 12, 21)
    assert times.to_moment("2012-12-21T13:29:31+01:00", "test_from") == moment(
        2012, 12, 21, 12, 29, 31
    )
    with pytest.raises(ValueError, match="--test_from=soon is no ISO 8601 time"):
        times.to_moment("soon", "test_from")


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2012-10-12T01:00:00.5", 1_350_003_600_500_000),
        ("1969-12-31T23:59:58.5Z", -1_500_000),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2038-01-19T03:14:08.000001+00:00", 2**31 * 10**6 + 1),
    ],
)
def test_moments_within_a_second_are_exact_or_refused(text, micros):
    assert times.to_moment_us(text, "time_from") == micros
    with pytest.raises(ValueError, match=f"--test_from={re.escape(text)}: give whole seconds"):
        times.to_moment(text, "test_from")


def test_moments_before_1970_are_whole_seconds():
    assert times.to_moment("1969-12-31T23:59:58Z", "test_from") == -2
