"""The preparation: the fixed order of steps from raw files to a prepared log, each one counted."""

from __future__ import annotations

import tempfile
import zoneinfo
from collections.abc import Callable, Mapping

import duckdb
import ibis
from ibis.expr import types as ir

from stt_jax import command
from stt_jax.config import PrepareConfig
from stt_jax.data import clean, localtime, split, store, times
from stt_jax.data.assembly import Clock, assemble_log
from stt_jax.data.read import RawLog, read_log
from stt_jax.data.schema import ROLE_FLAGS, TRAIN, StepCount

# Where and how it ran is no part of the result: the same log gives the same bytes anywhere.
_FLAGS_NOT_KEPT = ("output", "overwrite", "threads")


def prepare_log(
    config: PrepareConfig, *, announce: Callable[[StepCount], None] = lambda count: None
) -> store.PreparedLog:
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
    store.check_output(config.output, overwrite=config.overwrite)
    zone = localtime.open_zone(config.timezone) if config.timezone else None
    with tempfile.TemporaryDirectory(prefix="stt_jax_prepare_") as spill_folder:
        settings = {"threads": config.threads} if config.threads else {}
        connection = ibis.duckdb.connect(temp_directory=spill_folder, **settings)
        try:
            raw = read_log(config, connection)
            steps = _Steps(raw, config, connection, announce)
            clock = _clean(steps, raw, config, zone)
            cuts = _split(steps, config)
            log = assemble_log(steps.table, connection, config, clock, cuts, steps.counts)
        except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
            raise OSError(
                f"the table engine ran out of memory or disk: {str(error).splitlines()[0]}; free "
                f"some, or name a larger disk by the environment variable TMPDIR"
            ) from error
        finally:
            connection.disconnect()
    kept = [
        line
        for line in command.to_flagfile(config).splitlines()
        if not line.startswith(tuple(f"--{name}=" for name in _FLAGS_NOT_KEPT))
    ]
    store.write_log(log, "\n".join(kept) + "\n")
    return store.open_log(config.output)


class _Steps:
    """Takes a table through the steps: counts what each has marked and drops those rows.

    Attributes:
      table: the rows after the last step.
      num_rows: how many.
      counts: one entry a step so far.
    """

    def __init__(
        self,
        raw: RawLog,
        config: PrepareConfig,
        connection: ibis.BaseBackend,
        announce: Callable[[StepCount], None],
    ):
        self.table = raw.table
        self.num_rows = raw.num_rows
        self.counts: list[StepCount] = []
        self.connection = connection
        self._raw = raw
        self._config = config
        self._announce = announce
        self._stored = raw.table.get_name()
        for count in raw.counts:
            self._add(count)

    def run(self, name: str, marked: ir.Table, *, broken_flag: str = "") -> None:
        """Ends a step.

        Args:
          name: the step as printed.
          marked: `self.table` with the columns `dropped` or `changed`; see `stt_jax.data.clean`.
          broken_flag: the flag that names the column at fault, for a step that marks broken values;
            too many of them (or one, with --strict) is an error that shows `sample`.
        """
        marked = self.store(marked)
        counted: dict[str, dict[str, int]] = {"dropped": {}, "changed": {}}
        for column in counted:
            if column in marked.columns:
                counted[column] = self._count(marked, column, broken_flag)
        kept = marked.filter(marked.dropped.isnull()) if "dropped" in marked.columns else marked
        self.table = kept.drop(*({"dropped", "changed", "sample"} & set(kept.columns)))
        num_out = self.num_rows - sum(counted["dropped"].values())
        self._add(StepCount(name, self.num_rows, num_out, **counted))
        if num_out == 0:
            raise ValueError(f"no rows are left after the step '{name}': {counted['dropped']}")
        self.num_rows = num_out

    def store(self, table: ir.Table) -> ir.Table:
        """Computes a table once and frees the one before it."""
        name = f"step_{len(self.counts)}"
        stored = self.connection.create_table(name, table)
        # Ibis's drop_table leaves out the name with some versions of its SQL writer.
        self.connection.raw_sql(f"DROP TABLE {self._stored}")
        self._stored = name
        return stored

    def replace(self, name: str, table: ir.Table, dropped: Mapping[str, int]) -> None:
        """Ends a step that has counted by itself; `table` is what it kept."""
        self.table = self.store(table)
        num_out = self.num_rows - sum(dropped.values())
        self._add(StepCount(name, self.num_rows, num_out, dict(dropped), {}))
        if num_out == 0:
            raise ValueError(f"no rows are left after the step '{name}': {dict(dropped)}")
        self.num_rows = num_out

    def _add(self, count: StepCount) -> None:
        self.counts.append(count)
        self._announce(count)

    def _count(self, marked: ir.Table, column: str, broken_flag: str) -> dict[str, int]:
        rows = marked.filter(marked[column].notnull())
        found = rows.group_by(reason=rows[column]).agg(
            count=rows.count(), first=rows.source_row.min()
        )
        counts = {}
        for row in found.order_by("first").to_pyarrow().to_pylist():
            counts[row["reason"]] = row["count"]
            limit = 0.0 if self._config.strict else self._config.max_broken_fraction
            if broken_flag and row["count"] > limit * self.num_rows:
                sample = marked.filter(marked.source_row == row["first"])["sample"].to_pyarrow()
                raise ValueError(
                    f"{broken_flag}: {row['reason']} in {row['count']} of {self.num_rows} rows, "
                    f"first in {self._raw.where(row['first'])}: {sample[0].as_py()!r}. "
                    + (
                        "Mend it, or leave out --strict"
                        if self._config.strict
                        else "Is it the right column and format? --max_broken_fraction allows more"
                    )
                )
        return counts


