"""How long does one more event and a new top-10 take, from a live state and by a full recompute?

    nice -n 19 python -m benchmarks.bench_realtime            all shapes, about ten minutes
    nice -n 19 python -m benchmarks.bench_realtime --quick    the smallest, to see that it runs

Before it is timed, every live answer is compared with the recomputed one. Both end in the same
scoring, so the ratio is what a caller sees; blocks of ten calls take turns. Parameters are random:
time does not depend on them, and random vectors are the hardest case of the approximate index. Most
of the best items of an answer are named by the person's history or the crowd and need no index, so
what the index finds by itself is measured apart.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from stt_jax import approximate, session
from stt_jax.batch import Catalogue, Relation, Trends, table_rows
from stt_jax.config import ModelConfig
from stt_jax.data.encodings import earth_coords
from stt_jax.data.schema import UNKNOWN_E7
from stt_jax.histories import (
    Events,
    Question,
    Tokens,
    anchor,
    history_rows,
    request_rows,
)
from stt_jax.model.stt import ModelSizes, SpatiotemporalTransformer

RESULTS = pathlib.Path(__file__).parent / "results" / "realtime.json"
HISTORIES = (128, 512, 1024, 4096)
CATALOGUES = (10_000, 1_000_000)
CANDIDATES = (64, 256, 1024)
BATCH = 32
K = 10


class Setup:
    """A model, a catalogue, and one person or many with `length - 1` events."""

    def __init__(
        self,
        num_items: int,
        length: int,
        num_people: int = 1,
        config: ModelConfig | None = None,
    ) -> None:
        rng = np.random.default_rng(0)
        sizes = ModelSizes(num_items, 100, 10, ())
        self.model = SpatiotemporalTransformer(config or ModelConfig(), sizes)
        rows = table_rows(num_items)
        places = rng.uniform((40.5, -74.2), (41.0, -73.7), (rows, 2)) * 1e7
        numbers = np.arange(rows)
        self.events = [_events(rng, num_items, places, length) for _ in range(num_people)]
        self.anchors = [anchor(events) for events in self.events]
        catalogue = Catalogue(
            (numbers > 0) & (numbers <= num_items),
            rng.integers(1, 101, rows).astype(np.int32),
            _coords(places),
            relations={
                name: _relation(rng, rows, num_items, 50) for name in ("followers", "neighbours")
            },
            trends=Trends((_relation(rng, 3, num_items, 256),), np.arange(2, dtype=np.int32)),
        )
        self.people = np.arange(num_people, dtype=np.int32)
        self.history = self._tokens(0, length - 1, length)
        self.whole = self._tokens(0, length, length)
        self.event = self._tokens(length - 1, length, 1)
        self.starts = np.full(num_people, length - 1, np.int32)
        self.requests = request_rows(
            [
                Question(1, int(events.times[-1]) + 3600, 0, None, length, its_anchor)
                for events, its_anchor in zip(self.events, self.anchors, strict=True)
            ],
            num_people,
        )
        self.params = _random_params(self.model, catalogue, self.whole, self.requests)
        self.scorer = session.item_scorer(self.model, self.params, catalogue)
        self.length = length

    def _tokens(self, first: int, end: int, num_tokens: int):
        tokens = [
            Tokens(events[first:end], int(events.times[first - 1]) if first else None, its_anchor)
            for events, its_anchor in zip(self.events, self.anchors, strict=True)
        ]
        rows = history_rows(tokens, len(tokens), num_tokens, has_times=True)
        return jax.tree.map(jnp.asarray, rows)

    def cache(self):
        """A cache with the history without its last event."""
        empty = session.new_cache(self.model, len(self.people), self.length)
        return session.start(self.model, self.params, empty, self.people, self.history)

    def append(self, cache):
        """The last event; done again it writes the same."""
        return session.append(self.model, self.params, cache, self.people, self.starts, self.event)

    def score(self, cache):
        """Top-10 of every person."""
        return session.score(
            self.model, self.params, self.scorer, cache, self.people, self.requests, None, k=K
        )

    def answer(self, cache):
        """What is asked of the catalogue: queries, and the items that are named without it."""
        arguments = (self.scorer.catalogue, cache, self.people, self.requests)
        return self.model.apply({"params": self.params}, *arguments, method=self.model.answer)

    def largest_logits(self, queries: np.ndarray) -> np.ndarray:
        """Of each query the items with the ten largest logits, without distance."""
        logits = queries @ np.asarray(self.scorer.vectors).T + np.asarray(self.scorer.bias)
        logits[:, ~np.asarray(self.scorer.is_item)] = -np.inf
        return np.argpartition(-logits, K, axis=1)[:, :K]

    def score_by(self, index: approximate.ItemIndex, cache, num_candidates: int):
        """The same with the candidates of an index."""
        return approximate.score(
            self.model, self.params, self.scorer, index, cache, self.people, self.requests,
            k=K, num_candidates=num_candidates,
        )  # fmt: skip


def _relation(rng, num_rows: int, num_items: int, size: int) -> Relation:
    size = min(size, num_items)
    shares = np.full((num_rows, size), 1 / size, np.float32)
    counts = np.full(num_rows, 100, np.float32)
    items = rng.integers(1, num_items + 1, (num_rows, size)).astype(np.int32)
    return Relation(items, shares, shares, counts, counts)


def _events(rng, num_items: int, places: np.ndarray, length: int) -> Events:
    items = rng.integers(1, num_items + 1, length).astype(np.int32)
    times = 1_333_324_800 + np.cumsum(rng.integers(60, 40_000, length))
    here = np.where(rng.random((length, 1)) < 0.1, UNKNOWN_E7, places[items])
    return Events(
        items=items,
        times=times.astype(np.int64),
        utc_offsets_s=np.zeros(length, np.int32),
        latitudes_e7=here[:, 0].astype(np.int32),
        longitudes_e7=here[:, 1].astype(np.int32),
        categories=rng.integers(1, 101, length).astype(np.int32),
        contexts={},
    )


def _coords(places_e7: np.ndarray) -> np.ndarray:
    return earth_coords(*places_e7.astype(np.int64).T).astype(np.float32)


def _random_params(model, catalogue, history, requests):
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), catalogue, history, requests, deterministic=True)
    )["params"]
    rng = np.random.default_rng(1)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        mean = (
            np.float32(1) if path[-1].key == "scale" else np.float32(0)
        )  # of a layer norm: signals keep their size
        return jnp.asarray(mean + np.float32(0.1) * rng.standard_normal(leaf.shape, np.float32))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def one_event(
    num_items: int, length: int, num_rounds: int, num_candidates: int = 0
) -> dict[str, Any]:
    """One appended event and top-10, live and recomputed.

    With `num_candidates` both take the items from an approximate index instead of scoring all, and
    the recomputation with exact scores is timed beside them.
    """
    setup = Setup(num_items, length)
    holder = {"live": setup.cache(), "whole": session.new_cache(setup.model, 1, length)}
    score = setup.score
    if num_candidates:
        index = approximate.ItemIndex(setup.scorer)

        def score(cache):
            return setup.score_by(index, cache, num_candidates)

    def append():
        holder["live"] = setup.append(holder["live"])
        return holder["live"]

    def start():
        holder["whole"] = session.start(
            setup.model, setup.params, holder["whole"], setup.people, setup.whole
        )
        return holder["whole"]

    measured: dict[str, Callable] = {
        "live": lambda: score(append()),
        "recompute": lambda: score(start()),
    }
    found, expected = (measured[name]() for name in ("live", "recompute"))
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    of_index: dict[str, Any] = {}
    if num_candidates:
        measured["exact"] = lambda: setup.score(start())
        exact = measured["exact"]()
        same = set(np.asarray(exact.items[0]).tolist()) & set(np.asarray(found.items[0]).tolist())
        of_index = {"num_candidates": num_candidates, "recall@10": len(same) / K}
    calls_ms: dict[str, list[float]] = {name: [] for name in measured}
    blocks = {name: _in_a_row(run, calls_ms[name]) for name, run in measured.items()}
    times = timing.alternate(blocks, num_rounds)
    if num_candidates:
        of_index["exact_recompute_ms"] = _summarise(calls_ms["exact"])
        of_index["speedup_of_exact"] = 1 / times["live"].ratio_to(times["exact"])
    return {
        "question": "one event and top-10",
        "num_items": num_items,
        "history": length,
        "live_ms": _summarise(calls_ms["live"]),
        "recompute_ms": _summarise(calls_ms["recompute"]),
        "speedup": 1 / times["live"].ratio_to(times["recompute"]),
        "largest_difference": float(
            np.abs(np.asarray(found.probabilities) - np.asarray(expected.probabilities)).max()
        ),
        **of_index,
        **timing.environment(),
    }


def _in_a_row(run: Callable, calls_ms: list[float]) -> Callable[[], float]:
    """Ten calls, as a service has them; the first finds the caches full of what ran before."""

    def block() -> float:
        for _ in range(10):
            start = time.perf_counter()
            jax.block_until_ready(run())
            calls_ms.append((time.perf_counter() - start) * 1e3)
        return float(np.median(calls_ms[-9:]))

    return block


def batched(num_items: int, length: int, num_rounds: int) -> dict[str, Any]:
    """Events and requests of many people at once."""
    setup = Setup(num_items, length, BATCH)
    holder = {"live": setup.cache()}

    def append():
        holder["live"] = setup.append(holder["live"])
        return holder["live"].states

    times = timing.alternate(
        {"append": append, "score": lambda: setup.score(holder["live"])}, num_rounds
    )
    return {
        "question": "many people at once",
        "num_items": num_items,
        "history": length,
        "batch": BATCH,
        "events_per_s": 1e3 * BATCH / times["append"].median_ms,
        "requests_per_s": 1e3 * BATCH / times["score"].median_ms,
        **timing.environment(),
    }


def approximation(num_items: int, num_rounds: int) -> dict[str, Any]:
    """Top-10 by an approximate index: recall, of answers and of the index by itself, and time."""
    setup = Setup(num_items, 128, BATCH)
    cache = setup.append(setup.cache())
    start = time.perf_counter()
    index = approximate.ItemIndex(setup.scorer)
    build_s = time.perf_counter() - start
    exact = np.asarray(setup.score(cache).items)
    answer = setup.answer(cache)
    queries = np.asarray(answer.queries)[:, 0]
    largest = setup.largest_logits(queries)
    rows = []
    for num_candidates in CANDIDATES:

        def search(num_candidates: int = num_candidates) -> session.Ranked:
            return setup.score_by(index, cache, num_candidates)

        found = np.asarray(search().items)
        by_itself = index.search(queries, num_candidates)
        candidates: dict[str, Callable] = {"exact": lambda: setup.score(cache), "index": search}
        times = timing.alternate(candidates, num_rounds, 1)
        rows.append(
            {
                "num_candidates": num_candidates,
                "recall@10": _share(exact, found),
                "recall@10 by itself": _share(largest, by_itself),
                "ms_per_request": times["index"].median_ms / BATCH,
                "exact_ms_per_request": times["exact"].median_ms / BATCH,
            }
        )
    return {
        "question": "approximate index",
        "num_items": num_items,
        "batch": BATCH,
        "build_s": build_s,
        "named": _share(exact, np.asarray(answer.items)[:, 0]),
        "rows": rows,
        **timing.environment(),
    }


def _share(wanted: np.ndarray, found: np.ndarray) -> float:
    """Of each row's wanted items those that are found, on average."""
    pairs = zip(wanted, found, strict=True)
    return float(np.mean([len(set(one) & set(other)) / len(one) for one, other in pairs]))


def _summarise(times_ms: Sequence[float]) -> dict[str, float]:
    return {"n": len(times_ms)} | timing.percentiles(times_ms)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=pathlib.Path, help="of --quick none, else the results")
    options = parser.parse_args(argv)
    small, large = CATALOGUES
    if options.quick:
        todo: list[tuple[Callable, tuple[int, ...]]] = [
            (one_event, (1000, 64, 2)),
            (one_event, (1000, 64, 2, 256)),
            (batched, (1000, 64, 2)),
            (approximation, (1000, 1)),
        ]
    else:
        todo = [(one_event, (small, length, 20)) for length in HISTORIES]
        todo.append((one_event, (large, 1024, 20)))
        todo += [(one_event, (large, length, 20, CANDIDATES[1])) for length in HISTORIES]
        todo += [(batched, (small, length, 20)) for length in (128, 1024)]
        todo.append((approximation, (large, 5)))
    rows = []
    for measure, arguments in todo:
        rows.append(measure(*arguments))
        print(json.dumps(rows[-1]), flush=True)
    output = options.output or (None if options.quick else RESULTS)
    if output:
        timing.write_rows(output, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
