"""Counting models: what any claim about a learned model must beat.

Each is fitted on the training part of the log and asks the target's own context; its options are
tuned on validation targets alone, by coordinate search for the best MRR. A baseline gives every
item a score of two parts: a sparse one of this target (the person's own items, what follows the
last item, what goes with the history), and a share of popularity that orders all other items.

    popularity         training counts
    recent_popularity  training counts, halved every `half_life_days` before the end of training
    markov             what followed the last item in training, for anybody
    item_knn           items that co-occur in people's histories (cosine), summed over the context
    own_frequency      counts in the context
    own_recency        the same, weighted by how long ago: days, events, or a power of events
    own_sequence       own_recency, favouring events that followed the same item as the last one
    own_hour           own_recency, favouring events at the hour of the week of the request; if the
                       request time is unknown, at the hours that usually follow the last event
    own_hour_sequence  the product of the last two
    mix                a weighted sum of all of these

Ranks cover the full catalogue, ties against the model, exactly as `metrics.target_ranks` on dense
scores; but only non-zero parts are stored, so 100,000 targets times 25,000 items need no array of
that size.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from stt_jax.data.protocol import Targets
from stt_jax.data.store import TRAIN, PreparedLog
from stt_jax.metrics import MISS

MODES = ("unknown", "known")
HOURS_PER_WEEK = 168
MAX_CONTEXT = 2000  # most recent events of a context that are counted
NUM_NEIGHBOURS = 50  # of an item in item_knn
NUM_CANDIDATES = 200  # of a target in item_knn; the others are ordered by popularity

_CHUNK_TARGETS = 2048
_MAX_ROUNDS = 4
_WEIGHT_FACTORS = (0.0, 0.3, 0.7, 1.4, 3.0)
_SMALL_WEIGHT = 0.05
_INF = float("inf")

Options = Mapping[str, Any]
Grid = dict[str, Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class BaselineResult:
    """What one baseline did.

    Attributes:
      ranks: int32 [T], of the test targets, as from `metrics.target_ranks`.
      options: the chosen hyper-parameters.
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
    max_tuning_targets: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, BaselineResult]]:
    """Tunes every baseline on validation targets and ranks the test targets with it.

    Args:
      log: the prepared log; only its training part is counted.
      validation: targets to tune on; without any that are in the vocabulary, defaults are used.
      test: targets to rank.
      modes: request modes, of `MODES`. The time of a target is looked at in mode "known" only.
      max_tuning_targets: a random sample of this many validation targets is tuned on.
      seed: of that sample.

    Returns:
      mode -> name -> result, names in the order of the table above. On a log without times the
      baselines that need them (recent_popularity, own_hour) are left out.

    Raises:
      ValueError: an unknown mode.
    """
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f"modes must be of {', '.join(MODES)}; got {mode!r}.")
    counts = TrainingCounts(log)
    usable = validation[log.items[validation.events] > 0].sample(max_tuning_targets, seed)
    results: dict[str, dict[str, BaselineResult]] = {}
    shared: dict[str, BaselineResult] = {}  # of baselines that are the same in both modes
    for mode in modes:
        tuning = list(_questions(counts, usable, mode))
        results[mode] = {}
        for name, baseline in BASELINES.items():
            if baseline.needs_times and not log.meta.has_times:
                continue
            if name not in shared:
                options, mrr = _tune(baseline, counts, tuning)
                rank = functools.partial(_rank, baseline, counts, options=options)
                result = BaselineResult(_rank_all(rank, counts, test, mode), options, mrr)
                if not baseline.uses_request_time:
                    shared[name] = result
            results[mode][name] = shared.get(name, result)
        results[mode]["mix"] = _mix(counts, results[mode], tuning, test, mode)
    return results


