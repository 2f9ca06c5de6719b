"""What the crowd did next: counted relations as further sources of the head's mixture.

A source names a row of a table for every request: one of the last items of the person ("what
followed it, for anybody?", "what do people who had it have besides?"), or the stretch of time
("what was popular lately?"). The row is a short list of items with probabilities; the mixer
weighs it by the request's query and by how often the row was observed, so that a source with
little evidence gives way to the others, and one without any is left out.

In training a row answers without the observation that is to be predicted (`held_out_shares`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from stt_jax.batch import Catalogue, History, Relation, Requests, Trends
from stt_jax.config import ModelConfig
from stt_jax.model.recurrence import at_tokens

_TINY = 1e-30  # no probability, as a number with a logarithm

# (relation, how many events before the request its item lies)
ITEM_SOURCES = (("followers", 0), ("followers", 1), ("neighbours", 0), ("neighbours", 1))


def num_sources(config: ModelConfig) -> int:
    """How many sources the mixture has of the crowd."""
    return config.use_crowd * (len(ITEM_SOURCES) + config.use_time)


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
        found.append((catalogue.trends.relation, stretch_rows(catalogue.trends, requests.hours)))
    return found


def stretch_rows(trends: Trends, hours: jax.Array) -> jax.Array:
    """The row of the stretch that each hour lies in, int32; 0 = before the first."""
    last = trends.relation.items.shape[0] - 1
    rows = (hours - trends.first_hour) // trends.step_hours + 1
    return jnp.clip(rows, 0, last)


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
) -> list[tuple[jax.Array, jax.Array]]:
    """(items int32, shares float32), [B, R, F] of every source."""
    return [
        (jnp.asarray(relation.items)[row], jnp.asarray(relation.shares)[row])
        for relation, row in rows
    ]
