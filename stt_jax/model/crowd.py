"""What the crowd did next: counted relations as further sources of the head's mixture.

A source names some items for every request, with probabilities: a row of a table, of one of the
person's last items ("what followed it, for anybody?", "what do people who had it have besides?") or
of the stretch of time ("what was popular lately?"); or what followed the last item lately. The
mixer weighs it by the request's query and by how often it was observed, so that a source with
little evidence gives way to the others, and one without any is left out.

In training a row answers without the observation that is to be predicted (`held_out_shares`).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from stt_jax.batch import (
    NUM_LATEST,
    Catalogue,
    History,
    Relation,
    Requests,
    Successions,
    Trends,
)
from stt_jax.config import ModelConfig
from stt_jax.model.segments import last_items

NUM_BOOSTED = 20  # items of a source whose logits it raises
SHARPNESS = 1000.0
_TINY = 1e-30  # no probability, as a number with a logarithm
_LEAST_GROWTH = -1 + 1e-6  # of a normaliser: float32 tells it from -1

# (relation, how many events before the request its item lies)
ITEM_SOURCES = (("followers", 0), ("followers", 1), ("neighbours", 0), ("neighbours", 1))


@struct.dataclass
class Candidates:
    """What a source names for every request.

    Attributes:
      items: int32 [B, R, F], each at most once, 0 = none; the most probable first.
      shares: float32 [B, R, F], the probability of each; at most one in all.
      counts: float32 [B, R], what that was observed on; 0 = the source has no answer.
    """

    items: jax.Array
    shares: jax.Array
    counts: jax.Array


def num_sources(config: ModelConfig) -> int:
    """How many sources the mixture has of the crowd."""
    num_timed = len(config.trend_half_lives_h) + len(config.succession_half_lives_h)
    return config.use_crowd * (len(ITEM_SOURCES) + config.use_time * num_timed)


def find_sources(
    config: ModelConfig,
    catalogue: Catalogue,
    history: History,
    requests: Requests,
    *,
    held_out: bool,
) -> list[Candidates]:
    """What every source says to every request.

    Args:
      config, catalogue, history, requests: what is asked.
      held_out: whether tables answer without the observation that is to be predicted.
    """
    if not config.use_crowd:
        return []
    found = [
        _row(catalogue.relations[name], last_items(history, requests, back), held_out=held_out)
        for name, back in ITEM_SOURCES
    ]
    if not config.use_time:
        return found
    assert catalogue.trends is not None
    minutes = jnp.where(requests.time_known, requests.minutes, requests.last_minutes)
    rows = trend_rows(catalogue.trends, minutes - 60 * config.trend_lag_h)
    found += [_row(relation, rows, held_out=held_out) for relation in catalogue.trends.relations]
    if config.succession_half_lives_h:
        assert catalogue.successions is not None
        found += latest_followers(
            catalogue.successions,
            last_items(history, requests),
            minutes,
            [60 * half_life_h for half_life_h in config.succession_half_lives_h],
            size=config.num_related,
        )
    return found


def trend_rows(trends: Trends, minutes: jax.Array) -> jax.Array:
    """The row that holds in each minute, int32; 0 = before the first."""
    starts = jnp.asarray(trends.start_minutes)
    return jnp.searchsorted(starts, minutes, "right", method="compare_all").astype(jnp.int32)


def latest_followers(
    successions: Successions,
    items: jax.Array,
    minutes: jax.Array,
    half_lives_min: list[float],
    *,
    size: int,
) -> list[Candidates]:
    """What came right after some items lately, for anybody, one answer a half-life.

    Of the last `NUM_LATEST` times before the minute; a minute after all that was counted is the one
    after the last.

    Args:
      successions: what followed what when.
      items: int32 [B, R], rows of the catalogue.
      minutes: int32 [B, R], minutes since 1970.
      half_lives_min: minutes after which one time counts half.
      size: how many items are named at most.
    """
    starts, followed = jnp.asarray(successions.starts), jnp.asarray(successions.items)
    times = jnp.asarray(successions.minutes)
    now = jnp.minimum(minutes, jnp.asarray(successions.newest) + 1)
    first = starts[items]

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) // 2
        is_before = (low < high) & (times[middle] < now)
        return jnp.where(is_before, middle + 1, low), jnp.where(is_before, high, middle)

    bounds = (first, starts[items + 1])
    end, _ = jax.lax.fori_loop(0, len(times).bit_length(), halve, bounds)
    back = jnp.arange(NUM_LATEST, dtype=jnp.int32)[None, None]
    at = end[..., None] - 1 - back
    is_there = at >= first[..., None]
    at = jnp.maximum(at, 0)
    named = jnp.where(is_there, followed[at], 0)
    ages = jnp.where(is_there, now[..., None] - times[at], 0).astype(jnp.float32)
    same = (named[..., :, None] == named[..., None, :]) & is_there[..., None, :]
    is_first = jnp.argmax(same, axis=-1).astype(jnp.int32) == back
    found = []
    for half_life_min in half_lives_min:
        weights = jnp.where(is_there, jnp.exp2(-ages / half_life_min), 0.0)
        total = weights.sum(axis=-1)
        merged = jnp.where(same, weights[..., None, :], 0.0).sum(axis=-1)
        shares = merged / jnp.maximum(total, _TINY)[..., None]
        shares = jnp.where(is_first & is_there, shares, 0.0)
        shares, places = jax.lax.top_k(shares, min(size, NUM_LATEST))
        chosen = jnp.take_along_axis(named, places, axis=-1)
        found.append(Candidates(jnp.where(shares > 0, chosen, 0), shares, total))
    return found


def target_log_masses(sources: list[Candidates], targets: jax.Array) -> list[jax.Array]:
    """Log of every source's share of the target, float32 [B, R] each."""
    masses = []
    for named in sources:
        hit = named.items == targets[..., None]
        shares = jnp.where(hit, named.shares, 0.0)
        masses.append(jnp.log(jnp.maximum(shares.sum(axis=-1), _TINY)))
    return masses