class TrainingCounts:
    """What is counted in the training part, each kind once, when first asked for."""

    def __init__(self, log: PreparedLog):
        self.log = log
        self.num_columns = log.num_items + 1
        self.events = np.flatnonzero(log.parts == TRAIN)
        self.hours = (log.times + log.utc_offsets_s) // 3600
        # 1970-01-01 was a Thursday; hour 0 is Monday 0 h.
        self.hours = ((self.hours + 3 * 24) % HOURS_PER_WEEK).astype(np.int16)

    @functools.cached_property
    def popularity(self) -> np.ndarray:
        """float64 [V + 1], sums to one, 0 for the unknown item."""
        return self.recent_popularity(_INF)

    def recent_popularity(self, half_life_days: float) -> np.ndarray:
        """The same with events halved in weight every `half_life_days` before the last."""
        items, times = self.log.items[self.events], self.log.times[self.events]
        ages_days = (times.max(initial=0) - times) / 86_400
        weights = np.exp2(-ages_days / half_life_days)
        counts = np.bincount(items, weights=weights, minlength=self.num_columns)
        counts[0] = 0
        return counts / max(counts.sum(), 1e-300)

    @functools.cached_property
    def _successions(self) -> tuple[np.ndarray, np.ndarray]:
        """Consecutive training events of one person."""
        users = np.searchsorted(self.log.user_offsets, self.events, side="right")
        same = users[1:] == users[:-1]
        return self.events[:-1][same], self.events[1:][same]

    @functools.cached_property
    def transitions(self) -> scipy.sparse.csr_array:
        """[V + 1, V + 1] shares of what followed each item; a row sums to one or is empty."""
        before, after = (self.log.items[events] for events in self._successions)
        chosen = (before > 0) & (after > 0)
        shape = (self.num_columns, self.num_columns)
        ones = np.ones(np.count_nonzero(chosen))
        counts = scipy.sparse.csr_array((ones, (before[chosen], after[chosen])), shape=shape)
        return _scale_rows(counts, 1 / np.maximum(counts.sum(axis=1), 1))

    @functools.cached_property
    def next_hours(self) -> np.ndarray:
        """[168, 168] P(hour of week of the next event | of this one), from training events."""
        before, after = (self.hours[events] for events in self._successions)
        table = np.full((HOURS_PER_WEEK, HOURS_PER_WEEK), 1 / HOURS_PER_WEEK)
        np.add.at(table, (before, after), 1.0)
        return table / table.sum(axis=1, keepdims=True)

    @functools.cached_property
    def similarities(self) -> scipy.sparse.csr_array:
        """[V + 1, V + 1] cosine of the people who had two items, nearest neighbours only."""
        users = np.searchsorted(self.log.user_offsets, self.events, side="right") - 1
        items = self.log.items[self.events]
        # The newest MAX_CONTEXT training events of each person.
        ages = np.searchsorted(users, users, side="right") - np.arange(len(users))
        chosen = (items > 0) & (ages <= MAX_CONTEXT)
        pairs = _distinct(users[chosen] * self.num_columns + items[chosen])
        rows, columns = np.divmod(pairs, self.num_columns)
        shape = (self.log.num_users, self.num_columns)
        had = scipy.sparse.csr_array(
            (np.ones(len(pairs), np.float32), (rows, columns)), shape=shape
        )
        norms = np.sqrt(np.maximum(had.sum(axis=0), 1))
        had = (had @ scipy.sparse.diags_array(1 / norms)).tocsr()
        had_by_item = had.T.tocsr()
        blocks = []
        for first in range(0, self.num_columns, 512):
            block = (had_by_item[first : first + 512] @ had).tocsr()
            rows = np.repeat(np.arange(block.shape[0]) + first, np.diff(block.indptr))
            block.data[block.indices == rows] = 0  # an item is no neighbour of its own
            rows, columns, values = _largest_per_row(block, NUM_NEIGHBOURS)
            blocks.append(scipy.sparse.csr_array((values, (rows, columns)), shape=block.shape))
        return scipy.sparse.vstack(blocks, format="csr")


