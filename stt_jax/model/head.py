"""Hidden state -> item scores: generate from the catalogue, point at the history, ask the crowd.

    p(item) = g_0 * softmax(h E^T + b + d)[item] + sum_m g_m * sum_j a_mj [item_j = item]
              + sum_c g_c * share_c[item]
    g = softmax(w h + e log(1 + n)),  d = table[category of item, distance of item from the request]

Of the pointers m the first may point at any of the person's events j. The second, the sequel, only
at events that followed an event with the last item: what came next the last time I was here? The
crowd's sources c are in `stt_jax.model.crowd`. n is how many events a pointer has to point at, or
how many observations a source has; one that has none is left out.

An answer may give a fixed share to habits, too (`stt_jax.model.habits`); training does not.

Training needs a pointer's mass on one item a request (`pointer_log_mass`, linear memory);
serving spreads it over the catalogue.

Source: pointer-generator networks (See et al., ACL 2017, eq. 9). Differs from it: a pointer is
an attention of its own with time, distance and hour-of-week encodings; there are two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from stt_jax.batch import Catalogue, table_rows
from stt_jax.config import ModelConfig
from stt_jax.mesh import is_split
from stt_jax.model.block import TABLE_SCALE, Encodings, call_kernel, split_heads
from stt_jax.model.embedding import show_ids
from stt_jax.model.geometry import Geometry
from stt_jax.model.precision import exact_products, products
from stt_kernels import (
    attention_weights,
    place_offsets,
    pointer_log_mass,
    space_bucket,
    time_bucket,
)

# Distances to the catalogue are in units of this: earth-centred float32 metres are right to half a
# metre, so finer buckets would be noise. The last bucket means unknown; the antipode is before it.
DISTANCE_UNIT_M = 50.0
NUM_DISTANCES = 40

# Finite, so that a masked row can't make a NaN; exp of it is 0 next to any real logit.
NO_ITEM = -1e9
NO_LOG_MASS = -1e9  # the log of no probability


class PointerKeys(nn.Module):
    """What every pointer points at: depends on the history alone, so it can be kept."""

    config: ModelConfig

    @nn.compact
    def __call__(self, states: jax.Array) -> jax.Array:
        """[B, S, H, D] of the encoded history [B, S, E]."""
        dtype = self.config.dtype
        normed = nn.LayerNorm(dtype=dtype, name="norm")(states)
        return split_heads(
            nn.Dense(self.config.width, dtype=dtype, name="key")(normed), self.config
        )


class Pointer(nn.Module):
    """Attention over the own history whose weights are probabilities of its items."""

    config: ModelConfig

    def setup(self) -> None:
        self.query_norm = nn.LayerNorm(dtype=self.config.dtype)
        self.query = nn.Dense(self.config.width, dtype=self.config.dtype)
        self.encodings = Encodings(self.config, self.config.num_heads, with_order=True)

    def log_mass(
        self,
        hidden: jax.Array,
        keys: jax.Array,
        items: jax.Array,
        targets: jax.Array,
        geometry: Geometry,
    ) -> jax.Array:
        """Log of the pointer's mass on each request's target, float32 [B, R]."""
        return call_kernel(
            pointer_log_mass,
            split_heads(self.query(self.query_norm(hidden)), self.config),
            keys,
            config=self.config,
            encodings=self.encodings(geometry),
            ids=items,
            target_ids=targets,
        )

    def event_mass(self, hidden: jax.Array, keys: jax.Array, geometry: Geometry) -> jax.Array:
        """The pointer's mass on every event of the history, float32 [B, R, S]."""
        queries = split_heads(self.query(self.query_norm(hidden)), self.config)
        return attention_weights(queries, keys, **self.encodings(geometry)).mean(axis=1)

    def contributions(self, geometry: Geometry) -> dict[str, jax.Array]:
        """What time gap and distance add to the pointer's logits, mean over heads, [B, R, S]."""
        arguments = self.encodings(geometry)
        found = {}
        if geometry.times is not None and geometry.query_times is not None:
            table = arguments["time_table"].mean(axis=0)
            gaps = geometry.query_times[:, :, None] - geometry.times[:, None]
            found["time"] = table[time_bucket(gaps, table.shape[0])]
        if geometry.coords is not None and geometry.query_coords is not None:
            table = arguments["space_table"].mean(axis=0)
            offsets = geometry.query_coords[:, :, None] - geometry.coords[:, None]
            squared = jnp.sum(jnp.square(offsets), axis=-1)
            found["distance"] = table[space_bucket(squared, table.shape[0])]
        return found


class Mixer(nn.Module):
    """Weights of the mixture: generating from the catalogue, each pointer, each crowd source."""

    num_sources: int

    @nn.compact
    def __call__(self, queries: jax.Array, counts: jax.Array) -> jax.Array:
        """Log-weights of generating and of every other source, in the order of
        `Prediction.log_gates`.

        Args:
          queries: [B, R, E].
          counts: float32 [B, R, M], what each source has to go by: events, or observations.

        Returns:
          float32 [B, R, 1 + M].
        """
        logits = nn.Dense(1 + self.num_sources, name="gate")(queries.astype(jnp.float32))
        if self.num_sources:
            evidence = nn.Dense(1 + self.num_sources, use_bias=False, name="evidence")
            logits = logits + evidence(jnp.log1p(counts))
        available = jnp.pad(counts > 0, ((0, 0), (0, 0), (1, 0)), constant_values=True)
        return jax.nn.log_softmax(jnp.where(available, logits, NO_LOG_MASS))


