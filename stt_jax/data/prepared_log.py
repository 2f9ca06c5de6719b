"""A prepared log in memory: events by user, the vocabularies, the split, and what was counted."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stt_jax.config import DOMAIN
from stt_jax.data.schema import StepCount
from stt_jax.data.texts import find_sorted, near_ids

TIME_GRID = "time_grid_s"  # of `LogMeta.statistics`; only with --coarsen_time_s
_STRETCH_EVENTS = 1 << 20


@dataclasses.dataclass(frozen=True)
class LogMeta:
    """What `meta.json` holds. `statistics` is a flat mapping of names to numbers and words.

    `numerics` says of each numeric column what was done to it, for `numerics.apply_stages`.
    `former_hashes` are the data hashes that the log had before people were forgotten, oldest first:
    runs trained on any of them have seen whoever was forgotten later. `forgotten_items` are rows of
    items that went with forgotten people: the rows stay, so that the others keep theirs.
    """

    format_version: int
    data_hash: str
    split_hash: str
    has_times: bool
    has_places: bool
    time_format: str
    local_time: str
    steps: tuple[StepCount, ...]
    statistics: dict[str, Any]
    warnings: tuple[str, ...]
    numerics: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    former_hashes: tuple[str, ...] = ()
    forgotten_items: tuple[int, ...] = ()

    @property
    def time_grid_s(self) -> int:
        """All times are whole multiples of it; 1 also in a coarse log of before it was kept."""
        return int(self.statistics.get(TIME_GRID, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedLog:
    """A prepared log: events by user, the vocabularies, the split. Arrays are read-only views.

    N events, U users, V items of the training part. Events of a user are in the order of their
    time, ties in the order of the source. Users that have training events come first, in the byte
    order of their ids; the others follow, in the same order. Items, categories and context values
    are numbered from 1 by falling number of training events, ties by byte order; 0 is unknown.

    Attributes:
      directory: where the log is stored.
      items: int32 [N], 1..V, or 0 for an item without training events (kept: it is context).
      times: int64 [N], unix seconds UTC; all 0 when `meta.has_times` is False.
      utc_offsets_s: int32 [N]; local time = times + utc_offsets_s.
      latitudes_e7, longitudes_e7: int32 [N], degrees * 1e7, UNKNOWN_E7 where not known.
      categories: int32 [N]; the event's own category, else its item's, else 0.
      contexts: column name -> int32 [N], further categorical columns of the event.
      sessions: int32 [N], numbered from 1 in stored order, one number a (user, session); 0 = none.
      parts: int8 [N], TRAIN, VALIDATION or TEST.
      user_offsets: int64 [U + 1]; user row u owns events user_offsets[u]:user_offsets[u + 1].
      num_train_users: user rows below this have training events.
      user_ids: str [U].
      item_ids, item_names: str [V + 1]; an item without a name has its id for a name.
      item_latitudes_e7, item_longitudes_e7: int32 [V + 1], lower medians of the training events.
      item_categories: int32 [V + 1], the most frequent one in the training events.
      item_train_counts: int64 [V + 1].
      category_values: str [C + 1], row 0 = "".
      context_values: column name -> the same for a context column.
      meta: hashes, counts and statistics.
      numbers: column name -> float32 [N], NaN where unknown; numeric columns of the event and made
        features, as --fill, --smooth, --transform and --normalise have left them.
      was_missing: column name ("place", unless a column is called so: the coordinates) -> int8 [N],
        1 where the log itself had no value to use; for every numeric and every filled column.
      item_traits: name -> int32 [V + 1, M], values that an item has, most frequent first, 0 = no
        further one.
      item_trait_values: name -> str [C + 1], row 0 = "".
      user_traits: name -> int32 [U], 0 = unknown.
      user_trait_values: name -> the same for a trait of people.
    """

    directory: pathlib.Path
    items: np.ndarray
    times: np.ndarray
    utc_offsets_s: np.ndarray
    latitudes_e7: np.ndarray
    longitudes_e7: np.ndarray
    categories: np.ndarray
    contexts: dict[str, np.ndarray]
    sessions: np.ndarray
    parts: np.ndarray
    user_offsets: np.ndarray
    num_train_users: int
    user_ids: Sequence[str]
    item_ids: Sequence[str]
    item_names: Sequence[str]
    item_latitudes_e7: np.ndarray
    item_longitudes_e7: np.ndarray
    item_categories: np.ndarray
    item_train_counts: np.ndarray
    category_values: Sequence[str]
    context_values: dict[str, Sequence[str]]
    meta: LogMeta
    numbers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    was_missing: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    item_traits: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    item_trait_values: dict[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    user_traits: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    user_trait_values: dict[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    @property
    def num_events(self) -> int:
        """N, events of all parts."""
        return len(self.items)

    @property
    def num_users(self) -> int:
        """U, users of all parts."""
        return len(self.user_offsets) - 1

    @property
    def num_items(self) -> int:
        """V, without the unknown item: valid item rows are 1..V."""
        return len(self.item_ids) - 1

    @property
    def is_item(self) -> np.ndarray:
        """bool [V + 1], rows that hold an item: not row 0, nor what went with forgotten people."""
        holds = np.arange(self.num_items + 1) > 0
        holds[list(self.meta.forgotten_items)] = False
        return holds

    @property
    def num_listed(self) -> int:
        """Rows that hold an item: what a list can have at most."""
        return self.num_items - len(self.meta.forgotten_items)

    @property
    def num_categories(self) -> int:
        """C, without the unknown category: valid category rows are 1..C."""
        return len(self.category_values) - 1

    @property
    def domain_values(self) -> Sequence[str]:
        """Names of the domains from row 1 on; empty for a log without --domain."""
        return self.item_trait_values.get(DOMAIN, ())

    @property
    def item_domains(self) -> np.ndarray:
        """int32 [V + 1], the domain of each item; 0 for the unknown item, or without --domain."""
        if DOMAIN not in self.item_traits:
            return np.zeros(self.num_items + 1, np.int32)
        return self.item_traits[DOMAIN][:, 0]

    def stretches(self) -> Iterator[tuple[slice, slice]]:
        """(user rows, their events) from first to last: whole users, about a million events each.

        Iterate over all events this way: it keeps a log larger than memory from being read at once.
        """
        first = 0
        while first < self.num_users:
            start = int(self.user_offsets[first])
            end = int(np.searchsorted(self.user_offsets, start + _STRETCH_EVENTS))
            end = min(max(end, first + 1), self.num_users)
            yield slice(first, end), slice(start, int(self.user_offsets[end]))
            first = end

    def user_row(self, user_id: str) -> int:
        """The row of a user; ValueError names near ids when there is no such user."""
        for first, last in ((0, self.num_train_users), (self.num_train_users, self.num_users)):
            row = find_sorted(self.user_ids, user_id, first, last)
            if row < last and self.user_ids[row] == user_id:
                return row
        row = find_sorted(self.user_ids, user_id, 0, self.num_train_users)
        raise ValueError(
            f"user {user_id!r} is not in {self.directory}; "
            f"near ids: {near_ids(self.user_ids, user_id, row)}"
        )

    def has_item(self, item_id: str) -> bool:
        """Whether training saw an item."""
        return item_id in self._item_rows

    def item_row(self, item_id: str) -> int:
        """The row of an item; ValueError names near ids when training never saw it."""
        row = self._item_rows.get(item_id, 0)
        if row == 0:
            raise ValueError(
                f"item {item_id!r} is not among the training items of {self.directory}; "
                f"near ids: {near_ids(self.item_ids[1:], item_id, 0)}"
            )
        return row

    @functools.cached_property
    def _item_rows(self) -> dict[str, int]:
        return {self.item_ids[row]: row for row in np.flatnonzero(self.is_item).tolist()}