@dataclasses.dataclass(frozen=True)
class Questions:
    """A chunk of n targets with their contexts laid end to end (P events).

    A sparse score is a value at a key: row of the target * num_columns + item. Keys increase.

    Attributes:
      target_items: int64 [n].
      keys: int64 [Z]. The distinct items of each context.
      key_index: int64 [P]. The key of each context event; Z for an unknown item.
      rows: int64 [P]. The target that each context event belongs to.
      ages: float64 [P]. 1 = the last event of the context, 2 = the one before, ...
      ages_days: float64 [P]. Days before the last event of the context.
      hours: int16 [P]. Local hour of the week.
      follows_last: bool [P]. Whether the event before had the same item as the context's last one.
      last_items: int64 [n], 0 if the context is empty or its last item unknown.
      last_hours: int64 [n]. Local hour of the week of the last event, -1 if there is none.
      request_hours: int64 [n], or None if the request time is unknown.
    """

    target_items: np.ndarray
    keys: np.ndarray
    key_index: np.ndarray
    rows: np.ndarray
    ages: np.ndarray
    ages_days: np.ndarray
    hours: np.ndarray
    follows_last: np.ndarray
    last_items: np.ndarray
    last_hours: np.ndarray
    request_hours: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of n targets: `values` at `keys` plus `shared` [V + 1] for every item of every row."""

    keys: np.ndarray
    values: np.ndarray
    shared: np.ndarray


def _questions(counts: TrainingCounts, targets: Targets, mode: str) -> Iterator[Questions]:
    for first in range(0, len(targets), _CHUNK_TARGETS):
        yield _gather(counts, targets[first : first + _CHUNK_TARGETS], mode)


def _gather(counts: TrainingCounts, targets: Targets, mode: str) -> Questions:
    log, num_targets = counts.log, len(targets)
    # Both ranges of the context, shortened from the front to MAX_CONTEXT events together.
    session_lengths = np.minimum(targets.events - targets.session_starts, MAX_CONTEXT)
    history_lengths = np.minimum(
        targets.history_ends - targets.history_starts, MAX_CONTEXT - session_lengths
    )
    lengths = np.stack([history_lengths, session_lengths], axis=1)
    ends = np.stack([targets.history_ends, targets.events], axis=1)
    events = _ranges((ends - lengths).ravel(), lengths.ravel())
    totals = lengths.sum(axis=1)
    rows = np.repeat(np.arange(num_targets), totals)
    stops = np.cumsum(totals)
    ages = np.repeat(stops, totals) - np.arange(len(events))
    filled = totals > 0
    last_events = events[stops[filled] - 1]
    last_items, last_hours = np.zeros(num_targets, np.int64), np.full(num_targets, -1)
    last_items[filled], last_hours[filled] = log.items[last_events], counts.hours[last_events]
    last_times = np.zeros(num_targets, np.int64)
    last_times[filled] = log.times[last_events]
    items = log.items[events].astype(np.int64)
    follows_last = np.zeros(len(events), bool)
    follows_last[1:] = (items[:-1] == last_items[rows[1:]]) & (rows[1:] == rows[:-1])
    follows_last &= last_items[rows] > 0
    pair_keys = rows * counts.num_columns + items
    keys = _distinct(pair_keys[items > 0])
    return Questions(
        target_items=log.items[targets.events].astype(np.int64),
        keys=keys,
        key_index=np.where(items > 0, np.searchsorted(keys, pair_keys), len(keys)),
        rows=rows,
        ages=ages.astype(np.float64),
        ages_days=(last_times[rows] - log.times[events]) / 86_400,
        hours=counts.hours[events],
        follows_last=follows_last,
        last_items=last_items,
        last_hours=last_hours,
        request_hours=counts.hours[targets.events] if mode == "known" else None,
    )


def _score_popularity(counts: TrainingCounts, asked: Questions, options: Options) -> Scores:
    shared = counts.recent_popularity(options.get("half_life_days", _INF))
    return _leave_out_seen(Scores(asked.keys, np.zeros(len(asked.keys)), shared), asked, options)


def _score_markov(counts: TrainingCounts, asked: Questions, options: Options) -> Scores:
    followers = counts.transitions[asked.last_items].tocoo()
    keys = followers.row.astype(np.int64) * counts.num_columns + followers.col
    order = np.argsort(keys)
    scores = Scores(keys[order], followers.data[order], options["fallback"] * counts.popularity)
    return _leave_out_seen(scores, asked, options)


def _score_item_knn(counts: TrainingCounts, asked: Questions, options: Options) -> Scores:
    own = _own_values(asked, np.exp2(-asked.ages / options["half_life_events"]))
    rows, items = np.divmod(asked.keys, counts.num_columns)
    shape = (len(asked.target_items), counts.num_columns)
    near = scipy.sparse.csr_array((own, (rows, items)), shape=shape) @ counts.similarities
    near.sort_indices()
    near_rows = np.repeat(np.arange(shape[0]), np.diff(near.indptr))
    keys = near_rows * counts.num_columns + near.indices
    values = _normalised(near_rows, near.data, shape[0])
    scores = Scores(keys, values, _KNN_FALLBACK * counts.popularity)
    return _leave_out_seen(scores, asked, options)


def _score_own(counts: TrainingCounts, asked: Questions, options: Options) -> Scores:
    weights = _recency(asked, options)
    if "sequence_floor" in options:
        weights *= np.where(asked.follows_last, 1.0, options["sequence_floor"])
    if "width_h" in options:
        weights *= _hour_weights(counts, asked, options)
    return Scores(asked.keys, _own_values(asked, weights), options["fallback"] * counts.popularity)


def _recency(asked: Questions, options: Options) -> np.ndarray:
    weights = np.exp2(-asked.ages / options.get("half_life_events", _INF))
    weights *= np.exp2(-asked.ages_days / options.get("half_life_days", _INF))
    return weights * asked.ages ** -options.get("power", 0.0)


def _hour_weights(counts: TrainingCounts, asked: Questions, options: Options) -> np.ndarray:
    """[P] how well the hour of each context event fits the hour of the request."""
    hours = np.arange(HOURS_PER_WEEK)
    apart_h = np.abs(hours[:, None] - hours) % 24
    apart_h = np.minimum(apart_h, 24 - apart_h)
    kernel = np.exp(-0.5 * (apart_h / options["width_h"]) ** 2)
    weekend = hours >= 5 * 24
    kernel *= np.where(weekend[:, None] == weekend, 1.0, options["other_days"])
    kernel += options["hour_floor"]
    if asked.request_hours is not None:
        return kernel[asked.request_hours[asked.rows], asked.hours]
    # Rows of the context's own events only: an empty context has no row, so no hour is -1 here.
    return (counts.next_hours @ kernel)[asked.last_hours[asked.rows], asked.hours]


def _own_values(asked: Questions, weights: np.ndarray) -> np.ndarray:
    """Sums the weights [P] of context events by key, each row scaled to one: [Z]."""
    values = np.bincount(asked.key_index, weights=weights, minlength=len(asked.keys) + 1)[:-1]
    rows = np.zeros(len(asked.keys), np.int64)
    rows[asked.key_index[asked.key_index < len(rows)]] = asked.rows[asked.key_index < len(rows)]
    return _normalised(rows, values, len(asked.target_items))


def _leave_out_seen(scores: Scores, asked: Questions, options: Options) -> Scores:
    """Gives the items of the context -inf if `options["seen"]` is "leave out"."""
    if options["seen"] == "keep":
        return scores
    keys = _distinct(np.concatenate([scores.keys, asked.keys]))
    values = _values_at(keys, scores)
    values[np.searchsorted(keys, asked.keys)] = -_INF
    return Scores(keys, values, scores.shared)


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A counting model.

    Attributes:
      scorer: (training counts, questions, options) -> scores.
      grid: option -> values to try, the default first.
      uses_request_time: whether the two request modes differ.
      needs_times: whether it means nothing on a log without times.
    """

    scorer: Callable[[TrainingCounts, Questions, Options], Scores]
    grid: Grid
    uses_request_time: bool = False
    needs_times: bool = False


