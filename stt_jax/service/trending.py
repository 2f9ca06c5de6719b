"""What is popular now, and what people go on to: the log and all that came to the service since."""

from __future__ import annotations

import numpy as np

from stt_jax.batch import Successions, Trends
from stt_jax.service.events import held_by_log
from stt_jax.service.models import ServedModel
from stt_jax.service.store import EventStore, StoredItem, now_s
from stt_jax.successions import LiveSuccessions
from stt_jax.trends import LiveTrends

_AT_ONCE = 50_000  # events that are read from the store at a time
# Of several services that write, one may commit an earlier number after a later one: so many of the
# last numbers are looked at again.
_LOOK_BACK = 1000
# What somebody did last is remembered for so long, to say what follows it; then it is looked up.
_LAST_EVENTS_S = 86_400


class Trending:
    """Counts what comes to the store, of all services that share it, into a model's trends."""

    def __init__(self, served: ServedModel, store: EventStore) -> None:
        """Counts the prepared log; what is in the store comes with the first `refresh`."""
        self._served, self._store = served, store
        config = served.run.model_config
        self._trends = LiveTrends(served.log, config.trend_half_lives_h, config.trend_step_min)
        self._successions = LiveSuccessions(served.log) if config.succession_half_lives_h else None
        self._last_events: dict[str, tuple[int, int]] = {}  # person -> (time, item)
        self._last = 0
        self._ahead: list[tuple[int, int]] = []  # (time, number) of what is yet to come
        self._came = False  # something that no `refresh` has shown yet
        self._looked_at: set[tuple[int, str]] = set()

    @staticmethod
    def needed(served: ServedModel) -> bool:
        """Whether the model asks what is popular."""
        config = served.run.model_config
        return config.use_crowd and config.use_time and served.log.meta.has_times

    def refresh(self) -> tuple[Trends, Successions | None] | None:
        """The trends and successions with what came since the last time; None = nothing came.

        An event is not counted if the prepared log holds it too or if its item is not in the
        vocabulary; one that is yet to come, by a clock that is fast, is counted when it is due.
        What a forgotten person did before fades with the rest: it is in sums over everybody, and in
        pairs of items that nobody is named with.

        Raises:
          StoreError: the store cannot be read; what was read before is shown the next time.
        """
        self._count_due()
        first = self._last - _LOOK_BACK
        while rows := self._store.after(first, _AT_ONCE):
            now = now_s()
            new = [row for row in rows if (row.sequence, row.event_id) not in self._looked_at]
            self._count([row for row in new if row.time_s <= now])
            self._ahead += [(row.time_s, row.sequence) for row in new if row.time_s > now]
            first = rows[-1].sequence
            self._last = max(self._last, first)  # the newest of before may be forgotten
            looked_at = self._looked_at | {(row.sequence, row.event_id) for row in rows}
            self._looked_at = {one for one in looked_at if one[0] > self._last - _LOOK_BACK}
        oldest = now_s() - _LAST_EVENTS_S
        # A copy: `forget` may come in between.
        for user, (time_s, _) in list(self._last_events.items()):
            if time_s < oldest:
                self._last_events.pop(user, None)
        came, self._came = self._came, False
        if not came:
            return None
        successions = None if self._successions is None else self._successions.successions()
        return self._trends.trends(), successions

    def forget(self, user: str) -> None:
        """Forgets what a person did last; to be called from any thread."""
        self._last_events.pop(user, None)

    def _count_due(self) -> None:
        """Counts what was yet to come and has happened since, unless it was forgotten."""
        now = now_s()
        due = [number for time_s, number in self._ahead if time_s <= now]
        rows = sorted(self._store.numbered(due), key=lambda row: row.time_s)
        self._count(rows)
        self._ahead = [one for one in self._ahead if one[0] > now]

    def _count(self, rows: list[StoredItem]) -> None:
        """Counts events that have happened; StoreError leaves all of them uncounted."""
        new = [row for row in rows if not self._in_log(row)]
        if self._successions is not None:
            self._note_successions(self._successions, new)
        counted = [row for row in new if row.item in self._served.item_rows]
        self._came |= bool(counted)
        items = [self._served.item_rows[row.item] for row in counted]
        minutes = [row.time_s // 60 for row in counted]
        self._trends.add(np.array(items, np.int32), np.array(minutes, np.int64))

    def _note_successions(self, successions: LiveSuccessions, rows: list[StoredItem]) -> None:
        """What people did next follows what they did last; what comes late follows nothing.

        As in training nothing follows an item that is not in the vocabulary, nor does it follow.
        """
        self._look_up_last([row for row in rows if row.user not in self._last_events])
        for row in rows:
            item = self._served.item_rows.get(row.item, 0)
            time_s, before = self._last_events.get(row.user, (row.time_s, 0))
            if row.time_s < time_s:
                continue
            if before > 0 and item > 0:
                successions.add(before, item, row.time_s // 60)
            self._last_events[row.user] = (row.time_s, item)

    def _look_up_last(self, rows: list[StoredItem]) -> None:
        """What the people of some events did before them, by the store and by the prepared log."""
        users = {row.user for row in rows}
        if not users:
            return
        first = min(row.sequence for row in rows)
        stored = self._store.last_items(users, first, now_s())
        versions = self._store.versions(users)
        for user in users:
            log, person = self._served.log, self._served.user_row(user)
            known = []
            if person is not None and not versions[user].forgotten:
                last = log.user_offsets[person + 1] - 1
                known.append((int(log.times[last]), int(log.items[last])))
            if user in stored:
                item = self._served.item_rows.get(stored[user].item, 0)
                known.append((stored[user].time_s, item))
            if known:
                self._last_events[user] = max(known, key=lambda one: one[0])

    def _in_log(self, row: StoredItem) -> bool:
        """Whether the prepared log holds an event too."""
        item = self._served.item_rows.get(row.item, 0)
        log, person = self._served.log, self._served.user_row(row.user)
        return item > 0 and bool(
            held_by_log(log, person, np.array([row.time_s]), np.array([item]))[0]
        )
