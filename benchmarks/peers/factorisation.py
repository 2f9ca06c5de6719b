"""Matrix factorisation (PyPI `implicit`: ALS and BPR) on a prepared log, tuned on validation.

    python -m benchmarks.peers.factorisation --suite=nyc --data_root=prepared

Needs `pip install stt_jax[bench]`, and benchmarks/results/quality/SUITE.json of
`benchmarks.bench_quality`, to which it adds its rows, on the same targets. A person
is their training events: neither what they did since nor the request's time is used, so all
contexts and request modes have the same figures. Options are chosen by MRR on validation targets,
leaving out what was seen or not among them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse

from benchmarks.bench_quality import SUITES
from stt_jax import command
from stt_jax.config import option
from stt_jax.config.flagfile import from_flagfile
from stt_jax.data.prepared_log import PreparedLog
from stt_jax.data.protocol import Targets, find_targets
from stt_jax.data.store import TEST, TRAIN, VALIDATION, open_log
from stt_jax.metrics import ranking_metrics, target_ranks
from stt_jax.training.run import FLAG_GROUPS

_CHUNK = 512  # targets whose scores are held at once
GRIDS: dict[str, dict[str, Sequence[Any]]] = {
    "ALS": {"factors": (32, 64, 128), "alpha": (1.0, 10.0)},
    "BPR": {"factors": (32, 64), "learning_rate": (0.03, 0.15)},
}


@dataclasses.dataclass(frozen=True)
class FactorisationConfig:
    """Which suite, and where its log and results are."""

    suite: str = option("nyc", "The suite.", choices=tuple(SUITES))
    data_root: str = option("", "Folder of the prepared log's folder; empty = as the flagfile.")
    max_tuning_targets: int = option(2000, "Most validation targets, drawn by a fixed seed.")
    seed: int = option(0, "Seed of the factors.")
    results: str = option("benchmarks/results/quality", "Folder of SUITE.json.")


def fit(kind: str, options: dict[str, Any], counts: Any, seed: int) -> tuple[Any, Any]:
    """User and item factors of a counts matrix [users, items]."""
    from implicit.als import AlternatingLeastSquares
    from implicit.bpr import BayesianPersonalizedRanking
    from threadpoolctl import threadpool_limits

    if kind == "ALS":
        model = AlternatingLeastSquares(**options, random_state=seed, num_threads=1)
    else:
        model = BayesianPersonalizedRanking(**options, random_state=seed, num_threads=1)
    with threadpool_limits(1, "blas"):
        model.fit(counts, show_progress=False)
    return np.asarray(model.user_factors), np.asarray(model.item_factors)


def ranks(
    log: PreparedLog, factors: tuple[Any, Any], counts: Any, targets: Targets, *, keep_seen: bool
) -> np.ndarray:
    """int32 [T], of targets whose person and item occur in training."""
    users, items = factors
    found = []
    for first in range(0, len(targets), _CHUNK):
        chunk = targets[first : first + _CHUNK]
        scores = users[chunk.users] @ items.T
        if not keep_seen:
            rows, columns = counts[chunk.users].nonzero()
            scores[rows, columns] = -np.inf
        scores[:, 0] = -np.inf
        found.append(target_ranks(scores, log.items[chunk.events]))
    return np.concatenate([np.zeros(0, np.int32), *found])


def bench(factorisation: FactorisationConfig) -> None:
    """Tunes and evaluates both, and writes their rows."""
    config = factorisation
    path = pathlib.Path(config.results) / f"{config.suite}.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    configs = from_flagfile(SUITES[config.suite].rows[0].flagfile, FLAG_GROUPS)
    data = pathlib.Path(configs["training"].data)
    log = open_log(pathlib.Path(config.data_root) / data.name if config.data_root else data)
    kind_of_targets = configs["validation"].targets
    train = np.flatnonzero((log.parts == TRAIN) & (log.items > 0))
    users = np.searchsorted(log.user_offsets, train, side="right") - 1
    shape = (log.num_train_users, log.num_items + 1)
    ones = np.ones(len(train), np.float32)
    counts = scipy.sparse.csr_matrix((ones, (users, log.items[train])), shape=shape)

    def known(part: int, most: int) -> Targets:
        targets = find_targets(log, part, targets=kind_of_targets).sample(most, seed=0)
        return targets[targets.known(log)]

    tuning = known(VALIDATION, config.max_tuning_targets)
    test = known(TEST, results["num_targets"]["evaluated"])
    for kind, grid in GRIDS.items():
        best: tuple[float, Any, dict[str, Any]] = (-1.0, None, {})
        for values in itertools.product(*grid.values()):
            options = dict(zip(grid, values, strict=True))
            factors = fit(kind, options, counts, config.seed)
            for keep_seen in (True, False):
                of_tuning = ranks(log, factors, counts, tuning, keep_seen=keep_seen)
                mrr = ranking_metrics(of_tuning)["mrr"]
                if mrr > best[0]:
                    best = (mrr, factors, {**options, "keep_seen": keep_seen})
        of_test = ranks(log, best[1], counts, test, keep_seen=best[2]["keep_seen"])
        metrics = {**ranking_metrics(of_test), "options": best[2], "validation_mrr": best[0]}
        print(kind, json.dumps(metrics))
        for of_mode in results["baselines"].values():
            of_mode[f"{kind} (implicit)"] = metrics
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(bench, {"factorisation": FactorisationConfig}, argv, usage=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
