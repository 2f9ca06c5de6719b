"""Columns of a few events, for tests of what is done to them."""

import numpy as np

from stt_jax.data.columns import Columns
from stt_jax.data.schema import UNKNOWN_E7


def make_columns(users, *, places=None, times_s=None, items=None, parts=None, **fields):
    """Events by user; places in degrees or None; numbers, codes and texts as in Columns."""
    size = len(users)
    places = places or [None] * size
    degrees = np.array(
        [(UNKNOWN_E7, UNKNOWN_E7) if p is None else np.rint(np.multiply(p, 1e7)) for p in places],
        np.int64,
    ).astype(np.int32)
    return Columns(
        source_rows=np.arange(size),
        users=np.array(users, np.int32),
        items=np.array(items or [0] * size, np.int32),
        times_s=np.array(range(size) if times_s is None else times_s, np.int64),
        utc_offsets_s=np.zeros(size, np.int64),
        parts=np.array(parts or [0] * size, np.int8),
        latitudes_e7=degrees[:, 0],
        longitudes_e7=degrees[:, 1],
        numbers={name: np.array(v, np.float64) for name, v in fields.get("numbers", {}).items()},
        codes={name: np.array(v, np.int32) for name, v in fields.get("codes", {}).items()},
        texts=fields.get("texts", {}),
        was_missing={},
    )
