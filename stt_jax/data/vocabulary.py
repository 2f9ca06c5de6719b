"""Texts -> rows of vocabularies, and what is known of each item. Only training events count.

Every numbering below is over a total order (counts, then bytes), so ties cannot fall differently
on another run.
"""

from __future__ import annotations

from collections.abc import Sequence

import ibis
from ibis.expr import types as ir

from stt_jax.data.dateline import FULL_TURN_E7, HALF_TURN_E7
from stt_jax.data.schema import TRAIN, UNKNOWN_E7


def number_users(table: ir.Table) -> ir.Table:
    """user, user_row (from 0), count, train_count: who has training events first, then by bytes."""
    users = table.group_by("user").agg(
        count=table.count(), train_count=(table.part == TRAIN).sum().cast("int64")
    )
    order = [ibis.desc(users.train_count > 0), users.user]
    return users.mutate(user_row=ibis.row_number().over(order_by=order).cast("int32"))


def count_events(table: ir.Table, columns: Sequence[str]) -> ir.Table:
    """bool is_training, the columns, num_events: how often values occur together, training apart.

    What is asked about items and values below is asked of this. A log has far fewer items, each
    with one name, category and place as a rule, than events, so those are looked at once.
    """
    table = table.mutate(is_training=table.part == TRAIN)
    return table.group_by(["is_training", *columns]).agg(num_events=table.count())


def number_values(counts: ir.Table, column: str) -> ir.Table:
    """value, row (from 1), train_count of a text column: the most frequent in training first.

    Args:
      counts: `count_events` with that column.
      column: its name.
    """
    train = counts.filter(counts.is_training & counts[column].notnull())
    values = train.group_by(value=train[column]).agg(train_count=train.num_events.sum())
    return _number(values)


def number_items(counts: ir.Table) -> ir.Table:
    """The same of all items: those without training events stand last, with a `train_count` of 0.

    Their rows are for whoever needs their texts; in a prepared log they are the unknown item.
    """
    num_training = counts.is_training.ifelse(counts.num_events, 0).sum()
    return _number(counts.group_by(value=counts.item).agg(train_count=num_training))


def _number(values: ir.Table) -> ir.Table:
    values = values.mutate(train_count=values.train_count.cast("int64"))
    order = [ibis.desc(values.train_count), values.value]
    return values.mutate(row=(ibis.row_number().over(order_by=order) + 1).cast("int32"))


def describe_items(counts: ir.Table, items: ir.Table, traits: Sequence[str]) -> ir.Table:
    """Items with training events, with each one's name, category, traits and place.

    Args:
      counts: `count_events` with text `item`, `name`, `category`, the traits, and int32
        `latitude_e7`, `longitude_e7`.
      items: `number_items(counts)`.
      traits: further text columns.

    Returns:
      row, value, train_count, name, category and traits (the most frequent ones, ties by bytes,
      null if none), latitude_e7, longitude_e7 (lower medians), in the order of `row`.
    """
    train = counts.filter(counts.is_training)
    items = items.filter(items.train_count > 0)
    for column in ("name", "category", *traits):
        items = _look_up(items, most_frequent(train, column, of="item"))
    for column in ("latitude_e7", "longitude_e7"):
        known = train.filter(train[column] != UNKNOWN_E7)
        counts = known.group_by(["item", column]).agg(count=known.num_events.sum())
        if column == "longitude_e7":
            counts = _unroll(counts, column)
        items = _look_up(items, _lower_median(counts, column))
        items = items.mutate(**{column: items[column].fill_null(UNKNOWN_E7).cast("int32")})
    return items.order_by("row")


def _look_up(items: ir.Table, described: ir.Table) -> ir.Table:
    described = described.rename(described_item="item")
    return items.left_join(described, items.value == described.described_item).drop(
        "described_item"
    )


def of_training_first(counts: ir.Table, of: str) -> ir.Table:
    """Rows of `count_events`: of whoever has training events these alone, of others all.

    What somebody becomes later must not be known in training.
    """
    in_training = counts.is_training.cast("int8").max().over(ibis.window(group_by=of))
    counts = counts.mutate(in_training=in_training.cast("boolean"))
    return counts.filter(counts.is_training == counts.in_training).drop("in_training")


def most_frequent(counts: ir.Table, column: str, *, of: str) -> ir.Table:
    """(`of`, `column`): the most frequent text of a column for each value of another.

    Args:
      counts: `count_events` with both columns, or rows of it.
      column: of texts.
      of: name of the other column.
    """
    known = counts.filter(counts[column].notnull())
    counts = known.group_by([of, column]).agg(count=known.num_events.sum())
    order = [ibis.desc(counts["count"]), counts[column]]
    counts = counts.mutate(place=ibis.row_number().over(group_by=of, order_by=order))
    return counts.filter(counts.place == 0).select(of, column)


def _unroll(counts: ir.Table, column: str) -> ir.Table:
    """Moves longitudes west of an item's widest gap by 360 degrees: as `dateline.unroll`."""
    item = ibis.window(group_by="item")
    counts = counts.mutate(**{column: counts[column].cast("int64")})
    eastward = counts[column].lead().over(ibis.window(group_by="item", order_by=column))
    span = counts[column].max().over(item) - counts[column].min().over(item)
    counts = counts.mutate(gap=eastward - counts[column], across=FULL_TURN_E7 - span)
    counts = counts.mutate(widest=counts.gap.max().over(item))
    is_cut = (counts.gap == counts.widest) & (counts.widest > counts.across)
    counts = counts.mutate(cut=is_cut.ifelse(counts[column], None).min().over(item))
    moved = (counts[column] <= counts.cut).ifelse(counts[column] + FULL_TURN_E7, counts[column])
    return counts.mutate(**{column: moved}).drop("gap", "across", "widest", "cut")


def _lower_median(counts: ir.Table, column: str) -> ir.Table:
    """(item, `column`) of the item, `column` and `count` of each."""
    so_far = ibis.window(group_by="item", order_by=column, preceding=None, following=0)
    counts = counts.mutate(
        so_far=counts["count"].sum().over(so_far), size=counts["count"].sum().over(group_by="item")
    )
    upper_half = counts.filter(2 * counts.so_far >= counts["size"])
    medians = upper_half.group_by("item").agg(median=upper_half[column].min())
    beyond = medians.median > HALF_TURN_E7  # moved by `_unroll`
    return medians.select(
        "item", **{column: beyond.ifelse(medians.median - FULL_TURN_E7, medians.median)}
    )


def encode(table: ir.Table, column: str, values: ir.Table, *, name: str) -> ir.Table:
    """Replaces text `column` by int32 `name`, its row in `values` (value, row), 0 if not there."""
    lookup = values.select(**{f"{name}_value": "value", f"{name}_row": "row"})
    joined = table.left_join(lookup, table[column] == lookup[f"{name}_value"])
    row = joined[f"{name}_row"].fill_null(0).cast("int32")
    return joined.mutate(**{name: row}).drop(f"{name}_value", f"{name}_row", column)
