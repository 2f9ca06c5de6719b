"""What the crowd did next: counted relations as further sources of the head's mixture.

A source names a row of a table for every request: one of the last items of the person ("what
followed it, for anybody?", "what do people who had it have besides?"), or the stretch of time
("what was popular lately?"). The row is a short list of items with probabilities; the mixer
weighs it by the request's query and by how often the row was observed, so that a source with
little evidence gives way to the others, and one without any is left out.

In training a row answers without the observation that is to be predicted (`held_out_shares`).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from stt_jax.batch import Catalogue, History, Relation, Requests, Trends
from stt_jax.config import ModelConfig
from stt_jax.model.recurrence import at_tokens

NUM_BOOSTED = 20  # items of a source whose logits it raises
SHARPNESS = 1000.0
_TINY = 1e-30  # no probability, as a number with a logarithm

# (relation, how many events before the request its item lies)
ITEM_SOURCES = (("followers", 0), ("followers", 1), ("neighbours", 0), ("neighbours", 1))


def num_sources(config: ModelConfig) -> int:
    """How many sources the mixture has of the crowd."""
    num_trends = len(config.trend_half_lives_h) if config.use_time else 0
    return config.use_crowd * (len(ITEM_SOURCES) + num_trends)


def find_rows(
    config: ModelConfig, catalogue: Catalogue, history: History, requests: Requests
) -> list[tuple[Relation, jax.Array]]:
    """The table and the row of every source for every request, int32 [B, R]; row 0 = no answer."""
    if not config.use_crowd:
        return []
    found = []
    for name, back in ITEM_SOURCES:
        tokens = requests.last_tokens - back
        mine = at_tokens(history.segment_ids, tokens) == requests.segment_ids
        found.append(
            (catalogue.relations[name], jnp.where(mine, at_tokens(history.items, tokens), 0))
        )
    if config.use_time:
        assert catalogue.trends is not None
        hours = jnp.where(requests.time_known, requests.hours, requests.last_hours)
        rows = trend_rows(catalogue.trends, hours - config.trend_lag_h)
        found += [(relation, rows) for relation in catalogue.trends.relations]
    return found


def trend_rows(trends: Trends, hours: jax.Array) -> jax.Array:
    """The row that holds at each hour, int32; 0 = before the first."""
    rows = jnp.searchsorted(jnp.asarray(trends.start_hours), hours, "right", method="compare_all")
    return rows.astype(jnp.int32)


def evidence(rows: list[tuple[Relation, jax.Array]], *, held_out: bool) -> list[jax.Array]:
    """Observations of the row of every source, float32 [B, R] each."""
    return [
        jnp.asarray(relation.held_out_counts if held_out else relation.counts)[row]
        for relation, row in rows
    ]


def target_log_masses(
    rows: list[tuple[Relation, jax.Array]], targets: jax.Array
) -> list[jax.Array]:
    """Log of every source's held-out share of the target, float32 [B, R] each."""
    masses = []
    for relation, row in rows:
        hit = jnp.asarray(relation.items)[row] == targets[..., None]
        shares = jnp.where(hit, jnp.asarray(relation.held_out_shares)[row], 0.0)
        masses.append(jnp.log(jnp.maximum(shares.sum(axis=-1), _TINY)))
    return masses


def candidates(
    rows: list[tuple[Relation, jax.Array]],
    *,
    held_out: bool = False,
    size: int | None = None,
) -> list[tuple[jax.Array, jax.Array]]:
    """(items int32, shares float32), [B, R, F] of every source, its `size` first ones."""
    return [
        (
            jnp.asarray(relation.items)[row, :size],
            jnp.asarray(relation.held_out_shares if held_out else relation.shares)[row, :size],
        )
        for relation, row in rows
    ]


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
        return jnp.log1p(jnp.maximum(growth, -0.999))


class Booster(nn.Module):
    """Adds  w_m(h) log(1 + c share)  to the logit of each item that source m names first.

    A product of experts where the mixture is a sum: an item that several sources name, and that
    the network finds fitting, is more likely than by any of them.
    """

    num_sources: int

    @nn.compact
    def __call__(self, queries: jax.Array, named: list[tuple[jax.Array, jax.Array]]) -> Boosts:
        """The boosts of every request.

        Args:
          queries: [B, R, E].
          named: of `candidates`.
        """
        weights = nn.Dense(self.num_sources, name="weights", kernel_init=nn.initializers.zeros)(
            queries.astype(jnp.float32)
        )
        items = jnp.concatenate([items for items, _ in named], axis=-1)
        parts = [
            weights[..., source, None] * jnp.log1p(SHARPNESS * shares)
            for source, (_, shares) in enumerate(named)
        ]
        logits = jnp.concatenate(parts, axis=-1)
        same = items[..., :, None] == items[..., None, :]
        return Boosts(
            items,
            jnp.where(same, logits[..., None, :], 0.0).sum(axis=-1),
            same.sum(axis=-1).astype(jnp.float32),
        )
