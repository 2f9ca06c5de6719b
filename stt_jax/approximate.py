"""The best items of a very large catalogue without looking at all of them (extra `ann`).

An item's logit is `q.v + bias` and what its distance adds. The index finds the items with the
largest `q.v + bias` (an inner product with a one appended); those, and the person's own items, are
then scored exactly. What the index misses is missed, and the probabilities have an estimated
normaliser: the sum over the candidates, and over a fixed sample that stands for all others.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from stt_jax.batch import Requests
from stt_jax.model.cache import Cache
from stt_jax.model.head import ItemScorer, item_mass
from stt_jax.model.mixture import Answer
from stt_jax.model.stt import SpatiotemporalTransformer
from stt_jax.session import Ranked, best_of, named_items

_SAMPLE = 8192  # items that stand for those that are no candidates


class ItemIndex:
    """A graph of the catalogue (HNSW by usearch); made once for a model."""

    def __init__(self, scorer: ItemScorer, *, accuracy: int = 128, seed: int = 0) -> None:
        """Builds the index.

        Args:
          scorer: of `session.item_scorer`.
          accuracy: how widely the graph is searched; recall and time rise with it.
          seed: of the sample.

        Raises:
          ValueError: usearch is not installed.
        """
        try:
            import usearch.index
        except ModuleNotFoundError as error:
            raise ValueError(
                "an approximate index needs usearch: pip install 'stt_jax[ann]'"
            ) from error
        rows = np.flatnonzero(np.asarray(scorer.is_item))
        vectors = np.asarray(scorer.vectors, np.float32)[rows]
        bias = np.asarray(scorer.bias, np.float32)[rows, None]
        self._index = usearch.index.Index(
            ndim=vectors.shape[1] + 1, metric="ip", expansion_search=accuracy
        )
        self._index.add(rows, np.concatenate([vectors, bias], axis=1))
        rng = np.random.default_rng(seed)
        self.sample = rng.choice(rows, min(_SAMPLE, len(rows)), replace=False).astype(np.int32)
        self.num_items = len(rows)

    def search(self, queries: np.ndarray, num_candidates: int) -> np.ndarray:
        """Items with large `q.v + bias` for queries float32 [B, E].

        Returns:
          int32 [B, num_candidates], 0 where the search found no more; fewer columns where there
          are fewer items.
        """
        num_candidates = min(num_candidates, self.num_items)
        ones = np.ones((len(queries), 1), np.float32)
        found: Any = self._index.search(
            np.concatenate([np.asarray(queries, np.float32), ones], axis=1), num_candidates
        )
        items = np.zeros((len(queries), num_candidates), np.int32)
        # usearch answers a single query in another shape than several.
        counts = [len(found)] if len(queries) == 1 else found.counts
        for row, (keys, count) in enumerate(zip(np.atleast_2d(found.keys), counts, strict=True)):
            items[row, :count] = keys[:count]
        return items


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
    """
    answer = _answer(model, params, scorer.catalogue, cache, rows, requests)
    candidates = index.search(np.asarray(answer.queries[:, 0]), num_candidates)
    return _rescore(scorer, answer, candidates, index.sample, index.num_items, k=k)


@functools.partial(jax.jit, static_argnums=0)
def _answer(
    model: Any, params: Any, catalogue: Any, cache: Any, rows: jax.Array, requests: Any
) -> Answer:
    answer = model.apply({"params": params}, catalogue, cache, rows, requests, method=model.answer)
    return cast(Answer, answer)


@functools.partial(jax.jit, static_argnames="k")
def _rescore(
    scorer: ItemScorer,
    answer: Answer,
    candidates: jax.Array,
    sample: jax.Array,
    num_items: jax.Array,
    *,
    k: int,
) -> Ranked:
    queries, places = answer.queries[:, 0], answer.places[:, 0]

    found = scorer.candidate_logits(queries, places, candidates)
    sampled = scorer.take(sample).logits(queries, places)
    drawn_twice = (sample[None, :, None] == candidates[:, None, :]).any(axis=-1)
    others = jnp.where(drawn_twice, -jnp.inf, sampled)
    num_others = (~drawn_twice).sum(axis=1, keepdims=True)
    weight = (num_items - candidates.shape[1]) / jnp.maximum(num_others, 1)
    log_norm = jnp.logaddexp(
        jax.nn.logsumexp(found, axis=1, keepdims=True),
        jax.nn.logsumexp(others, axis=1, keepdims=True) + jnp.log(weight),
    )
    generated = answer.gates * jnp.exp(found - log_norm)
    if not answer.items.shape[-1]:
        return best_of(candidates, generated, k)
    mass = item_mass(answer.masses, answer.items, scorer.bias.shape[0])[:, 0]
    twice = jnp.take_along_axis(mass, candidates, axis=1) > 0
    named, growth = named_items(scorer, answer, None, mass, log_norm)
    generated = generated * jnp.exp(-growth)
    ids = jnp.concatenate([jnp.where(twice, 0, candidates), named.items], axis=1)
    return best_of(ids, jnp.concatenate([generated, named.probabilities], axis=1), k)
