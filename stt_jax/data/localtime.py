"""The local clock: the offset from UTC at each event, by column, by time zone or as written."""

from __future__ import annotations

import datetime
import difflib
import zoneinfo

import ibis
from ibis.expr import types as ir

from stt_jax.config import PrepareConfig

MAX_OFFSET_MIN = 18 * 60  # no place on Earth is further from UTC
# Clock rules of a time zone are looked up between 1900 and 2100.
_ZONE_YEARS_S = (-2_208_988_800, 4_102_444_800)


def set_offsets(
    table: ir.Table, config: PrepareConfig, zone: zoneinfo.ZoneInfo | None
) -> tuple[ir.Table, str]:
    """Gives every event `utc_offset_s` and moves times that were written in local time to UTC.

    Args:
      table: `time_s`, `zone_s`, `is_zoned` of `times.mark_times`; with --utc_offset_column also
        `utc_offset_s` of `mark_offsets`.
      config: its flags about time.
      zone: of --timezone.

    Returns:
      the table without `zone_s` and `is_zoned`, and words for where the offsets come from.
    """
    is_local = config.unzoned_times == "local"
    if config.unzoned_times == "auto":
        is_local = zone is not None or config.utc_offset_minutes != 0

    def to_utc(offset_s: ir.IntegerValue) -> ir.Table:
        if not is_local:
            return table
        return table.mutate(time_s=table.is_zoned.ifelse(table.time_s, table.time_s - offset_s))

    if zone is not None:
        offsets_s, starts_s = _offsets_of(table, zone)
        table = to_utc(local_offset(table.time_s, offsets_s, starts_s, wall=True))
        table = table.mutate(
            utc_offset_s=local_offset(table.time_s, offsets_s, starts_s, wall=False)
        )
        source = config.timezone
    elif config.utc_offset_minutes:
        offset_s = ibis.literal(config.utc_offset_minutes * 60, "int64")
        table = to_utc(offset_s).mutate(utc_offset_s=offset_s)
        source = f"UTC{config.utc_offset_minutes:+d} minutes"
    elif config.utc_offset_column:
        table = to_utc(table.utc_offset_s)
        source = f"offset in column {config.utc_offset_column} (minutes)"
    else:
        table = table.mutate(utc_offset_s=table.zone_s)
        source = "as written with the times, else UTC"
    return table.drop("zone_s", "is_zoned"), source


def _offsets_of(table: ir.Table, zone: zoneinfo.ZoneInfo) -> tuple[list[int], list[int]]:
    span = table.agg(first=table.time_s.min(), last=table.time_s.max()).to_pyarrow()
    margin_s = 2 * 86_400  # local clock readings may be a day off
    earliest, latest = _ZONE_YEARS_S
    first_s = min(max(span["first"][0].as_py() - margin_s, earliest), latest)
    last_s = min(max(span["last"][0].as_py() + margin_s, earliest), latest)
    return zone_offsets(zone, first_s, last_s)


def open_zone(name: str) -> zoneinfo.ZoneInfo:
    """The time zone of that name; ValueError names near ones."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        near = difflib.get_close_matches(name, sorted(zoneinfo.available_timezones()), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ", e.g. America/New_York"
        raise ValueError(f"--timezone={name} is no time zone{hint}") from error


def zone_offsets(zone: zoneinfo.ZoneInfo, first_s: int, last_s: int) -> tuple[list[int], list[int]]:
    """Offsets of a zone between two moments.

    Returns:
      offsets_s [n + 1] and starts_s [n], unix seconds: offset i + 1 holds from start i on.
    """
    offsets, starts = [_offset_s(zone, first_s)], []
    day = first_s
    while day < last_s:
        next_day = min(day + 86_400, last_s)
        if _offset_s(zone, next_day) != offsets[-1]:
            low, high = day, next_day
            while high - low > 1:
                middle = (low + high) // 2
                if _offset_s(zone, middle) == offsets[-1]:
                    low = middle
                else:
                    high = middle
            starts.append(high)
            offsets.append(_offset_s(zone, high))
        day = next_day
    return offsets, starts


def _offset_s(zone: zoneinfo.ZoneInfo, time_s: int) -> int:
    moment = datetime.datetime.fromtimestamp(time_s, zone)
    offset = moment.utcoffset()
    assert offset is not None
    return int(offset.total_seconds())


def local_offset(
    times_s: ir.IntegerColumn, offsets_s: list[int], starts_s: list[int], *, wall: bool
) -> ir.IntegerValue:
    """The offset at each time, of `zone_offsets`.

    Args:
      times_s: unix seconds; with `wall`, local clock readings counted as if they were UTC.
      offsets_s, starts_s: as `zone_offsets` returns them.
      wall: see `times_s`. An hour that occurs twice is taken to be the earlier one; a clock
        reading that was skipped is read with the offset before the gap (as Python's fold=0).
    """
    bounds = list(starts_s)
    if wall:
        bounds = [
            start + max(before, after)
            for start, before, after in zip(starts_s, offsets_s[:-1], offsets_s[1:], strict=True)
        ]
    if not bounds:
        return ibis.literal(offsets_s[0], "int64")
    branches = [(times_s < bound, offset) for bound, offset in zip(bounds, offsets_s, strict=False)]
    return ibis.cases(*branches, else_=offsets_s[-1]).cast("int64")


def mark_offsets(table: ir.Table) -> ir.Table:
    """Turns text `utc_offset` (minutes) into `utc_offset_s`; adds `changed`, `sample`."""
    minutes = table.utc_offset.try_cast("float64")
    possible = (minutes.abs() <= MAX_OFFSET_MIN).fill_null(False)
    return table.mutate(
        utc_offset_s=possible.ifelse((minutes * 60).round(), 0).cast("int64"),
        changed=ibis.cases(
            (table.utc_offset.isnull(), "UTC offset is empty"),
            (~possible, f"UTC offset is not a number of minutes within {MAX_OFFSET_MIN}"),
            else_=None,
        ).cast("string"),
        sample=table.utc_offset,
    ).drop("utc_offset")
