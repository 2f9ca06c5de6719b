"""Sequences of texts over Arrow arrays, and finding an id in them."""

from __future__ import annotations

import bisect
import difflib
import heapq
import itertools
from collections.abc import Iterator, Sequence
from typing import overload

import pyarrow as pa

from stt_jax.data.arrays import texts_to_arrow

_NUM_NEAR_IDS = 2_000  # neighbours that are searched for a near miss


class Texts(Sequence[str]):
    """A read-only sequence of str over an Arrow array, without a Python object a row."""

    def __init__(self, values: pa.Array | Sequence[str]):
        self.array = values if isinstance(values, pa.Array) else texts_to_arrow(values)

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Iterator[str]:
        return iter(self.array.to_pylist())

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> list[str]: ...

    def __getitem__(self, row):
        if isinstance(row, slice):
            return self.array[row].to_pylist()
        return self.array[int(row)].as_py()


def find_sorted(ids: Sequence[str], wanted: str, first: int, last: int) -> int:
    """The first row in first..last whose id is not below `wanted`; ids ascend by byte order."""
    # Python compares str by code point, which is the order of the UTF-8 bytes.
    return bisect.bisect_left(range(last), wanted, lo=first, hi=last, key=lambda row: ids[row])


def near_ids(ids: Sequence[str], wanted: str, row: int) -> str:
    """Up to three ids like `wanted` from around `row`, for an error message."""
    around = ids[max(0, row - _NUM_NEAR_IDS // 2) : row + _NUM_NEAR_IDS // 2]

    def unlikeness(other: str) -> tuple[int, float]:
        pairs = zip(wanted, other, strict=False)
        same_start = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return -same_start, -difflib.SequenceMatcher(None, wanted, other).ratio()

    return ", ".join(heapq.nsmallest(3, around, key=unlikeness)) or "none"