def _clean(
    steps: _Steps, raw: RawLog, config: PrepareConfig, zone: zoneinfo.ZoneInfo | None
) -> Clock:
    if config.drop_if or config.drop_missing:
        marked = clean.mark_filtered(
            steps.table, raw.columns, drop_if=config.drop_if, drop_missing=config.drop_missing
        )
        steps.run("drop by flag", marked)
    roles = _select_roles(steps.table, raw.columns, config)
    steps.run(
        "ids",
        clean.mark_bad_ids(roles, config.user, config.item),
        broken_flag=f"--user={config.user} --item={config.item}",
    )
    clock = _read_times(steps, raw, config, zone)
    places = clean.mark_places(steps.table)
    if config.latitude:
        flag = f"--latitude={config.latitude} --longitude={config.longitude}"
        steps.run("places", places, broken_flag=flag)
    else:
        steps.table = places.drop("changed", "sample")
    if config.time and not config.keep_duplicates:
        steps.run("duplicates", clean.mark_duplicates(steps.table))
    if config.min_user_events > 1 or config.min_item_events > 1:
        kept, dropped = clean.keep_core(
            steps.table,
            steps.connection,
            min_user_events=config.min_user_events,
            min_item_events=config.min_item_events,
        )
        steps.replace("k-core", kept, dropped)
    return clock


def _select_roles(table: ir.Table, columns: Mapping[str, str], config: PrepareConfig) -> ir.Table:
    """One text column a role, null where missing: what the log's columns are, not their names."""
    names = {role: getattr(config, flag) for role, flag in ROLE_FLAGS.items()}
    names |= {f"context_{i}": name for i, name in enumerate(config.context)}
    texts = {
        role: table[columns[name]].nullif("") if name else ibis.null("string")
        for role, name in names.items()
    }
    return table.select("source_row", "part", **texts)


def _read_times(
    steps: _Steps, raw: RawLog, config: PrepareConfig, zone: zoneinfo.ZoneInfo | None
) -> Clock:
    if not config.time:
        zero = ibis.literal(0, "int64")
        steps.table = steps.table.mutate(time_s=zero, time_us=zero, utc_offset_s=zero)
        steps.table = steps.table.drop("time", "utc_offset")
        return Clock("none, in the order of the rows", "none")
    flag = f"--time={config.time}"
    reading = times.choose_reading(
        steps.table, time_format=config.time_format, flag=flag, where=raw.where
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
    else:
        steps.table = steps.table.drop("utc_offset")
    steps.table, local_time = localtime.set_offsets(steps.table, config, zone)
    return Clock(reading.description, local_time)


def _split(steps: _Steps, config: PrepareConfig) -> split.Cuts | None:
    """Sets `part` and returns where a split by time has cut."""
    cuts = None
    table = steps.table
    if config.split == "time":
        cuts = split.find_cuts(table, config)
        table = split.by_time(table, cuts)
    elif config.split == "leave_one_out":
        table = split.leave_one_out(table)
    steps.replace(f"split: {config.split}", table, {})
    if steps.table.filter(steps.table.part == TRAIN).count().to_pyarrow().as_py() == 0:
        raise ValueError(f"--split={config.split} leaves no events to train on")
    return cuts
