"""Columns of all events as arrays, in stored order: for steps that look along a person's past.

What depends on the event before it, or on a value fitted to the training part, is computed here
and not by the table engine: a Kalman filter is no table expression, and one numpy on the same
order gives the same bits whatever engine sorted the rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ibis.expr import types as ir

from stt_jax.data.clean import IN_ORDER
from stt_jax.data.engine import Engine
from stt_jax.data.schema import TRAIN, UNKNOWN_E7

EARTH_RADIUS_KM = 6371.0088
PLACE = None  # the coordinates, where else a column's name stands; none can be called so


@dataclasses.dataclass
class Columns:
    """N events by user, within a user by time, ties by source row.

    Attributes:
      source_rows: int64 [N].
      users: int32 [N], ascending from 0 in the byte order of the users' ids.
      items: int32 [N], from 0 in the byte order of the items' ids.
      times_s: int64 [N], unix seconds.
      utc_offsets_s: int64 [N].
      parts: int8 [N].
      latitudes_e7, longitudes_e7: int32 [N], UNKNOWN_E7 where unknown.
      numbers: column name -> float64 [N], NaN where unknown.
      codes: "category" or the name of a context column -> int32 [N], 1.. into `texts`, 0 = unknown.
      texts: the same names -> the values in byte order; [0] is "".
      was_missing: column name -> bool [N], True where the log had no value to use.
    """

    source_rows: np.ndarray
    users: np.ndarray
    items: np.ndarray
    times_s: np.ndarray
    utc_offsets_s: np.ndarray
    parts: np.ndarray
    latitudes_e7: np.ndarray
    longitudes_e7: np.ndarray
    numbers: dict[str, np.ndarray]
    codes: dict[str, np.ndarray]
    texts: dict[str, list[str]]
    was_missing: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.users)

    @property
    def train_mask(self) -> np.ndarray:
        """bool [N], True for the training part: the only rows that anything is fitted to."""
        return self.parts == TRAIN

    @property
    def place_mask(self) -> np.ndarray:
        """bool [N], True where the place is known."""
        return (self.latitudes_e7 != UNKNOWN_E7) & (self.longitudes_e7 != UNKNOWN_E7)

    @property
    def starts(self) -> np.ndarray:
        """int64 [N], the row of the first event of each event's user."""
        return np.searchsorted(self.users, self.users)

    def previous(self, known: np.ndarray) -> np.ndarray:
        """int64 [N], the latest row before each one of the same user where `known`; -1: none.

        A training event does not look at events of later parts, nor a validation event at test
        events, wherever those stand in time.
        """

        def find(rows: np.ndarray) -> np.ndarray:
            marks = np.where(known[rows], np.arange(len(rows)), -1)
            latest = np.maximum.accumulate(np.concatenate(([-1], marks[:-1])))
            users = self.users[rows]
            latest[latest < np.searchsorted(users, users)] = -1
            return np.where(latest >= 0, rows[latest], -1)

        return self.causally(find)

    def causally(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Runs a function along each user's events without letting a part see a later one.

        Args:
          function: ascending row numbers int64 [n] -> values [n, ...]; the value of a row must
            depend on rows of its user up to itself only.
        """
        rows = np.arange(len(self))
        same_user = self.users[1:] == self.users[:-1]
        if not (same_user & (np.diff(self.parts.astype(np.int64)) < 0)).any():
            return function(rows)
        values = None
        for part in np.unique(self.parts):
            seen = rows[self.parts <= part]
            found = function(seen)
            if values is None:
                values = np.zeros((len(rows), *found.shape[1:]), found.dtype)
            own = self.parts[seen] == part
            values[seen[own]] = found[own]
        assert values is not None
        return values


def fetch_columns(
    engine: Engine,
    table: ir.Table,
    *,
    numbers: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Columns:
    """Takes the columns of a table out of the engine.

    Args:
      engine: the one that holds `table`.
      table: source_row, user, item, time_s, time_us, utc_offset_s, part, latitude_e7,
        longitude_e7 and the columns below.
      numbers: name -> float64 column of `table`.
      texts: name -> text column of `table`.
    """
    numbers, texts = numbers or {}, texts or {}
    fixed = ("source_row", "user", "item", "time_s", "utc_offset_s", "part")
    wanted = [*fixed, "latitude_e7", "longitude_e7", *numbers.values(), *texts.values()]
    ordered = table.order_by("user", *IN_ORDER).select(*dict.fromkeys(wanted))
    rows = engine.fetch(ordered)

    def array(name: str, dtype: type) -> np.ndarray:
        return np.array(rows[name].to_numpy(), dtype)

    codes = {name: _encode(rows[column]) for name, column in texts.items()}
    return Columns(
        source_rows=array("source_row", np.int64),
        users=_encode(rows["user"])[0],
        items=_encode(rows["item"])[0],
        times_s=array("time_s", np.int64),
        utc_offsets_s=array("utc_offset_s", np.int64),
        parts=array("part", np.int8),
        latitudes_e7=array("latitude_e7", np.int32),
        longitudes_e7=array("longitude_e7", np.int32),
        numbers={name: array(column, np.float64) for name, column in numbers.items()},
        codes={name: found + 1 for name, (found, _) in codes.items()},
        texts={name: ["", *values] for name, (_, values) in codes.items()},
        was_missing={},
    )


def _encode(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """int32 rows, -1 = null, and the texts that they stand for, in byte order."""
    encoded = pc.dictionary_encode(column.combine_chunks())
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    texts = encoded.dictionary.to_pylist()
    order = sorted(range(len(texts)), key=lambda row: texts[row].encode())
    ranks = np.empty(len(texts) + 1, np.int32)
    ranks[order], ranks[-1] = np.arange(len(texts)), -1
    indices = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    return ranks[indices], [texts[row] for row in order]


def to_table(
    columns: Columns,
    *,
    numbers: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> pa.Table:
    """The columns as an Arrow table with `source_row`, for a step to join on."""
    rows: dict[str, pa.Array] = {
        "source_row": pa.array(columns.source_rows),
        "latitude_e7": pa.array(columns.latitudes_e7),
        "longitude_e7": pa.array(columns.longitudes_e7),
    }
    for name, column in (numbers or {}).items():
        rows[column] = pa.array(columns.numbers[name], pa.float64(), from_pandas=True)
    for name, column in (texts or {}).items():
        values = pa.array(columns.texts[name], pa.string())
        codes = columns.codes[name]
        rows[column] = values.take(pa.array(codes, mask=codes == 0))
    for name, column in (flags or {}).items():
        rows[column] = pa.array(columns.was_missing[name].astype(np.int8))
    return pa.table(rows)


def in_step(users: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """The k-th events of all users at once, k = 0, 1, ...

    Args:
      users: ascending user of each event.

    Yields:
      (slots, rows): `rows` of the users that have a k-th event, and the fixed slot of each user,
      slots[i] = i. Whoever keeps state by slot goes along every user's events at once.
    """
    _, starts, lengths = np.unique(users, return_index=True, return_counts=True)
    longest_first = np.argsort(-lengths, kind="stable")
    starts, lengths = starts[longest_first], lengths[longest_first]
    slots = np.arange(len(starts))
    for place in range(int(lengths[0]) if len(lengths) else 0):
        num_left = np.searchsorted(-lengths, -place, side="left")
        yield slots[:num_left], starts[:num_left] + place


def distance_km(
    latitudes_e7: np.ndarray,
    longitudes_e7: np.ndarray,
    other_latitudes_e7: np.ndarray,
    other_longitudes_e7: np.ndarray,
) -> np.ndarray:
    """float64, along the great circle (haversine); NaN where a place is unknown."""
    unknown = (latitudes_e7 == UNKNOWN_E7) | (other_latitudes_e7 == UNKNOWN_E7)
    latitude, longitude, other_latitude, other_longitude = (
        np.radians(np.asarray(degrees_e7, np.float64) * 1e-7)
        for degrees_e7 in (latitudes_e7, longitudes_e7, other_latitudes_e7, other_longitudes_e7)
    )
    chord = (
        np.sin((other_latitude - latitude) / 2) ** 2
        + np.cos(latitude) * np.cos(other_latitude) * np.sin((other_longitude - longitude) / 2) ** 2
    )
    distances = 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(chord, 0, 1)))
    return np.where(unknown, np.nan, distances)
