"""Live states of people under one model: an LRU table in memory, made again from the log at need.

States lie in pools, one a capacity, so that a batch of people is rows of one array. A state follows
from the person's events alone, so throwing one away loses nothing but the time to encode it again.
All of this runs in one thread (`stt_jax.service.batcher`); that no two requests meet in a row is
its promise.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from stt_jax import session
from stt_jax.histories import (
    Anchor,
    Events,
    Moment,
    Tokens,
    anchor,
    find_moment,
    history_rows,
)
from stt_jax.service.asks import Ask
from stt_jax.service.events import person_events
from stt_jax.service.models import ServedModel
from stt_jax.service.store import EventStore, StoredEvent, StoreError, Version

_NEW_EVENTS = (4,)  # events that are appended at once; more are encoded from the start
_SMALLEST_CAPACITY = 128  # every further pool costs memory for a batch and time to warm up


@dataclasses.dataclass
class _Person:
    """What is kept of a person, and where their state is."""

    version: Version
    user_row: int | None  # in the prepared log
    events: Events
    has_offsets: bool  # the prepared log or an event told one
    pool: Pool
    row: int
    start: int
    anchor: Anchor

    @property
    def num_encoded(self) -> int:
        return len(self.events) - self.start


class Pool:
    """States of one capacity; behind them scratch rows for one batch, and an empty one."""

    def __init__(self, served: ServedModel, capacity: int, num_people: int, num_scratch: int):
        self.capacity = capacity
        self.num_rows = num_people + num_scratch + 1
        # On the mesh of the parameters, as every cache that a step gives: nothing compiles again.
        place = jax.tree.leaves(served.run.params)[0].sharding
        if isinstance(place, NamedSharding):
            place = NamedSharding(place.mesh, PartitionSpec())
        cache = session.new_cache(served.run.model, self.num_rows, capacity)
        self.cache = jax.device_put(cache, place)
        self.free = list(range(num_people))
        self.scratch = range(num_people, num_people + num_scratch)
        self.empty = self.num_rows - 1  # never written: whoever has no events
        self.users: collections.OrderedDict[str, int] = collections.OrderedDict()


@dataclasses.dataclass(frozen=True)
class _Work:
    """A row to be written: encoded from the start, or appended to."""

    pool: Pool
    row: int
    tokens: Tokens
    start: int | None  # events that are there; None = from the start


@dataclasses.dataclass(frozen=True)
class View:
    """What an ask sees: when it is, a row, and the events in it."""

    pool: Pool
    row: int
    events: Events  # the person's, up to the request
    encoded: Events  # those of them that are in the row
    anchor: Anchor
    user_row: int | None
    moment: Moment


class LiveStates:
    """States that follow the log.

    Attributes:
      pools: of rising capacity.
      window: events that a state holds at most.
      counts: how often what was done, by name, for the metrics.
    """

    def __init__(
        self,
        served: ServedModel,
        store: EventStore,
        counts: collections.Counter[str],
        *,
        state_bytes: int,
        batch_sizes: tuple[int, ...],
    ) -> None:
        """Makes the pools.

        Args:
          served: the model.
          store: the log of events.
          counts: to be added to.
          state_bytes: memory for states, but never less than a batch of each size takes; more
            people than fit are encoded again when they come.
          batch_sizes: of people, rising.
        """
        self._served, self._store = served, store
        self.window = served.run.training.asked_tokens
        self.counts = counts
        self._hop = session.window_hop(served.run.training)
        self._has_times = served.log.meta.has_times
        self._batch_sizes = batch_sizes
        self._state_bytes = state_bytes
        self.pools = self._make_pools()
        self._people: dict[str, _Person] = {}

    def __len__(self) -> int:
        """People with a live state."""
        return len(self._people)

    def warm_up(self) -> None:
        """Compiles every size of every pool; rows past the last are padding: nothing is written."""
        nothing = person_events([], self._served)
        tokens = Tokens(nothing, None, anchor(nothing))
        for pool in self.pools:
            for size in self._batch_sizes:
                self._write([_Work(pool, pool.num_rows, tokens, None)] * size, pool.capacity)
                for count in _NEW_EVENTS:
                    self._write([_Work(pool, pool.num_rows, tokens, 0)] * size, count)

    def empty_view(self, pool: Pool) -> View:
        """What an ask sees of somebody without events."""
        nothing = person_events([], self._served)
        return View(pool, pool.empty, nothing, nothing, anchor(nothing), None, Moment(None, 0, 0))

    def views(self, asks: Sequence[Ask]) -> list[View | Exception]:
        """Brings the states up to the log and gives what each ask sees, in a row of a pool.

        At most as many asks as the largest batch; the rows hold until the next call. Somebody whose
        events cannot be used has no state; their asks see the exception.

        Raises:
          StoreError: the log cannot be read.
        """
        users = list(dict.fromkeys(a.user for a in asks if a.user is not None))
        people, failed = self._refresh(users)
        scratch = {id(pool): iter(pool.scratch) for pool in self.pools}
        found: list[View | Exception] = []
        work: list[_Work] = []
        for ask in asks:
            try:
                if ask.user in failed:
                    raise failed[ask.user]
                found.append(self._view(ask, people, scratch, work))
            except Exception as error:  # before anything of it is written
                found.append(error)
        self._run(work)
        return found

    def reset(self) -> None:
        """Throws all states away: after an error nobody knows what is in them."""
        self._people.clear()
        self.pools = self._make_pools()

    def _make_pools(self) -> list[Pool]:
        """Pools of rising capacity that share the memory as the log's people need them."""
        served, max_batch = self._served, self._batch_sizes[-1]
        capacities = [self.window]
        while capacities[0] > _SMALLEST_CAPACITY:
            capacities.insert(0, max(_SMALLEST_CAPACITY, capacities[0] // 4))
        lengths = np.minimum(np.diff(served.log.user_offsets), self.window)
        one = jax.eval_shape(lambda: session.new_cache(served.run.model, 1, 1))
        event_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one))
        classes = np.searchsorted(capacities, lengths)
        shares = np.bincount(classes, minlength=len(capacities)) + 1.0
        shares = shares * capacities / np.sum(shares * capacities)
        pools = []
        for capacity, share in zip(capacities, shares, strict=True):
            # A batch of people has to fit, besides the scratch rows of the batch.
            num_people = max(int(self._state_bytes * share) // (capacity * event_bytes), max_batch)
            pools.append(Pool(served, capacity, num_people, max_batch))
        return pools

    def _refresh(self, users: list[str]) -> tuple[dict[str, _Person], dict[str, Exception]]:
        """Brings the states of people up to the log; who has no events has no state.

        Returns:
          The people, and the exceptions of those whose events cannot be used.
        """
        versions = self._store.versions(users)
        stale = [
            user
            for user in users
            if user not in self._people or self._people[user].version != versions[user]
        ]
        stored, failed = self._read([user for user in stale if versions[user].number])
        busy = set(users)
        work: list[_Work] = []
        for user in stale:
            if user in failed:
                continue
            # The version was read before the events: if more came in between, the next
            # request sees another version and reads again.
            row = self._served.user_row(user)
            known = row is not None and not versions[user].forgotten
            try:
                sent = stored.get(user, [])
                events = person_events(sent, self._served, row if known else None)
            except Exception as error:
                failed[user] = error
                continue
            has_offsets = known or _tell_offsets(sent)
            user_row = row if known else None
            self._place(user, versions[user], user_row, events, has_offsets, busy, work)
        self._run(work)
        for user in failed.keys() & self._people.keys():
            self._drop(user)
        found = {user: self._people[user] for user in users if user in self._people}
        for user, person in found.items():
            person.pool.users.move_to_end(user)
        return found, failed

    def _read(self, users: list[str]) -> tuple[dict[str, list[StoredEvent]], dict[str, Exception]]:
        """Stored events of people, and the exceptions of those who have a row that is none."""
        failed: dict[str, Exception] = {}
        try:
            return self._store.read(users), failed
        except StoreError:
            raise
        except Exception:
            found: dict[str, list[StoredEvent]] = {}
        for user in users:
            try:
                found |= self._store.read([user])
            except StoreError:
                raise
            except Exception as error:
                failed[user] = error
        return found, failed

    def _place(
        self,
        user: str,
        version: Version,
        user_row: int | None,
        events: Events,
        has_offsets: bool,
        busy: set[str],
        work: list[_Work],
    ) -> None:
        """Notes what has to be encoded so that the person's state holds these events."""
        old = self._people.get(user)
        if len(events) == 0:
            if old is not None:
                self._drop(user)
            return
        start = session.window_start(len(events), self.window, self._hop)
        pool = self._pool(len(events) - start)
        if old is not None and old.pool is pool and old.start == start:
            num_new = len(events) - len(old.events)
            if 0 <= num_new <= _NEW_EVENTS[-1] and _equal(
                events[start : len(old.events)], old.events[start:]
            ):
                new_anchor = old.anchor.seeing(events[len(old.events) :])
                if num_new:
                    before = int(events.times[len(old.events) - 1])
                    tokens = Tokens(events[len(old.events) :], before, new_anchor)
                    work.append(_Work(pool, old.row, tokens, old.num_encoded))
                    self.counts["appended_events"] += num_new
                self._people[user] = _Person(
                    version, user_row, events, has_offsets, pool, old.row, start, new_anchor
                )
                return
        if old is not None:
            self._drop(user)
        row = self._row(pool, busy)
        its_anchor = anchor(events[start:])
        person = _Person(version, user_row, events, has_offsets, pool, row, start, its_anchor)
        self._people[user] = person
        pool.users[user] = row
        work.append(_from_start(pool, row, events, start, person.anchor))
        self.counts["encoded_histories"] += 1

    def _pool(self, num_events: int) -> Pool:
        return next(pool for pool in self.pools if num_events <= pool.capacity)

    def _row(self, pool: Pool, busy: set[str]) -> int:
        if not pool.free:
            oldest = next(user for user in pool.users if user not in busy)
            self._drop(oldest)
            self.counts["evicted_states"] += 1
        return pool.free.pop()

    def _drop(self, user: str) -> None:
        person = self._people.pop(user)
        del person.pool.users[user]
        person.pool.free.append(person.row)

    def _view(
        self,
        ask: Ask,
        people: dict[str, _Person],
        scratch: dict[int, Iterator[int]],
        work: list[_Work],
    ) -> View:
        person = None if ask.user is None else people.get(ask.user)
        if person is None:
            trail = ask.trail or ()
            events, user_row = person_events(trail, self._served), None
            has_offsets = _tell_offsets(trail)
        else:
            events, user_row, has_offsets = person.events, person.user_row, person.has_offsets
        moment = find_moment(
            events,
            ask.time_s if self._has_times else None,
            is_local=ask.time_is_local,
            told_offset_s=ask.utc_offset_s,
            has_offsets=has_offsets,
        )
        cut = moment.num_events
        if person is not None and cut == len(events):
            encoded = events[person.start :]
            return View(person.pool, person.row, events, encoded, person.anchor, user_row, moment)
        events = events[:cut]
        if cut == 0:
            pool = self.pools[0]
            return View(pool, pool.empty, events, events, anchor(events), user_row, moment)
        start = session.window_start(cut, self.window, self._hop)
        pool = self._pool(cut - start)
        row = next(scratch[id(pool)])
        work.append(_from_start(pool, row, events, start, anchor(events[start:])))
        return View(pool, row, events, events[start:], work[-1].tokens.anchor, user_row, moment)

    def _run(self, work: list[_Work]) -> None:
        for pool in self.pools:
            mine = [one for one in work if one.pool is pool]
            self._write([one for one in mine if one.start is None], pool.capacity)
            appended = [one for one in mine if one.start is not None]
            for count in _NEW_EVENTS:
                self._write(
                    [
                        one
                        for one in appended
                        if session.size_bucket(len(one.tokens.events), _NEW_EVENTS) == count
                    ],
                    count,
                )

    def _write(self, work: list[_Work], num_tokens: int) -> None:
        for first in range(0, len(work), self._batch_sizes[-1]):
            part = work[first : first + self._batch_sizes[-1]]
            pool, model = part[0].pool, self._served.run.model
            size = session.size_bucket(len(part), self._batch_sizes)
            rows = np.full(size, pool.num_rows, np.int32)
            rows[: len(part)] = [one.row for one in part]
            tokens = [one.tokens for one in part]
            history = history_rows(tokens, size, num_tokens, has_times=self._has_times)
            params = self._served.run.params
            if part[0].start is None:
                pool.cache = session.start(model, params, pool.cache, rows, history)
            else:
                starts = np.zeros(size, np.int32)
                starts[: len(part)] = [one.start or 0 for one in part]
                pool.cache = session.append(model, params, pool.cache, rows, starts, history)


def _from_start(pool: Pool, row: int, events: Events, start: int, its_anchor: Anchor) -> _Work:
    before = int(events.times[start - 1]) if start else None
    return _Work(pool, row, Tokens(events[start:], before, its_anchor), None)


def _tell_offsets(stored: Sequence[StoredEvent]) -> bool:
    return any(event.utc_offset_s is not None for event in stored)


def _equal(events: Events, others: Events) -> bool:
    """Whether two stretches of events are the same to the model."""
    if len(events) != len(others):
        return False
    columns, other_columns = (jax.tree.leaves(vars(one)) for one in (events, others))
    return all(
        np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        for one, other in zip(columns, other_columns, strict=True)
    )
