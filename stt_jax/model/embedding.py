"""Vectors of items, categories, time of week and place."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from stt_jax.batch import HOURS_PER_WEEK, Catalogue, table_rows
from stt_jax.data.schema import NUMBER_LIMIT

# Wavelengths of the place encoding, metres: from a street to a continent, a factor of about 2.3
# apart. Shorter ones would need more than float32 earth-centred metres (0.5 m) can resolve.
PLACE_WAVELENGTHS_M = tuple(400.0 * 10 ** (4 * i / 11) for i in range(12))

_EMBEDDING_INIT = nn.initializers.normal(stddev=0.02)


def place_features(coords: jax.Array) -> jax.Array:
    """Sines and cosines of a place at many scales; their inner products fall with distance.

    Args:
      coords: float32 [..., 3], earth-centred metres; NaN = unknown.

    Returns:
      float32 [..., 72]; all zero where the place is unknown.

    Source: the multi-scale encoding of Mai et al., Space2Vec (ICLR 2020), on three axes of the
    sphere instead of three directions of the plane, so that it holds worldwide.
    """
    known = ~jnp.isnan(coords[..., :1])
    # NaN must be replaced before the sine: 0 * NaN would poison the gradient.
    safe = jnp.where(known, coords, 0.0)
    wavelengths = jnp.asarray(PLACE_WAVELENGTHS_M, jnp.float32)
    turns = safe[..., None] / jnp.expand_dims(wavelengths, tuple(range(safe.ndim)))
    angles = (2 * np.pi) * (turns - jnp.round(turns))
    angles = angles.reshape(*angles.shape[:-2], -1)
    features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.where(known, features, 0.0)


def show_ids(table: jax.Array, shown: jax.Array) -> jax.Array:
    """A table of ids as a step sees it: who is not shown has row 0, which unknown ids share.

    Args:
      table: [rows, ...], one row an id.
      shown: bool [N], N >= rows; ids past the end of the table are new to it and never shown.

    Returns:
      [N, ...].
    """
    new = shown.shape[0] - table.shape[0]
    padded = jnp.pad(table, ((0, new), *((0, 0) for _ in table.shape[1:])))
    return jnp.where(jnp.expand_dims(shown, tuple(range(1, table.ndim))), padded, table[:1])


def sum_traits(table: jax.Array, values: jax.Array) -> jax.Array:
    """Vectors of what has several values: their sum over the root of their number.

    Args:
      table: [C + 1, E].
      values: int32 [..., M]; 0 = no further one.

    Returns:
      [..., E], of the same size however many values there are; zero where there is none.
    """
    known = values > 0
    total = jnp.where(known[..., None], table[values], 0.0).sum(axis=-2)
    count = jnp.maximum(known.sum(axis=-1, keepdims=True, dtype=jnp.int32), 1)
    return total / jnp.sqrt(count.astype(table.dtype))


class ItemEmbedding(nn.Module):
    """An item is its id, its category, its traits and its place.

    The same vectors enter with the events and score the catalogue at the output. An item that the
    model was not trained on, or whose id is not shown, has the id of the unknown item, row 0.
    """

    num_items: int
    num_categories: int
    traits: tuple[tuple[str, int], ...]
    width: int
    use_place: bool
    dtype: str

    def setup(self) -> None:
        self.ids = self.param("ids", _EMBEDDING_INIT, (table_rows(self.num_items), self.width))
        self.categories = self.param(
            "categories", _EMBEDDING_INIT, (self.num_categories + 1, self.width)
        )
        self.trait_tables = {
            name: self.param(f"trait_{name}", _EMBEDDING_INIT, (size + 1, self.width))
            for name, size in self.traits
        }
        if self.use_place:
            self.place = nn.Dense(
                self.width,
                use_bias=False,
                kernel_init=_EMBEDDING_INIT,
                dtype=self.dtype,
                name="place",
            )

    def __call__(
        self,
        item_ids: jax.Array,
        categories: jax.Array,
        traits: dict[str, jax.Array],
        coords: jax.Array,
        hidden_ids: jax.Array | None = None,
    ) -> jax.Array:
        """Vectors of items.

        Args:
          item_ids, categories: int32 [...]; 0 = unknown.
          traits: int32 [..., M] by name; 0 = no further one.
          coords: float32 [..., 3], earth-centred metres; NaN = unknown.
          hidden_ids: bool [rows of the table], ids that are not shown; None = none.

        Returns:
          `dtype` [..., E].
        """
        own = item_ids <= self.num_items
        if hidden_ids is not None:
            own = own & ~hidden_ids[item_ids]
        return self._describe(self.ids[jnp.where(own, item_ids, 0)], categories, traits, coords)

    def catalogue_vectors(self, catalogue: Catalogue, shown: jax.Array) -> jax.Array:
        """Vectors of every row of the catalogue, `dtype` [rows, E]; `shown` as in `show_ids`."""
        ids = show_ids(self.ids, shown)
        return self._describe(ids, catalogue.categories, catalogue.traits, catalogue.coords)

    def _describe(
        self,
        ids: jax.Array,
        categories: jax.Array,
        traits: dict[str, jax.Array],
        coords: jax.Array,
    ) -> jax.Array:
        vectors = ids + self.categories[categories]
        for name, table in self.trait_tables.items():
            vectors = vectors + sum_traits(table, traits[name])
        vectors = vectors.astype(self.dtype)
        if self.use_place:
            vectors = vectors + self.place(place_features(coords))
        return vectors


class TimeOfWeekEmbedding(nn.Module):
    """Hour of the day + day of the week + hour of the week; zero where unknown."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, phases: jax.Array) -> jax.Array:
        """int32 [...] hour of the week, -1 = unknown -> `dtype` [..., E]."""
        hours = self.param("hour_of_day", _EMBEDDING_INIT, (24, self.width))
        days = self.param("day_of_week", _EMBEDDING_INIT, (7, self.width))
        both = self.param("hour_of_week", _EMBEDDING_INIT, (HOURS_PER_WEEK, self.width))
        safe = jnp.maximum(phases, 0)
        vectors = hours[safe % 24] + days[safe // 24] + both[safe]
        return jnp.where(phases[..., None] >= 0, vectors, 0.0).astype(self.dtype)


class GapEmbedding(nn.Module):
    """A line in log(1 + seconds); zero where there is no gap."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, gaps_s: jax.Array) -> jax.Array:
        """int32 [...] seconds, negative = no gap -> `dtype` [..., E]."""
        # Clipped first: log of a padding's negative gap is NaN and would survive a mask.
        logs = jnp.log1p(jnp.maximum(gaps_s, 0).astype(jnp.float32)) / 10.0
        vectors = nn.Dense(self.width, dtype=self.dtype, name="line")(logs[..., None])
        return jnp.where(gaps_s[..., None] >= 0, vectors, 0.0)


def number_features(values: jax.Array) -> jax.Array:
    """A numeric column as a model reads it: the number, and whether it is unknown.

    Args:
      values: float32 [...], in the unit that the log's `--transform` and `--normalise` have made,
        e.g. standard deviations from the mean of the training part; NaN = unknown.

    Returns:
      float32 [..., 2]: the value cut at `NUMBER_LIMIT` either way, so that one outlier cannot drown
      what else is known, and 0 where it is unknown; then 1 where it is unknown, else 0.
    """
    known = ~jnp.isnan(values)
    # NaN is replaced before anything is computed: 0 * NaN would poison the gradient.
    safe = jnp.clip(jnp.where(known, values, 0.0), -NUMBER_LIMIT, NUMBER_LIMIT)
    return jnp.stack([safe, jnp.where(known, 0.0, 1.0)], axis=-1)


class EventEmbedding(nn.Module):
    """What happened: item, the item before it, further context, numbers, time of week, gap.

    The item before lets one attention look for "what followed the last time I was here": a key
    then says what it followed. Two layers can learn that too (an induction head), but slowly.

    A numeric column adds `number_features(value) @ number_NAME`, with a parameter [2, E] of its
    own: a direction that the number moves the event along, and a vector for "not known".

    With `use_norm` the sum is brought to unit scale (LayerNorm, as in BERT). Vectors of ids begin
    small next to what a block adds to them; without it they are seen once they have grown.
    """

    width: int
    context_sizes: tuple[tuple[str, int], ...]
    number_names: tuple[str, ...]
    use_time: bool
    use_norm: bool
    dtype: str

    @nn.compact
    def __call__(
        self,
        item_vectors: jax.Array,
        previous: jax.Array,
        contexts: dict[str, jax.Array],
        numbers: dict[str, jax.Array],
        phases: jax.Array,
        gaps_s: jax.Array,
    ) -> jax.Array:
        """Adds what is known of the event to its item's vector, `dtype` [B, S, E].

        `previous` are the vectors of the items before, see `previous_in_segment`.
        """
        dense = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="previous")
        vectors = item_vectors + dense(previous)
        for name, size in self.context_sizes:
            table = self.param(f"context_{name}", _EMBEDDING_INIT, (size + 1, self.width))
            vectors = vectors + table[contexts[name]].astype(self.dtype)
        for name in self.number_names:
            table = self.param(f"number_{name}", _EMBEDDING_INIT, (2, self.width))
            vectors = vectors + (number_features(numbers[name]) @ table).astype(self.dtype)
        if self.use_time:
            vectors = vectors + TimeOfWeekEmbedding(self.width, self.dtype, name="time_of_week")(
                phases
            )
            vectors = vectors + GapEmbedding(self.width, self.dtype, name="gap")(gaps_s)
        if self.use_norm:
            vectors = nn.LayerNorm(dtype=self.dtype, name="norm")(vectors)
        return vectors
