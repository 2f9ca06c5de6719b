"""Counting models: what any claim about a learned model must beat.

Each is fitted on the training part of the log and asks the target's own context. Their options are
tuned, and they are mixed, in `stt_jax.baseline_tuning`.

    popularity         shares of the training events
    recent_popularity  the same, halved every `half_life_days` before the end of training
    trending           with live trends only: shares of everybody's events, of all parts, before the
                       hour of the request, or the `step_min` minutes, halved every `half_life_h`;
                       if the request time is unknown, before those of the last event
    markov             what followed the last item in training, for anybody
    recent_markov      with live trends only: the same in all parts before the minute of the request
                       or else the last event, the last 128 times, halved every `half_life_h`
    item_knn           items that co-occur in people's histories (cosine), summed over the context
    own_frequency      counts in the context
    own_recency        the same, weighted by how long ago: days, events, or a power of events
    own_sequence       own_recency, favouring events that followed the same item as the last one
    own_hour           own_recency, favouring events at the hour of the week of the request; if the
                       request time is unknown, at the hours that usually follow the last event
    own_hour_sequence  the product of the last two
    mix                a weighted sum of all of these

Items without a score of their own are ordered by popularity. The first six may leave out items of
the context, as is usual for films; validation decides. Ranks are those of `metrics.target_ranks`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from stt_jax.batch import FIRST_WEEKEND_HOUR, HOURS_PER_WEEK
from stt_jax.counting import (
    Cells,
    Questions,
    Scores,
    TrainingCounts,
    distinct,
    latest_followers,
    scale_rows,
)

_LAST_RESORT = 1e-6  # weight of popularity behind all that has a score of its own

Options = Mapping[str, Any]
Grid = dict[str, Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A counting model.

    Attributes:
      score: (training counts, questions, options) -> scores.
      grid: option -> values to try, the default first.
      uses_request_time: whether the two request modes differ.
      needs_times: whether it means nothing on a log without times.
      needs_live_trends: whether it counts more than the training part.
    """

    score: Callable[[TrainingCounts, Questions, Options], Scores]
    grid: Grid
    uses_request_time: bool = False
    needs_times: bool = False
    needs_live_trends: bool = False

    def rank(self, counts: TrainingCounts, asked: Questions, options: Options) -> np.ndarray:
        """Ranks of the targets: int32, as from `metrics.target_ranks`."""
        return self.score(counts, asked, options).ranks(asked.target_items, counts.apart)


def score_popularity(counts: TrainingCounts, asked: Questions, options: Options) -> Scores:
    """Shares of training events, recent ones if `half_life_days` is given."""
    shared = counts.recent_popularity(options.get("half_life_days"))
    nothing = Cells.of(np.zeros(0, np.int64), counts.num_columns)
    return treat_seen(Scores(nothing, np.zeros(0), shared), asked, options)


def score_trending(counts: TrainingCounts, asked: Questions, options: Options) -> Scores:
    """Shares of everybody's events before the step of the question."""
    trends = counts.live_trends(options["half_life_h"], options["step_min"])
    moments = np.searchsorted(np.asarray(trends.start_minutes), asked.now_min, side="right")
    found, shares = (
        table[moments] for table in (trends.relations[0].items, trends.relations[0].shares)
    )
    rows, places = np.nonzero(found)
    keys = rows * counts.num_columns + found[rows, places]
    order = np.argsort(keys, kind="stable")
    cells = Cells.of(keys[order], counts.num_columns)
    values = shares[rows, places][order].astype(np.float64)
    return treat_seen(Scores(cells, values, _LAST_RESORT * counts.popularity), asked, options)


def score_markov(counts: TrainingCounts, asked: Questions, options: Options) -> Scores:
    """Shares of what followed the last item of the context in training."""
    followers = counts.transitions[asked.last_items]
    rows = np.repeat(np.arange(followers.shape[0]), np.diff(followers.indptr))
    cells = Cells.of(rows * counts.num_columns + followers.indices, counts.num_columns)
    fallback = options["fallback"] * counts.popularity
    return treat_seen(Scores(cells, followers.data, fallback), asked, options)


def score_recent_markov(counts: TrainingCounts, asked: Questions, options: Options) -> Scores:
    """Shares of what followed the last item of the context lately."""
    known = counts.live_successions
    rows, items, ages = latest_followers(known, asked.last_items, asked.now_min)
    keys = rows * counts.num_columns + items
    cells = Cells.of(distinct(keys), counts.num_columns)
    sums = np.bincount(
        np.searchsorted(cells.keys, keys),
        _decay(ages, 60 * options["half_life_h"]),
        minlength=len(cells.keys),
    )
    values = scale_rows(cells.rows, sums, len(asked.target_items))
    fallback = options["fallback"] * counts.popularity
    return treat_seen(Scores(cells, values, fallback), asked, options)


