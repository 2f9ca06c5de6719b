"""Splits: which events train, which validate and which test."""

from __future__ import annotations

import dataclasses

import ibis
import numpy as np
from ibis.expr import types as ir

from stt_jax.config import PrepareConfig
from stt_jax.data.engine import Engine
from stt_jax.data.schema import TEST, TRAIN, VALIDATION
from stt_jax.data.times import to_moment

_DAY_S = 86_400
_NOTHING_EARLIER = "no events are left before the test part; check --test_from, --test_days"


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
    hours = engine.store("hours", _count_hours(table))
    whole = hours.agg(last=hours.last.max(), num_events=hours.num_until.max()).to_pyarrow()
    last, num_events = whole["last"][0].as_py(), whole["num_events"][0].as_py()

    def time_at(place: int) -> int:
        return _time_at(table, hours, place)

    test_from = last + 1
    if config.test_from:
        test_from = to_moment(config.test_from, "test_from")
    elif config.test_days:
        test_from = last + 1 - round(config.test_days * _DAY_S)
    elif config.test_fraction:
        test_from = time_at(_place(num_events, 1 - config.test_fraction))
    validation_from = test_from
    if config.validation_from:
        validation_from = to_moment(config.validation_from, "validation_from")
    elif config.validation_days:
        validation_from = test_from - round(config.validation_days * _DAY_S)
    elif config.validation_fraction:
        before = 1 - config.validation_fraction
        if not (config.test_from or config.test_days):
            before -= config.test_fraction
            validation_from = time_at(_place(num_events, before))
        else:
            num_earlier = table.filter(table.time_s < test_from).count().to_pyarrow().as_py()
            if not num_earlier:
                raise ValueError(_NOTHING_EARLIER)
            num_validating = round(config.validation_fraction * num_events)
            if num_validating:
                validation_from = time_at(num_earlier - num_validating)
    engine.drop("hours")
    if validation_from > test_from:
        raise ValueError(
            f"the validation part begins at {validation_from}, after the test part at {test_from} "
            "(unix seconds); check --validation_from and --test_from"
        )
    return Cuts(validation_from, test_from)


def _hour(table: ir.Table) -> ir.IntegerValue:
    return (table.time_s / 3600).floor().cast("int64")


def _count_hours(table: ir.Table) -> ir.Table:
    """hour, each once, its events, num_until, events until its end, and last, of its times."""
    hours = table.group_by(hour=_hour(table)).agg(num_events=table.count(), last=table.time_s.max())
    # Not a limit with an offset: an engine may number the rows before it sorts them.
    so_far = ibis.window(order_by="hour", preceding=None, following=0)
    return hours.mutate(num_until=hours.num_events.sum().over(so_far))


def _place(num_events: int, fraction: float) -> int:
    # round() before the floor: 1 - .1 - .1 is a little below .8.
    return int(round(fraction * num_events, 6))


def _time_at(table: ir.Table, hours: ir.Table, place: int) -> int:
    """The time of the event at a place (from 0) in time order.

    Found in its hour: a log has few hours, and may have as many seconds as events.
    """
    reached = hours.filter(hours.num_until > place)
    reached = reached.filter(reached.hour == reached.hour.min()).to_pyarrow().to_pylist()
    if not reached:
        raise ValueError(_NOTHING_EARLIER)
    (hour,) = reached
    events = table.filter(_hour(table) == hour["hour"])
    seconds = events.group_by("time_s").agg(num_events=events.count())
    found = seconds.order_by("time_s").to_pyarrow().to_pydict()
    num_until = np.cumsum(found["num_events"]) + hour["num_until"] - hour["num_events"]
    return found["time_s"][int(np.argmax(num_until > place))]


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
