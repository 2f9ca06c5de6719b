"""Splits: which events train, which validate and which test."""

from __future__ import annotations

import dataclasses

import ibis
from ibis.expr import types as ir

from stt_jax.config import PrepareConfig
from stt_jax.data.engine import Engine
from stt_jax.data.schema import TEST, TRAIN, VALIDATION
from stt_jax.data.times import to_moment

_DAY_S = 86_400


@dataclasses.dataclass(frozen=True)
class Cuts:
    """Unix seconds: events from `validation_from_s` on validate, from `test_from_s` on test."""

    validation_from_s: int
    test_from_s: int


def find_cuts(table: ir.Table, config: PrepareConfig, engine: Engine) -> Cuts:
    """Where a split of `time_s` cuts: by moments, by days or by quantiles of the events' times.

    With fractions, the cut is the time of the event at that place in time order; all events of
    that very second are in the later part.

    Raises:
      ValueError: the test would begin before the validation.
    """
    # Stored: all that follows is looked up in it.
    seconds = engine.store("seconds", _count_seconds(table))
    whole = seconds.agg(last=seconds.time_s.max(), num_events=seconds.num_until.max()).to_pyarrow()
    last, num_events = whole["last"][0].as_py(), whole["num_events"][0].as_py()
    test_from = last + 1
    if config.test_from:
        test_from = to_moment(config.test_from, "test_from")
    elif config.test_days:
        test_from = last + 1 - round(config.test_days * _DAY_S)
    elif config.test_fraction:
        test_from = _quantile(seconds, num_events, 1 - config.test_fraction)
    validation_from = test_from
    if config.validation_from:
        validation_from = to_moment(config.validation_from, "validation_from")
    elif config.validation_days:
        validation_from = test_from - round(config.validation_days * _DAY_S)
    elif config.validation_fraction:
        before = 1 - config.validation_fraction
        if not (config.test_from or config.test_days):
            before -= config.test_fraction
            validation_from = _quantile(seconds, num_events, before)
        else:
            earlier = seconds.filter(seconds.time_s < test_from)
            num_earlier = earlier.num_until.max().to_pyarrow().as_py() or 0
            place = max(0, num_earlier - round(config.validation_fraction * num_events))
            validation_from = _time_at(earlier, place)
    engine.drop("seconds")
    if validation_from > test_from:
        raise ValueError(
            f"the validation part begins at {validation_from}, after the test part at {test_from} "
            "(unix seconds); check --validation_from and --test_from"
        )
    return Cuts(validation_from, test_from)


def _count_seconds(table: ir.Table) -> ir.Table:
    """time_s, each once, and num_until, events until the end of that second."""
    seconds = table.group_by("time_s").agg(num_events=table.count())
    # Not a limit with an offset: an engine may number the rows before it sorts them.
    so_far = ibis.window(order_by="time_s", preceding=None, following=0)
    return seconds.select("time_s", num_until=seconds.num_events.sum().over(so_far))


def _quantile(seconds: ir.Table, num_events: int, fraction: float) -> int:
    # round() before the floor: 1 - .1 - .1 is a little below .8.
    return _time_at(seconds, int(round(fraction * num_events, 6)))


def _time_at(seconds: ir.Table, place: int) -> int:
    """The time of the event at a place (from 0) in time order."""
    found = seconds.filter(seconds.num_until > place).agg(time_s=lambda t: t.time_s.min())
    time_s = found.to_pyarrow()["time_s"][0].as_py()
    if time_s is None:
        raise ValueError("no events are left before the test part; check --test_from, --test_days")
    return time_s


def by_time(table: ir.Table, cuts: Cuts) -> ir.Table:
    """Sets `part` by `time_s`."""
    part = ibis.cases(
        (table.time_s >= cuts.test_from_s, TEST),
        (table.time_s >= cuts.validation_from_s, VALIDATION),
        else_=TRAIN,
    )
    return table.mutate(part=part.cast("int8"))


def leave_one_out(table: ir.Table, validation_users: float = 1.0) -> ir.Table:
    """Sets `part`: a user's last event is test, the one before validation, if there are 3.

    Args:
      table: with user, time_s, time_us, source_row.
      validation_users: share of the users with 3 events whose event before the last validates;
        that of the others trains. Drawn evenly from the order of their ids.
    """
    latest_first = ibis.row_number().over(
        group_by="user",
        order_by=[
            ibis.desc("time_s"),
            ibis.desc("time_us"),
            ibis.desc("source_row"),
        ],
    )
    table = table.mutate(latest=latest_first, size=table.count().over(group_by="user"))
    validates = table.latest == 1
    if validation_users < 1:
        users = table.filter(table.latest == 2).select("user")  # once each who has 3 events
        place = ibis.row_number().over(order_by="user").cast("float64")
        drawn = ((place + 1) * validation_users).floor() > (place * validation_users).floor()
        users = users.mutate(drawn=drawn)
        table = table.left_join(users.filter(users.drawn), "user").drop("user_right")
        validates = (table.latest == 1) & table.drawn.fill_null(False)
    part = ibis.cases(
        (table["size"] < 3, TRAIN),
        (table.latest == 0, TEST),
        (validates, VALIDATION),
        else_=TRAIN,
    )
    helpers = [name for name in ("latest", "size", "drawn") if name in table.columns]
    return table.mutate(part=part.cast("int8")).drop(*helpers)