_SEEN = ("keep", "leave out")
_KNN_FALLBACK = 1e-6
_FALLBACK = (1e-3, 1e-2, 1e-1, 1.0)
_RECENCY: Grid = {
    "half_life_events": (_INF, 300.0, 100.0, 30.0, 10.0, 3.0),
    "half_life_days": (_INF, 180.0, 60.0, 20.0, 7.0, 2.0),
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
    "popularity": Baseline(_score_popularity, {"seen": _SEEN}),
    "recent_popularity": Baseline(
        _score_popularity,
        {"half_life_days": (30.0, 180.0, 90.0, 10.0, 3.0, 1.0, 0.3, 0.1), "seen": _SEEN},
        needs_times=True,
    ),
    "markov": Baseline(_score_markov, {"fallback": _FALLBACK, "seen": _SEEN}),
    "item_knn": Baseline(
        _score_item_knn,
        {
            "half_life_events": (30.0, _INF, 100.0, 10.0, 3.0, 1.0),
            "seen": _SEEN,
        },
    ),
    "own_frequency": Baseline(_score_own, {"fallback": (1e-3,)}),
    "own_recency": Baseline(_score_own, _RECENCY),
    "own_sequence": Baseline(_score_own, _SEQUENCE | _RECENCY),
    "own_hour": Baseline(_score_own, _HOUR | _RECENCY, uses_request_time=True, needs_times=True),
    "own_hour_sequence": Baseline(
        _score_own, _SEQUENCE | _HOUR | _RECENCY, uses_request_time=True, needs_times=True
    ),
}


