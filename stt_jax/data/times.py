"""Times: how a log writes them, and unix seconds out of them."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Callable, Mapping

import ibis
from ibis.expr import types as ir

from stt_jax.data.clean import read_numbers, to_nearest, to_number
from stt_jax.data.engine import Engine

_DAY = r"\d{4}-\d{2}-\d{2}"
_WALL = rf"{_DAY}([T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d+)?)?)?"
_ZONE = r" ?(Z|UTC|[+-]\d{2}(:?\d{2})?)"
_CLOCK = rf"^({_WALL})({_ZONE})?\z"
_NUMBER = r"^-?\d+(\.\d*)?([eE][+-]?\d+)?\z"
_DATE_DIGITS = (
    r"^(19|20)\d{2}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(([01]\d|2[0-3])[0-5]\d([0-5]\d)?)?\z"
)

# What a directive of a strptime pattern reads, as far as it takes to find the zone in a text.
_DIRECTIVES = dict.fromkeys("YymdHIMSfjwuUWVG", r"\d+") | dict.fromkeys("aAbBp", r"[^\d\s]+")
# A zone in a text -> what stands for UTC there.
_ZONES = {
    "%z": (r"[+-]\d{2}(?::?\d{2}){0,2}", "+0000"),
    "%Z": (r"[A-Za-z][A-Za-z0-9_/+-]*", "UTC"),
}

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
_CODES = {kind: code for code, kind in enumerate((*KINDS, _DATE_DIGITS_KIND, _OTHER))}
_MICROS = 1_000_000
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
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
    """Reads text `time`, for `choose_reading` and `mark_times`, to be stored once.

    Adds `time_s`, int64, seconds since 1970 that the clock shows (floor), and `time_us`, int32, the
    rest of the second, both null where the text is no time; and `zone_s`, int32, the offset written
    with it, else 0. Unless `time_format` is a pattern or a unit also `time_kind`, int8, the place
    in `_CODES` of what the text looks like, null where there is none. `time` itself stays only
    where it was not read, or may be read in two ways: texts are most of what a log takes.

    Raises:
      ValueError: there is no such format.
    """
    reading = _named_reading(time_format) if time_format else None
    if reading and reading.pattern:
        micros = engine.to_micros(engine.parse_time(table.time, time_format))
        table = table.mutate(micros=micros, zone_s=ibis.literal(0, "int32"))
        if (in_utc := _in_utc(table.time, time_format)) is not None:
            # The engine has taken the offset off. What the clock shows is the same text in UTC.
            wall = engine.to_micros(engine.parse_time(in_utc, time_format)).fill_null(micros)
            zone_s = ((wall - micros) / _MICROS).fill_null(0).cast("int32")
            table = table.mutate(micros=wall, zone_s=zone_s)
        return _keep_unread(table.mutate(**_split_micros(table.micros)).drop("micros"))
    table = read_numbers(table.mutate(text=table.time), ["text"]).drop("text")
    if reading and reading.kinds[0] in _UNITS_PER_SECOND:
        read = _split_numbers(table.text_number, _UNITS_PER_SECOND[reading.kinds[0]])
        table = table.mutate(**read, zone_s=ibis.literal(0, "int32"))
        return _keep_unread(table.drop("text_number"))
    # One search tells both kinds of text apart: most of the work is in searching.
    wall = table.text_number.isnull().ifelse(table.time.re_extract(_CLOCK, 1), None).nullif("")
    zoned = wall.length() < table.time.length()
    # Most logs are in UTC and say so by a letter: no need to look for digits.
    has_digits = zoned & ~table.time.endswith("Z")
    table = table.mutate(
        time_kind=_kind(table.time, table.text_number, wall),
        micros=engine.to_micros(wall.try_cast("timestamp")),
        zone_s=has_digits.ifelse(_read_zone(table.time), 0).cast("int32"),
    )
    read = _split_micros(table.micros)
    if not reading:
        units = [(table.time_kind == _CODES[kind], n) for kind, n in _UNITS_PER_SECOND.items()]
        unit = ibis.cases(*units, else_=None).cast("float64")
        of_number = _split_numbers(table.text_number, unit)
        read = {name: of_number[name].fill_null(of_wall) for name, of_wall in read.items()}
    return _keep_unread(table.mutate(**read).drop("text_number", "micros"))


def _in_utc(texts: ir.StringColumn, pattern: str) -> ir.StringValue | None:
    """Texts of a strptime pattern with UTC in place of their zone; None if it has no zone."""
    parts: list[str] = []
    utc = None
    for token in re.findall("%.|[^%]", pattern, re.DOTALL):
        if token in _ZONES and utc is None:
            zone, utc = _ZONES[token]
            parts.append(f"){zone}(")
        elif token.isspace():
            parts.append(r"\s*")
        elif len(token) == 1 or token == "%%":
            parts.append(re.escape(token[-1]))
        else:
            parts.append(_DIRECTIVES.get(token[1], ".+?"))
    if utc is None:
        return None
    expression = rf"^(\s*{''.join(parts)}\s*)\z"
    return texts.re_extract(expression, 1) + utc + texts.re_extract(expression, 2)


def _keep_unread(table: ir.Table) -> ir.Table:
    return table.mutate(time=table.time_s.isnull().ifelse(table.time, None))


def choose_reading(
    table: ir.Table, *, time_format: str, flag: str, show: Callable[[int], str]
) -> TimeReading:
    """The reading that `time_format` names, or else the one that the data show.

    Args:
      table: `source_row` and its `read_times`.
      time_format: as --time_format; empty to find it from the data.
      flag: "--time=ts", to begin error messages.
      show: source row -> words for it and its time.

    Raises:
      ValueError: no known format, or two of them in one column; names a row and its value.
    """
    if time_format:
        return _named_reading(time_format)
    table = table.select("source_row", kind="time_kind")
    found = table.group_by("kind").agg(count=table.count(), first=table.source_row.min())
    names = list(_CODES)
    seen = {
        names[row["kind"]]: _Seen(row["count"], row["first"])
        for row in found.to_pyarrow().to_pylist()
        if row["kind"] is not None
    }
    return _reading_of(seen, flag, show)


@dataclasses.dataclass(frozen=True)
class _Seen:
    count: int
    first: int  # source row


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
) -> ir.IntegerColumn:
    """The place in `_CODES`, int8."""
    number = numbers.abs()
    of_number = ibis.cases(
        (times.re_search(_DATE_DIGITS), _CODES[_DATE_DIGITS_KIND]),
        # Not what has spaces around it.
        (~times.re_search(_NUMBER), _CODES[_OTHER]),
        (number < 1e11, _CODES["seconds"]),
        (number < 1e14, _CODES["milliseconds"]),
        (number < 1e17, _CODES["microseconds"]),
        (number < 1e20, _CODES["nanoseconds"]),
        else_=_CODES[_OTHER],
    )
    return ibis.cases(
        (times.isnull(), ibis.null("int8")),
        (numbers.notnull(), of_number),
        (walls.isnull(), _CODES[_OTHER]),
        (walls.length() < times.length(), _CODES["iso_zone"]),
        else_=_CODES["iso"],
    ).cast("int8")


def _reading_of(seen: Mapping[str, _Seen], flag: str, show: Callable[[int], str]) -> TimeReading:
    seen = dict(seen)
    numbers = [kind for kind in seen if kind in _UNITS_PER_SECOND]
    digits = seen.get(_DATE_DIGITS_KIND)
    if digits and not numbers:
        raise ValueError(
            f"{flag}: {show(digits.first)} may be a date in digits or a number of seconds; say "
            "which: --time_format=%Y%m%d or --time_format=seconds"
        )
    known = [kind for kind in KINDS if kind in seen]
    if len(known) > 1:
        main = max(known, key=lambda kind: seen[kind].count)
        odd = min((kind for kind in known if kind != main), key=lambda kind: seen[kind].count)
        raise ValueError(
            f"{flag}: times are written in several ways: {show(seen[odd].first)} reads as "
            f"{KINDS[odd]} ({seen[odd].count} rows), {show(seen[main].first)} as {KINDS[main]} "
            f"({seen[main].count} rows). Make them alike, or name the right one by --time_format"
        )
    if not known:
        example = show(seen[_OTHER].first) if _OTHER in seen else "every value is empty"
        raise ValueError(
            f"{flag}: the format of the times is not known: {example}. Give --time_format, e.g. "
            "--time_format='%d/%m/%Y %H:%M'; or is it another column?"
        )
    return TimeReading((known[0],), "", KINDS[known[0]])


def mark_times(table: ir.Table, reading: TimeReading) -> ir.Table:
    """Drops what `read_times` was not sure of, or takes it as `reading`; adds `dropped`, `sample`.

    `time_s` and `time_us` stay, and `zone_s`, the offset that is taken off `time_s`. Where bool
    `is_zoned` is False, the time says no zone and comes out as if it were UTC.
    """
    is_zoned: ir.BooleanValue = ibis.literal(
        not reading.pattern or any(zone in reading.pattern.replace("%%", "") for zone in _ZONES)
    )
    if "iso" in reading.kinds:
        is_zoned = table.time_kind != _CODES["iso"]
    time_s, time_us = table.time_s, table.time_us
    if (unit := _UNITS_PER_SECOND.get(reading.kinds[0])) and "time_kind" in table.columns:
        # Digits that might have been a date, or a number with spaces around it.
        late = _split_numbers(to_number(table.time), unit)
        time_s, time_us = time_s.fill_null(late["time_s"]), time_us.fill_null(late["time_us"])
    dropped = ibis.cases(
        (table.time.isnull() & time_s.isnull(), "time is empty"),
        (time_s.isnull(), f"time is not {reading.description}"),
        else_=None,
    ).cast("string")
    table = table.mutate(
        time_s=time_s - table.zone_s,
        time_us=time_us,
        is_zoned=is_zoned,
        dropped=dropped,
        sample=table.time,
    )
    return table.drop(*({"time", "time_kind"} & set(table.columns)))


def _split_micros(micros: ir.IntegerValue) -> dict[str, ir.Value]:
    rest = (micros % _MICROS + _MICROS) % _MICROS  # the sign of % is the time's
    return {
        "time_s": ((micros - rest) / _MICROS).cast("int64"),
        "time_us": rest.cast("int32"),
    }


def _split_numbers(
    numbers: ir.FloatingValue, per_second: int | ir.FloatingValue
) -> dict[str, ir.Value]:
    # float64 holds every number of milliseconds or microseconds until the year 2255.
    number = (numbers.abs() < 1e11 * per_second).ifelse(numbers, None)
    seconds = (number / per_second).floor()
    micros = to_nearest((number - seconds * per_second) * (1e6 / per_second))
    return {"time_s": seconds.cast("int64"), "time_us": micros.cast("int32")}


def _read_zone(times: ir.StringColumn) -> ir.IntegerValue:
    """Seconds of the offset at the end of the text; 0 for Z and UTC."""
    pattern = r":[\d:.]+ ?([+-])(\d{2}):?(\d{2})?\z"
    hours = times.re_extract(pattern, 2).try_cast("int64").fill_null(0)
    minutes = times.re_extract(pattern, 3).try_cast("int64").fill_null(0)
    sign = (times.re_extract(pattern, 1) == "-").ifelse(-1, 1)
    return sign * (hours * 3600 + minutes * 60)


def to_moment(text: str, flag: str) -> int:
    """Unix seconds of an ISO 8601 time given by a flag; UTC unless it says otherwise."""
    seconds, micros = divmod(to_moment_us(text, flag), _MICROS)
    if micros:
        raise ValueError(f"--{flag}={text}: give whole seconds, e.g. 2012-12-21T13:29:31Z")
    return seconds


def to_moment_us(text: str, flag: str) -> int:
    """The same in microseconds since 1970."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"--{flag}={text} is no ISO 8601 time, e.g. 2012-12-21 or 2012-12-21T13:29:31Z"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    # Not `timestamp`, a float, which is cut towards 1970.
    return (moment - _EPOCH) // datetime.timedelta(microseconds=1)
