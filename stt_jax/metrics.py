"""How good a ranking is when one event is right: accuracy, precision, recall, F1, HR, NDCG, MRR.

Every target is one event, so one item is relevant and everything follows from its rank r over the
whole catalogue. A target that cannot be ranked has rank `MISS` and counts as a miss everywhere, so
leaving hard targets unanswered never helps. With hit(k) = [1 <= r <= k], a metric is the mean over
targets of

    accuracy@1   = hit(1)
    precision@k  = hit(k) / k                     k items shown, at most one of them right
    recall@k     = hit(k)                         one relevant item in all
    f1@k         = 2 hit(k) / (k + 1)             harmonic mean of the two above
    hr@k         = hit(k)                         the hit rate, here equal to recall@k
    ndcg@k       = hit(k) / log2(r + 1)           the ideal ranking has gain 1
    mrr          = 1 / r                          over the whole catalogue, not cut at k
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

MISS = 0
DEFAULT_KS = (1, 5, 10, 20)


def target_ranks(scores: Any, targets: Any) -> Any:
    """Ranks each target among all items of its row, ties against the model.

    The rank is 1 + the number of other items whose score is not below the target's. A model that
    gives every item the same score therefore ranks every target last. Works on numpy arrays and on
    jax arrays, under `jax.jit` too.

    Args:
      scores: float [T, V + 1]. One row a target, one column an item id; higher is better. Column 0
        is the unknown item; an item that must not be recommended is -inf, column 0 among them.
      targets: int [T]. The item id to find in each row; 0 = an item without an id.

    Returns:
      int32 [T]: 1 is best; `MISS` where the target is 0 or its score is -inf.

    Raises:
      ValueError: shapes do not fit; on numpy also: a target is not a column, a score is NaN. In jax
        arrays a NaN counts against the model instead.
    """
    namespace = scores.__array_namespace__() if hasattr(scores, "__array_namespace__") else np
    scores, targets = namespace.asarray(scores), namespace.asarray(targets)
    if scores.ndim != 2 or targets.ndim != 1 or scores.shape[0] != targets.shape[0]:
        raise ValueError(
            "scores must be [T, V + 1] and targets [T] with the same T; "
            f"got {list(scores.shape)} and {list(targets.shape)}."
        )
    if namespace is np:
        if targets.size and not 0 <= targets.min() <= targets.max() < scores.shape[1]:
            raise ValueError(
                f"targets must be item ids in 0..{scores.shape[1] - 1}, the columns of scores; "
                f"got {targets.min()}..{targets.max()}."
            )
        if np.isnan(scores).any():
            rows = np.flatnonzero(np.isnan(scores).any(axis=1))
            raise ValueError(f"scores hold NaN in {len(rows)} rows, the first is row {rows[0]}.")
    # Not a gather: where the columns are split over devices it would fetch all scores.
    is_target = namespace.arange(scores.shape[1], dtype=targets.dtype)[None] == targets[:, None]
    target_scores = namespace.where(is_target, scores, -namespace.inf).max(axis=1, keepdims=True)
    # Counting "not below" instead of "at least" makes a NaN count against the model. The target is
    # left out and its 1 added: a compiler that computes scores once for each of the two uses may
    # round them apart, and then a target can lie below itself.
    ranks = 1 + (~(scores < target_scores) & ~is_target).sum(axis=1).astype(namespace.int32)
    answered = (targets != 0) & (target_scores[:, 0] != -namespace.inf)
    return namespace.where(answered, ranks, namespace.zeros_like(ranks))


def ranking_metrics(ranks: Any, ks: Sequence[int] = DEFAULT_KS) -> dict[str, float]:
    """Means over the targets of the metrics defined at the top of this module.

    Args:
      ranks: int [T], as from `target_ranks`: 1 is best, `MISS` is a miss.
      ks: cut-offs, each >= 1.

    Returns:
      `accuracy@1`, `precision@k`, `recall@k`, `f1@k`, `hr@k`, `ndcg@k` for every k, and `mrr`. All
      are NaN if there is no target.

    Raises:
      ValueError: `ranks` is not one-dimensional, holds a negative rank, or a k is below 1.
    """
    ranks = _checked_ranks(ranks)
    return {name: _mean(gains) for name, gains in _gains(ranks, ks).items()}


def standard_errors(
    ranks: Any, ks: Sequence[int] = DEFAULT_KS, *, clusters: Any | None = None
) -> dict[str, float]:
    """Standard errors of `ranking_metrics`, for the sampling of targets or of whole people.

    With `clusters` the targets of one cluster may depend on each other: the error is
    sqrt(G / (G - 1) * sum over G clusters of (sum of deviations from the mean)^2) / T, which is not
    too small for few of them. Without, every target is its own cluster and a hit rate's error is
    the binomial one, sqrt(p (1 - p) / (T - 1)).

    Args:
      ranks: int [T], as from `target_ranks`.
      ks: cut-offs, each >= 1.
      clusters: int [T], for instance the user row of each target, or None.

    Returns:
      The keys of `ranking_metrics`. NaN if there are fewer than two clusters: one says nothing of
      how they differ.

    Raises:
      ValueError: as `ranking_metrics`; or `clusters` and `ranks` differ in length.
    """
    ranks = _checked_ranks(ranks)
    labels = np.arange(len(ranks)) if clusters is None else _checked_labels(clusters, ranks)
    found, cluster_ids = np.unique(labels, return_inverse=True)
    if len(found) < 2:
        return dict.fromkeys(_gains(ranks, ks), float("nan"))
    for_few = np.sqrt(len(found) / (len(found) - 1))
    errors = {}
    for name, gains in _gains(ranks, ks).items():
        sums = np.bincount(cluster_ids, weights=gains - _mean(gains))
        errors[name] = float(for_few * np.sqrt(np.square(sums).sum()) / len(ranks))
    return errors


def grouped_metrics(
    ranks: Any, groups: Any, ks: Sequence[int] = DEFAULT_KS
) -> dict[str, dict[str, float]]:
    """`ranking_metrics` of each group of targets.

    Args:
      ranks: int [T], as from `target_ranks`.
      groups: [T] strings or integers, the label of each target's group.
      ks: cut-offs, each >= 1.

    Returns:
      label (as a string) -> `num_targets` and the keys of `ranking_metrics`, in sorted order.

    Raises:
      ValueError: as `ranking_metrics`; or `groups` and `ranks` differ in length.
    """
    ranks = _checked_ranks(ranks)
    labels, group_ids = np.unique(_checked_labels(groups, ranks), return_inverse=True)
    metrics = {}
    for group, label in enumerate(labels):
        chosen = ranks[group_ids == group]
        metrics[str(label)] = {"num_targets": len(chosen), **ranking_metrics(chosen, ks)}
    return metrics


def length_groups(lengths: Any, edges: Sequence[int] = (10, 30, 100, 300)) -> np.ndarray:
    """Labels each history length with its range, for `grouped_metrics`: `010-029`, ..., `300+`.

    Args:
      lengths: int [T], each >= 0.
      edges: the first length of every range but the first; increasing and >= 1.

    Returns:
      [T] strings that sort in the order of the ranges.

    Raises:
      ValueError: `edges` is empty, does not increase or starts below 1.
    """
    if not edges or edges[0] < 1 or any(a >= b for a, b in itertools.pairwise(edges)):
        raise ValueError(f"edges must increase and start at 1 or more; got {list(edges)}.")
    width = len(str(edges[-1]))
    starts = [0, *edges]
    labels = [f"{a:0{width}}-{b - 1:0{width}}" for a, b in zip(starts, edges, strict=False)]
    labels.append(f"{edges[-1]}+")
    return np.asarray(labels)[np.searchsorted(edges, np.asarray(lengths), side="right")]


def _gains(ranks: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """What every target adds to every metric: name -> float64 [T]."""
    if any(k < 1 for k in ks):
        raise ValueError(f"ks must be >= 1; got {list(ks)}.")
    answered = ranks != MISS
    safe_ranks = np.where(answered, ranks, 1).astype(np.float64)
    gains = {"accuracy@1": (ranks == 1).astype(np.float64)}
    for k in ks:
        hits = (answered & (ranks <= k)).astype(np.float64)
        gains[f"precision@{k}"] = hits / k
        gains[f"recall@{k}"] = hits
        gains[f"f1@{k}"] = 2 * hits / (k + 1)
        gains[f"hr@{k}"] = hits
        gains[f"ndcg@{k}"] = hits / np.log2(safe_ranks + 1)
    gains["mrr"] = answered / safe_ranks
    return gains


def finite_or_none(value: Any) -> Any:
    """A report for JSON, which has no word for NaN and infinities: None in their place.

    Of one person there is no standard error, of a step that blew up no loss.
    """
    if isinstance(value, dict):
        return {name: finite_or_none(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(gains: np.ndarray) -> float:
    return float(gains.mean()) if len(gains) else float("nan")


def _checked_ranks(ranks: Any) -> np.ndarray:
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or not np.issubdtype(ranks.dtype, np.integer):
        raise ValueError(f"ranks must be int [T]; got {ranks.dtype} {list(ranks.shape)}.")
    if ranks.size and ranks.min() < 0:
        raise ValueError(f"ranks must be >= 1, or {MISS} for a miss; got {ranks.min()}.")
    return ranks


def _checked_labels(labels: Any, ranks: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != ranks.shape:
        raise ValueError(
            f"one label a target is needed: {len(ranks)} ranks; got labels {list(labels.shape)}."
        )
    return labels
