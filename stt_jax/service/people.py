"""Live states of people under one model: an LRU table in memory, made again from the log at need.

States lie in pools, one a capacity, so that a batch of people is rows of one array. A state follows
from the person's events alone, so throwing one away loses nothing but the time to encode it again.
All of this runs in one thread (`stt_jax.service.batcher`); that no two requests meet in a row is
its promise.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from stt_jax import ranking, session
from stt_jax.data.pipeline import model_users, traits_of_user
from stt_jax.histories import (
    Anchor,
    Events,
    Question,
    Tokens,
    anchor,
    history_rows,
    request_rows,
    wanted_domains,
)
from stt_jax.service.asks import Answer, Ask, Reason
from stt_jax.service.events import person_events
from stt_jax.service.models import ServedModel
from stt_jax.service.store import EventStore, Version

_NEW_EVENTS = (4,)  # events that are appended at once; more are encoded from the start
_CANDIDATES = (32, 256)  # best items that are fetched at once; then all of them
_REASONS = 3  # events that a recommendation is explained by
_SMALLEST_CAPACITY = 128  # every further pool costs memory for a batch and time to warm up


@dataclasses.dataclass
class _Person:
    """What is kept of a person, and where their state is."""

    version: Version
    user_row: int | None  # in the prepared log
    events: Events
    pool: _Pool
    row: int
    start: int
    anchor: Anchor

    @property
    def num_encoded(self) -> int:
        return len(self.events) - self.start


class _Pool:
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

    pool: _Pool
    row: int
    tokens: Tokens
    start: int | None  # events that are there; None = from the start


@dataclasses.dataclass(frozen=True)
class _View:
    """What an ask sees: a row, and the events in it."""

    pool: _Pool
    row: int
    events: Events  # the person's, up to the request
    encoded: Events  # those of them that are in the row
    anchor: Anchor
    user_row: int | None


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """An ask with all that its answer needs."""

    index: int
    why: bool
    view: _View
    question: Question
    rules: ranking.Rules
    here: np.ndarray | None
    allowed: np.ndarray | None


class LiveTable:
    """Answers asks from live states.

    Attributes:
      counts: how often what was done, by name, for the metrics.
    """

    def __init__(
        self, served: ServedModel, store: EventStore, *, state_bytes: int, max_batch: int
    ) -> None:
        """Makes the pools.

        Args:
          served: the model.
          store: the log of events.
          state_bytes: memory for states, but never less than a batch of each size takes; more
            people than fit are encoded again when they come.
          max_batch: most asks at a time.
        """
        self.served, self._store = served, store
        self.max_batch = max_batch
        self.window = served.run.training.window
        self._hop = session.window_hop(served.run.training)
        self._state_bytes = state_bytes
        self._batch_sizes = (*(size for size in (1, 8, 64) if size < max_batch), max_batch)
        self._pools = _make_pools(served, self.window, state_bytes, max_batch)
        self._people: dict[str, _Person] = {}
        self._has_times = served.log.meta.has_times
        self.counts: collections.Counter[str] = collections.Counter()

    @property
    def num_people(self) -> int:
        """People with a live state."""
        return len(self._people)

    def warm_up(self) -> None:
        """Compiles every size, and refuses a model that gives no probabilities.

        Raises:
          ValueError: the model's answers are not finite.
        """
        nothing = person_events([], self.served)
        tokens = Tokens(nothing, None, anchor(nothing))
        for pool in self._pools:
            view = _View(pool, pool.empty, nothing, nothing, tokens.anchor, None)
            question = self._question(view, None, 0, None)
            one = _Prepared(0, False, view, question, ranking.Rules(), None, None)
            for size in self._batch_sizes:
                # Rows past the last are padding: nothing is written.
                self._write([_Work(pool, pool.num_rows, tokens, None)] * size, pool.capacity)
                for count in _NEW_EVENTS:
                    self._write([_Work(pool, pool.num_rows, tokens, 0)] * size, count)
                for candidates in self._candidates[: len(_CANDIDATES)]:
                    self._score(pool, [one] * size, candidates)
            self._reasons(view, question, np.zeros(0, np.int64))
            _, probabilities = self._score(pool, [one], self._candidates[-1])[0]
            if not 0 < probabilities.sum() < 1.01:  # False for NaN
                raise ValueError("the model's answers are no probabilities; train it again")

    def ask(self, asks: Sequence[Ask]) -> list[Answer | ValueError]:
        """Answers at most `max_batch` asks; a wrong one gets its ValueError for an answer.

        Raises:
          StoreError: the log cannot be read.
        """
        users = list(dict.fromkeys(ask.user for ask in asks if ask.user is not None))
        people = self._refresh(users)
        scratch = {id(pool): iter(pool.scratch) for pool in self._pools}
        answers: dict[int, Answer | ValueError] = {}
        prepared: list[_Prepared] = []
        work: list[_Work] = []
        for index, ask in enumerate(asks):
            try:
                prepared.append(self._prepare(index, ask, people, scratch, work))
            except ValueError as error:
                answers[index] = error
        self._run(work)
        for pool in self._pools:
            mine = [one for one in prepared if one.view.pool is pool]
            if mine:
                answers |= self._answer_pool(pool, mine)
        return [answers[index] for index in range(len(asks))]

    def reset(self) -> None:
        """Throws all states away: after an error nobody knows what is in them."""
        self._people.clear()
        self._pools = _make_pools(self.served, self.window, self._state_bytes, self.max_batch)

    def _prepare(
        self,
        index: int,
        ask: Ask,
        people: dict[str, _Person],
        scratch: dict[int, Iterator[int]],
        work: list[_Work],
    ) -> _Prepared:
        view = self._view(ask, people, scratch, work)
        time_s, offset_s = ask.when(view.events)
        rules = ask.rules(self.served, view.events)
        here = ranking.request_place(view.encoded, ask.place_e7)
        if rules.radius_km and here is None:
            raise ValueError(
                "radius_km needs a place: give latitude and longitude, or a person with a known one"
            )
        served = self.served
        allowed = ranking.allowed_items(
            rules, served.log.item_categories, served.log.item_domains, served.coords, here
        )
        question = self._question(view, time_s, offset_s, ask.place_e7, rules.domains, ask.traits)
        return _Prepared(index, ask.why, view, question, rules, here, allowed)

    def _answer_pool(
        self, pool: _Pool, prepared: list[_Prepared]
    ) -> dict[int, Answer | ValueError]:
        log = self.served.log
        wanted = max(ranking.num_candidates(one.rules, log.num_items) for one in prepared)
        num_fetched = session.size_bucket(wanted, self._candidates)
        fetched = self._score(pool, prepared, num_fetched)
        answers: dict[int, Answer | ValueError] = {}
        for one, found in zip(prepared, fetched, strict=True):
            best = self._best(pool, one, found, num_fetched)
            items, probabilities = ranking.pick(
                best, one.rules, log.item_categories, self.served.item_vectors
            )
            answers[one.index] = Answer(
                ranking.describe(log, items, probabilities, self.served.coords, one.here),
                self._reasons(one.view, one.question, items) if one.why else None,
                len(one.view.events),
                one.question.time_s,
                one.question.utc_offset_s,
            )
        return answers

    def _best(
        self, pool: _Pool, one: _Prepared, found: tuple[np.ndarray, np.ndarray], num_fetched: int
    ) -> ranking.Best:
        def best(k: int) -> tuple[np.ndarray, np.ndarray]:
            items, probabilities = found
            if k > num_fetched:
                items, probabilities = self._score(pool, [one], self._candidates[-1])[0]
            return items[:k], probabilities[:k]

        return best

    # --- states ---

    def _refresh(self, users: list[str]) -> dict[str, _Person]:
        """Brings the states of people up to the log; who has no events has no state."""
        versions = self._store.versions(users)
        stale = [
            user
            for user in users
            if user not in self._people or self._people[user].version != versions[user]
        ]
        stored = self._store.read([user for user in stale if versions[user].number])
        busy = set(users)
        work: list[_Work] = []
        for user in stale:
            # The version was read before the events: if more came in between, the next
            # request sees another version and reads again.
            row = self.served.user_row(user)
            known = row is not None and not versions[user].forgotten
            events = person_events(stored.get(user, []), self.served, row if known else None)
            self._place(user, versions[user], row if known else None, events, busy, work)
        self._run(work)
        found = {user: self._people[user] for user in users if user in self._people}
        for user, person in found.items():
            person.pool.users.move_to_end(user)
        return found

    def _place(
        self,
        user: str,
        version: Version,
        user_row: int | None,
        events: Events,
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
                    version, user_row, events, pool, old.row, start, new_anchor
                )
                return
        if old is not None:
            self._drop(user)
        row = self._row(pool, busy)
        person = _Person(version, user_row, events, pool, row, start, anchor(events[start:]))
        self._people[user] = person
        pool.users[user] = row
        work.append(_from_start(pool, row, events, start, person.anchor))
        self.counts["encoded_histories"] += 1

    def _pool(self, num_events: int) -> _Pool:
        return next(pool for pool in self._pools if num_events <= pool.capacity)

    def _row(self, pool: _Pool, busy: set[str]) -> int:
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
    ) -> _View:
        person = None if ask.user is None else people.get(ask.user)
        if person is None:
            events, user_row = person_events(ask.trail or (), self.served), None
        else:
            events, user_row = person.events, person.user_row
        cut = ask.seen(events) if self._has_times else len(events)
        if person is not None and cut == len(events):
            encoded = events[person.start :]
            return _View(person.pool, person.row, events, encoded, person.anchor, user_row)
        events = events[:cut]
        if cut == 0:
            pool = self._pools[0]
            return _View(pool, pool.empty, events, events, anchor(events), user_row)
        start = session.window_start(cut, self.window, self._hop)
        pool = self._pool(cut - start)
        row = next(scratch[id(pool)])
        work.append(_from_start(pool, row, events, start, anchor(events[start:])))
        return _View(pool, row, events, events[start:], work[-1].tokens.anchor, user_row)

    def _run(self, work: list[_Work]) -> None:
        for pool in self._pools:
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
        for first in range(0, len(work), self.max_batch):
            part = work[first : first + self.max_batch]
            pool, model = part[0].pool, self.served.run.model
            size = session.size_bucket(len(part), self._batch_sizes)
            rows = np.full(size, pool.num_rows, np.int32)
            rows[: len(part)] = [one.row for one in part]
            tokens = [one.tokens for one in part]
            history = history_rows(tokens, size, num_tokens, has_times=self._has_times)
            params = self.served.run.params
            if part[0].start is None:
                pool.cache = session.start(model, params, pool.cache, rows, history)
            else:
                starts = np.zeros(size, np.int32)
                starts[: len(part)] = [one.start or 0 for one in part]
                pool.cache = session.append(model, params, pool.cache, rows, starts, history)

    # --- scores ---

    @property
    def _candidates(self) -> tuple[int, ...]:
        num_items = self.served.log.num_items
        return (*(size for size in _CANDIDATES if size < num_items), num_items)

    def _question(
        self,
        view: _View,
        time_s: int | None,
        utc_offset_s: int,
        place_e7: tuple[int, int] | None,
        domains: np.ndarray | None = None,
        traits: Mapping[str, str] | None = None,
    ) -> Question:
        if not self._has_times:
            time_s = None
        log, row = self.served.log, view.user_row
        return Question(
            0 if row is None else int(model_users(log, np.array(row))),
            time_s,
            utc_offset_s,
            place_e7,
            len(view.encoded),
            view.anchor,
            traits_of_user(log, row, traits),
            wanted_domains(log, domains),
        )

    def _score(
        self, pool: _Pool, prepared: Sequence[_Prepared], k: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        size = session.size_bucket(len(prepared), self._batch_sizes)
        masks = np.ones((size, self.served.log.num_items + 1), bool)
        rows = np.full(size, pool.empty, np.int32)
        for row, one in enumerate(prepared):
            rows[row] = one.view.row
            if one.allowed is not None:
                masks[row] = one.allowed
        questions = request_rows([one.question for one in prepared], size)
        run, scorer = self.served.run, self.served.scorer
        ranked = session.score(
            run.model, run.params, scorer, pool.cache, rows, questions, masks, k=k
        )
        items, probabilities = jax.device_get((ranked.items, ranked.probabilities))
        self.counts["scored_requests"] += len(prepared)
        kept = items > 0
        return [
            (items[row][kept[row]], probabilities[row][kept[row]]) for row in range(len(prepared))
        ]

    def _reasons(self, view: _View, question: Question, items: np.ndarray) -> list[list[Reason]]:
        run = self.served.run
        rows = np.array([view.row], np.int32)
        explained = jax.device_get(
            session.explain(
                run.model,
                run.params,
                self.served.scorer,
                view.pool.cache,
                rows,
                request_rows([question], 1),
            )
        )
        reasons = []
        for item in items:
            at = np.flatnonzero(view.encoded.items == item)
            at = at[np.argsort(-explained.mass[0, at], kind="stable")][:_REASONS]
            reasons.append(
                [
                    Reason(
                        int(view.encoded.times[event]),
                        float(explained.mass[0, event]),
                        {
                            name: float(effect[0, event])
                            for name, effect in explained.effects.items()
                        },
                    )
                    for event in at
                ]
            )
        return reasons


def _from_start(pool: _Pool, row: int, events: Events, start: int, its_anchor: Anchor) -> _Work:
    before = int(events.times[start - 1]) if start else None
    return _Work(pool, row, Tokens(events[start:], before, its_anchor), None)


def _equal(events: Events, others: Events) -> bool:
    """Whether two stretches of events are the same to the model."""
    if len(events) != len(others):
        return False
    columns, other_columns = (jax.tree.leaves(vars(one)) for one in (events, others))
    return all(
        np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        for one, other in zip(columns, other_columns, strict=True)
    )


def _make_pools(served: ServedModel, window: int, state_bytes: int, max_batch: int) -> list[_Pool]:
    """Pools of rising capacity that share the memory as the log's people need them."""
    capacities = [window]
    while capacities[0] > _SMALLEST_CAPACITY:
        capacities.insert(0, max(_SMALLEST_CAPACITY, capacities[0] // 4))
    lengths = np.minimum(np.diff(served.log.user_offsets), window)
    one = jax.eval_shape(lambda: session.new_cache(served.run.model, 1, 1))
    event_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one))
    classes = np.searchsorted(capacities, lengths)
    shares = np.bincount(classes, minlength=len(capacities)) + 1.0
    shares = shares * capacities / np.sum(shares * capacities)
    pools = []
    for capacity, share in zip(capacities, shares, strict=True):
        # A batch of people has to fit, besides the scratch rows of the batch.
        num_people = max(int(state_bytes * share) // (capacity * event_bytes), max_batch)
        pools.append(_Pool(served, capacity, num_people, max_batch))
    return pools
