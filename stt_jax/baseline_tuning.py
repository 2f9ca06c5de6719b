"""Counting models as well as they can be: tuned, mixed and ranked like a learned model.

Options and the weights of the mix are chosen on validation targets alone, by coordinate search for
the best MRR. Ranks are those of `metrics.target_ranks`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from stt_jax.baselines import BASELINES, SEEN, Baseline, Options, treat_seen
from stt_jax.counting import (
    Cells,
    Questions,
    Scores,
    TrainingCounts,
    distinct,
    gather_questions,
    largest_per_row,
)
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import MODES, Targets
from stt_jax.metrics import MISS

NUM_CANDIDATES = 100  # of a target in the mix's share of item_knn, and of trending

_MAX_ROUNDS = 4
_WEIGHT_FACTORS = (0.0, 0.3, 0.7, 1.4, 3.0)
_SMALL_WEIGHT = 0.05


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
      mode -> name -> result, names in the order of `BASELINES`. On a log without times the
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
            ranks[name].append(BASELINES[name].rank(counts, asked, tuned[name].options))
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


class _Tuned(NamedTuple):
    options: dict[str, Any]
    mrr: float


def _tune(baseline: Baseline, counts: TrainingCounts, tuning: Sequence[Questions]) -> _Tuned:
    """Options of the best MRR, one option changed at a time until no change helps."""
    options = {name: values[0] for name, values in baseline.grid.items()}
    if not tuning:
        return _Tuned(options, float("nan"))

    def mrr(options: Options) -> float:
        return _mrr([baseline.rank(counts, asked, options) for asked in tuning])

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
      seen: whether to keep the items of the context, of SEEN.
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
        kept = treat_seen(total, asked, {"seen": self.seen})
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

    mixes = [_Mix(part_options, *options) for options in itertools.product(begins, SEEN)]
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
