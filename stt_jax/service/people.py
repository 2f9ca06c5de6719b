"""Answers asks from the live states of people: questions, scores, lists and reasons.

All of this runs in one thread (`stt_jax.service.batcher`), as `stt_jax.service.states` asks for.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from stt_jax import approximate, ranking, session
from stt_jax.batch import Successions, Trends
from stt_jax.data.catalogue import model_users, traits_of_user
from stt_jax.histories import Question, request_rows, wanted_domains
from stt_jax.service.asks import Answer, Ask, Reason, RequestError
from stt_jax.service.models import ServedModel
from stt_jax.service.states import LiveStates, Pool, View
from stt_jax.service.store import EventStore

_CANDIDATES = (32, 256)  # best items that are fetched at once; then all of them
_REASONS = 3  # events that a recommendation is explained by


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """An ask with all that its answer needs."""

    index: int
    why: bool
    view: View
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
        self,
        served: ServedModel,
        store: EventStore,
        *,
        state_bytes: int,
        max_batch: int,
        index_candidates: int = 0,
    ) -> None:
        """Makes the states.

        Args:
          served: the model.
          store: the log of events.
          state_bytes: memory for states, see `LiveStates`.
          max_batch: most asks at a time.
          index_candidates: items that an `approximate.ItemIndex` picks for an ask that may list
            all; 0 = every item is scored.

        Raises:
          ValueError: an index is wanted, and its package is not installed.
        """
        self.served = served
        self._scorer = served.scorer
        self._num_picked = index_candidates
        self._index = approximate.ItemIndex(served.scorer) if index_candidates else None
        self.counts: collections.Counter[str] = collections.Counter()
        self._has_times = served.log.meta.has_times
        self._batch_sizes = (*(size for size in (1, 8, 64) if size < max_batch), max_batch)
        # On the device once: for a million items they are as large as the states of a batch.
        self._every_item = {
            size: jnp.ones((size, served.log.num_items + 1), bool) for size in self._batch_sizes
        }
        self._states = LiveStates(
            served, store, self.counts, state_bytes=state_bytes, batch_sizes=self._batch_sizes
        )

    @property
    def num_people(self) -> int:
        """People with a live state."""
        return len(self._states)

    def warm_up(self) -> None:
        """Compiles every size, and refuses a model that gives no probabilities.

        Raises:
          ValueError: the model's answers are not finite.
        """
        self._states.warm_up()
        for pool in self._states.pools:
            view = self._states.empty_view(pool)
            question = self._question(view, None, 0, None)
            one = _Prepared(0, False, view, question, ranking.Rules(), None, None)
            kinds = [one]
            if self._index is not None:  # which does not know of filters
                every = np.ones(self.served.log.num_items + 1, bool)
                kinds.append(dataclasses.replace(one, allowed=every))
            for size in self._batch_sizes:
                for candidates in self._candidates[: len(_CANDIDATES)]:
                    for kind in kinds:
                        self._score(pool, [kind] * size, candidates)
            self._reasons(view, question, np.zeros(0, np.int64))
            _, probabilities = self._score(pool, [one], self._candidates[-1])[0]
            if not 0 < probabilities.sum() < 1.01:  # False for NaN
                raise ValueError("the model's answers are no probabilities; train it again")

    def ask(self, asks: Sequence[Ask]) -> list[Answer | Exception]:
        """Answers at most `max_batch` asks.

        One that is wrong (RequestError), or of somebody whose events cannot be used, gets its
        exception for an answer.

        Raises:
          StoreError: the log cannot be read.
        """
        answers: dict[int, Answer | Exception] = {}
        prepared: list[_Prepared] = []
        for index, (ask, view) in enumerate(zip(asks, self._states.views(asks), strict=True)):
            try:
                if isinstance(view, Exception):
                    raise view
                prepared.append(self._prepare(index, ask, view))
            except Exception as error:  # of this ask alone: no state is touched here
                answers[index] = error
        for pool in self._states.pools:
            mine = [one for one in prepared if one.view.pool is pool]
            if mine:
                answers |= self._answer_pool(pool, mine)
        return [answers[index] for index in range(len(asks))]

    def show(self, trends: Trends, successions: Successions | None) -> None:
        """What is popular and what follows what from now on; to be called from any thread."""
        catalogue = self._scorer.catalogue
        assert catalogue is not None
        # Each where the one before it lies: elsewhere, all that was warmed up compiles again.
        trends, successions = jax.tree.map(
            lambda new, old: jax.device_put(new, old.sharding),
            (trends, successions),
            (catalogue.trends, catalogue.successions),
        )
        catalogue = dataclasses.replace(catalogue, trends=trends, successions=successions)
        self._scorer = dataclasses.replace(self._scorer, catalogue=catalogue)
        self.counts["refreshed_trends"] += 1

    def reset(self) -> None:
        """Throws all states away: after an error nobody knows what is in them."""
        self._states.reset()

    def _prepare(self, index: int, ask: Ask, view: View) -> _Prepared:
        time_s, offset_s = view.moment.time_s, view.moment.utc_offset_s
        rules = ask.rules(self.served, view.events)
        here = ranking.request_place(view.encoded, ask.place_e7)
        if rules.radius_km and here is None:
            raise RequestError(
                "radius_km needs a place: give latitude and longitude, or a person with a known one"
            )
        served = self.served
        allowed = ranking.allowed_items(
            rules, served.log.item_categories, served.log.item_domains, served.coords, here
        )
        question = self._question(view, time_s, offset_s, ask.place_e7, rules.domains, ask.traits)
        return _Prepared(index, ask.why, view, question, rules, here, allowed)

    def _answer_pool(self, pool: Pool, prepared: list[_Prepared]) -> dict[int, Answer]:
        log = self.served.log
        wanted = max(ranking.num_candidates(one.rules, log.num_listed) for one in prepared)
        num_fetched = session.size_bucket(wanted, self._candidates)
        fetched = self._score(pool, prepared, num_fetched)
        answers: dict[int, Answer] = {}
        for one, found in zip(prepared, fetched, strict=True):
            fetch_all = functools.partial(self._score_all, pool, one)
            best = ranking.best_of_fetched(found, num_fetched, fetch_all)
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

    def _score_all(self, pool: Pool, one: _Prepared) -> tuple[np.ndarray, np.ndarray]:
        return self._score(pool, [one], self._candidates[-1])[0]

    @property
    def _candidates(self) -> tuple[int, ...]:
        num_items = self.served.log.num_listed
        return (*(size for size in _CANDIDATES if size < num_items), num_items)

    def _question(
        self,
        view: View,
        time_s: int | None,
        utc_offset_s: int,
        place_e7: tuple[int, int] | None,
        domains: np.ndarray | None = None,
        traits: Mapping[str, str] | None = None,
    ) -> Question:
        if not self._has_times:
            time_s = None
        log, row = self.served.log, view.user_row
        try:
            known_traits = traits_of_user(log, row, traits)
        except ValueError as error:
            raise RequestError(str(error)) from None
        return Question(
            0 if row is None else int(model_users(log, np.array(row))),
            time_s,
            utc_offset_s,
            place_e7,
            len(view.encoded),
            view.anchor,
            known_traits,
            wanted_domains(log, domains),
        )

    def _score(
        self, pool: Pool, prepared: Sequence[_Prepared], k: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        size = session.size_bucket(len(prepared), self._batch_sizes)
        rows = np.full(size, pool.empty, np.int32)
        rows[: len(prepared)] = [one.view.row for one in prepared]
        questions = request_rows([one.question for one in prepared], size)
        run, scorer = self.served.run, self._scorer
        is_free = all(one.allowed is None for one in prepared)
        if self._index is not None and is_free and k <= self._num_picked:
            ranked = approximate.score(
                run.model, run.params, scorer, self._index, pool.cache, rows, questions,
                k=k, num_candidates=self._num_picked,
            )  # fmt: skip
            self.counts["indexed_requests"] += len(prepared)
        else:
            masks = self._every_item[size]
            if not is_free:
                allowed = np.ones(masks.shape, bool)
                for row, one in enumerate(prepared):
                    if one.allowed is not None:
                        allowed[row] = one.allowed
                masks = jnp.asarray(allowed)  # for the same compiled function
            ranked = session.score(
                run.model, run.params, scorer, pool.cache, rows, questions, masks, k=k
            )
        items, probabilities = jax.device_get((ranked.items, ranked.probabilities))
        self.counts["scored_requests"] += len(prepared)
        kept = items > 0
        return [
            (items[row][kept[row]], probabilities[row][kept[row]]) for row in range(len(prepared))
        ]

    def _reasons(self, view: View, question: Question, items: np.ndarray) -> list[list[Reason]]:
        run = self.served.run
        rows = np.array([view.row], np.int32)
        explained = jax.device_get(
            session.explain(
                run.model,
                run.params,
                self._scorer,
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
                        int(view.encoded.utc_offsets_s[event]),
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
