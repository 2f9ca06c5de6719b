"""Counting models: what any claim about a learned model must beat.

Each is fitted on the training part of the log and asks the target's own context; its options are
tuned on validation targets alone, by coordinate search for the best MRR.

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
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from stt_jax.counting import (
    HOURS_PER_WEEK,
    Cells,
    Questions,
    Scores,
    TrainingCounts,
    distinct,
    gather_questions,
    largest_per_row,
    latest_followers,
    scale_rows,
)
from stt_jax.data.protocol import Targets
from stt_jax.data.store import PreparedLog
from stt_jax.metrics import MISS

MODES = ("unknown", "known")
NUM_CANDIDATES = 100  # of a target in the mix's share of item_knn, and of trending

_MAX_ROUNDS = 4
_WEIGHT_FACTORS = (0.0, 0.3, 0.7, 1.4, 3.0)
_SMALL_WEIGHT = 0.05
_LAST_RESORT = 1e-6  # weight of popularity behind all that has a score of its own

Options = Mapping[str, Any]
Grid = dict[str, Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class BaselineResult:
    """What one baseline did.

    Attributes:
      ranks: int32 [T], of the test targets, as from `metrics.target_ranks`.
      options: the chosen hyper-parameters; a half-life of None is no decay.
      validation_mrr: with these options on the validation targets used for tuning; NaN if none.
    """

    ranks: np.ndarray
    options: dict[str, Any]
    validation_mrr: float


def evaluate_baselines(
    log: PreparedLog,
    validation: Targets,
    test: Targets,
    *,
    modes: Sequence[str] = MODES,
    names: Sequence[str] | None = None,
    name_domains: bool = False,
    live_trends: bool = False,
    max_tuning_targets: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, BaselineResult]]:
    """Tunes every baseline on validation targets and ranks the test targets with it.

    Args:
      log: the prepared log; only its training part is counted, but for live trends.
      validation: targets to tune on; without any that are in the vocabulary, defaults are used.
      test: targets to rank.
      names: of `BASELINES`, without the mix; None = all, and the mix.
      name_domains: rank a target among the items of its domain, if the log has domains.
      live_trends: compare with what is trending, too, which counts all that came before.
      modes: request modes, of `MODES`. The time of a target is looked at in mode "known" only.
      max_tuning_targets: a random sample of this many validation targets is tuned on.
      seed: of that sample.

    Returns:
      mode -> name -> result, names in the order of the table above. On a log without times the
      baselines that need them (recent_popularity, own_hour, own_hour_sequence) are left out.

    Raises:
      ValueError: an unknown mode.
    """
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f"modes must be of {', '.join(MODES)}; got {mode!r}.")
    counts = TrainingCounts(log, apart=log.item_domains if name_domains else None)
    usable = validation[log.items[validation.events] > 0].sample(max_tuning_targets, seed)
    tuned: dict[str, _Tuned] = {}  # kept over modes, for baselines that are the same in both
    results: dict[str, dict[str, BaselineResult]] = {}
    for mode in modes:
        ask = functools.partial(gather_questions, counts, request_known=mode == "known")
        tuning = list(ask(usable))
        usable_names = [
            name
            for name, kind in BASELINES.items()
            if (log.meta.has_times or not kind.needs_times)
            and (live_trends or not kind.needs_live_trends)
            and (names is None or name in names)
        ]
        for name in usable_names:
            if name not in tuned or BASELINES[name].uses_request_time:
                tuned[name] = _tune(BASELINES[name], counts, tuning)
        ranks: dict[str, list[np.ndarray]] = {name: [] for name in [*usable_names, "mix"]}
        asked_of = list(ask(test))
        for asked, name in itertools.product(asked_of, usable_names):
            ranks[name].append(_rank(BASELINES[name], counts, asked, tuned[name].options))
        results[mode] = {
            name: BaselineResult(_join(ranks[name]), tuned[name].options, tuned[name].mrr)
            for name in usable_names
        }
        if names is not None:
            continue
        options = {name: tuned[name].options for name in usable_names}
        mix, mix_mrr = _tune_mix(counts, options, tuning)
        ranks["mix"] = [mix.rank(counts, mix.parts(counts, asked), asked) for asked in asked_of]
        results[mode]["mix"] = BaselineResult(_join(ranks["mix"]), mix.options(), mix_mrr)
    return results


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


def score_popularity(counts: TrainingCounts, asked: Questions, options: Options) -> Scores:
    """Shares of training events, recent ones if `half_life_days` is given."""
    shared = counts.recent_popularity(options.get("half_life_days"))
    nothing = Cells.of(np.zeros(0, np.int64), counts.num_columns)
    return _treat_seen(Scores(nothing, np.zeros(0), shared), asked, options)


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
    return _treat_seen(Scores(cells, values, _LAST_RESORT * counts.popularity), asked, options)


def score_markov(counts: TrainingCounts, asked: Questions, options: Options) -> Scores:
    """Shares of what followed the last item of the context in training."""
    followers = counts.transitions[asked.last_items]
    rows = np.repeat(np.arange(followers.shape[0]), np.diff(followers.indptr))
    cells = Cells.of(rows * counts.num_columns + followers.indices, counts.num_columns)
    fallback = options["fallback"] * counts.popularity
    return _treat_seen(Scores(cells, followers.data, fallback), asked, options)


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
    return _treat_seen(Scores(cells, values, fallback), asked, options)


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
    return _treat_seen(Scores(cells, values, _LAST_RESORT * counts.popularity), asked, options)


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
    weekend = hours >= 5 * 24
    kernel = np.exp(-0.5 * (apart_h / options["width_h"]) ** 2)
    kernel *= np.where(weekend[:, None] == weekend, 1.0, options["other_days"])
    kernel += options["hour_floor"]
    # Not `@`: for arrays this small, threads of a BLAS cost more than they save on a busy machine.
    table = kernel if asked.request_known else np.einsum("ab,bc->ac", counts.next_hours, kernel)
    return table.ravel()[asked.hour_pairs]


def _decay(ages: np.ndarray, half_life: float | None) -> np.ndarray:
    return np.ones(len(ages)) if half_life is None else np.exp2(-ages / half_life)


def _treat_seen(scores: Scores, asked: Questions, options: Options) -> Scores:
    return scores if options["seen"] == "keep" else scores.without(asked.own)


_SEEN = ("keep", "leave out")
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
    "popularity": Baseline(score_popularity, {"seen": _SEEN}),
    "recent_popularity": Baseline(
        score_popularity,
        {"half_life_days": (30.0, 180.0, 90.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03), "seen": _SEEN},
        needs_times=True,
    ),
    "trending": Baseline(
        score_trending,
        {
            "half_life_h": (24.0, 168.0, 720.0, 6.0, 1.0, 0.25),
            "step_min": (60, 5),
            "seen": _SEEN,
        },
        uses_request_time=True,
        needs_times=True,
        needs_live_trends=True,
    ),
    "markov": Baseline(score_markov, {"fallback": _FALLBACK, "seen": _SEEN}),
    "recent_markov": Baseline(
        score_recent_markov,
        {"half_life_h": (1.0, 24.0, 720.0, 0.25), "fallback": _FALLBACK, "seen": _SEEN},
        uses_request_time=True,
        needs_times=True,
        needs_live_trends=True,
    ),
    "item_knn": Baseline(
        score_item_knn,
        {"half_life_events": (30.0, None, 100.0, 10.0, 3.0, 1.0, 0.3), "seen": _SEEN},
    ),
    "own_frequency": Baseline(score_own, {"fallback": (1e-3,)}),
    "own_recency": Baseline(score_own, _RECENCY),
    "own_sequence": Baseline(score_own, _SEQUENCE | _RECENCY),
    "own_hour": Baseline(score_own, _HOUR | _RECENCY, uses_request_time=True, needs_times=True),
    "own_hour_sequence": Baseline(
        score_own, _SEQUENCE | _HOUR | _RECENCY, uses_request_time=True, needs_times=True
    ),
}


def _rank(
    baseline: Baseline, counts: TrainingCounts, asked: Questions, options: Options
) -> np.ndarray:
    return baseline.score(counts, asked, options).ranks(asked.target_items, counts.apart)


class _Tuned(NamedTuple):
    options: dict[str, Any]
    mrr: float


def _tune(baseline: Baseline, counts: TrainingCounts, tuning: Sequence[Questions]) -> _Tuned:
    """Options of the best MRR, one option changed at a time until no change helps."""
    options = {name: values[0] for name, values in baseline.grid.items()}
    if not tuning:
        return _Tuned(options, float("nan"))

    def mrr(options: Options) -> float:
        return _mrr([_rank(baseline, counts, asked, options) for asked in tuning])

    best = mrr(options)
    for _ in range(_MAX_ROUNDS):
        before = best
        for name, values in baseline.grid.items():
            for value in values:
                changed = options | {name: value}
                if changed != options and (found := mrr(changed)) > best:
                    best, options = found, changed
        if best == before:
            break
    return _Tuned(options, best)


@dataclasses.dataclass(frozen=True)
class _Mix:
    """A weighted sum of tuned baselines.

    Attributes:
      part_options: name of a baseline -> its options.
      weights: float64 [parts], in the order of `part_options`.
      seen: whether to keep the items of the context, of _SEEN.
    """

    part_options: Mapping[str, Options]
    weights: np.ndarray
    seen: str

    def options(self) -> dict[str, Any]:
        """What is shown of it."""
        weights = zip(self.part_options, self.weights.tolist(), strict=True)
        return dict(weights) | {"seen": self.seen}

    def parts(self, counts: TrainingCounts, asked: Questions) -> Scores:
        """All parts at common cells: values [parts, Z] and shared [parts, V + 1].

        Popularity is a part of its own here, so the others come without their share of it.
        """
        parts = []
        for name, options in self.part_options.items():
            part = BASELINES[name].score(
                counts, asked, dict(options) | {"fallback": 0.0, "seen": "keep"}
            )
            cut = name in ("item_knn", "trending")
            parts.append(_strongest(part, len(asked.target_items)) if cut else part)
        keys = distinct(np.concatenate([asked.own.keys, *(part.cells.keys for part in parts)]))
        values = np.stack([part.values_at(keys) for part in parts])
        shared = np.stack([part.shared for part in parts])
        return Scores(Cells.of(keys, counts.num_columns), values, shared)

    def rank(self, counts: TrainingCounts, parts: Scores, asked: Questions) -> np.ndarray:
        """Ranks of the targets."""
        values = np.einsum("p,pz->z", self.weights, parts.values)
        total = Scores(parts.cells, values, np.einsum("p,pv->v", self.weights, parts.shared))
        kept = _treat_seen(total, asked, {"seen": self.seen})
        return kept.ranks(asked.target_items, counts.apart)


def _tune_mix(
    counts: TrainingCounts, part_options: Mapping[str, Options], tuning: Sequence[Questions]
) -> tuple[_Mix, float]:
    """The mix of the best MRR, one weight changed at a time until no change helps."""
    begins = [np.array([1.0 if name.startswith("own") else 0.1 for name in part_options])]
    lively = ("trending", "recent_markov")
    if lively[0] in part_options:  # where they are what counts, no step from there leads to them
        begins.append(np.array([1.0 if name in lively else 0.05 for name in part_options]))
    mix = _Mix(part_options, begins[0], "keep")
    if not tuning:
        return mix, float("nan")
    chunks = [(mix.parts(counts, asked), asked) for asked in tuning]

    def mrr(mix: _Mix) -> float:
        return _mrr([mix.rank(counts, parts, asked) for parts, asked in chunks])

    mixes = [_Mix(part_options, *options) for options in itertools.product(begins, _SEEN)]
    best, mix = max(((mrr(mix), mix) for mix in mixes), key=lambda found: found[0])
    for _ in range(_MAX_ROUNDS):
        before = best
        for position, factor in itertools.product(range(len(part_options)), _WEIGHT_FACTORS):
            weights = mix.weights.copy()
            # A weight that became 0 may come back.
            weights[position] = factor * (weights[position] or _SMALL_WEIGHT)
            changed = dataclasses.replace(mix, weights=weights)
            if (found := mrr(changed)) > best:
                best, mix = found, changed
        if best == before:
            break
    return mix, best


def _strongest(scores: Scores, num_rows: int) -> Scores:
    """Keeps the NUM_CANDIDATES largest values of each row."""
    num_columns = len(scores.shared)
    cells = scores.cells
    matrix = scipy.sparse.csr_array(
        (scores.values, (cells.rows, cells.items)), shape=(num_rows, num_columns)
    )
    rows, items, values = largest_per_row(matrix, NUM_CANDIDATES)
    keys = rows * num_columns + items
    order = np.argsort(keys, kind="stable")
    return Scores(Cells.of(keys[order], num_columns), values[order], scores.shared)


def _join(ranks: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *ranks])


def _mrr(ranks: Sequence[np.ndarray]) -> float:
    joined = _join(ranks)
    return float(np.mean(np.where(joined == MISS, 0.0, 1 / np.maximum(joined, 1))))
