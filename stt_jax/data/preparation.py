"""The preparation: the fixed order of steps from raw files to a prepared log, each one counted.

    read               files -> rows of text, numbered; the table of items is joined on
    drop by flag       --drop_if, --drop_missing
    ids                rows without a user or an item
    times              unix seconds; then the local clock; then --time_from, --time_to
    places             impossible coordinates become unknown, swapped ones are swapped back
    zones              --timezone=places: the local clock from the coordinates
    numbers            --numeric
    duplicates         exact ones, then --dedupe_window_s
    bots               --max_events_per_day
    speed              --max_speed_kmh
    k-core             --min_user_events, --min_item_events
    protection         --pseudonymise, --coarsen_cell, --coarsen_time_s
    split              train, validation, test; --session_gap_h
    values             --outliers, --fill, --smooth, --features and --cells, --transform,
                       --normalise, in this order and fitted to the training part
    vocabularies       users, items, categories, contexts, traits: numbered by the training part

What takes rows out stands before the split, so that a split by fractions cuts the rows that stay.
None of it looks ahead: an event is judged by itself and by what its user did before (the k-core
counts all parts, as is usual). What is estimated stands after the split.

Steps are Ibis expressions over a total order, which DuckDB and Spark agree on. The exceptions are
the speed filter and the values, which are arrays in that order (see `stt_jax.data.columns`).
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import tempfile
import zoneinfo
from collections.abc import Callable, Mapping

import ibis
import pyarrow as pa
from ibis.expr import types as ir

from stt_jax.config import PrepareConfig
from stt_jax.config.flagfile import to_flagfile
from stt_jax.data import (
    clean,
    denoise,
    localtime,
    protection,
    recbole,
    split,
    store,
    times,
)
from stt_jax.data.assembly import Clock, assemble_log, fetch_items
from stt_jax.data.columns import fetch_columns
from stt_jax.data.engine import Engine, error_types, open_engine
from stt_jax.data.layouts import apply_layout
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.pseudonyms import HIDDEN_IDS, KEY_CHECK, check_value
from stt_jax.data.read import RawLog, read_log
from stt_jax.data.report import render_report
from stt_jax.data.schema import ROLE_FLAGS, TRAIN, UNKNOWN_E7, StepCount
from stt_jax.data.steps import Steps
from stt_jax.data.traits import parse_user_trait
from stt_jax.data.values import check_rules, refine_values

# Where and how it ran is no part of the result: the same log gives the same bytes anywhere.
_FLAGS_NOT_KEPT = (
    "output",
    "overwrite",
    "threads",
    "memory_gb",
    "engine",
    "spark_master",
    "write_recbole",
    "key_file",
    "make_key",
)


def prepare_log(
    config: PrepareConfig, *, announce: Callable[[StepCount], None] = lambda count: None
) -> PreparedLog:
    """Reads, cleans, splits and encodes a raw log, and stores it in `config.output`.

    Args:
      config: everything about the preparation.
      announce: called with the counts of each step as it ends.

    Returns:
      the stored log, opened.

    Raises:
      ValueError, OSError: the input or an option is wrong; the message names the file, row, column
        or flag.
    """
    config = apply_layout(config)
    check_rules(config)
    if config.write_recbole:
        recbole.check_columns(config)
    store.check_output(config.output, overwrite=config.overwrite)
    key = protection.take_key(config)
    zone = None
    if config.timezone and config.timezone != localtime.FROM_PLACES:
        zone = localtime.open_zone(config.timezone)
    with tempfile.TemporaryDirectory(prefix="stt_jax_prepare_") as spill_folder:
        engine = open_engine(config, spill_folder)
        try:
            raw = read_log(config, engine, functools.partial(_select_roles, config, engine))
            steps = Steps(raw, config, engine, announce)
            clock = _clean(steps, raw, config, zone)
            protection.protect(steps, config, key)
            cuts = _split(steps, config)
            values = refine_values(steps, config)
            log = assemble_log(steps, config, clock, cuts, values, pathlib.Path(spill_folder))
            item_ids = fetch_items(steps) if config.write_recbole else None
        except error_types(engine) as error:
            raise OSError(
                f"the table engine ran out of memory or disk: {str(error).splitlines()[0]}; free "
                f"some, or name a larger disk by the environment variable TMPDIR"
            ) from error
        finally:
            engine.close()
        if key is not None:
            statistics = log.meta.statistics | {
                KEY_CHECK: check_value(key),
                HIDDEN_IDS: config.pseudonymise,
            }
            log = dataclasses.replace(
                log, meta=dataclasses.replace(log.meta, statistics=statistics)
            )
        store.write_log(log, _kept_flags(config))
        del log  # and with it the arrays that lie in the spill folder
    stored = store.open_log(config.output)
    if item_ids is not None:
        recbole.write_recbole(stored, item_ids, stored.directory / recbole.FOLDER)
    text = render_report(stored)
    (stored.directory / store.REPORT_FILE).write_text(text, encoding="utf-8")
    return stored


def _kept_flags(config: PrepareConfig) -> str:
    """The flagfile that is stored with the log."""
    kept = [
        line
        for line in to_flagfile(config).splitlines()
        if not line.startswith(tuple(f"--{name}=" for name in _FLAGS_NOT_KEPT))
    ]
    return "\n".join(kept) + "\n"


def _clean(
    steps: Steps, raw: RawLog, config: PrepareConfig, zone: zoneinfo.ZoneInfo | None
) -> Clock:
    if config.drop_if or config.drop_missing:
        marked = clean.mark_filtered(
            steps.table, raw.columns, drop_if=config.drop_if, drop_missing=config.drop_missing
        )
        steps.run("drop by flag", marked)
    if not raw.is_selected:
        roles = _select_roles(config, steps.engine, steps.table, columns=raw.columns)
        steps.table = steps.store(roles)
    steps.run(
        "ids",
        clean.mark_bad_ids(steps.table, config.user, config.item, config.domain),
        broken_flag=f"--user={config.user} --item={config.item}"
        + (f" --domain={config.domain}" if config.domain else ""),
    )
    clock = _read_times(steps, raw, config, zone)
    if config.latitude:
        flag = f"--latitude={config.latitude} --longitude={config.longitude}"
        steps.run("places", clean.mark_places(steps.table), broken_flag=flag)
    else:
        unknown = ibis.literal(UNKNOWN_E7, "int32")
        steps.table = steps.table.mutate(latitude_e7=unknown, longitude_e7=unknown)
    if config.timezone == localtime.FROM_PLACES:
        steps.run("zones", localtime.mark_zones_of_places(steps.table, steps.engine))
    if config.numeric:
        numbers = {f"numeric_{i}": name for i, name in enumerate(config.numeric)}
        flag = f"--numeric={','.join(config.numeric)}"
        steps.run("numbers", clean.mark_numbers(steps.table, numbers), broken_flag=flag)
    if steps.num_rows < raw.num_rows or config.timezone or config.zone_column:
        # What follows looks at the whole log many times: not without these rows, nor with the
        # rules of a zone, anew each time.
        steps.table = steps.store(steps.table)
    exact = bool(config.time) and not config.keep_duplicates
    if exact or config.dedupe_window_s:
        _drop_duplicates(steps, exact, config.dedupe_window_s)
    if config.max_events_per_day:
        marked = clean.mark_bots(steps.table, config.max_events_per_day, steps.store_few)
        steps.drop("bots", marked)
    if config.max_speed_kmh:
        steps.drop("speed", _find_fast(steps, config.max_speed_kmh))
    if config.min_user_events > 1 or config.min_item_events > 1:
        kept, dropped = clean.keep_core(
            steps.table,
            steps.engine,
            min_user_events=config.min_user_events,
            min_item_events=config.min_item_events,
        )
        steps.replace("k-core", kept, dropped)
    return clock


def _drop_duplicates(steps: Steps, exact: bool, window_s: float) -> None:
    revisits = steps.engine.store("revisits", clean.find_revisits(steps.table, steps.store_few))
    few = revisits
    if exact:
        left = steps.drop("duplicates", clean.mark_duplicates(few, steps.store_few))
        few = few if left is None else few.anti_join(left, "source_row")
    if window_s:
        steps.drop("near duplicates", clean.mark_near_duplicates(few, window_s))
    steps.engine.drop(revisits.get_name())


def _find_fast(steps: Steps, max_speed_kmh: float) -> ir.Table:
    columns = fetch_columns(steps.engine, steps.table)
    fast = denoise.too_fast(columns, max_speed_kmh)
    reason = f"more than {max_speed_kmh:g} km/h from the user's last event"
    found = pa.table(
        {
            "source_row": columns.source_rows[fast],
            "dropped": pa.array([reason] * int(fast.sum()), pa.string()),
        }
    )
    return steps.engine.insert("too_fast", found.schema, [found])


def _select_roles(
    config: PrepareConfig, engine: Engine, table: ir.Table, *, columns: Mapping[str, str]
) -> ir.Table:
    """One column for each role that the log has, null where missing.

    Times, places and numbers as they read, with the text where they do not.
    """
    names = {role: getattr(config, flag) for role, flag in ROLE_FLAGS.items()}
    names |= {f"context_{i}": name for i, name in enumerate(config.context)}
    names |= {f"numeric_{i}": name for i, name in enumerate(config.numeric)}
    names |= {f"item_trait_{i}": name for i, name in enumerate(config.item_traits)}
    names |= {
        f"user_trait_{i}": parse_user_trait(text)[0] for i, text in enumerate(config.user_traits)
    }
    texts = {role: clean.known_text(table[columns[name]]) for role, name in names.items() if name}
    table = table.select("source_row", "part", **texts)
    numbers = [role for role in texts if role == "utc_offset" or role.startswith("numeric_")]
    table = clean.read_numbers(table, numbers)
    if config.latitude:
        table = clean.read_places(table)
    return times.read_times(table, config.time_format, engine) if config.time else table


def _read_times(
    steps: Steps, raw: RawLog, config: PrepareConfig, zone: zoneinfo.ZoneInfo | None
) -> Clock:
    if not config.time:
        zero = ibis.literal(0, "int64")
        steps.table = steps.table.mutate(time_s=zero, time_us=zero, utc_offset_s=zero)
        return Clock("none, in the order of the rows", "none")
    flag = f"--time={config.time}"
    reading = times.choose_reading(
        steps.table,
        time_format=config.time_format,
        flag=flag,
        show=lambda row: raw.show(row, config.time),
    )
    steps.run(
        f"times: {config.time} read as {reading.description}",
        times.mark_times(steps.table, reading),
        broken_flag=flag,
    )
    if config.utc_offset_column:
        steps.run(
            "local time",
            localtime.mark_offsets(steps.table),
            broken_flag=f"--utc_offset_column={config.utc_offset_column}",
        )
    if config.zone_column:
        steps.run(
            "local time",
            localtime.mark_zones(steps.table, steps.engine, config),
            broken_flag=f"--zone_column={config.zone_column}",
        )
        local_time = f"zone in column {config.zone_column}"
    else:
        steps.table, local_time = localtime.set_offsets(steps.table, config, zone)
    # The bounds are in UTC, and only now is every time.
    if config.time_from or config.time_to:
        bounds = [
            times.to_moment_us(getattr(config, name), name) if getattr(config, name) else None
            for name in ("time_from", "time_to")
        ]
        steps.run("time window", clean.mark_outside(steps.table, *bounds))
    return Clock(reading.description, local_time)


def _split(steps: Steps, config: PrepareConfig) -> split.Cuts | None:
    """Sets `part` and returns where a split by time has cut."""
    cuts = None
    name, table = f"split: {config.split}", steps.table
    if config.split == "leave_one_out":
        steps.replace(name, split.leave_one_out(table, config.validation_users), {})
    elif config.split == "time":
        cuts = split.find_cuts(table, config, steps.engine)
        steps.run(name, split.by_time(table, cuts))
    else:
        steps.run(name, table)
    if steps.table.filter(steps.table.part == TRAIN).count().to_pyarrow().as_py() == 0:
        raise ValueError(f"--split={config.split} leaves no events to train on")
    return cuts
