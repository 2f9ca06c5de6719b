"""Answers from a prepared log, without a service: one question, or a batch of them."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Sequence

import numpy as np

from stt_jax import ranking, session
from stt_jax.config import RequestConfig
from stt_jax.data.catalogue import model_users, traits_of_user
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.pseudonyms import Ids, open_ids
from stt_jax.data.schema import DEGREES_TO_E7, known_place
from stt_jax.histories import (
    Events,
    Moment,
    Question,
    Tokens,
    anchor,
    find_moment,
    history_rows,
    log_events,
    request_rows,
    wanted_domains,
)
from stt_jax.model.cache import Cache
from stt_jax.ranking import Recommendation, Rules
from stt_jax.relations import model_catalogue
from stt_jax.training.run import Run

BATCH_PEOPLE = 64  # that are answered in one call; on two CPU cores more are no faster
_HISTORY_SIZES = (16, 64, 256, 1024)  # events that histories of a batch are padded to


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request with all that its answer needs.

    Attributes:
      tokens: the events that the model sees.
      question: as the model is asked.
      rules: what the list may hold.
      here: float64 [3], what distances count from; None = unknown.
      allowed: bool [V + 1], what the rules let in; None = everything.
    """

    tokens: Tokens
    question: Question
    rules: Rules
    here: np.ndarray | None
    allowed: np.ndarray | None


