"""Cleaning: which rows stay and which values become unknown, as Ibis expressions.

A step is a function from a table to the same table with one more column, `dropped` or `changed`:
the reason for which the row leaves or loses a value, or null. `stt_jax.data.preparation` counts
the reasons and drops the rows. `sample` holds the value to show if the step must stop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import ibis
from ibis.expr import types as ir

from stt_jax.data.engine import Engine
from stt_jax.data.schema import DEGREES_TO_E7, LARGEST_IN_WORDS, NUMBER_OVERFLOW, UNKNOWN_E7

_CONDITION = re.compile(r"^(.+?)\s*(<=|>=|!=|\^=|=|<|>)\s*(.*)$", re.DOTALL)
# Events of a user in their order; `source_row` leaves no tie.
_VISIT = ("user", "item")
IN_ORDER = ("time_s", "time_us", "source_row")
SWAPPED = "latitude and longitude swapped"
# \z and not $, which for one engine is also the place before a last line feed.
_NUMBER = r"^ *[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]{1,3})? *\z"
_LARGEST = 1.7e308
_NOT_BLANK = r"[^ \t\n\r\f\x0B]"  # all of these come before "!"
_COMPARISONS = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


Store = Callable[[ir.Table], ir.Table]


def _as_it_is(table: ir.Table) -> ir.Table:
    return table


def known_text(text: ir.StringValue) -> ir.StringValue:
    """Text as it is; null where it is empty or blank."""
    # Few texts begin with a blank, and only those are searched.
    known = (text >= "!", text), (text.re_search(_NOT_BLANK), text)
    return ibis.cases(*known, else_=None)


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

    A field that is no number, as "3,5", is never dropped by a comparison of numbers. Such rows are
    counted: they are the column `changed`, though nothing of them is.

    Args:
      table: text columns.
      columns: name in the files -> name in `table`.
      drop_if: comparisons "COLUMN OP VALUE". `=` and `!=` compare text, `^=` asks how it begins;
        the others compare numbers if VALUE is one, else text. An empty field is never dropped.
      drop_missing: names of columns that must not be empty.
    """
    branches = [
        (known_text(table[columns[name]]).isnull(), f"{name} is empty") for name in drop_missing
    ]
    passed_over = []
    for text in drop_if:
        name, operator, value = _split_condition(text)
        column = known_text(table[columns[name]])
        branches.append((_holds(column, operator, value), text))
        if operator in _COMPARISONS and _number_or_none(value) is not None:
            is_none = column.notnull() & to_number(column).isnull()
            passed_over.append((is_none, f"nothing by {text}: {name} is not a number"))
    marked = table.mutate(dropped=ibis.cases(*branches, else_=None).cast("string"))
    if passed_over:
        marked = marked.mutate(changed=ibis.cases(*passed_over, else_=None).cast("string"))
    return marked


def _holds(column: ir.StringValue, operator: str, value: str) -> ir.BooleanValue:
    if operator == "=":
        return column == value
    if operator == "!=":
        return column != value
    if operator == "^=":
        return column.startswith(value)
    number = _number_or_none(value)
    if number is None:
        return _COMPARISONS[operator](column, value)
    return _COMPARISONS[operator](to_number(column), number)


