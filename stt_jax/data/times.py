"""Times: how a log writes them, and unix seconds out of them."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping

import ibis
from ibis.expr import types as ir

from stt_jax.data.clean import read_numbers, to_nearest
from stt_jax.data.engine import Engine

_DAY = r"\d{4}-\d{2}-\d{2}"
_WALL = rf"{_DAY}([T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d+)?)?)?"
_ZONE = r" ?(Z|UTC|[+-]\d{2}(:?\d{2})?)"
_CLOCK = rf"^({_WALL})({_ZONE})?\z"
_NUMBER = r"^-?\d+(\.\d*)?([eE][+-]?\d+)?\z"
_DATE_DIGITS = (
    r"^(19|20)\d{2}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(([01]\d|2[0-3])[0-5]\d([0-5]\d)?)?\z"
)

# Kinds of written times. Numbers are told apart by their size: as seconds, 1e11 is the year 5138;
# as milliseconds it is 1973.
KINDS = {
    "seconds": "unix seconds",
    "milliseconds": "unix milliseconds",
    "microseconds": "unix microseconds",
    "nanoseconds": "unix nanoseconds",
    "iso_zone": "ISO 8601 with zone",
    "iso": "ISO 8601 without zone",
}
_UNITS_PER_SECOND = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6}
_UNITS_PER_SECOND["nanoseconds"] = 10**9
_DATE_DIGITS_KIND = "date digits"
_OTHER = "other"
_MICROS = 1_000_000
FORMAT_NAMES = ("seconds", "milliseconds", "microseconds", "nanoseconds", "iso")


@dataclasses.dataclass(frozen=True)
class TimeReading:
    """How to read the times of a log.

    Attributes:
      kinds: which of KINDS are read, or ("pattern",).
      pattern: the strptime pattern of kind "pattern".
      description: as printed: "ISO 8601 with zone".
    """

    kinds: tuple[str, ...]
    pattern: str
    description: str


def read_times(table: ir.Table, time_format: str, engine: Engine) -> ir.Table:
    """Adds beside text `time` what `choose_reading` and `mark_times` look at, to be stored once.

    `time_micros`, int64, is what the clock shows, counted from 1970, null where the text is no time
    on a clock; `zone_s`, int64, the offset written with it, else 0. Unless `time_format` is a
    pattern: `time_number`, float64, and `time_kind`, text, null where there is no time.

    Raises:
      ValueError: there is no such format.
    """
    if time_format and (pattern := _named_reading(time_format).pattern):
        moment = engine.parse_time(table.time, pattern)
        return table.mutate(time_micros=engine.to_micros(moment), zone_s=ibis.literal(0, "int64"))
    table = read_numbers(table, ["time"])
    # One search tells both kinds of text apart: most of the work is in searching.
    wall = table.time_number.isnull().ifelse(table.time.re_extract(_CLOCK, 1), None).nullif("")
    zoned = wall.length() < table.time.length()
    # Most logs are in UTC and say so by a letter: no need to look for digits.
    has_digits = zoned & ~table.time.endswith("Z")
    return table.mutate(
        time_kind=_kind(table.time, table.time_number, wall),
        time_micros=engine.to_micros(wall.try_cast("timestamp")),
        zone_s=has_digits.ifelse(_read_zone(table.time), 0),
    )


def choose_reading(
    table: ir.Table, *, time_format: str, flag: str, where: Callable[[int], str]
) -> TimeReading:
    """The reading that `time_format` names, or else the one that the data show.

    Args:
      table: text `time`, null where missing, its `read_times`, and `source_row`.
      time_format: as --time_format; empty to find it from the data.
      flag: "--time=ts", to begin error messages.
      where: source row -> words for it.

    Raises:
      ValueError: no known format, or two of them in one column; names a row and its value.
    """
    if time_format:
        return _named_reading(time_format)
    table = table.select("source_row", "time", kind="time_kind")
    table = table.filter(table.kind.notnull())
    found = table.group_by("kind").agg(
        count=table.count(), first=table.source_row.min(), text=table.time.argmin(table.source_row)
    )
    seen = {
        row["kind"]: _Seen(row["count"], f"{where(row['first'])} {row['text']!r}")
        for row in found.to_pyarrow().to_pylist()
    }
    return _reading_of(seen, flag)


@dataclasses.dataclass(frozen=True)
class _Seen:
    count: int
    first: str


def _named_reading(time_format: str) -> TimeReading:
    if "%" in time_format:
        try:
            datetime.datetime.strptime("", time_format)
        except ValueError as error:
            if "does not match" not in str(error):
                raise ValueError(f"--time_format={time_format}: {error}") from error
        return TimeReading(("pattern",), time_format, f"pattern {time_format!r}")
    if time_format == "iso":
        return TimeReading(("iso_zone", "iso"), "", "ISO 8601")
    if time_format not in FORMAT_NAMES:
        raise ValueError(
            f"--time_format={time_format}: give {', '.join(FORMAT_NAMES)} or a pattern with %, "
            "e.g. '%d/%m/%Y %H:%M'"
        )
    return TimeReading((time_format,), "", KINDS[time_format])


def _kind(
    times: ir.StringColumn, numbers: ir.FloatingColumn, walls: ir.StringColumn
) -> ir.StringColumn:
    number = numbers.abs()
    of_number = ibis.cases(
        (times.re_search(_DATE_DIGITS), _DATE_DIGITS_KIND),
        # Not what has spaces around it.
        (~times.re_search(_NUMBER), _OTHER),
        (number < 1e11, "seconds"),
        (number < 1e14, "milliseconds"),
        (number < 1e17, "microseconds"),
        (number < 1e20, "nanoseconds"),
        else_=_OTHER,
    )
    return ibis.cases(
        (times.isnull(), ibis.null("string")),
        (numbers.notnull(), of_number),
        (walls.isnull(), _OTHER),
        (walls.length() < times.length(), "iso_zone"),
        else_="iso",
    )


def _reading_of(seen: Mapping[str, _Seen], flag: str) -> TimeReading:
    seen = dict(seen)
    numbers = [kind for kind in seen if kind in _UNITS_PER_SECOND]
    digits = seen.get(_DATE_DIGITS_KIND)
    if digits and not numbers:
        raise ValueError(
            f"{flag}: {digits.first} may be a date in digits or a number of seconds; say which: "
            "--time_format=%Y%m%d or --time_format=seconds"
        )
    known = [kind for kind in KINDS if kind in seen]
    if len(known) > 1:
        main = max(known, key=lambda kind: seen[kind].count)
        odd = min((kind for kind in known if kind != main), key=lambda kind: seen[kind].count)
        raise ValueError(
            f"{flag}: times are written in several ways: {seen[odd].first} reads as {KINDS[odd]} "
            f"({seen[odd].count} rows), {seen[main].first} as {KINDS[main]} ({seen[main].count} "
            "rows). Make them alike, or name the right one by --time_format"
        )
    if not known:
        example = seen[_OTHER].first if _OTHER in seen else "every value is empty"
        raise ValueError(
            f"{flag}: the format of the times is not known: {example}. Give --time_format, e.g. "
            "--time_format='%d/%m/%Y %H:%M'; or is it another column?"
        )
    return TimeReading((known[0],), "", KINDS[known[0]])


def mark_times(table: ir.Table, reading: TimeReading) -> ir.Table:
    """Turns text `time` with its `read_times` into numbers; adds `dropped` and `sample`.

    The numbers are int64 `time_s` (unix seconds, floor), `time_us` (the rest of the second) and
    `zone_s` (the offset written with the time, else 0). Where bool `is_zoned` is False, the time
    says no zone and comes out as if it were UTC.
    """
    is_zoned: ir.BooleanValue = ibis.literal("%z" in reading.pattern or not reading.pattern)
    if "iso" in reading.kinds:
        is_zoned = table.time_kind != "iso"
    (kind, *_) = reading.kinds
    if kind in _UNITS_PER_SECOND:
        time_s, time_us = _read_numbers(table.time_number, _UNITS_PER_SECOND[kind])
    else:
        time_us = (table.time_micros % _MICROS + _MICROS) % _MICROS  # the sign of % is the time's
        time_s = ((table.time_micros - time_us) / _MICROS).cast("int64") - table.zone_s
    dropped = ibis.cases(
        (table.time.isnull(), "time is empty"),
        (time_s.isnull(), f"time is not {reading.description}"),
        else_=None,
    ).cast("string")
    table = table.mutate(
        time_s=time_s,
        time_us=time_us,
        is_zoned=is_zoned,
        dropped=dropped,
        sample=table.time,
    )
    read = {"time", "time_kind", "time_number", "time_micros"}
    return table.drop(*(read & set(table.columns)))


def _read_numbers(numbers: ir.FloatingColumn, per_second: int) -> tuple[ir.Value, ir.Value]:
    # float64 holds every number of milliseconds or microseconds until the year 2255.
    number = (numbers.abs() < 1e11 * per_second).ifelse(numbers, None)
    seconds = (number / per_second).floor()
    micros = to_nearest((number - seconds * per_second) * (1e6 / per_second))
    return seconds.cast("int64"), micros.cast("int64")


def _read_zone(times: ir.StringColumn) -> ir.IntegerValue:
    """Seconds of the offset at the end of the text; 0 for Z and UTC."""
    pattern = r":[\d:.]+ ?([+-])(\d{2}):?(\d{2})?\z"
    hours = times.re_extract(pattern, 2).try_cast("int64").fill_null(0)
    minutes = times.re_extract(pattern, 3).try_cast("int64").fill_null(0)
    sign = (times.re_extract(pattern, 1) == "-").ifelse(-1, 1)
    return sign * (hours * 3600 + minutes * 60)


def to_moment(text: str, flag: str) -> int:
    """Unix seconds of an ISO 8601 time given by a flag; UTC unless it says otherwise."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"--{flag}={text} is no ISO 8601 time, e.g. 2012-12-21 or 2012-12-21T13:29:31Z"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return int(moment.timestamp())
