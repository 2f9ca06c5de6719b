"""What came right after each item, and when: as a list of every time, not as a sum of all times.

`find_successions` lists those of a log; `LiveSuccessions` goes on as events come in and keeps the
last ones of each item. A request looks at those before its own minute alone, so an event is never
among what its own prediction goes by.
"""

from __future__ import annotations

import numpy as np

from stt_jax.batch import NUM_LATEST, Successions, table_rows
from stt_jax.data.prepared_log import PreparedLog

_NEVER_MIN = 2**31 - 1


def find_successions(log: PreparedLog, events: np.ndarray) -> Successions:
    """What followed what among some events.

    Args:
      log: whose items and times they are.
      events: int [N], ascending rows of the log's events; those of a person that are neighbours
        among them follow each other. What is of an unknown item is left out.
    """
    befores, afters, minutes = _follow(log, events)
    order = np.lexsort((minutes, befores))
    counts = np.bincount(befores, minlength=table_rows(log.num_items))
    return Successions(
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        # One more, so that there is something to look at.
        np.append(afters[order], 0).astype(np.int32),
        np.append(minutes[order], _NEVER_MIN).astype(np.int32),
        np.int32(minutes.max(initial=0)),
    )


class LiveSuccessions:
    """The last `NUM_LATEST` successions of each item, always in arrays of one shape.

    They take a kilobyte an item.
    """

    def __init__(self, log: PreparedLog) -> None:
        """Those of the log, all parts of it."""
        shape = (table_rows(log.num_items), NUM_LATEST)
        self._items = np.zeros(shape, np.int32)
        self._minutes = np.full(shape, _NEVER_MIN, np.int32)
        self._newest = 0
        befores, afters, minutes = _follow(log, np.arange(log.num_events))
        order = np.lexsort((minutes, befores))
        ends = np.cumsum(np.bincount(befores, minlength=shape[0]))
        # Counted from the end of its item's, so that the oldest are those that find no room.
        back = ends[befores[order]] - np.arange(len(order))
        order, back = order[back <= NUM_LATEST], back[back <= NUM_LATEST]
        befores = befores[order]
        places = np.bincount(befores, minlength=shape[0])[befores] - back
        self._items[befores, places] = afters[order]
        self._minutes[befores, places] = minutes[order]
        self._newest = int(minutes.max(initial=0))

    def add(self, before: int, after: int, minute: int) -> None:
        """Notes that `after` came right after `before`, rows of the catalogue, in that minute."""
        items, minutes = self._items[before], self._minutes[before]
        place = int(np.searchsorted(minutes, minute, side="right"))
        if minutes[-1] == _NEVER_MIN:  # there is room: what is later moves back
            items[place + 1 :], minutes[place + 1 :] = items[place:-1], minutes[place:-1]
        elif place == 0:
            return  # older than all that is kept
        else:
            place -= 1
            items[:place], minutes[:place] = items[1 : place + 1], minutes[1 : place + 1]
        items[place], minutes[place] = after, minute
        self._newest = max(self._newest, minute)

    def successions(self) -> Successions:
        """The arrays as they are now; they are new ones."""
        starts = np.arange(len(self._items) + 1, dtype=np.int32) * NUM_LATEST
        return Successions(
            starts, self._items.flatten(), self._minutes.flatten(), np.int32(self._newest)
        )


def _follow(log: PreparedLog, events: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(before, after, minute of after) of known items that follow each other."""
    users = np.searchsorted(log.user_offsets, events, side="right")
    items, minutes = log.items[events], log.times[events] // 60
    chosen = (users[1:] == users[:-1]) & (items[1:] > 0) & (items[:-1] > 0)
    return items[:-1][chosen], items[1:][chosen], minutes[1:][chosen]