def _number_or_none(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def mark_bad_ids(
    table: ir.Table, user_name: str, item_name: str, domain_name: str = ""
) -> ir.Table:
    """Adds `dropped` where `user` or `item` is null or a stray quote has made it span lines.

    With a `domain_name` the same for `domain`, and an item's id becomes domain/item: two domains
    that give out the same id mean two items. A domain with a slash in it is dropped, too: "a/b/c"
    could be c of a/b or b/c of a.
    """
    branches = []
    named = [(table.user, user_name), (table.item, item_name)]
    ids = table.item
    sample = table.user.fill_null("") + ", " + table.item.fill_null("")
    if domain_name:
        named.append((table.domain, domain_name))
        ids = table.domain + "/" + table.item
    for column, name in named:
        branches.append((column.isnull(), f"{name} is empty"))
        branches.append((column.contains("\n"), f"{name} spans lines"))
    if domain_name:
        branches.append((table.domain.contains("/"), f"{domain_name} contains a slash"))
        sample += ", " + table.domain.fill_null("")
    return table.mutate(
        dropped=ibis.cases(*branches, else_=None).cast("string"),
        sample=sample,
        item=ids,
    )


def read_numbers(table: ir.Table, columns: Sequence[str]) -> ir.Table:
    """Adds a float64 column `<column>_number` for each text column; null for what is no number.

    The text itself stays where it is none. An engine works out an expression anew wherever it
    occurs: what has been stored once as a column is not parsed again by the steps that look at it
    many times, and texts are most of what a log takes.
    """
    table = table.mutate(**{f"{column}_number": to_number(table[column]) for column in columns})
    unread = {column: table[f"{column}_number"].isnull() for column in columns}
    return table.mutate(**{one: isnull.ifelse(table[one], None) for one, isnull in unread.items()})


def read_places(table: ir.Table) -> ir.Table:
    """Turns text `latitude`, `longitude` into what `mark_places` looks at, to be stored once.

    That is int32 `latitude_e7`, `longitude_e7`, UNKNOWN_E7 where not known; `place_change`, why it
    is not what was written, null where it is; and there also `place`, both texts.
    """
    table = table.mutate(
        latitude_number=to_number(table.latitude), longitude_number=to_number(table.longitude)
    )
    latitude, longitude = table.latitude_number, table.longitude_number
    swapped = (latitude.abs() > 90) & (latitude.abs() <= 180) & (longitude.abs() <= 90)
    change = ibis.cases(
        (table.latitude.isnull() & table.longitude.isnull(), None),
        (table.latitude.isnull() | table.longitude.isnull(), "only one of two coordinates"),
        (latitude.isnull() | longitude.isnull(), "coordinate is not a number"),
        (swapped, SWAPPED),
        (latitude.abs() > 90, "latitude beyond 90"),
        (longitude.abs() > 180, "longitude beyond 180"),
        ((latitude == 0) & (longitude == 0), "place is 0, 0"),
        else_=None,
    ).cast("string")
    possible = (latitude.abs() <= 90) & (longitude.abs() <= 180)
    known = swapped | (possible & ((latitude != 0) | (longitude != 0)))
    place = table.latitude.fill_null("") + ", " + table.longitude.fill_null("")
    table = table.mutate(
        latitude_e7=_to_e7(known, swapped.ifelse(longitude, latitude)),
        longitude_e7=_to_e7(known, swapped.ifelse(latitude, longitude)),
        place_change=change,
    )
    table = table.mutate(place=table.place_change.isnull().ifelse(None, place))
    return table.drop("latitude", "longitude", "latitude_number", "longitude_number")


def mark_places(table: ir.Table) -> ir.Table:
    """Adds `changed` and `sample` to `read_places`.

    An impossible place does not make the event untrue: it stays, and its place becomes unknown.
    So does (0, 0), a spot in the open sea where devices without a fix report to be. A latitude
    that is impossible but would do as a longitude, with a longitude that would do as a latitude,
    was written the wrong way round: the two are swapped.
    """
    return table.rename(changed="place_change", sample="place")


def to_number(text: ir.StringValue) -> ir.FloatingValue:
    """Text as float64; null for what is no finite decimal number.

    The pattern keeps out what only one engine reads: "1d", "0x1F", "1_000", "nan", "infinity".
    """
    number = text.re_search(_NUMBER).ifelse(text, None).try_cast("float64")
    return (number.abs() <= _LARGEST).ifelse(number, None)


def _to_e7(known: ir.BooleanValue, degrees: ir.FloatingValue) -> ir.IntegerValue:
    return known.ifelse(to_nearest(degrees * DEGREES_TO_E7), UNKNOWN_E7).cast("int32")


def to_nearest(value: ir.FloatingValue) -> ir.FloatingValue:
    """To whole numbers, halves away from zero; engines differ in what they call rounding."""
    return (value < 0).ifelse(-(0.5 - value).floor(), (value + 0.5).floor())


def mark_numbers(table: ir.Table, columns: Mapping[str, str]) -> ir.Table:
    """Turns text columns into float64; adds `changed` and `sample` for what is none or too large.

    Args:
      table: `read_numbers` of text columns.
      columns: column of `table` -> its name in the files.
    """
    read = {column: table[f"{column}_number"] for column in columns}
    beyond = {column: number.abs() >= NUMBER_OVERFLOW for column, number in read.items()}
    numbers = {column: beyond[column].ifelse(None, number) for column, number in read.items()}
    branches = []
    for column, name in columns.items():
        reason = f"{name} is beyond {LARGEST_IN_WORDS}, the largest number of a log"
        branches += [
            (table[column].notnull(), f"{name} is not a number"),
            (beyond[column], reason),
        ]
    written = [table[c].fill_null(read[c].cast("string")).fill_null("") for c in columns]
    changed = ibis.cases(*branches, else_=None).cast("string")
    marked = table.mutate(**numbers, changed=changed, sample=ibis.literal(", ").join(written))
    return marked.drop(*(f"{column}_number" for column in columns))


def mark_outside(table: ir.Table, from_us: int | None, to_us: int | None) -> ir.Table:
    """Adds `dropped` to events before `from_us` or at `to_us` and later, microseconds of 1970."""
    branches: list[tuple[ir.BooleanValue, str]] = []
    if from_us is not None:
        branches.append((_is_before(table, from_us), "before --time_from"))
    if to_us is not None:
        branches.append((~_is_before(table, to_us), "at --time_to or later"))
    return table.mutate(dropped=ibis.cases(*branches, else_=None).cast("string"))


def _is_before(table: ir.Table, moment_us: int) -> ir.BooleanValue:
    second, rest_us = divmod(moment_us, 1_000_000)
    is_before = table.time_s < second
    if rest_us:
        is_before |= (table.time_s == second) & (table.time_us < rest_us)
    return is_before


def find_revisits(table: ir.Table, store: Store = _as_it_is) -> ir.Table:
    """The events of everybody at an item where they were more than once.

    No other event can be a duplicate of one, or near one.

    Args:
      table: events.
      store: computes a small table once. An engine that does not know how few rows another one has
        may take the whole log into memory to look them up in it.
    """
    pairs = table.group_by(_VISIT).agg(num_events=table.count())
    return table.semi_join(store(pairs.filter(pairs.num_events > 1)), _VISIT)


def mark_duplicates(table: ir.Table, store: Store = _as_it_is) -> ir.Table:
    """Adds `dropped` to rows that equal an earlier row in every column but `source_row`.

    Of a log's many columns only those of rows are compared, and given, that share user, item and
    second with another row.

    Args:
      table: events, or the `find_revisits` of them.
      store: as of `find_revisits`.
    """
    moment = [*_VISIT, "time_s"]
    shared = table.group_by(moment).agg(num_rows=table.count())
    shared = store(shared.filter(shared.num_rows > 1))
    table = table.semi_join(shared, moment)
    same = [name for name in table.columns if name != "source_row"]
    place = ibis.row_number().over(group_by=same, order_by="source_row")
    dropped = ibis.cases((place > 0, "equals an earlier row"), else_=None).cast("string")
    return table.mutate(dropped=dropped)


def mark_near_duplicates(table: ir.Table, window_s: float) -> ir.Table:
    """Adds `dropped` to events less than `window_s` after the person's last one at the same item.

    A chain of events each of which is near the one before keeps its first only, so a second run
    finds nothing more.

    Args:
      table: events, or the `find_revisits` of them.
      window_s: seconds.
    """
    window = ibis.window(group_by=["part", *_VISIT], order_by=IN_ORDER)
    gap_us = (table.time_s - table.time_s.lag().over(window)) * 1_000_000
    gap_us += table.time_us - table.time_us.lag().over(window)
    near = gap_us < round(window_s * 1e6)
    reason = f"within {window_s:g} s of the same user's last event at the item"
    return table.mutate(dropped=ibis.cases((near, reason), else_=None).cast("string"))


def mark_bots(table: ir.Table, max_events_per_day: int, store: Store = _as_it_is) -> ir.Table:
    """Adds `dropped` to a user's events from the first one that is one too many for its local day.

    What a user did before stays: later events must not decide over earlier ones, or the test part
    would reach into the training part. Of a log's many users only the events of those are put in
    order, and given, who have such a day.

    Args:
      table: events.
      max_events_per_day: of a user.
      store: as of `find_revisits`.
    """
    users = table.group_by("user").agg(num_events=table.count())
    active = store(users.filter(users.num_events > max_events_per_day))
    table = table.semi_join(active, "user")
    day = (table.time_s + table.utc_offset_s) / 86_400
    table = table.mutate(day=day.floor().cast("int64"))
    days = table.group_by(["user", "day"]).agg(num_events=table.count())
    busy = days.filter(days.num_events > max_events_per_day)
    busy = store(busy.select("user").distinct())
    table = table.semi_join(busy, "user")
    place = ibis.row_number().over(group_by=["user", "day"], order_by=IN_ORDER)
    table = table.mutate(exceeds=(place >= max_events_per_day).cast("int8"))
    so_far = ibis.window(group_by="user", order_by=IN_ORDER, preceding=None, following=0)
    reason = f"from a user's first day with more than {max_events_per_day} events on"
    exceeded = table.exceeds.max().over(so_far) == 1
    dropped = ibis.cases((exceeded, reason), else_=None).cast("string")
    return table.mutate(dropped=dropped).drop("day", "exceeds")


def keep_core(
    table: ir.Table,
    engine: Engine,
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
            pairs = engine.store(f"core_{round_number}_{column}", pairs)
            num_left = pairs.count().to_pyarrow().as_py()
            if num_left < num_rows:
                reason = f"round {round_number}: {column}s below {limit} events"
                dropped[reason] = num_rows - num_left
                num_rows, changed = num_left, True
        round_number += 1
    return table.semi_join(pairs, "source_row"), dropped
