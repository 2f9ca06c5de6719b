"""The best items of a very large catalogue without looking at all of them (extra `ann`).

An item's logit is `q.v + bias` and what its distance adds. The index finds the items with the
largest `q.v + bias` (an inner product with a one appended); those, and the person's own items, are
then scored exactly. What the index misses is missed, and the probabilities have an estimated
normaliser: the sum over the candidates, and over a fixed sample that stands for all others.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from stt_jax.batch import Requests
from stt_jax.model.cache import Cache
from stt_jax.model.head import ItemScorer, item_mass
from stt_jax.model.mixture import Answer
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.session import Ranked, best_of, for_few_queries, named_items

_SAMPLE = 4096  # items that stand for those that are no candidates
_MIN_ITEMS_FOR_CODES = 1024  # fewer are too few to learn codes from; they are compared as they are
_MAX_TRAINING_VECTORS = 65_536  # that codes are learned from: plenty for 16 of them a pair
_MIN_QUERIES_FOR_THREADS = 8  # fewer are left to one thread: others would be in JAX's way


class ItemIndex:
    """The catalogue's vectors, two numbers in four bits, all of which a search looks at.

    Made once for a model, in seconds for a million items. (faiss's fast scan; André, Kermarrec, Le
    Scouarnec 2017, "Accelerated nearest neighbor search with Quick ADC". Graphs, as of HNSW, took
    minutes to build, and found fewer of the best where vectors lie at random.)
    """

    def __init__(self, scorer: ItemScorer, *, seed: int = 0) -> None:
        """Builds the index.

        Args:
          scorer: of `session.item_scorer`.
          seed: of the sample.

        Raises:
          ValueError: faiss is not installed.
        """
        try:
            import faiss
        except ModuleNotFoundError as error:
            raise ValueError(
                "an approximate index needs faiss: pip install 'stt_jax[ann]'"
            ) from error
        rng = np.random.default_rng(seed)
        self._rows = np.flatnonzero(np.asarray(scorer.is_item)).astype(np.int32)
        vectors = np.asarray(scorer.vectors, np.float32)[self._rows]
        bias = np.asarray(scorer.bias, np.float32)[self._rows, None]
        self._num_padding = (vectors.shape[1] + 1) % 2
        padding = np.zeros((len(vectors), self._num_padding), np.float32)
        vectors = np.concatenate([vectors, bias, padding], axis=1)
        size = vectors.shape[1]
        self._set_num_threads = faiss.omp_set_num_threads
        self._index: Any
        if len(vectors) < _MIN_ITEMS_FOR_CODES:
            self._index = faiss.IndexFlatIP(size)
        else:
            self._index = faiss.IndexPQFastScan(size, size // 2, 4, faiss.METRIC_INNER_PRODUCT)
            num_learnt = min(_MAX_TRAINING_VECTORS, len(vectors))
            self._index.train(vectors[rng.choice(len(vectors), num_learnt, replace=False)])
        self._index.add(vectors)
        num_sampled = min(_SAMPLE, self.num_items)
        self.sample = jnp.asarray(rng.choice(self._rows, num_sampled, replace=False))
        self.sampled = scorer.take(self.sample)

    @property
    def num_items(self) -> int:
        """How many items there are."""
        return len(self._rows)

    def search(self, queries: np.ndarray, num_candidates: int) -> np.ndarray:
        """Items with large `q.v + bias` for queries float32 [B, E].

        Returns:
          int32 [B, num_candidates], no item twice; fewer columns where there are fewer items.
        """
        ends = np.zeros((len(queries), 1 + self._num_padding), np.float32)
        ends[:, 0] = 1
        queries = np.concatenate([np.asarray(queries, np.float32), ends], axis=1)
        # The threads that have helped with a few queries go on to wait busily, in the way of JAX's.
        few = len(queries) < _MIN_QUERIES_FOR_THREADS
        self._set_num_threads(1 if few else os.cpu_count() or 1)
        _, found = self._index.search(queries, min(num_candidates, self.num_items))
        # Where too many items are alike, the index gives up with -1.
        for row in np.flatnonzero((found < 0).any(axis=1)):
            missing = found[row] < 0
            others = np.setdiff1d(np.arange(self.num_items), found[row])
            found[row, missing] = others[: missing.sum()]
        return self._rows[found]


def score(
    model: SpatiotemporalTransformer,
    params: Any,
    scorer: ItemScorer,
    index: ItemIndex,
    cache: Cache,
    rows: Any,
    requests: Requests,
    *,
    k: int,
    num_candidates: int = 256,
) -> Ranked:
    """The k best items as `session.score` gives them, nearly.

    Args:
      model, params, scorer, cache, rows, requests, k: as in `session.score`.
      index: of the scorer.
      num_candidates: items that are taken from the index and scored exactly, at least `k`.

    Raises:
      ValueError: fewer candidates than `k`.
    """
    if num_candidates < k:
        raise ValueError(f"num_candidates={num_candidates} must be at least k={k}")
    answer = _answer(model, params, scorer.catalogue, cache, rows, requests)
    candidates = index.search(np.asarray(answer.queries)[:, 0], num_candidates)
    return _rescore(scorer, index.sampled, index.sample, answer, candidates, index.num_items, k=k)


@functools.partial(jax.jit, static_argnums=0)
def _answer(
    model: Any, params: Any, catalogue: Any, cache: Any, rows: jax.Array, requests: Any
) -> Answer:
    model = for_few_queries(model)
    answer = model.apply({"params": params}, catalogue, cache, rows, requests, method=model.answer)
    return cast(Answer, answer)


@functools.partial(jax.jit, static_argnames="k")
def _rescore(
    scorer: ItemScorer,
    sampled: ItemScorer,
    sample: jax.Array,
    answer: Answer,
    candidates: jax.Array,
    num_items: jax.Array,
    *,
    k: int,
) -> Ranked:
    queries, places = answer.queries[:, 0], answer.places[:, 0]
    ids, candidates, answer = _few_rows(candidates, answer)
    logits = scorer.candidate_logits(queries, places, ids)

    def logits_of(items: jax.Array) -> jax.Array:
        return jnp.take_along_axis(logits, items, axis=1)

    found = logits_of(candidates)
    in_order = jnp.take_along_axis(ids, jnp.sort(candidates, axis=1), axis=1)
    place = jax.vmap(lambda items: jnp.searchsorted(items, sample))(in_order)
    drawn_twice = jnp.take_along_axis(in_order, place, axis=1, mode="clip") == sample[None]
    others = jnp.where(drawn_twice, -jnp.inf, sampled.logits(queries, places))
    num_others = (~drawn_twice).sum(axis=1, keepdims=True)
    weight = (num_items - candidates.shape[1]) / jnp.maximum(num_others, 1)
    log_norm = jnp.logaddexp(
        jax.nn.logsumexp(found, axis=1, keepdims=True),
        jax.nn.logsumexp(others, axis=1, keepdims=True) + jnp.log(weight),
    )
    generated = answer.gates * jnp.exp(found - log_norm)
    mass = item_mass(answer.masses, answer.items, ids.shape[1])[:, 0]
    named, growth = named_items(answer, None, mass, log_norm, logits_of)
    generated = generated * jnp.exp(-growth)
    twice = jnp.take_along_axis(mass, candidates, axis=1) > 0
    rows = jnp.concatenate([jnp.where(twice, 0, candidates), named.items], axis=1)
    best = best_of(rows, jnp.concatenate([generated, named.probabilities], axis=1), k)
    return Ranked(jnp.take_along_axis(ids, best.items, axis=1), best.probabilities)


def _few_rows(candidates: jax.Array, answer: Answer) -> tuple[jax.Array, jax.Array, Answer]:
    """A catalogue of each request's own, of what is named at all: no array of all the items.

    Returns:
      the items, int32 [B, N], ascending from 0, no item; and the candidates and the answer with
      places in there for items.
    """
    named, boosts = answer.items[:, 0], answer.boosts
    parts = [jnp.zeros_like(candidates[:, :1]), candidates, named]
    if boosts is not None:
        parts.append(boosts.items[:, 0])
    ids = jnp.sort(jnp.concatenate(parts, axis=1), axis=1)
    rows_of = jax.vmap(jnp.searchsorted)  # the first of equal ones
    if boosts is not None:
        boosts = dataclasses.replace(boosts, items=rows_of(ids, boosts.items[:, 0])[:, None])
    answer = dataclasses.replace(answer, items=rows_of(ids, named)[:, None], boosts=boosts)
    return ids, rows_of(ids, candidates), answer
