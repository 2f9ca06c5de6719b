"""Runs the steps of a preparation one after another: counts, drops, announces, frees."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ibis.expr import types as ir

from stt_jax.config import PrepareConfig
from stt_jax.data.engine import Engine
from stt_jax.data.read import RawLog
from stt_jax.data.schema import StepCount

_DECIMAL_COMMA = re.compile(r"\d,\d")


class Steps:
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
        engine: Engine,
        announce: Callable[[StepCount], None],
    ):
        self.table = raw.table
        self.num_rows = raw.num_rows
        self.counts: list[StepCount] = []
        self.engine = engine
        self._raw = raw
        self._config = config
        self._announce = announce
        self._stored = raw.table.get_name()
        self._num_stored = 0
        self._leaving: list[str] = []  # tables of `drop` that `table` refers to
        self._few: list[str] = []  # tables of `store_few`
        for count in raw.counts:
            self._add(count)

    def run(self, name: str, marked: ir.Table, *, broken_flag: str = "") -> None:
        """Ends a step that looks at each row by itself.

        Nothing is stored: working out a row again, for a count and for the next `store`, costs less
        than writing and reading it. What costs more (text searched or parsed) is stored before.

        Args:
          name: the step as printed.
          marked: `self.table` with the columns `dropped` or `changed`; see `stt_jax.data.clean`.
          broken_flag: the flag that names the column at fault, for a step that marks broken values;
            too many of them (or one, with --strict) is an error that shows `sample`.
        """
        counted: dict[str, dict[str, int]] = {"dropped": {}, "changed": {}}
        for column in counted:
            if column in marked.columns:
                counted[column] = self._count(marked, column, broken_flag)
        kept = marked.filter(marked.dropped.isnull()) if counted["dropped"] else marked
        kept = kept.drop(*({"dropped", "changed", "sample"} & set(kept.columns)))
        self.table = self.engine.view(f"view_{len(self.counts)}", kept)
        self._end(name, **counted)

    def drop(self, name: str, marked: ir.Table) -> ir.Table | None:
        """Ends a step that takes few rows out and changes nothing else.

        What it stores are the numbers of these rows, not the table without them: a window over a
        wide table of many events sorts no more columns than it looks at.

        Args:
          name: the step as printed.
          marked: `self.table`, or those of its rows that may leave, with the column `dropped`.

        Returns:
          `source_row` and `dropped` of the rows that have left; None = there were none.
        """
        leaving = marked.filter(marked.dropped.notnull()).select("source_row", "dropped")
        place = f"leaving_{len(self.counts)}"
        leaving = self.engine.store(place, leaving)
        for used in self._few:
            self.engine.drop(used)
        self._few = []
        dropped = self._count(leaving, "dropped")
        if dropped:
            self.table = self.table.anti_join(leaving, "source_row")
            self._leaving.append(place)
        else:
            self.engine.drop(place)
        self._end(name, dropped)
        return leaving if dropped else None

    def store_few(self, table: ir.Table) -> ir.Table:
        """Computes a small table once, for the step that `drop` ends next."""
        name = f"few_{len(self._few)}"
        self._few.append(name)
        return self.engine.store(name, table)

    def store(self, table: ir.Table) -> ir.Table:
        """Computes a table once and frees what it was made of."""
        self._num_stored += 1
        name = f"step_{self._num_stored}"
        stored = self.engine.store(name, table)
        for used in (self._stored, *self._leaving):
            self.engine.drop(used)
        self._stored, self._leaving = name, []
        return stored

    def note(self, name: str, changed: Mapping[str, int]) -> None:
        """Counts a step that dropped nothing and has changed values elsewhere."""
        self._add(StepCount(name, self.num_rows, self.num_rows, {}, dict(changed)))

    def replace(
        self,
        name: str,
        table: ir.Table,
        dropped: Mapping[str, int],
        changed: Mapping[str, int] | None = None,
    ) -> None:
        """Ends a step that has counted by itself; `table` is what it kept."""
        self.table = self.store(table)
        self._end(name, dropped, changed or {})

    def _end(
        self, name: str, dropped: Mapping[str, int], changed: Mapping[str, int] | None = None
    ) -> None:
        num_out = self.num_rows - sum(dropped.values())
        self._add(StepCount(name, self.num_rows, num_out, dict(dropped), dict(changed or {})))
        if num_out == 0:
            raise ValueError(f"no rows are left after the step '{name}': {dict(dropped)}")
        self.num_rows = num_out

    def _add(self, count: StepCount) -> None:
        self.counts.append(count)
        self._announce(count)

    def _count(self, marked: ir.Table, column: str, broken_flag: str = "") -> dict[str, int]:
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
                    + (
                        ". A decimal comma is not read: write 3.5 for 3,5"
                        if "number" in row["reason"] and _DECIMAL_COMMA.search(str(sample[0]))
                        else ""
                    )
                )
        return counts
