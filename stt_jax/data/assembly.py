"""The cleaned and split table -> the arrays of a prepared log, with its statistics."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
from ibis.expr import types as ir

from stt_jax.config import PrepareConfig
from stt_jax.data import store, vocabulary
from stt_jax.data.arrays import to_numpy
from stt_jax.data.findings import describe_log, find_warnings
from stt_jax.data.schema import (
    EVENT_DTYPES,
    PART_NAMES,
    UNKNOWN_E7,
)
from stt_jax.data.split import Cuts
from stt_jax.data.steps import Steps
from stt_jax.data.values import Values


@dataclasses.dataclass(frozen=True)
class Clock:
    """What was found out about the times, in words for the report."""

    time_format: str
    local_time: str


def assemble_log(
    steps: Steps, config: PrepareConfig, clock: Clock, cuts: Cuts | None, refined: Values
) -> store.PreparedLog:
    """Numbers users, items, categories, contexts and sessions, and lays the events out by user.

    Args:
      steps: its table has one row an event: source_row, part, user, item, time_s, time_us,
        utc_offset_s, latitude_e7, longitude_e7; text or null category, name, session, and the
        columns of `refined`.
      config: names the output folder.
      clock: words for the times.
      cuts: where a split by time has cut, for the statistics.
      refined: the context and numeric columns.
    """
    table, engine = steps.table, steps.engine
    users = engine.store("users", vocabulary.number_users(table))
    fields = ["item", "category", *refined.contexts.values()]
    values = {
        field: engine.store(f"{field}_rows", vocabulary.number_values(table, field))
        for field in fields
    }
    events = engine.store("ordered_events", _order_events(table, users))
    event_columns = _encode_events(events, values, refined)
    arrays = {name: _array(event_columns, name, dtype) for name, dtype in EVENT_DTYPES.items()}
    meta = store.LogMeta(
        format_version=store.FORMAT_VERSION,
        data_hash="",
        split_hash=_hash_lines(vocabulary.split_lines(events, PART_NAMES)),
        has_times=bool(config.time),
        has_places=bool((arrays["latitudes_e7"] != UNKNOWN_E7).any()),
        time_format=clock.time_format,
        local_time=clock.local_time,
        steps=tuple(steps.counts),
        statistics={},
        warnings=(),
        numerics=refined.stages,
    )
    columns: dict[str, Any] = {
        **arrays,
        **_describe_users(users, _array(event_columns, "user_row", np.int32)),
        **_describe_items(table, values),
        **_describe_contexts(event_columns, values, refined.contexts),
        "numbers": {
            name: _array(event_columns, column, np.float32)
            for name, column in refined.numbers.items()
        },
        "was_missing": {
            name: _array(event_columns, column, np.int8) for name, column in refined.flags.items()
        },
    }
    # Without a known category of its own, an event has its item's.
    columns["categories"] = np.where(
        arrays["categories"] == 0, columns["item_categories"][arrays["items"]], arrays["categories"]
    )
    log = store.PreparedLog(directory=pathlib.Path(config.output), meta=meta, **columns)
    statistics = describe_log(log) | (dataclasses.asdict(cuts) if cuts else {})
    if refined.num_missing:
        statistics["num_missing"] = refined.num_missing
    meta = dataclasses.replace(meta, statistics=statistics, warnings=find_warnings(log))
    return dataclasses.replace(log, meta=meta)


def fetch_items(steps: Steps) -> pa.ChunkedArray:
    """The items' ids of the events in stored order, after `assemble_log`."""
    events = steps.engine.connection.table("ordered_events")
    return steps.engine.fetch(events.order_by("position").select("item"))["item"]


def _order_events(table: ir.Table, users: ir.Table) -> ir.Table:
    """The events with their user's row and their position in stored order."""
    events = table.join(users.select("user", "user_row"), "user")
    order = ["user_row", "time_s", "time_us", "source_row"]
    return events.mutate(position=ibis.row_number().over(order_by=order))


def _hash_lines(lines: ir.Table) -> str:
    digest = hashlib.sha256()
    for chunk in lines.to_pyarrow()["line"].cast(pa.large_string()).chunks:
        _, offset_bytes, text = chunk.buffers()
        offsets = np.frombuffer(offset_bytes, np.int64)
        start, end = offsets[chunk.offset], offsets[chunk.offset + len(chunk)]
        digest.update(memoryview(text)[start:end])
    return digest.hexdigest()


def _encode_events(events: ir.Table, values: Mapping[str, ir.Table], refined: Values) -> pa.Table:
    """The numeric columns of the events in stored order."""
    sessions = vocabulary.number_sessions(events)
    coded = events.drop("user", "name", "source_row", "time_us")
    for field, table in values.items():
        coded = vocabulary.encode(coded, field, table, name=f"{field}_row")
    coded = coded.left_join(sessions, ["user_row", "session"])
    coded = coded.mutate(sessions=coded.session_row.fill_null(0))
    return (
        coded.select(
            "position",
            "sessions",
            *(f"{field}_row" for field in values if field.startswith("context_")),
            *refined.numbers.values(),
            *refined.flags.values(),
            user_row=coded.user_row.cast("int32"),
            items="item_row",
            categories="category_row",
            times="time_s",
            utc_offsets_s=coded.utc_offset_s.cast("int32"),
            latitudes_e7="latitude_e7",
            longitudes_e7="longitude_e7",
            parts="part",
        )
        .order_by("position")
        .drop("position")
        .to_pyarrow()
    )


def _describe_users(users: ir.Table, user_rows: np.ndarray) -> dict[str, Any]:
    columns = users.order_by("user_row").to_pyarrow()
    return {
        "user_offsets": np.searchsorted(user_rows, np.arange(len(columns) + 1)),
        "num_train_users": int(np.count_nonzero(_array(columns, "train_count", np.int64))),
        "user_ids": columns["user"].to_pylist(),
    }


def _describe_contexts(
    event_columns: pa.Table, values: Mapping[str, ir.Table], names: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "category_values": _texts(values["category"]),
        "contexts": {
            name: _array(event_columns, f"{column}_row", np.int32) for name, column in names.items()
        },
        "context_values": {name: _texts(values[column]) for name, column in names.items()},
    }


def _describe_items(table: ir.Table, values: Mapping[str, ir.Table]) -> dict[str, Any]:
    """The item columns of a prepared log, each with the unknown item in front."""
    items = vocabulary.describe_items(table, values["item"])
    items = vocabulary.encode(items, "category", values["category"], name="categories")
    columns = items.order_by("row").to_pyarrow()
    ids, names = columns["value"].to_pylist(), columns["name"].to_pylist()

    def after_unknown(value: int, name: str, dtype: type) -> np.ndarray:
        return np.concatenate((np.array([value], dtype), _array(columns, name, dtype)))

    return {
        "item_ids": ["", *ids],
        "item_names": ["", *(name or item_id for name, item_id in zip(names, ids, strict=True))],
        "item_latitudes_e7": after_unknown(UNKNOWN_E7, "latitude_e7", np.int32),
        "item_longitudes_e7": after_unknown(UNKNOWN_E7, "longitude_e7", np.int32),
        "item_categories": after_unknown(0, "categories", np.int32),
        "item_train_counts": after_unknown(0, "train_count", np.int64),
    }


def _array(table: pa.Table, name: str, dtype: Any) -> np.ndarray:
    return to_numpy(table[name], dtype)


def _texts(values: ir.Table) -> list[str]:
    return ["", *values.order_by("row").to_pyarrow()["value"].to_pylist()]