def item_mass(masses: jax.Array, items: jax.Array, num_rows: int) -> jax.Array:
    """The masses [B, R, P] on candidates, items [B, R, P], as mass on items [B, R, num_rows]."""

    def spread(row_mass: jax.Array, row_items: jax.Array) -> jax.Array:
        return jnp.zeros((num_rows,), jnp.float32).at[row_items].add(row_mass)

    return jax.vmap(jax.vmap(spread))(masses, items)


@struct.dataclass
class ItemScorer:
    """Scores the rows of the catalogue; part of it scores that part.

    Attributes:
      vectors: [rows, E] in the model's dtype.
      bias: float32 [rows].
      is_item: bool [rows]; the others, unknown, forgotten and padding, have the logit `NO_ITEM`.
      categories: int32 [rows].
      coords: float32 [rows, 3], earth-centred metres, NaN = no place.
      distance_table: float32 [C + 1, num_distances], added by the item's category and how far it
        is from the request; None = distance is left out.
      num_items: items that the model was trained on; the catalogue may have more.
      num_forgotten: rows of theirs besides, of items that were forgotten.
      catalogue: all that is known of the items, for the mixture's other sources; None in training.
    """

    vectors: jax.Array
    bias: jax.Array
    is_item: jax.Array
    categories: jax.Array
    coords: jax.Array
    distance_table: jax.Array | None
    num_items: int = struct.field(pytree_node=False)
    num_forgotten: int = struct.field(pytree_node=False, default=0)
    catalogue: Catalogue | None = None

    @exact_products
    def logits(self, queries: jax.Array, places: jax.Array) -> jax.Array:
        """Unnormalised log-probabilities of generating each item.

        Args:
          queries: [N, E] in the dtype of the vectors.
          places: float32 [N, 3], earth-centred metres, NaN = unknown.

        Returns:
          float32 [N, rows].
        """
        logits = products(queries, self.vectors)
        # Next to NO_ITEM the rest of the sum is lost to rounding, as it should be.
        logits = logits + jnp.where(self.is_item, self.bias, NO_ITEM)[None]
        if self.distance_table is None:
            return logits
        return logits + place_offsets(
            self.distance_table,
            self.categories,
            # Divided before they meet: an operation a place, not a pair.
            places / DISTANCE_UNIT_M,
            self.coords / DISTANCE_UNIT_M,
            # A kernel is opaque to what splits arrays over devices.
            implementation="xla" if is_split() else None,
        )

    def take(self, items: jax.Array) -> ItemScorer:
        """The scorer of the rows `items`, int32 [K]."""
        return self.map_rows(lambda rows: rows[items])

    def pair_logits(self, queries: jax.Array, places: jax.Array, items: jax.Array) -> jax.Array:
        """The logit of one item for each query, float32 [N].

        Args:
          queries, places: as in `logits`.
          items: int32 [N], rows.
        """
        return self.candidate_logits(queries, places, items[:, None])[:, 0]

    def candidate_logits(
        self, queries: jax.Array, places: jax.Array, items: jax.Array
    ) -> jax.Array:
        """The logits of some items for each query, float32 [N, K].

        Args:
          queries, places: as in `logits`.
          items: int32 [N, K], rows.
        """

        def one(query: jax.Array, place: jax.Array, its_items: jax.Array) -> jax.Array:
            return self.take(its_items).logits(query[None], place[None])[0]

        return jax.vmap(one)(queries, places, items)

    def map_rows(self, change: Callable[[jax.Array], jax.Array]) -> ItemScorer:
        """The scorer after `change` of every array that has one entry a row."""
        return dataclasses.replace(
            self,
            vectors=change(self.vectors),
            bias=change(self.bias),
            is_item=change(self.is_item),
            categories=change(self.categories),
            coords=change(self.coords),
        )


class GenerateHead(nn.Module):
    """The catalogue's side of the head: what to compare item vectors with."""

    config: ModelConfig
    num_items: int
    num_categories: int

    def setup(self) -> None:
        self.norm = nn.LayerNorm(dtype=self.config.dtype)
        rows = table_rows(self.num_items)
        self.bias = self.param("bias", nn.initializers.zeros_init(), (rows,))
        if self.config.use_place:
            shape = (self.num_categories + 1, NUM_DISTANCES)
            self.distance_encodings = self.param(
                "distance_encodings", nn.initializers.zeros_init(), shape
            )

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [..., E] -> queries [..., E]."""
        return self.norm(hidden)

    def scorer(self, vectors: jax.Array, shown: jax.Array, catalogue: Catalogue) -> ItemScorer:
        """What compares queries with the catalogue.

        Args:
          vectors: [rows, E] in the config's dtype, of the rows of the catalogue.
          shown: bool [rows], which have a bias of their own, see `show_ids`.
          catalogue: what else is known of them.
        """
        bias = show_ids(self.bias, shown)
        if self.config.use_popularity:
            assert catalogue.log_popularity is not None
            popularity = catalogue.log_popularity
            # As of the bias: what is not shown has that of the unknown item.
            bias = bias + jnp.where(shown, popularity, popularity[0])
        return ItemScorer(
            vectors,
            bias,
            catalogue.is_item,
            catalogue.categories,
            catalogue.coords,
            TABLE_SCALE * self.distance_encodings if self.config.use_place else None,
            self.num_items - catalogue.num_forgotten,
            catalogue.num_forgotten,
        )
