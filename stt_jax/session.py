"""A live state per person: start from a history, append events, score requests; pure functions.

    cache = new_cache(run.model, num_people=64, capacity=128)
    cache = start(run.model, run.params, cache, rows, histories)
    cache = append(run.model, run.params, cache, rows, starts, events)
    best = score(run.model, run.params, scorer, cache, rows, requests, None, k=10)

A state is a row of a `Cache` (`stt_jax.model.cache` says what it keeps). One event costs one token:
its keys and values are made and kept, and it attends to those that are there. A request attends to
them without changing them. Each function is compiled once per shape, so callers pad the number of
people and of events to a few sizes (`size_bucket`).

What a state equals. A model was trained on windows: a request for event n saw the events from
`window_start(n)` on and never an earlier one, not even through a deeper layer. So the state of a
person with n events is the encoding of their events `window_start(n)..n`, no more and no less; the
window is the one of training, or `--asked_window`, with which the model was validated.
While nothing is cut off that is the whole history, and appending is all there is to do. The window
moves in hops: when the next event would not fit, the state is started again from the events that
stay, one encoding every `hop` events. Like this a state never depends on how it came about: kept
for months, or rebuilt a moment ago on another machine from the log, it is the same.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import struct

from stt_jax.batch import History, Requests
from stt_jax.config import TrainingConfig
from stt_jax.model.cache import Cache, empty_cache
from stt_jax.model.head import ItemScorer, item_mass
from stt_jax.model.mixture import Answer
from stt_jax.model.stt import SpatiotemporalTransformer

CHUNK_LOGITS = 2**22  # that are held at once, of all requests together


def window_hop(training: TrainingConfig) -> int:
    """By how many events the window of a live state moves at a time.

    Training cuts a person's events every `requests`; the same here where that leaves at least half
    of the window.
    """
    return max(1, min(training.requests, training.asked_tokens // 2))


def window_start(num_events: int, window: int, hop: int) -> int:
    """The first of a person's events that the state after `num_events` of them holds.

    It is the cut of `stt_jax.data.windows.training_windows` with `requests` = `hop`: between
    `window - hop + 1` and `window` events are held once there are that many.
    """
    return max(0, (num_events // hop + 1) * hop - 1 - window)


def for_few_queries(model: SpatiotemporalTransformer) -> SpatiotemporalTransformer:
    """The same model with dense attention: for few queries it is as fast and compiles sooner."""
    if model.config.attention != "auto":
        return model
    config = dataclasses.replace(model.config, attention="reference")
    return SpatiotemporalTransformer(config, model.sizes)


def size_bucket(size: int, sizes: Sequence[int]) -> int:
    """The smallest of the ascending `sizes` that holds `size`.

    Raises:
      ValueError: none does.
    """
    for candidate in sizes:
        if size <= candidate:
            return candidate
    raise ValueError(f"{size} is more than the largest size, {sizes[-1]}")


def new_cache(model: SpatiotemporalTransformer, num_people: int, capacity: int) -> Cache:
    """A cache for `num_people` people with at most `capacity` events each."""
    names = tuple(name for name, _ in model.sizes.contexts)
    traits = {name: most for name, _, most in model.sizes.item_traits}
    numbers = model.sizes.numbers
    return empty_cache(model.config, names, numbers, traits, num_people, capacity)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def start(
    model: SpatiotemporalTransformer, params: Any, cache: Cache, rows: jax.Array, events: History
) -> Cache:
    """Encodes histories into rows of a cache, whatever was there before.

    Args:
      model, params: of a run.
      cache: given up (donated): use the result.
      rows: int32 [B], rows of the cache, each once; one past the last = padding.
      events: [B, N], the events of `window_start` on, as `histories.history_rows` lays them out.
    """
    cleared = cache.cleared(rows)
    extended = model.apply({"params": params}, cleared, rows, None, events, method=model.extend)
    return cast(Cache, extended)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def append(
    model: SpatiotemporalTransformer,
    params: Any,
    cache: Cache,
    rows: jax.Array,
    starts: jax.Array,
    events: History,
) -> Cache:
    """Encodes further events of people whose histories are in the cache.

    Args:
      model, params, cache, rows: as in `start`.
      starts: int32 [B], how many events each person has there. Their capacity is the caller's to
        watch: an event without room is dropped.
      events: [B, N], times and coords from the same anchor as those that are there.
    """
    model = for_few_queries(model)
    extended = model.apply({"params": params}, cache, rows, starts, events, method=model.extend)
    return cast(Cache, extended)


@functools.partial(jax.jit, static_argnums=0)
def item_scorer(model: SpatiotemporalTransformer, params: Any, catalogue: Any) -> ItemScorer:
    """The catalogue as `score` takes it; made once for a model."""
    scorer = model.apply({"params": params}, catalogue, method=model.item_scorer)
    return dataclasses.replace(cast(ItemScorer, scorer), catalogue=catalogue)


@struct.dataclass
class Ranked:
    """The best allowed items of each request, best first.

    Attributes:
      items: int32 [B, K], 0 = no further item is allowed.
      probabilities: float32 [B, K], over the whole catalogue, whatever is allowed.
    """

    items: jax.Array
    probabilities: jax.Array


@functools.partial(jax.jit, static_argnums=0, static_argnames=("k", "chunk_items"))
def score(
    model: SpatiotemporalTransformer,
    params: Any,
    scorer: ItemScorer,
    cache: Cache,
    rows: jax.Array,
    requests: Requests,
    allowed: jax.Array | None,
    *,
    k: int,
    chunk_items: int = 0,
) -> Ranked:
    """The k most probable items of each request. The catalogue is passed through in chunks.

    Args:
      model, params: of a run, with its `item_scorer`.
      cache: not changed.
      rows: int32 [B], the person of each request; a person may be asked for several times.
      requests: [B, 1], as `histories.request_rows` lays them out.
      allowed: bool [B, V + 1], which items may be listed; None = all.
      k: at most V.
      chunk_items: items of a chunk; 0 = as many as have `CHUNK_LOGITS` logits. Few chunks are
        better: each is a copy of its part of the catalogue.
    """
    model = for_few_queries(model)
    chunk_items = chunk_items or max(1, CHUNK_LOGITS // rows.shape[0])
    answer = cast(
        Answer,
        model.apply(
            {"params": params}, scorer.catalogue, cache, rows, requests, method=model.answer
        ),
    )
    num_rows = scorer.bias.shape[0]
    if allowed is not None:
        allowed = jnp.pad(allowed, ((0, 0), (0, num_rows - allowed.shape[1])))
    if not answer.items.shape[-1]:
        return _best_generated(scorer, answer, allowed, None, k, chunk_items)[0]
    # p = gate * generated + named is above its first part only for items that some source names:
    # they are left out of the ranking of all others and compete with its best by their full p.
    mass = item_mass(answer.masses, answer.items, num_rows)[:, 0]
    best, log_norm = _best_generated(scorer, answer, allowed, mass > 0, k, chunk_items)

    def logits_of(items: jax.Array) -> jax.Array:
        return scorer.candidate_logits(answer.queries[:, 0], answer.places[:, 0], items)

    named, growth = named_items(answer, allowed, mass, log_norm, logits_of)
    best = dataclasses.replace(best, probabilities=best.probabilities * jnp.exp(-growth))
    ids = jnp.concatenate([best.items, named.items], axis=1)
    probabilities = jnp.concatenate([best.probabilities, named.probabilities], axis=1)
    return best_of(ids, probabilities, k)


@struct.dataclass
class Explanation:
    """Why a request is answered as it is, by event of the history, [B, S] each.

    Attributes:
      mass: float32, the share of the answer that points at each event.
      effects: what the "time" gap and the "distance" add to the logit of pointing there; only
        what the model sees is there.
    """

    mass: jax.Array
    effects: dict[str, jax.Array]


@functools.partial(jax.jit, static_argnums=0)
def explain(
    model: SpatiotemporalTransformer,
    params: Any,
    scorer: ItemScorer,
    cache: Cache,
    rows: jax.Array,
    requests: Requests,
) -> Explanation:
    """What the requests of `score` look at."""
    model = for_few_queries(model)
    answer, effects = model.apply(
        {"params": params}, scorer.catalogue, cache, rows, requests, method=model.explain
    )
    if model.config.use_pointer:
        mass = answer.masses[:, 0, : cache.capacity]
    else:
        mass = jnp.zeros((rows.shape[0], cache.capacity), jnp.float32)
    return Explanation(mass, {name: effect[:, 0] for name, effect in effects.items()})


def _best_generated(
    scorer: ItemScorer,
    answer: Answer,
    allowed: jax.Array | None,
    named: jax.Array | None,
    k: int,
    chunk_items: int,
) -> tuple[Ranked, jax.Array]:
    """The k best by gate * generated, `named` left out, and the log of the normaliser [B, 1]."""
    num_rows = scorer.bias.shape[0]
    size = min(chunk_items, num_rows)
    num_chunks = -(-num_rows // size)
    queries, places = answer.queries[:, 0], answer.places[:, 0]

    def step(carry: tuple, chunk: jax.Array) -> tuple[tuple, None]:
        ids, logits, log_norm = carry
        # The last chunk overlaps the one before it, whose items it leaves out.
        start = jnp.minimum(chunk * size, num_rows - size)
        columns = start + jnp.arange(size)
        part = scorer.map_rows(lambda rows: jax.lax.dynamic_slice_in_dim(rows, start, size))
        fresh = (part.is_item & (columns >= chunk * size))[None]
        here = part.logits(queries, places)
        norm = jax.nn.logsumexp(jnp.where(fresh, here, -jnp.inf), axis=1, keepdims=True)
        for mask, wanted in ((allowed, True), (named, False)):
            if mask is not None:
                cut = jax.lax.dynamic_slice_in_dim(mask, start, size, axis=1)
                fresh = fresh & (cut == wanted)
        found, at = jax.lax.top_k(jnp.where(fresh, here, -jnp.inf), min(k, size))
        ids = jnp.concatenate([ids, columns[at]], axis=1)
        logits, best = jax.lax.top_k(jnp.concatenate([logits, found], axis=1), k)
        ids = jnp.take_along_axis(ids, best, axis=1)
        return (ids, logits, jnp.logaddexp(log_norm, norm)), None

    batch = queries.shape[0]
    carry = (
        jnp.zeros((batch, k), jnp.int32),
        jnp.full((batch, k), -jnp.inf),
        jnp.full((batch, 1), -jnp.inf),
    )
    (ids, logits, log_norm), _ = jax.lax.scan(step, carry, jnp.arange(num_chunks))
    probabilities = answer.gates * jnp.exp(logits - log_norm)
    ids = jnp.where(jnp.isneginf(logits), 0, ids)
    return Ranked(ids, probabilities), log_norm


def named_items(
    answer: Answer,
    allowed: jax.Array | None,
    mass: jax.Array,
    log_norm: jax.Array,
    logits_of: Callable[[jax.Array], jax.Array],
) -> tuple[Ranked, jax.Array]:
    """The items that the sources beside the catalogue name, each once, with their full p.

    And by how much the crowd's boosts of some of them raise the log of the normaliser, [B, 1].

    Args:
      answer, allowed: as in `score`.
      mass: float32 [B, rows], what the sources give each item.
      log_norm: float32 [B, 1], log of the catalogue's normaliser.
      logits_of: items int32 [B, P] -> their logits in the catalogue, float32 [B, P].
    """
    items = answer.items[:, 0]
    people = jnp.arange(items.shape[0])[:, None]
    slots = jnp.arange(items.shape[1])[None]
    last = jnp.zeros(mass.shape, jnp.int32).at[people, items].max(slots)
    mass = jnp.take_along_axis(mass, items, axis=1)
    keep = (items > 0) & (mass > 0) & (jnp.take_along_axis(last, items, axis=1) == slots)
    if allowed is not None:
        keep = keep & jnp.take_along_axis(allowed, items, axis=1)

    logits = logits_of(items)
    growth = jnp.zeros_like(log_norm)
    if answer.boosts is not None:
        boosts = jax.tree.map(lambda part: part[:, 0], answer.boosts)
        growth = boosts.log_growth(logits_of(boosts.items), log_norm[:, 0])[:, None]
        added = boosts.dense(last.shape[1])
        logits = logits + jnp.take_along_axis(added, items, axis=1)
    probabilities = answer.gates * jnp.exp(logits - log_norm - growth) + mass
    return Ranked(jnp.where(keep, items, 0), jnp.where(keep, probabilities, 0.0)), growth


def best_of(ids: jax.Array, probabilities: jax.Array, k: int) -> Ranked:
    """The k best of candidates [B, N]; id 0 is no candidate."""
    # An absent item goes behind one of probability 0 that is there.
    _, best = jax.lax.top_k(jnp.where(ids > 0, probabilities, -1.0), k)
    return Ranked(*(jnp.take_along_axis(values, best, axis=1) for values in (ids, probabilities)))
