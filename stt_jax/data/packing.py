"""Packing windows of many lengths into rows of one length, so that little is padding.

Which *lengths* share a row is decided once (best fit, longest first); which *windows* of those
lengths meet is drawn anew every epoch. So each epoch has the same number of rows, any row of any
epoch can be computed on its own, and the whole state of the packer is a row number.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Packing:
    """Windows grouped into rows.

    Attributes:
      order: int64 [W], window indices sorted by size class.
      class_starts: int64 [number of classes + 1], windows of class c are
        `order[class_starts[c]:class_starts[c + 1]]`.
      slots: int64 [W], positions in `order`, row after row.
      row_starts: int64 [rows + 1], row r holds `slots[row_starts[r]:row_starts[r + 1]]`.
      fill: the fraction of tokens in the rows that are not padding.
    """

    order: np.ndarray
    class_starts: np.ndarray
    slots: np.ndarray
    row_starts: np.ndarray
    fill: float

    @property
    def num_rows(self) -> int:
        """Rows an epoch."""
        return len(self.row_starts) - 1


def pack(
    num_tokens: np.ndarray, num_requests: np.ndarray, *, row_tokens: int, row_requests: int
) -> Packing:
    """Best-fit decreasing over size classes, in two dimensions.

    Args:
      num_tokens: int [W], tokens of each window, at most `row_tokens`.
      num_requests: int [W], requests of each window, in 1..row_requests.
      row_tokens: tokens in a row.
      row_requests: requests in a row.

    Raises:
      ValueError: a window larger than a row, or no window at all.
    """
    if len(num_tokens) == 0:
        raise ValueError("there is nothing to pack: no person has an event to predict in this part")
    if np.max(num_tokens) > row_tokens or np.max(num_requests) > row_requests:
        raise ValueError(
            f"a window has {np.max(num_tokens)} tokens and {np.max(num_requests)} requests, more "
            f"than a row of {row_tokens} tokens and {row_requests} requests holds"
        )
    sizes = num_tokens.astype(np.int64) * (row_requests + 1) + num_requests
    classes, counts = np.unique(-sizes, return_counts=True)  # largest first
    order = np.argsort(-sizes, kind="stable")
    class_starts = np.concatenate([[0], np.cumsum(counts)])

    # free[t, r] lists the open rows with room for t tokens and r requests. A class goes to the
    # fullest rows that can take it, many rows at a time.
    free: dict[tuple[int, int], list[np.ndarray]] = {}
    num_rows = 0
    slot_rows = np.empty(len(order), np.int64)
    for index, size in enumerate(-classes):
        tokens, requests = divmod(int(size), row_requests + 1)
        at, end = int(class_starts[index]), int(class_starts[index + 1])
        while at < end:
            fits = [room for room in free if room[0] >= tokens and room[1] >= requests]
            if fits:
                room = min(fits)
                rows = np.concatenate(free.pop(room))
            else:
                room = (row_tokens, row_requests)
                copies = min(_copies(room[0], tokens), room[1] // requests)
                rows = np.arange(num_rows, num_rows - (-(end - at) // copies))
                num_rows += len(rows)
            taken, kept = rows[: end - at], rows[end - at :]
            slot_rows[at : at + len(taken)] = taken
            at += len(taken)
            if len(kept):
                free.setdefault(room, []).append(kept)
            left = (room[0] - tokens, room[1] - requests)
            if left[1] > 0:
                free.setdefault(left, []).append(taken)
    slots = np.argsort(slot_rows, kind="stable")
    row_starts = np.searchsorted(slot_rows[slots], np.arange(num_rows + 1))
    fill = float(np.sum(num_tokens)) / (num_rows * row_tokens)
    return Packing(order, class_starts, slots, row_starts, fill)


def _copies(room: int, size: int) -> int:
    return room // size if size else room


def shuffle_epoch(packing: Packing, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws which windows meet, and the order of the rows, for one epoch.

    Returns:
      (windows, rows): windows int64 [W] so that row r holds
      `windows[row_starts[r]:row_starts[r + 1]]`; rows int64 [num_rows], the order of reading.
    """
    rng = np.random.default_rng([seed, epoch])
    num_windows = len(packing.order)
    size_class = np.repeat(np.arange(len(packing.class_starts) - 1), np.diff(packing.class_starts))
    shuffled = np.lexsort((rng.random(num_windows), size_class))
    return packing.order[shuffled][packing.slots], rng.permutation(packing.num_rows)


def in_order(packing: Packing) -> tuple[np.ndarray, np.ndarray]:
    """The same as `shuffle_epoch` without a draw: for evaluation, where order is of no matter."""
    return packing.order[packing.slots], np.arange(packing.num_rows)
