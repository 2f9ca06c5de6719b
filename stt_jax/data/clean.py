"""Cleaning: which rows stay and which values become unknown, as Ibis expressions.

A step is a function from a table to the same table with one more column, `dropped` or `changed`:
the reason for which the row leaves or loses a value, or null. `stt_jax.data.preparation` counts
the reasons and drops the rows. `sample` holds the value to show if the step must stop.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import ibis
from ibis.expr import types as ir

from stt_jax.data.schema import DEGREES_TO_E7, UNKNOWN_E7

_CONDITION = re.compile(r"^(.+?)\s*(<=|>=|!=|\^=|=|<|>)\s*(.*)$", re.DOTALL)
_COMPARISONS = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def condition_column(text: str) -> str:
    """The column that a --drop_if comparison looks at."""
    return _split_condition(text)[0]


def _split_condition(text: str) -> tuple[str, str, str]:
    match = _CONDITION.match(text)
    if match is None:
        raise ValueError(
            f"--drop_if={text}: write COLUMN OPERATOR VALUE with one of <= >= < > = != ^=, "
            "e.g. --drop_if='Quantity<=0'"
        )
    return match[1], match[2], match[3]


def mark_filtered(
    table: ir.Table,
    columns: Mapping[str, str],
    *,
    drop_if: Sequence[str] = (),
    drop_missing: Sequence[str] = (),
) -> ir.Table:
    """Adds `dropped`: the first missing column or comparison that takes the row out.

    Args:
      table: text columns.
      columns: name in the files -> name in `table`.
      drop_if: comparisons "COLUMN OP VALUE". `=` and `!=` compare text, `^=` asks how it begins;
        the others compare numbers if VALUE is one, else text. An empty field is never dropped.
      drop_missing: names of columns that must not be empty.
    """
    branches = [
        (table[columns[name]].nullif("").isnull(), f"{name} is empty") for name in drop_missing
    ]
    for text in drop_if:
        name, operator, value = _split_condition(text)
        branches.append((_holds(table[columns[name]].nullif(""), operator, value), text))
    return table.mutate(dropped=ibis.cases(*branches, else_=None).cast("string"))


def _holds(column: ir.StringValue, operator: str, value: str) -> ir.BooleanValue:
    if operator == "=":
        return column == value
    if operator == "!=":
        return column != value
    if operator == "^=":
        return column.startswith(value)
    try:
        number = float(value)
    except ValueError:
        return _COMPARISONS[operator](column, value)
    return _COMPARISONS[operator](column.try_cast("float64"), number)


def mark_bad_ids(table: ir.Table, user_name: str, item_name: str) -> ir.Table:
    """Adds `dropped` where `user` or `item` is null or a stray quote has made it span lines."""
    branches = []
    for column, name in ((table.user, user_name), (table.item, item_name)):
        branches.append((column.isnull(), f"{name} is empty"))
        branches.append((column.contains("\n"), f"{name} spans lines"))
    return table.mutate(
        dropped=ibis.cases(*branches, else_=None).cast("string"),
        sample=table.user.fill_null("") + ", " + table.item.fill_null(""),
    )


def mark_places(table: ir.Table) -> ir.Table:
    """Turns text `latitude`, `longitude` into `latitude_e7`, `longitude_e7`; adds `changed`.

    An impossible place does not make the event untrue: it stays, and its place becomes unknown.
    So does (0, 0), a spot in the open sea where devices without a fix report to be.
    """
    latitude = table.latitude.try_cast("float64")
    longitude = table.longitude.try_cast("float64")
    changed = ibis.cases(
        (table.latitude.isnull() & table.longitude.isnull(), None),
        (table.latitude.isnull() | table.longitude.isnull(), "only one of two coordinates"),
        (~(_is_finite(latitude) & _is_finite(longitude)), "coordinate is not a number"),
        (latitude.abs() > 90, "latitude beyond 90"),
        (longitude.abs() > 180, "longitude beyond 180"),
        ((latitude == 0) & (longitude == 0), "place is 0, 0"),
        else_=None,
    ).cast("string")
    known = table.latitude.notnull() & table.longitude.notnull() & changed.isnull()
    return table.mutate(
        latitude_e7=known.ifelse(_to_e7(latitude), UNKNOWN_E7).cast("int32"),
        longitude_e7=known.ifelse(_to_e7(longitude), UNKNOWN_E7).cast("int32"),
        changed=changed,
        sample=table.latitude.fill_null("") + ", " + table.longitude.fill_null(""),
    ).drop("latitude", "longitude")


def _is_finite(value: ir.FloatingValue) -> ir.BooleanValue:
    return (value.notnull() & ~value.isnan() & ~value.isinf()).fill_null(False)


def _to_e7(degrees: ir.FloatingValue) -> ir.FloatingValue:
    return (degrees * DEGREES_TO_E7).round()


def mark_duplicates(table: ir.Table) -> ir.Table:
    """Adds `dropped` to rows that equal an earlier row in every column but `source_row`."""
    same = [name for name in table.columns if name != "source_row"]
    place = ibis.row_number().over(group_by=same, order_by="source_row")
    dropped = ibis.cases((place > 0, "equals an earlier row"), else_=None).cast("string")
    return table.mutate(dropped=dropped)


def keep_core(
    table: ir.Table,
    connection: ibis.BaseBackend,
    *,
    min_user_events: int,
    min_item_events: int,
) -> tuple[ir.Table, dict[str, int]]:
    """The largest part of `table` in which every user and item has enough events.

    Dropping users takes events from items and the other way round, so both are repeated until
    nothing changes (the k-core).

    Returns:
      the rows that stay, and "round 1: users below 5" -> rows dropped, in order.
    """
    pairs = table.select("source_row", "user", "item")
    dropped: dict[str, int] = {}
    num_rows = pairs.count().to_pyarrow().as_py()
    limits = (("user", min_user_events), ("item", min_item_events))
    round_number, changed = 1, True
    while changed:
        changed = False
        for column, limit in limits:
            size = pairs.count().over(group_by=column)
            pairs = pairs.mutate(size=size)
            pairs = pairs.filter(pairs.size >= limit).drop("size")
            pairs = connection.create_table(f"core_{round_number}_{column}", pairs)
            num_left = pairs.count().to_pyarrow().as_py()
            if num_left < num_rows:
                reason = f"round {round_number}: {column}s below {limit} events"
                dropped[reason] = num_rows - num_left
                num_rows, changed = num_left, True
        round_number += 1
    return table.semi_join(pairs, "source_row"), dropped
