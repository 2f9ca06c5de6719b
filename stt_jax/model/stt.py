"""The whole model: event embedding, gated blocks, decoder, generating and pointing head.

History rows are anchored at their own time and see only earlier events of their segment, so what
is encoded does not depend on the request and can be kept; the request's time and place enter
through the decoder and the pointer, and may be unknown.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from stt_jax.batch import Catalogue, History, Requests
from stt_jax.config import ModelConfig
from stt_jax.model.block import GatedBlock, Geometry
from stt_jax.model.decoder import Decoder, request_geometry, request_places
from stt_jax.model.embedding import EventEmbedding, ItemEmbedding
from stt_jax.model.head import GenerateHead, ItemScorer, PointerHead


@dataclasses.dataclass(frozen=True)
class ModelSizes:
    """What the vocabularies fix: counts without the unknown, which every table has as row 0."""

    num_items: int
    num_categories: int
    num_users: int
    contexts: tuple[tuple[str, int], ...]


@struct.dataclass
class Prediction:
    """The mixture of each request, in parts, so that a loss need not spell out the catalogue.

    Attributes:
      queries: float32 [B, R, E] and
      places: float32 [B, R, 3], what `scorer` compares the catalogue with.
      scorer: scores of items 1..V.
      gate_logits: float32 [B, R], log-odds of generating; None without a pointer.
      target_log_mass: float32 [B, R], log of the pointer's mass on the target; None without.
    """

    queries: jax.Array
    places: jax.Array
    scorer: ItemScorer
    gate_logits: jax.Array | None
    target_log_mass: jax.Array | None


class SpatiotemporalTransformer(nn.Module):
    """Scores what comes next for a person, a time and a place."""

    config: ModelConfig
    sizes: ModelSizes

    def setup(self) -> None:
        config, sizes = self.config, self.sizes
        self.items = ItemEmbedding(
            sizes.num_items, sizes.num_categories, config.width, config.use_place
        )
        self.events = EventEmbedding(config.width, sizes.contexts, config.use_time)
        self.event_dropout = nn.Dropout(config.dropout)
        self.blocks = [GatedBlock(config) for _ in range(config.num_layers)]
        self.decoder = Decoder(config, sizes.num_users)
        self.generate = GenerateHead(config, sizes.num_items, sizes.num_categories)
        if config.use_pointer:
            self.pointer = PointerHead(config)

    def __call__(
        self,
        catalogue: Catalogue,
        history: History,
        requests: Requests,
        *,
        deterministic: bool,
    ) -> Prediction:
        """The training view: every request's mixture, with the pointer's mass on its target."""
        states = self.encode(history, deterministic=deterministic)
        hidden, geometry = self._decode(states, history, requests, deterministic=deterministic)
        queries, gate_logits, scorer = self._score(catalogue, hidden)
        places = request_places(history, requests)
        if not self.config.use_pointer:
            return Prediction(queries, places, scorer, None, None)
        log_mass = self.pointer.log_mass(hidden, states, history.items, requests.targets, geometry)
        return Prediction(queries, places, scorer, gate_logits, log_mass)

    def item_probabilities(
        self, catalogue: Catalogue, history: History, requests: Requests, states: jax.Array
    ) -> jax.Array:
        """The serving view: p(item) of every request.

        Args:
          catalogue, history, requests: what is asked.
          states: float32 [B, S, E], of `encode` on this history; they serve any number of requests.

        Returns:
          float32 [B, R, V + 1], column 0 zero.
        """
        hidden, geometry = self._decode(states, history, requests, deterministic=True)
        queries, gate_logits, scorer = self._score(catalogue, hidden)
        places = request_places(history, requests)
        logits = scorer.logits(queries.reshape(-1, queries.shape[-1]), places.reshape(-1, 3))
        generated = jax.nn.softmax(logits).reshape(*queries.shape[:2], -1)
        generated = jnp.pad(generated, ((0, 0), (0, 0), (1, 0)))
        if not self.config.use_pointer:
            return generated
        gate = jax.nn.sigmoid(gate_logits)[..., None]
        pointed = self.pointer.item_mass(
            hidden, states, history.items, geometry, self.sizes.num_items + 1
        )
        return (gate * generated + (1 - gate) * pointed).at[..., 0].set(0.0)

    def encode(self, history: History, *, deterministic: bool) -> jax.Array:
        """States of the history, float32 [B, S, E]; row i depends on events up to i only."""
        x = self.items(history.items, history.categories, history.coords + history.origins)
        x = self.events(x, history.contexts, history.phases, history.gaps_s, history.segment_ids)
        x = self.event_dropout(x, deterministic=deterministic)
        geometry = _self_geometry(self.config, history)
        for block in self.blocks:
            x = block(x, None, geometry, deterministic=deterministic)
        return x

    def _score(
        self, catalogue: Catalogue, hidden: jax.Array
    ) -> tuple[jax.Array, jax.Array, ItemScorer]:
        ids = jnp.arange(1, self.sizes.num_items + 1)
        categories, coords = catalogue.categories[1:], catalogue.coords[1:]
        vectors = self.items(ids, categories, coords)
        return self.generate(hidden, vectors, categories, coords)

    def _decode(
        self, states: jax.Array, history: History, requests: Requests, *, deterministic: bool
    ) -> tuple[jax.Array, Geometry]:
        geometry = request_geometry(self.config, history, requests)
        hidden = self.decoder(states, history, requests, geometry, deterministic=deterministic)
        return hidden, geometry


def _self_geometry(config: ModelConfig, history: History) -> Geometry:
    """Every event towards the events before it."""
    times = history.times if config.use_time else None
    phases = history.phases if config.use_time else None
    coords = history.coords if config.use_place else None
    return Geometry(
        times=times,
        query_times=None,
        coords=coords,
        query_coords=None,
        phases=phases,
        query_phases=None,
        segment_ids=history.segment_ids,
        query_segment_ids=None,
        query_positions=None,
    )