def score_item_knn(counts: TrainingCounts, asked: Questions, options: Options) -> Scores:
    """Similarities to the items of the context, summed with weights by age."""
    own = asked.sum_by_item(_decay(asked.ages, options["half_life_events"]))
    shape = (len(asked.target_items), counts.num_columns)
    weights = scipy.sparse.csr_array((own, (asked.own.rows, asked.own.items)), shape=shape)
    near = weights @ counts.similarities
    near.sort_indices()
    rows = np.repeat(np.arange(shape[0]), np.diff(near.indptr))
    cells = Cells.of(rows * counts.num_columns + near.indices, counts.num_columns)
    values = scale_rows(rows, near.data, shape[0])
    return treat_seen(Scores(cells, values, _LAST_RESORT * counts.popularity), asked, options)


def score_own(counts: TrainingCounts, asked: Questions, options: Options) -> Scores:
    """The context's own items, each event weighted by the factors that `options` name."""
    weights = _decay(asked.ages, options.get("half_life_events"))
    if options.get("half_life_days"):
        weights *= _decay(asked.ages_days, options["half_life_days"])
    if options.get("power"):
        weights *= asked.ages ** -options["power"]
    if "sequence_floor" in options:
        weights *= np.where(asked.follows_last, 1.0, options["sequence_floor"])
    if "width_h" in options:
        weights *= hour_weights(counts, asked, options)
    shared = options["fallback"] * counts.popularity
    return Scores(asked.own, asked.sum_by_item(weights), shared)


def hour_weights(counts: TrainingCounts, asked: Questions, options: Options) -> np.ndarray:
    """How well the hour of each context event fits the request: float64 [P].

    exp(-(hours of the day apart / width_h)^2 / 2), times `other_days` if one is in the weekend and
    the other is not, plus `hour_floor`; averaged over the hours that follow the last event in
    training if the request time is unknown.
    """
    hours = np.arange(HOURS_PER_WEEK)
    apart_h = np.abs(hours[:, None] - hours) % 24
    apart_h = np.minimum(apart_h, 24 - apart_h)
    weekend = hours >= FIRST_WEEKEND_HOUR
    kernel = np.exp(-0.5 * (apart_h / options["width_h"]) ** 2)
    kernel *= np.where(weekend[:, None] == weekend, 1.0, options["other_days"])
    kernel += options["hour_floor"]
    # Not `@`: for arrays this small, threads of a BLAS cost more than they save on a busy machine.
    table = kernel if asked.request_known else np.einsum("ab,bc->ac", counts.next_hours, kernel)
    return table.ravel()[asked.hour_pairs]


def _decay(ages: np.ndarray, half_life: float | None) -> np.ndarray:
    return np.ones(len(ages)) if half_life is None else np.exp2(-ages / half_life)


def treat_seen(scores: Scores, asked: Questions, options: Options) -> Scores:
    """The scores, without those of the context's items if `options` leave them out."""
    return scores if options["seen"] == "keep" else scores.without(asked.own)


SEEN = ("keep", "leave out")
_FALLBACK = (1e-3, 1e-2, 1e-1, 1.0)
_RECENCY: Grid = {
    "half_life_events": (None, 300.0, 100.0, 30.0, 10.0, 3.0),
    "half_life_days": (None, 180.0, 60.0, 20.0, 7.0, 2.0),
    "power": (0.0, 0.25, 0.5, 0.75, 1.0),
    "fallback": _FALLBACK,
}
_SEQUENCE: Grid = {"sequence_floor": (0.3, 1.0, 0.1, 0.03, 0.01)}
_HOUR: Grid = {
    "width_h": (2.0, 1.0, 1.5, 3.0, 5.0),
    "hour_floor": (0.1, 0.3, 0.03, 0.01),
    "other_days": (0.5, 1.0, 0.25, 0.1),
}

BASELINES: dict[str, Baseline] = {
    "popularity": Baseline(score_popularity, {"seen": SEEN}),
    "recent_popularity": Baseline(
        score_popularity,
        {"half_life_days": (30.0, 180.0, 90.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03), "seen": SEEN},
        needs_times=True,
    ),
    "trending": Baseline(
        score_trending,
        {
            "half_life_h": (24.0, 168.0, 720.0, 6.0, 1.0, 0.25),
            "step_min": (60, 5),
            "seen": SEEN,
        },
        uses_request_time=True,
        needs_times=True,
        needs_live_trends=True,
    ),
    "markov": Baseline(score_markov, {"fallback": _FALLBACK, "seen": SEEN}),
    "recent_markov": Baseline(
        score_recent_markov,
        {"half_life_h": (1.0, 24.0, 720.0, 0.25), "fallback": _FALLBACK, "seen": SEEN},
        uses_request_time=True,
        needs_times=True,
        needs_live_trends=True,
    ),
    "item_knn": Baseline(
        score_item_knn,
        {"half_life_events": (30.0, None, 100.0, 10.0, 3.0, 1.0, 0.3), "seen": SEEN},
    ),
    "own_frequency": Baseline(score_own, {"fallback": (1e-3,)}),
    "own_recency": Baseline(score_own, _RECENCY),
    "own_sequence": Baseline(score_own, _SEQUENCE | _RECENCY),
    "own_hour": Baseline(score_own, _HOUR | _RECENCY, uses_request_time=True, needs_times=True),
    "own_hour_sequence": Baseline(
        score_own, _SEQUENCE | _HOUR | _RECENCY, uses_request_time=True, needs_times=True
    ),
}