def _row(relation: Relation, row: jax.Array, *, held_out: bool) -> Candidates:
    """What rows of a table name; row 0 has no answer."""
    shares = relation.held_out_shares if held_out else relation.shares
    counts = relation.held_out_counts if held_out else relation.counts
    items, shares, counts = jnp.asarray(relation.items), jnp.asarray(shares), jnp.asarray(counts)
    return Candidates(items[row], shares[row], counts[row])


@struct.dataclass
class Boosts:
    """What the crowd adds to the logits of generating some items.

    Attributes:
      items: int32 [..., P], rows of the catalogue, 0 = none; one may be there several times.
      logits: float32 [..., P], what its item gets in all.
      copies: float32 [..., P], how many of the P name the same item.
    """

    items: jax.Array
    logits: jax.Array
    copies: jax.Array

    def of_items(self, items: jax.Array) -> jax.Array:
        """What an item a row gets, float32 [...] for int32 [...]."""
        hit = self.items == items[..., None]
        return jnp.where(hit, self.logits / self.copies, 0.0).sum(axis=-1)

    def dense(self, num_rows: int) -> jax.Array:
        """What every row of the catalogue gets, float32 [..., num_rows]."""
        flat = self.items.reshape(-1, self.items.shape[-1])
        added = jax.vmap(lambda at, logits: jnp.zeros((num_rows,)).at[at].add(logits))(
            flat, (self.logits / self.copies).reshape(flat.shape)
        )
        return added.reshape(*self.items.shape[:-1], num_rows)

    def log_growth(self, logits: jax.Array, log_normalizers: jax.Array) -> jax.Array:
        """By how much the boosts raise the log of the softmax's normaliser, float32 [...].

        Args:
          logits: float32 [..., P], of the items without the boosts.
          log_normalizers: float32 [...], of the whole catalogue without the boosts.
        """
        shares = jnp.exp(logits - log_normalizers[..., None])
        growth = (shares * jnp.expm1(self.logits) / self.copies).sum(axis=-1)
        # Above -1 in exact arithmetic; where the normaliser is an estimate it may not be.
        return jnp.log1p(jnp.maximum(growth, _LEAST_GROWTH))


class Booster(nn.Module):
    """Adds  w_m(h) log(1 + c share)  to the logit of each item that source m names first.

    A product of experts where the mixture is a sum: an item that several sources name, and that
    the network finds fitting, is more likely than by any of them.
    """

    num_sources: int

    @nn.compact
    def __call__(self, queries: jax.Array, sources: list[Candidates]) -> Boosts:
        """The boosts of every request.

        Args:
          queries: [B, R, E].
          sources: what each names, of which the first `NUM_BOOSTED` count.
        """
        weights = nn.Dense(self.num_sources, name="weights", kernel_init=nn.initializers.zeros)(
            queries.astype(jnp.float32)
        )
        items = jnp.concatenate([named.items[..., :NUM_BOOSTED] for named in sources], axis=-1)
        parts = [
            weights[..., number, None] * jnp.log1p(SHARPNESS * named.shares[..., :NUM_BOOSTED])
            for number, named in enumerate(sources)
        ]
        logits = jnp.concatenate(parts, axis=-1)
        same = items[..., :, None] == items[..., None, :]
        return Boosts(
            items,
            jnp.where(same, logits[..., None, :], 0.0).sum(axis=-1),
            same.sum(axis=-1).astype(jnp.float32),
        )