class Recommender:
    """Recommends to people of a prepared log; what it has loaded and compiled it keeps.

        recommender = Recommender(run, log)
        lists = recommender.recommend([RequestConfig(user=user) for user in log.user_ids])

    A list does not depend on who else is asked for, but for the last digits of its probabilities:
    larger batches are summed in another order.
    """

    def __init__(self, run: Run, log: PreparedLog) -> None:
        """Encodes the catalogue.

        Args:
          run: a trained model.
          log: the log that it was trained on, or a newer one; histories are read from it.
        """
        self._run = run
        self._log = log
        self._ids: dict[str, Ids] = {}
        self._category_rows = {name: row for row, name in enumerate(log.category_values) if row}
        self._domain_rows = {name: row for row, name in enumerate(log.domain_values) if row}
        self._coords = ranking.item_coords(log)
        items_of_log = model_catalogue(log, run.model_config, live_trends=True)
        self._scorer = session.item_scorer(run.model, run.params, items_of_log)
        self._item_vectors = np.asarray(self._scorer.vectors, np.float32)
        most = run.training.asked_tokens
        self._history_sizes = (*(size for size in _HISTORY_SIZES if size < most), most)

    def recommend(self, requests: Sequence[RequestConfig]) -> list[list[Recommendation]]:
        """The most probable next items for each request, see `answer`.

        Raises:
          ValueError: a request is wrong, see `ask`.
        """
        return self.answer([self.ask(request) for request in requests])

    def ask(self, request: RequestConfig) -> Asked:
        """Looks up who asks and what they did before.

        Args:
          request: who, when, where, and what the list may hold.

        Raises:
          ValueError: an unknown person, trait or category, a key that is not the log's, a time that
            cannot be read or that a log without times cannot use, or a radius where no place is
            known.
        """
        log, run = self._log, self._run
        row = self._user_row(request)
        first, end = (0, 0) if row is None else map(int, log.user_offsets[row : row + 2])
        moment = _request_moment(log, log_events(log, first, end), request.time)
        end = first + moment.num_events
        start = first + session.window_start(
            end - first, run.training.asked_tokens, session.window_hop(run.training)
        )
        encoded = log_events(log, start, end)
        place_e7 = _place_e7(request)
        here = ranking.request_place(encoded, place_e7)
        if request.radius_km and here is None:
            raise ValueError(
                "--radius_km needs a place: give --latitude and --longitude, or a person with a "
                "known place in the log"
            )
        wish = {"as_run": None, "true": True, "false": False}[str(request.exclude_seen)]
        excludes_seen = ranking.excludes_seen(run, wish)
        rules = Rules(
            k=min(request.k, log.num_listed),
            excluded=np.unique(log.items[first:end]) if excludes_seen else None,
            categories=ranking.named_rows("--categories", request.categories, self._category_rows),
            domains=ranking.named_rows("--domains", request.domains, self._domain_rows),
            radius_km=request.radius_km,
            max_per_category=request.max_per_category,
            diversity=request.diversity,
        )
        question = Question(
            user=0 if row is None else int(model_users(log, np.array(row))),
            time_s=moment.time_s,
            utc_offset_s=moment.utc_offset_s,
            place_e7=place_e7,
            num_events=len(encoded),
            anchor=anchor(encoded),
            traits=traits_of_user(log, row, dict(text.split("=", 1) for text in request.traits)),
            domains=wanted_domains(log, rules.domains),
        )
        before = int(log.times[start - 1]) if start > first else None
        allowed = ranking.allowed_items(
            rules, log.item_categories, log.item_domains, self._coords, here
        )
        return Asked(Tokens(encoded, before, question.anchor), question, rules, here, allowed)

    def answer(self, asked: Sequence[Asked]) -> list[list[Recommendation]]:
        """The lists, in the order of `asked`.

        Each has at most k items, most probable first; fewer if the rules leave fewer.
        """
        lists = []
        for at in range(0, len(asked), BATCH_PEOPLE):
            lists += self._answer_batch(asked[at : at + BATCH_PEOPLE])
        return lists

    def _answer_batch(self, asked: Sequence[Asked]) -> list[list[Recommendation]]:
        log = self._log
        cache = self._states(asked)
        num_fetched = max(ranking.num_candidates(one.rules, log.num_listed) for one in asked)
        fetched = self._score(cache, asked, range(len(asked)), num_fetched)
        lists = []
        for row, (one, found) in enumerate(zip(asked, fetched, strict=True)):
            fetch_all = functools.partial(self._score_all, cache, asked, row)
            best = ranking.best_of_fetched(found, num_fetched, fetch_all)
            items, probabilities = ranking.pick(
                best, one.rules, log.item_categories, self._item_vectors
            )
            lists.append(ranking.describe(log, items, probabilities, self._coords, one.here))
        return lists

    def _states(self, asked: Sequence[Asked]) -> Cache:
        """The encoded histories, one person a row."""
        run = self._run
        num_rows = 1 if len(asked) == 1 else BATCH_PEOPLE
        cache = session.new_cache(run.model, num_rows, run.training.asked_tokens)
        longest = max(len(one.tokens.events) for one in asked)
        if not longest:
            return cache
        history = history_rows(
            [one.tokens for one in asked],
            num_rows,
            session.size_bucket(longest, self._history_sizes),
            has_times=self._log.meta.has_times,
        )
        rows = np.arange(num_rows, dtype=np.int32)
        return session.start(run.model, run.params, cache, rows, history)

    def _score(
        self, cache: Cache, asked: Sequence[Asked], rows: Sequence[int], k: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The k best allowed items and their probabilities of some rows of the cache."""
        num_rows = 1 if len(rows) == 1 else BATCH_PEOPLE
        mine = [asked[row] for row in rows]
        allowed = None
        if any(one.allowed is not None for one in mine):
            allowed = np.ones((num_rows, self._log.num_items + 1), bool)
            for at, one in enumerate(mine):
                if one.allowed is not None:
                    allowed[at] = one.allowed
        ranked = session.score(
            self._run.model,
            self._run.params,
            self._scorer,
            cache,
            np.pad(np.asarray(rows, np.int32), (0, num_rows - len(rows))),
            request_rows([one.question for one in mine], num_rows),
            allowed,
            k=k,
        )
        items, probabilities = np.asarray(ranked.items), np.asarray(ranked.probabilities)
        kept = items > 0
        return [(items[at][kept[at]], probabilities[at][kept[at]]) for at in range(len(mine))]

    def _score_all(
        self, cache: Cache, asked: Sequence[Asked], row: int
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._score(cache, asked, [row], self._log.num_listed)[0]

    def _user_row(self, request: RequestConfig) -> int | None:
        """The person's row in the log; None = somebody new."""
        if not request.user:
            return None
        if request.key_file not in self._ids:
            self._ids[request.key_file] = open_ids(self._log, request.key_file)
        try:
            return self._log.user_row(self._ids[request.key_file].user(request.user))
        except ValueError as error:
            raise ValueError(
                f"{error}. Give --user one of the log's people, or leave it out for somebody new; "
                "events of new people reach the model through the service (stt_jax.serve)"
            ) from error


def recommend_items(run: Run, log: PreparedLog, request: RequestConfig) -> list[Recommendation]:
    """The k most probable next items for one request; for more of them see `Recommender`.

    Raises:
      ValueError: the request is wrong, see `Recommender.ask`.
    """
    return Recommender(run, log).recommend([request])[0]


def _place_e7(request: RequestConfig) -> tuple[int, int] | None:
    if not request.latitude:
        return None
    degrees = float(request.latitude), float(request.longitude)
    return known_place(*(round(one * DEGREES_TO_E7) for one in degrees))


def _request_moment(log: PreparedLog, events: Events, text: str) -> Moment:
    """When a request of somebody with these events is; see `find_moment`."""
    if not text:
        return find_moment(events, None)
    if not log.meta.has_times:
        raise ValueError(f"--time={text}: {log.directory} has no times, so leave --time empty")
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(
            f"--time={text} is no ISO 8601 time; write 2012-12-22T08:30, with +00:00 for UTC"
        ) from error
    offset = time.utcoffset()
    if offset is None:
        local_s = int(time.replace(tzinfo=datetime.UTC).timestamp())
        return find_moment(events, local_s, is_local=True)
    return find_moment(events, int(time.timestamp()), told_offset_s=round(offset.total_seconds()))
