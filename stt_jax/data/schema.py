"""What an event is: who did what, when and where, and how each column is kept.

A raw log is read as text, whatever its file format, so that "007" stays "007" and the same log as
CSV, JSON lines or Parquet gives the same prepared log. Cleaning turns that text into the columns
below. Only the user, the item and (unless the log is untimed) the time must be there; the rest may
be missing, row by row, and has a value that says so.
"""

from __future__ import annotations

import dataclasses

import numpy as np

# The part of the log that an event belongs to.
TRAIN, VALIDATION, TEST = 0, 1, 2
PART_NAMES = ("train", "validation", "test")

# Degrees are kept as int32 tens of nanodegrees (1e-7 deg, about a centimetre); this one is unknown.
UNKNOWN_E7 = -(2**31)
DEGREES_TO_E7 = 10_000_000

# Numeric columns are read by the model within -10 and 10, as their log scales them.
NUMBER_LIMIT = 10.0

# They are kept as float32, which rounds to infinity from here on.
NUMBER_OVERFLOW = (2 - 2**-24) * 2.0**127
LARGEST_IN_WORDS = "3.4e38"

# Columns of the stored events, in file order; context columns follow them. int32 vocabulary rows
# start at 1, and 0 is "unknown": an item outside the training part, an empty category, no session.
EVENT_DTYPES = {
    "items": np.int32,
    "times": np.int64,  # unix seconds, UTC; all 0 in a log without times
    "utc_offsets_s": np.int32,  # local time = times + utc_offsets_s
    "latitudes_e7": np.int32,
    "longitudes_e7": np.int32,
    "categories": np.int32,
    "sessions": np.int32,
    "parts": np.int8,
}

# What a column of a raw log can be used for: role -> the flag that names the column.
ROLE_FLAGS = {
    "user": "user",
    "item": "item",
    "time": "time",
    "utc_offset": "utc_offset_column",
    "zone": "zone_column",
    "latitude": "latitude",
    "longitude": "longitude",
    "category": "category",
    "name": "name",
    "session": "session",
    "domain": "domain",
}


def known_place(latitude_e7: int, longitude_e7: int) -> tuple[int, int] | None:
    """A place as told; None for (0, 0), where devices without a fix report to be.

    `clean.mark_places` says the same of a raw log.
    """
    return (latitude_e7, longitude_e7) if latitude_e7 or longitude_e7 else None


@dataclasses.dataclass(frozen=True)
class StepCount:
    """What one step of the preparation did to the rows.

    Attributes:
      name: the step as printed.
      rows_in: rows before the step.
      rows_out: rows after it; `rows_in - rows_out` is the sum of `dropped`.
      dropped: reason -> rows that left the log for it.
      changed: reason -> rows that stayed with another value or an unknown one.
    """

    name: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    changed: dict[str, int]