def _tune(
    baseline: Baseline, counts: TrainingCounts, tuning: Sequence[Questions]
) -> tuple[dict[str, Any], float]:
    """Options of the best MRR, one option changed at a time until no change helps."""
    options = {name: values[0] for name, values in baseline.grid.items()}

    def mrr(options: Options) -> float:
        return _mean_reciprocal(
            [_rank(baseline, counts, asked, options=options) for asked in tuning]
        )

    if not tuning:
        return options, float("nan")
    best = mrr(options)
    for _ in range(_MAX_ROUNDS):
        before = best
        for name, values in baseline.grid.items():
            for value in values:
                if value != options[name]:
                    found = mrr(options | {name: value})
                    if found > best:
                        best, options = found, options | {name: value}
        if best == before:
            break
    return options, best


def _rank(
    baseline: Baseline, counts: TrainingCounts, asked: Questions, *, options: Options
) -> np.ndarray:
    return _ranks(baseline.scorer(counts, asked, options), asked)


def _mix(
    counts: TrainingCounts,
    tuned: Mapping[str, BaselineResult],
    tuning: Sequence[Questions],
    test: Targets,
    mode: str,
) -> BaselineResult:
    """The weighted sum of tuned baselines, weights and treatment of seen items by the best MRR."""
    names = list(tuned)

    def score(stack: Scores, asked: Questions, weights: np.ndarray, seen: str) -> Scores:
        total = Scores(stack.keys, weights @ stack.values, weights @ stack.shared)
        return _leave_out_seen(total, asked, {"seen": seen})

    stacks = [_stack(counts, asked, tuned) for asked in tuning]

    def mrr(weights: np.ndarray, seen: str) -> float:
        chunks = zip(stacks, tuning, strict=True)
        return _mean_reciprocal(
            [_ranks(score(stack, asked, weights, seen), asked) for stack, asked in chunks]
        )

    weights = np.array([1.0 if name.startswith("own") else 0.1 for name in names])
    seen, best = "keep", float("nan")
    if tuning:
        best, seen = max((mrr(weights, seen), seen) for seen in _SEEN)
        for _ in range(_MAX_ROUNDS):
            before = best
            for position, factor in itertools.product(range(len(names)), _WEIGHT_FACTORS):
                changed = weights.copy()
                # A weight that became 0 may come back.
                changed[position] = factor * (weights[position] or _SMALL_WEIGHT)
                found = mrr(changed, seen)
                if found > best:
                    best, weights = found, changed
            if best == before:
                break

    def rank(asked: Questions) -> np.ndarray:
        return _ranks(score(_stack(counts, asked, tuned), asked, weights, seen), asked)

    options = {name: float(weight) for name, weight in zip(names, weights, strict=True)}
    return BaselineResult(_rank_all(rank, counts, test, mode), options | {"seen": seen}, best)


