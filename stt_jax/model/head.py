"""Hidden state -> item scores: generate from the catalogue, or point at the own history.

    p(item) = g * softmax(h E^T + b + d)[item] + (1 - g) * sum_j a_j [item_j = item]
    g = sigmoid(w h),  d = table[category of item, distance of item from the request]

Training needs the pointer's mass on one item a request (`pointer_log_mass`, linear memory);
serving spreads it over the catalogue.

Source: pointer-generator networks (See et al., ACL 2017, eq. 9). Differs from it: the pointer is
an attention of its own with time, distance and hour-of-week encodings.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from stt_jax.config import ModelConfig
from stt_jax.model.block import TABLE_SCALE, Encodings, Geometry, implementation
from stt_kernels import attention_weights, pointer_log_mass, space_bucket

# Distances to the catalogue are in units of this: earth-centred float32 metres are right to half a
# metre, so finer buckets would be noise. The last bucket means unknown; the antipode is before it.
DISTANCE_UNIT_M = 50.0
NUM_DISTANCES = 40


class PointerHead(nn.Module):
    """Attention over the own history whose weights are probabilities of its items."""

    config: ModelConfig

    def setup(self) -> None:
        self.query_norm = nn.LayerNorm()
        self.key_norm = nn.LayerNorm()
        self.query = nn.Dense(self.config.width)
        self.key = nn.Dense(self.config.width)
        self.encodings = Encodings(self.config, self.config.num_heads, with_order=True)

    def keys(self, states: jax.Array) -> jax.Array:
        """What is pointed at, float32 [B, S, H, D], of the encoded history [B, S, E]."""
        return self._split(self.key(self.key_norm(states)))

    def log_mass(
        self,
        hidden: jax.Array,
        keys: jax.Array,
        items: jax.Array,
        targets: jax.Array,
        geometry: Geometry,
    ) -> jax.Array:
        """Log of the pointer's mass on each request's target, float32 [B, R]."""
        return pointer_log_mass(
            self._split(self.query(self.query_norm(hidden))),
            keys,
            ids=items,
            target_ids=targets,
            implementation=implementation(self.config),
            **self.encodings(geometry),
        )

    def event_mass(self, hidden: jax.Array, keys: jax.Array, geometry: Geometry) -> jax.Array:
        """The pointer's mass on every event of the history, float32 [B, R, S]."""
        queries = self._split(self.query(self.query_norm(hidden)))
        return attention_weights(queries, keys, **self.encodings(geometry)).mean(axis=1)

    def _split(self, vectors: jax.Array) -> jax.Array:
        heads = self.config.num_heads
        return vectors.reshape(*vectors.shape[:-1], heads, self.config.width // heads)


def item_mass(event_mass: jax.Array, items: jax.Array, num_rows: int) -> jax.Array:
    """The mass on events [B, R, S] of items [B, S] as mass on items, float32 [B, R, V + 1]."""

    def spread(row_mass: jax.Array, row_items: jax.Array) -> jax.Array:
        empty = jnp.zeros((row_mass.shape[0], num_rows), jnp.float32)
        return empty.at[:, row_items].add(row_mass)

    return jax.vmap(spread)(event_mass, items)


@struct.dataclass
class ItemScorer:
    """Scores the catalogue, items 1..V; a stretch of it scores that stretch.

    Attributes:
      vectors: float32 [V, E].
      bias: float32 [V].
      categories: int32 [V].
      coords: float32 [V, 3], earth-centred metres, NaN = no place.
      distance_table: float32 [C + 1, num_distances], added by the item's category and how far it
        is from the request; None = distance is left out.
    """

    vectors: jax.Array
    bias: jax.Array
    categories: jax.Array
    coords: jax.Array
    distance_table: jax.Array | None

    def logits(self, queries: jax.Array, places: jax.Array) -> jax.Array:
        """Unnormalised log-probabilities of generating each item.

        Args:
          queries: float32 [N, E].
          places: float32 [N, 3], earth-centred metres, NaN = unknown.

        Returns:
          float32 [N, V].
        """
        logits = queries @ self.vectors.T + self.bias[None]
        if self.distance_table is None:
            return logits
        num_distances = self.distance_table.shape[1]
        squared = jnp.zeros(logits.shape, jnp.float32)
        for axis in range(3):
            offset = places[:, None, axis] - self.coords[None, :, axis]
            squared = squared + jnp.square(offset / DISTANCE_UNIT_M)
        entries = self.categories[None] * num_distances + space_bucket(squared, num_distances)
        return logits + self.distance_table.reshape(-1)[entries]

    def stretch(self, start: jax.Array, size: int) -> ItemScorer:
        """The scorer of `size` neighbouring items; `start` counts from 0 and may be traced."""

        def cut(rows: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(rows, start, size)

        return self._map_items(cut)

    def take(self, columns: jax.Array) -> ItemScorer:
        """The scorer of the items in `columns`, int32 [K] counting from 0."""
        return self._map_items(lambda rows: rows[columns])

    def pair_logits(self, queries: jax.Array, places: jax.Array, columns: jax.Array) -> jax.Array:
        """The logit of one item for each query, float32 [N].

        Args:
          queries, places: as in `logits`.
          columns: int32 [N], items counting from 0.
        """

        def one(query: jax.Array, place: jax.Array, column: jax.Array) -> jax.Array:
            return self.take(column[None]).logits(query[None], place[None])[0, 0]

        return jax.vmap(one)(queries, places, columns)

    def _map_items(self, select: Callable[[jax.Array], jax.Array]) -> ItemScorer:
        return ItemScorer(
            vectors=select(self.vectors),
            bias=select(self.bias),
            categories=select(self.categories),
            coords=select(self.coords),
            distance_table=self.distance_table,
        )


class GenerateHead(nn.Module):
    """The catalogue's side of the head: what to compare item vectors with, and the gate."""

    config: ModelConfig
    num_items: int
    num_categories: int

    def setup(self) -> None:
        self.norm = nn.LayerNorm()
        self.gate = nn.Dense(1)
        self.bias = self.param("bias", nn.initializers.zeros_init(), (self.num_items,))
        if self.config.use_place:
            shape = (self.num_categories + 1, NUM_DISTANCES)
            self.distance_encodings = self.param(
                "distance_encodings", nn.initializers.zeros_init(), shape
            )

    def __call__(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Hidden states [..., E] -> (queries [..., E], log-odds of generating [...])."""
        queries = self.norm(hidden)
        return queries, self.gate(queries)[..., 0]

    def scorer(self, vectors: jax.Array, categories: jax.Array, coords: jax.Array) -> ItemScorer:
        """What compares queries with the catalogue.

        Args:
          vectors: float32 [V, E], of items 1..V; categories int32 [V], coords float32 [V, 3].
        """
        table = TABLE_SCALE * self.distance_encodings if self.config.use_place else None
        return ItemScorer(vectors, self.bias, categories, coords, table)
