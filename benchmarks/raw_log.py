"""A prepared log as the rows of a raw one, to be changed and prepared again by benchmarks."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from stt_jax.config import PrepareConfig
from stt_jax.data.preparation import prepare_log
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.schema import PART_NAMES, TEST, TRAIN, UNKNOWN_E7, VALIDATION
from stt_jax.data.store import open_log


def event_rows(log: PreparedLog, events: np.ndarray | None = None) -> pa.Table:
    """The events of a prepared log at known items, as the rows of a raw one.

    Args:
      log: a prepared log.
      events: int [N], which of them; None = all.

    Returns:
      text user, item, session, category (null where unknown); int64 time (unix seconds),
      utc_offset_min and part; float64 latitude, longitude (null where unknown).
    """
    events = np.arange(log.num_events) if events is None else events
    events = events[log.items[events] > 0]
    users = np.repeat(np.arange(log.num_users), np.diff(log.user_offsets))[events]
    unknown = log.latitudes_e7[events] == UNKNOWN_E7
    categories = log.categories[events] if log.num_categories else np.zeros(len(events), np.int32)
    columns: dict[str, Any] = {
        "user": pa.array([log.user_ids[user] for user in users.tolist()]),
        "item": pa.array([log.item_ids[item] for item in log.items[events].tolist()]),
        "time": pa.array(log.times[events].astype(np.int64)),
        "utc_offset_min": pa.array(log.utc_offsets_s[events].astype(np.int64) // 60),
        "latitude": pa.array(log.latitudes_e7[events] * 1e-7, mask=unknown),
        "longitude": pa.array(log.longitudes_e7[events] * 1e-7, mask=unknown),
        "category": pa.array([log.category_values[code] or None for code in categories.tolist()]),
        "session": pa.array(log.sessions[events].astype(np.int64)).cast(pa.string()),
        "part": pa.array(log.parts[events].astype(np.int64)),
    }
    return pa.table(columns)


def prepare_rows(rows: pa.Table, folder: pathlib.Path, **options: Any) -> PreparedLog:
    """The prepared log of rows with the columns of `event_rows`, with the split that they say.

    Args:
      rows: places, category or session may be missing or all null.
      folder: for the log and its files; one that is there is not made again.
      options: of `PrepareConfig`, besides the columns.
    """
    if (folder / "prepared" / "meta.json").is_file():
        return open_log(folder / "prepared")
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for part, name in enumerate(PART_NAMES):
        of_part = rows.filter(pc.equal(rows["part"], part)).drop_columns(["part"])
        files[part] = str(folder / f"{name}.parquet")
        pyarrow.parquet.write_table(of_part, files[part])
    known = {name for name in rows.column_names if rows[name].null_count < len(rows)}
    also: dict[str, Any] = {
        name: name for name in ("latitude", "longitude", "category", "session") if name in known
    }
    config = PrepareConfig(
        input=(files[TRAIN],),
        validation_input=(files[VALIDATION],),
        test_input=(files[TEST],),
        split="given",
        output=str(folder / "prepared"),
        user="user",
        item="item",
        time="time",
        time_format="seconds",
        utc_offset_column="utc_offset_min",
        **also,
        **options,
    )
    return prepare_log(config)