def _stack(counts: TrainingCounts, asked: Questions, tuned: Mapping[str, BaselineResult]) -> Scores:
    """The scores of all baselines at common keys: values [parts, Z] and shared [parts, V + 1].

    Popularity is a part of its own here, so the others come without their share of it, and what
    was seen is kept.
    """
    parts = []
    for name, result in tuned.items():
        options = result.options | {"fallback": 0.0, "seen": "keep"}
        part = BASELINES[name].scorer(counts, asked, options)
        parts.append(_strongest(part, len(asked.target_items)) if name == "item_knn" else part)
    keys = _distinct(np.concatenate([part.keys for part in parts]))
    values = np.stack([_values_at(keys, part) for part in parts])
    return Scores(keys, values, np.stack([part.shared for part in parts]))


def _strongest(scores: Scores, num_rows: int) -> Scores:
    """Keeps the NUM_CANDIDATES largest values of each row."""
    rows, items = np.divmod(scores.keys, len(scores.shared))
    shape = (num_rows, len(scores.shared))
    matrix = scipy.sparse.csr_array((scores.values, (rows, items)), shape=shape)
    rows, items, values = _largest_per_row(matrix, NUM_CANDIDATES)
    order = np.lexsort((items, rows))
    keys = rows * len(scores.shared) + items
    return Scores(keys[order], values[order], scores.shared)


def _rank_all(
    rank: Callable[[Questions], np.ndarray], counts: TrainingCounts, targets: Targets, mode: str
) -> np.ndarray:
    chunks = [rank(asked) for asked in _questions(counts, targets, mode)]
    return np.concatenate([np.zeros(0, np.int32), *chunks])


def _ranks(scores: Scores, asked: Questions) -> np.ndarray:
    """`metrics.target_ranks` of the dense scores, without making them."""
    num_rows, num_columns = len(asked.target_items), len(scores.shared)
    rows, items = np.divmod(scores.keys, num_columns)
    target_values = _values_at(np.arange(num_rows) * num_columns + asked.target_items, scores)
    target_scores = target_values + scores.shared[asked.target_items]
    # Items at keys count with their own score, all others with the shared part.
    shared = scores.shared[items]
    at_keys = scores.values + shared >= target_scores[rows]
    twice = shared >= target_scores[rows]
    ranks = np.bincount(rows, weights=at_keys.astype(np.int64) - twice, minlength=num_rows)
    ranks += num_columns - 1 - np.searchsorted(np.sort(scores.shared[1:]), target_scores)
    answered = (asked.target_items > 0) & (target_scores > -_INF)
    return np.where(answered, ranks, MISS).astype(np.int32)


def _values_at(keys: np.ndarray, scores: Scores) -> np.ndarray:
    """The sparse part of `scores` at `keys`, 0 where it has none."""
    if not len(scores.keys):
        return np.zeros(len(keys))
    places = np.minimum(np.searchsorted(scores.keys, keys), len(scores.keys) - 1)
    return np.where(scores.keys[places] == keys, scores.values[places], 0.0)


def _mean_reciprocal(ranks: Sequence[np.ndarray]) -> float:
    joined = np.concatenate(ranks)
    return float(np.mean(np.where(joined == MISS, 0.0, 1 / np.maximum(joined, 1))))


def _normalised(rows: np.ndarray, values: np.ndarray, num_rows: int) -> np.ndarray:
    sums = np.bincount(rows, weights=values, minlength=num_rows)
    return values / np.maximum(sums, 1e-300)[rows]


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Sorted and without repetitions; several times as fast as np.unique on nearly sorted keys."""
    keys = np.sort(keys, kind="stable")
    return keys[np.append(True, keys[1:] != keys[:-1])] if len(keys) else keys


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`starts[0], starts[0] + 1, ...` (lengths[0] of them), then the same from starts[1], ..."""
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(lengths.sum())


def _scale_rows(matrix: scipy.sparse.csr_array, factors: np.ndarray) -> scipy.sparse.csr_array:
    return (scipy.sparse.diags_array(factors) @ matrix).tocsr()


def _largest_per_row(
    matrix: scipy.sparse.csr_array, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and values of the `count` largest entries of each row, equal ones by column."""
    lengths = np.diff(matrix.indptr)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    columns, values = matrix.indices.astype(np.int64), matrix.data
    order = np.lexsort((columns, -values, rows))
    kept = order[np.arange(len(rows)) - np.repeat(matrix.indptr[:-1], lengths) < count]
    return rows[kept], columns[kept], values[kept]
