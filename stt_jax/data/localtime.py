"""The local clock: the offset from UTC at each event, by column, by time zone or as written."""

from __future__ import annotations

import datetime
import difflib
import zoneinfo

import ibis
import numpy as np
import pyarrow as pa
from ibis.expr import types as ir

from stt_jax.config import PrepareConfig
from stt_jax.data.clean import to_nearest
from stt_jax.data.columns import fetch_columns
from stt_jax.data.engine import Engine

FROM_PLACES = "places"  # value of --timezone
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
    if config.unzoned_times == "auto" and config.timezone != FROM_PLACES:
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
        if config.timezone == FROM_PLACES:
            source = "time zones of the places"
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
    """Turns text `utc_offset` (minutes) into `utc_offset_s`; adds `changed`, `sample`.

    Args:
      table: `clean.read_numbers` of the text.
    """
    minutes = table.utc_offset_number
    possible = (minutes.abs() <= MAX_OFFSET_MIN).fill_null(False)
    return table.mutate(
        utc_offset_s=possible.ifelse(to_nearest(minutes * 60), 0).cast("int64"),
        changed=ibis.cases(
            (table.utc_offset.isnull() & minutes.isnull(), "UTC offset is empty"),
            (~possible, f"UTC offset is not a number of minutes within {MAX_OFFSET_MIN}"),
            else_=None,
        ).cast("string"),
        sample=table.utc_offset.fill_null(minutes.cast("string")),
    ).drop("utc_offset", "utc_offset_number")


def mark_zones(table: ir.Table, engine: Engine, config: PrepareConfig) -> ir.Table:
    """Turns text `zone` into `utc_offset_s`; adds `changed` and `sample`.

    Times that were written without zone are moved from local time to UTC, unless
    --unzoned_times=utc. An empty or unknown zone is UTC.
    """
    rows = engine.fetch(table.select("source_row", "time_s", "zone", "is_zoned"))
    names = [name or "" for name in rows["zone"].to_pylist()]
    distinct = {name: _zone_or_none(name) for name in set(names)}
    times_s = rows["time_s"].to_numpy()
    wall = ~rows["is_zoned"].to_numpy() & (config.unzoned_times != "utc")
    offsets_s, moved_s = np.zeros(len(names), np.int64), times_s.copy()
    rank = {name: code for code, name in enumerate(sorted(distinct))}
    which = np.array([rank[name] for name in names])
    for name, zone in distinct.items():
        if zone is None:
            continue
        chosen = which == rank[name]
        local = chosen & wall
        moved_s[local] -= _offsets_at(zone, times_s[local], wall=True)
        offsets_s[chosen] = _offsets_at(zone, moved_s[chosen], wall=False)
    bad = np.array([distinct[name] is None for name in names])
    found = pa.table(
        {
            "source_row": rows["source_row"],
            "time_s": moved_s,
            "utc_offset_s": offsets_s,
            "changed": pa.array(
                ["zone is empty" if name == "" else "zone is not known" for name in names],
                mask=~bad,
            ),
            "sample": rows["zone"],
        }
    )
    kept = table.drop("time_s", "zone", "zone_s", "is_zoned")
    return kept.join(engine.insert("zones", found.schema, [found]), "source_row")


def mark_zones_of_places(table: ir.Table, engine: Engine) -> ir.Table:
    """Sets `utc_offset_s` by the time zone at each place; adds `changed`.

    An event without a place has the zone of its user's last known one.
    """
    try:
        import timezonefinder
    except ImportError as error:
        raise ValueError(
            f"--timezone=places needs timezonefinder ({error}); pip install 'stt_jax[zones]'"
        ) from error
    columns = fetch_columns(engine, table)
    known = columns.place_mask
    last = columns.previous(known)
    places = np.where(known, np.arange(len(columns)), last)
    # Cells of a thousandth of a degree, about 100 m: zones end less sharply than that.
    cells = np.stack([columns.latitudes_e7, columns.longitudes_e7], 1) // 10_000
    distinct, which = np.unique(cells[places], axis=0, return_inverse=True)
    finder = timezonefinder.TimezoneFinder()
    names = [
        # The pole and the date line are cells without a width.
        finder.timezone_at(lat=min((lat + 0.5) * 1e-3, 90.0), lng=min((lng + 0.5) * 1e-3, 180.0))
        if abs(lat) <= 90_000
        else None
        for lat, lng in distinct.tolist()
    ]
    offsets_s = np.zeros(len(columns), np.int64)
    zones = np.array([name or "" for name in names])[which.ravel()]
    zones[places < 0] = ""
    for name in np.unique(zones[zones != ""]):
        chosen = zones == name
        offsets_s[chosen] = _offsets_at(open_zone(str(name)), columns.times_s[chosen], wall=False)
    reasons = np.where(known, "", "no place: zone of the user's last one")
    reasons[zones == ""] = "no place and none before: UTC"
    found = pa.table(
        {
            "source_row": columns.source_rows,
            "utc_offset_s": offsets_s,
            "changed": pa.array(reasons.tolist(), mask=reasons == ""),
        }
    )
    kept = table.drop("utc_offset_s")
    return kept.join(engine.insert("zones", found.schema, [found]), "source_row")


def _zone_or_none(name: str) -> zoneinfo.ZoneInfo | None:
    try:
        return zoneinfo.ZoneInfo(name) if name else None
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _offsets_at(zone: zoneinfo.ZoneInfo, times_s: np.ndarray, *, wall: bool) -> np.ndarray:
    """int64, as `local_offset`, of arrays."""
    if len(times_s) == 0:
        return np.zeros(0, np.int64)
    earliest, latest = _ZONE_YEARS_S
    margin_s = 2 * 86_400
    first, last = np.clip(
        [int(times_s.min()) - margin_s, int(times_s.max()) + margin_s], earliest, latest
    )
    offsets_s, starts_s = zone_offsets(zone, int(first), int(last))
    bounds = np.array(starts_s, np.int64)
    if wall:
        bounds += np.maximum(offsets_s[:-1], offsets_s[1:]).astype(np.int64)
    return np.array(offsets_s, np.int64)[np.searchsorted(bounds, times_s, side="right")]
