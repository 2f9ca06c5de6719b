"""What a cold person or item can be answered with without learning: counts and likeness of content.

All give dense scores; options are chosen on the very targets that are reported, in their favour.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from stt_jax.config import ModelConfig
from stt_jax.counting import TrainingCounts, latest_followers
from stt_jax.data.encodings import earth_coords
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import Targets
from stt_jax.data.store import TRAIN
from stt_jax.metrics import ranking_metrics, target_ranks
from stt_jax.successions import find_successions
from stt_jax.trends import find_trends

_SMOOTHING = (10.0, 100.0, 1000.0)  # events of the whole crowd that a group is filled up with
_POPULARITY = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
_FOLLOWED = (0.3, 1.0, 3.0)
_NEAR = (0.0, 0.3, 1.0)
_NEAR_KM = 1.0
_USUAL = ModelConfig()
_NUM_LIKE = 20  # items by whose popularity that of an item without events is guessed


class ColdBaselines:
    """Baselines on one view of a log, see `ColdLogs`; they count its training part."""

    def __init__(
        self,
        log: PreparedLog,
        *,
        leave_out_seen: bool,
        num_warm_items: int,
        config: ModelConfig = _USUAL,
    ) -> None:
        """`config`: with the half-lives of what was popular and what followed lately."""
        self.log = log
        self._leave_out_seen = leave_out_seen
        self._config = config
        self._counts = TrainingCounts(log)
        coords = earth_coords(log.item_latitudes_e7, log.item_longitudes_e7)
        self._near = np.nan_to_num(_near(coords)) if log.meta.has_places else None
        popularity = self._counts.popularity.copy()
        for item in range(num_warm_items + 1, log.num_items + 1):
            like = np.argsort(-self._likeness[item, 1 : num_warm_items + 1])[:_NUM_LIKE] + 1
            popularity[item] = popularity[like].mean()
        self._popularity = popularity

    @functools.cached_property
    def _likeness(self) -> np.ndarray:
        return _likeness(self.log)

    def best(self, name: str, targets: Targets, *, num_left_out: int = 0) -> np.ndarray:
        """Ranks among the last items, with the options of the best NDCG@10."""
        found = [
            self._rank(scores, targets, num_left_out) for scores in getattr(self, name)(targets)
        ]
        return max(found, key=lambda ranks: ranking_metrics(ranks)["ndcg@10"])

    def popularity_lately(self, targets: Targets) -> Iterator[np.ndarray]:
        """Shares of the events before the request, or the last one known; then all events."""
        trends = find_trends(
            self.log,
            self._counts.events,
            self._config.trend_half_lives_h,
            self._config.trend_step_min,
        )
        for lately, now in itertools.product(
            trends.relations, (targets.events, _last_events(targets))
        ):
            rows = np.searchsorted(trends.start_minutes, self.log.times[now] // 60, side="right")
            scores = np.tile(1e-6 * self._popularity, (len(targets), 1))
            for target, row in enumerate(rows):
                scores[target, lately.items[row]] += lately.shares[row]
            yield scores

    def followed_lately(self, targets: Targets) -> Iterator[np.ndarray]:
        """Shares of what came right after the last item lately, and what was popular lately."""
        known = find_successions(self.log, self._counts.events)
        last = _last_events(targets)
        # Who has no events yet has no last item.
        last_items = np.where(last < targets.events, self.log.items[last], 0).astype(np.int64)
        minutes = self.log.times[targets.events] // 60
        rows, items, ages = latest_followers(known, last_items, minutes)
        for half_life_h, popular in itertools.product(
            self._config.succession_half_lives_h, self.popularity_lately(targets)
        ):
            followed = np.zeros_like(popular)
            np.add.at(followed, (rows, items), np.exp2(-ages / (60 * half_life_h)))
            followed /= np.maximum(followed.sum(axis=1, keepdims=True), 1e-300)
            for weight in _FOLLOWED:
                yield popular + weight * followed

    def popularity_of_group(self, targets: Targets) -> Iterator[np.ndarray]:
        """P(item | value of a trait), filled up with the crowd's: each trait, then their mean."""
        log = self.log
        users = np.repeat(np.arange(log.num_users), np.diff(log.user_offsets))
        train = log.parts == TRAIN
        for smoothing in _SMOOTHING:
            shares = []
            for column in log.user_traits.values():
                counts = np.zeros((column.max() + 1, log.num_items + 1))
                np.add.at(counts, (column[users[train]], log.items[train]), 1)
                counts += smoothing * self._popularity
                shares.append((counts / counts.sum(1, keepdims=True))[column[targets.users]])
                yield shares[-1]
            if len(shares) > 1:
                yield np.mean(shares, axis=0)

    def content_knn(self, targets: Targets) -> Iterator[np.ndarray]:
        """Mean likeness of content, and nearness, to the items of the context, plus popularity."""
        own = np.zeros((len(targets), self.log.num_items + 1), np.float32)
        for target in range(len(targets)):
            items = self.log.items[targets.context(target)]
            np.add.at(own[target], items[items > 0], 1 / max(1, len(items)))
        likeness = own @ self._likeness
        near = None if self._near is None else own @ self._near
        popular = self._popularity / self._popularity.max()
        for weight, of_near in itertools.product(_POPULARITY, _NEAR if near is not None else (0,)):
            scores = likeness + weight * popular
            yield scores + of_near * near if of_near and near is not None else scores

    def _rank(self, scores: np.ndarray, targets: Targets, num_left_out: int) -> np.ndarray:
        scores = scores.copy()
        if self._leave_out_seen:
            for target in range(len(targets)):
                scores[target, self.log.items[targets.context(target)]] = -np.inf
        scores[:, : num_left_out + 1] = -np.inf
        return np.asarray(target_ranks(scores, self.log.items[targets.events]))


def _last_events(targets: Targets) -> np.ndarray:
    """The last event that each target sees; of who sees none, the target itself."""
    has_any = targets.history_ends > targets.history_starts
    return np.where(has_any, targets.history_ends - 1, targets.events)


def _likeness(log: PreparedLog) -> np.ndarray:
    """[V + 1, V + 1] cosine of categories and traits, rare ones weighing more."""
    columns = [log.item_categories[:, None], *log.item_traits.values()]
    parts = []
    for column in columns:
        hot = np.zeros((len(column), int(column.max()) + 1), np.float32)
        np.put_along_axis(hot, column.astype(np.int64), 1.0, axis=1)
        hot = hot[:, 1:]
        parts.append(hot * np.log(len(hot) / np.maximum(1, hot.sum(0))))
    vectors = np.concatenate(parts, axis=1)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors @ vectors.T


def _near(coords: np.ndarray) -> np.ndarray:
    squared = np.square(coords).sum(1)
    apart = squared[:, None] + squared[None] - 2 * coords @ coords.T
    return np.exp(-np.sqrt(np.maximum(apart, 0)) / (1000 * _NEAR_KM)).astype(np.float32)
