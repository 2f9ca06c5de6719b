"""Between numpy and Arrow by way of their buffers.

`pyarrow.array` and `Array.to_numpy` import pandas, which takes longer than preparing a small log.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa


def to_arrow(values: np.ndarray) -> pa.Array:
    """Numbers [N] of any plain dtype as an Arrow array without nulls; shares their memory."""
    values = np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def texts_to_arrow(texts: Sequence[str]) -> pa.Array:
    """Texts [N] as an Arrow array of strings.

    Raises:
      ValueError: they are longer together than the 2 GiB that such an array can hold.
    """
    encoded = [text.encode() for text in texts]
    ends = list(itertools.accumulate(map(len, encoded), initial=0))
    if ends[-1] >= 2**31:
        raise ValueError(f"{len(encoded)} texts have {ends[-1]} bytes together; 2 GiB is the limit")
    offsets = pa.py_buffer(np.array(ends, np.int32))
    data = pa.py_buffer(b"".join(encoded))
    return pa.Array.from_buffers(pa.string(), len(encoded), [None, offsets, data])


def to_numpy(column: pa.Array | pa.ChunkedArray, dtype: Any = None) -> np.ndarray:
    """Numbers as a numpy array, null as NaN; a copy only where dtype or pieces ask for one.

    Raises:
      ValueError: an integer is null.
    """
    pieces = [_view(piece) for piece in getattr(column, "chunks", [column])]
    if len(pieces) == 1:
        return np.ascontiguousarray(pieces[0], dtype)
    if not pieces:
        return np.zeros(0, dtype or column.type.to_pandas_dtype())
    return np.concatenate(pieces, dtype=dtype, casting="unsafe")


def _view(piece: pa.Array) -> np.ndarray:
    if piece.null_count and pa.types.is_floating(piece.type):
        piece = piece.fill_null(np.nan)
    if piece.null_count:
        raise ValueError(f"{piece.null_count} of {len(piece)} numbers are null")
    kind = np.dtype(piece.type.to_pandas_dtype())
    return np.frombuffer(piece.buffers()[1], kind, len(piece), piece.offset * kind.itemsize)
