"""The whole model: event embedding, gated blocks, decoder, generating and pointing head.

History rows are anchored at their own time and see only earlier events of their segment, so what
is encoded does not depend on the request and can be kept; the request's time and place enter
through the decoder and the pointer, and may be unknown.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from stt_jax.batch import Catalogue, History, Requests, table_rows
from stt_jax.config import DOMAIN, ModelConfig
from stt_jax.model import crowd, sources
from stt_jax.model.block import GatedBlock
from stt_jax.model.cache import Cache
from stt_jax.model.decoder import Decoder
from stt_jax.model.dropout import Dropout
from stt_jax.model.embedding import EventEmbedding, ItemEmbedding
from stt_jax.model.geometry import (
    event_geometry,
    request_geometry,
    request_places,
    self_geometry,
)
from stt_jax.model.head import GenerateHead, ItemScorer, Mixer, Pointer, PointerKeys, item_mass
from stt_jax.model.mixture import Answer, Prediction
from stt_jax.model.precision import exact_products
from stt_jax.model.segments import previous_in_segment

_TINY = 1e-30  # no probability, as a number to divide by


@dataclasses.dataclass(frozen=True)
class ModelSizes:
    """What the vocabularies fix: counts without the unknown, which every table has as row 0."""

    num_items: int
    num_categories: int
    num_users: int
    contexts: tuple[tuple[str, int], ...]
    item_traits: tuple[tuple[str, int, int], ...] = ()  # (name, values, most that an item has)
    user_traits: tuple[tuple[str, int], ...] = ()
    numbers: tuple[str, ...] = ()  # numeric columns of the events, in the order of their names

    @property
    def num_domains(self) -> int:
        """D; 0 = the log has none."""
        return next((size for name, size, _ in self.item_traits if name == DOMAIN), 0)


class SpatiotemporalTransformer(nn.Module):
    """Scores what comes next for a person, a time and a place."""

    config: ModelConfig
    sizes: ModelSizes

    def setup(self) -> None:
        config, sizes = self.config, self.sizes
        self.items = ItemEmbedding(
            sizes.num_items,
            sizes.num_categories,
            tuple(
                (name, size)
                for name, size, _ in sizes.item_traits
                if config.use_traits or name == DOMAIN
            ),
            config.width,
            config.use_place,
            config.dtype,
        )
        self.events = EventEmbedding(
            config.width,
            sizes.contexts,
            sizes.numbers,
            config.use_time,
            config.use_event_norm,
            config.dtype,
        )
        self.event_dropout = Dropout(config.dropout)
        self.blocks = [GatedBlock(config) for _ in range(config.num_layers)]
        self.decoder = Decoder(
            config,
            sizes.num_users,
            sizes.user_traits if config.use_traits else (),
            sizes.num_domains,
        )
        self.generate = GenerateHead(config, sizes.num_items, sizes.num_categories)
        if config.use_pointer:
            self.pointer_keys = PointerKeys(config)
            self.pointers = {name: Pointer(config, name=name) for name in self.pointer_names}
        self.mixer = Mixer(len(self.pointer_names) + crowd.num_sources(config))
        if config.use_boost:
            self.booster = crowd.Booster(crowd.num_sources(config))

    @property
    def pointer_names(self) -> tuple[str, ...]:
        """Of the pointers, in the order of their gates."""
        if not self.config.use_pointer:
            return ()
        return ("pointer", "sequel") if self.config.use_sequel else ("pointer",)

    @exact_products
    def __call__(
        self,
        catalogue: Catalogue,
        history: History,
        requests: Requests,
        *,
        deterministic: bool,
    ) -> Prediction:
        """The training view: every request's mixture, with the pointers' mass on its target."""
        hidden_ids = None
        if self.config.id_dropout and not deterministic:
            hidden_ids = jax.random.bernoulli(
                self.make_rng("dropout"),
                self.config.id_dropout,
                (table_rows(self.sizes.num_items),),
            )
        states = self.encode(history, deterministic=deterministic, hidden_ids=hidden_ids)
        memory = self.decoder.memory(states)
        hidden, geometry = sources.decode(
            self, states, memory, history, requests, deterministic=deterministic
        )
        queries = self.generate(hidden)
        geometries, counts = sources.pointed_at(self, history, requests, geometry)
        masses = []
        if self.pointer_names:
            keys = self.pointer_keys(states)
            masses = [
                self.pointers[name].log_mass(
                    hidden, keys, history.items, requests.targets, geometries[name]
                )
                for name in self.pointer_names
            ]
        candidates = crowd.find_sources(self.config, catalogue, history, requests, held_out=True)
        counts += [named.counts for named in candidates]
        masses += crowd.target_log_masses(candidates, requests.targets)
        return Prediction(
            queries,
            request_places(history, requests),
            self.item_scorer(catalogue, hidden_ids),
            self.mixer(queries, sources.stack(counts, queries)),
            sources.stack(masses, queries),
            sources.boosts(self, queries, candidates),
        )

    @exact_products
    def item_probabilities(
        self, catalogue: Catalogue, history: History, requests: Requests, states: jax.Array
    ) -> jax.Array:
        """The serving view: p(item) of every request.

        Args:
          catalogue, history, requests: what is asked.
          states: [B, S, E], of `encode` on this history; they serve any number of requests.

        Returns:
          float32 [B, R, rows], a column a row of the catalogue; zero where that is no item. Where a
          request names domains, of the items in those.
        """
        answer = sources.answer(self, self._encoded(history, states), catalogue, requests)
        logits = self._logits(answer.queries, answer.places, catalogue)
        if answer.boosts is not None:
            logits = logits + answer.boosts.dense(logits.shape[-1])
        generated = jax.nn.softmax(logits)
        named = item_mass(answer.masses, answer.items, generated.shape[-1])
        mixture = answer.gates[..., None] * generated + named
        mixture = jnp.where(catalogue.is_item[None, None], mixture, 0.0)
        wanted = wanted_items(catalogue, requests)
        if wanted is None:
            return mixture
        mixture = jnp.where(wanted, mixture, 0.0)
        return mixture / jnp.maximum(mixture.sum(axis=-1, keepdims=True), _TINY)

    @exact_products
    def source_masses(
        self, catalogue: Catalogue, history: History, requests: Requests, states: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """`item_probabilities` before the mixture's sources are summed, whatever domain is named.

        Returns:
          (log_gates, masses), float32 [B, R, N] and [B, R, N, rows]: the weights of the sources,
          and how probable each item is by it. Those with a gate of their own come first, as they
          lie in the gate: generating, the pointers, the crowd. Then habits, if there are any.
        """
        asked = sources.ask(self, self._encoded(history, states), catalogue, requests)
        logits = self._logits(asked.queries, request_places(history, requests), catalogue)
        if asked.boosts is not None:
            logits = logits + asked.boosts.dense(logits.shape[-1])
        masses = [jax.nn.softmax(logits)]
        for pointed in asked.pointed:
            items = jnp.broadcast_to(history.items[:, None], pointed.shape)
            masses.append(item_mass(pointed, items, logits.shape[-1]))
        for named in asked.sources:
            masses.append(item_mass(named.shares, named.items, logits.shape[-1]))
        log_gates = asked.log_gates
        if asked.habits is not None:
            items = jnp.broadcast_to(history.items[:, None], asked.habits.shape)
            share = jnp.maximum(asked.habits.sum(axis=-1, keepdims=True), _TINY)
            masses.append(item_mass(asked.habits / share, items, logits.shape[-1]))
            log_gates = jnp.concatenate([log_gates, jnp.log(share)], axis=-1)
        is_item = catalogue.is_item[None, None, None]
        return log_gates, jnp.where(is_item, jnp.stack(masses, axis=2), 0.0)

    @exact_products
    def encode(
        self, history: History, *, deterministic: bool, hidden_ids: jax.Array | None = None
    ) -> jax.Array:
        """States of the history, [B, S, E] in the dtype; row i depends on events up to i only.

        `hidden_ids`, bool [rows], are items that are taken for unknown but for their content.
        """
        vectors = self._item_vectors(history, hidden_ids)
        x = self._embed(history, vectors, previous_in_segment(vectors, history.segment_ids))
        x = self.event_dropout(x, deterministic=deterministic)
        geometry = self_geometry(self.config, history)

        def run(block: GatedBlock, x: jax.Array) -> jax.Array:
            return block(x, None, geometry, deterministic=deterministic)

        if self.config.remat:
            run = nn.remat(run)
        for block in self.blocks:
            x = run(block, x)
        return x

    @exact_products
    def extend(
        self, cache: Cache, rows: jax.Array, starts: jax.Array | None, events: History
    ) -> Cache:
        """Encodes further events of some people and keeps what they leave behind.

        Args:
          cache: encoded histories of P people.
          rows: int32 [B], which people, each once.
          starts: int32 [B], how many events each has in the cache; None = none has any.
          events: [B, N], oldest first, `segment_ids` 1 and then 0 for padding. Times and coords
            count from the origins of the events in the cache. There has to be room for them.

        Returns:
          The cache with the events, as if everything had been encoded at once.
        """
        # A run of before this model read numbers keeps none, whatever its log has.
        numbers = {name: events.numbers[name] for name in self.sizes.numbers}
        events = dataclasses.replace(events, numbers=numbers)
        places = jnp.arange(events.items.shape[1])[None] + (
            jnp.zeros((rows.shape[0], 1), jnp.int32) if starts is None else starts[:, None]
        )
        slots = jnp.where(events.segment_ids > 0, places, cache.capacity)

        def put(kept: Any, new: Any) -> Any:
            # Written first and read from the result, so that XLA can write in place.
            return jax.tree.map(
                lambda old, one: old.at[rows[:, None], slots].set(one, mode="drop"), kept, new
            )

        vectors = self._item_vectors(events)
        if starts is None:
            before = jnp.zeros_like(vectors[:, :1])
        else:
            last = jax.tree.map(
                lambda kept: kept[rows, jnp.maximum(starts - 1, 0)][:, None], cache.history
            )
            before = jnp.where(starts[:, None, None] > 0, self._item_vectors(last), 0.0)
        x = self._embed(events, vectors, jnp.concatenate([before, vectors[:, :-1]], axis=1))
        history = put(cache.history, events)
        # The causal half of a whole row that starts at 0 is known before the data.
        is_whole = starts is None and events.items.shape[1] == cache.capacity
        geometry = event_geometry(
            self.config,
            jax.tree.map(lambda kept: kept[rows], history),
            events,
            None if is_whole else places,
        )
        blocks = []
        for block, kept in zip(self.blocks, cache.blocks, strict=True):
            kept = put(kept, block.own_memory(x))
            seen = jax.tree.map(lambda vectors: vectors[rows], kept)
            x = block.attend(x, seen, geometry, deterministic=True)
            blocks.append(kept)
        keys = cache.pointer_keys
        return Cache(
            history=history,
            states=put(cache.states, x),
            blocks=tuple(blocks),
            decoder=put(cache.decoder, self.decoder.memory(x)),
            pointer_keys=None if keys is None else put(keys, self.pointer_keys(x)),
        )

    @exact_products
    def answer(
        self, catalogue: Catalogue, cache: Cache, rows: jax.Array, requests: Requests
    ) -> Answer:
        """What requests [B, R] to the people in `rows` of a cache are to be scored with."""
        kept = cache.of(rows)
        encoded = sources.Encoded(kept.history, kept.states, kept.decoder, kept.pointer_keys)
        return sources.answer(self, encoded, catalogue, requests)

    @exact_products
    def explain(
        self, catalogue: Catalogue, cache: Cache, rows: jax.Array, requests: Requests
    ) -> tuple[Answer, dict[str, jax.Array]]:
        """`answer`, and what time and distance add to the first pointer's logits, [B, R, S]."""
        answer = self.answer(catalogue, cache, rows, requests)
        if not self.config.use_pointer:
            return answer, {}
        history = jax.tree.map(lambda kept: kept[rows], cache.history)
        geometry = request_geometry(self.config, history, requests)
        return answer, self.pointers["pointer"].contributions(geometry)

    @exact_products
    def item_scorer(self, catalogue: Catalogue, hidden_ids: jax.Array | None = None) -> ItemScorer:
        """Scores of the catalogue; depends on no request, so a service makes it once.

        The catalogue may have more items than the model was trained on, behind those it was.
        """
        shown = jnp.arange(catalogue.is_item.shape[0]) <= self.sizes.num_items
        if hidden_ids is not None:
            shown = shown & ~hidden_ids
        vectors = self.items.catalogue_vectors(catalogue, shown)
        return self.generate.scorer(vectors, shown, catalogue)

    def _item_vectors(self, history: History, hidden_ids: jax.Array | None = None) -> jax.Array:
        coords = history.coords + history.origins
        return self.items(history.items, history.categories, history.traits, coords, hidden_ids)

    def _embed(self, history: History, vectors: jax.Array, before: jax.Array) -> jax.Array:
        return self.events(
            vectors, before, history.contexts, history.numbers, history.phases, history.gaps_s
        )

    def _encoded(self, history: History, states: jax.Array) -> sources.Encoded:
        keys = self.pointer_keys(states) if self.config.use_pointer else None
        return sources.Encoded(history, states, self.decoder.memory(states), keys)

    def _logits(self, queries: jax.Array, places: jax.Array, catalogue: Catalogue) -> jax.Array:
        """Of generating every item, without boosts, float32 [B, R, rows]."""
        scorer = self.item_scorer(catalogue)
        logits = scorer.logits(queries.reshape(-1, queries.shape[-1]), places.reshape(-1, 3))
        return logits.reshape(*queries.shape[:2], -1)


def wanted_items(catalogue: Catalogue, requests: Requests) -> jax.Array | None:
    """bool [B, R, rows], items of the domains that a request names; None = the log has no domains.

    An item of unknown domain is wanted where every domain is.
    """
    if requests.domains is None:
        return None
    every = requests.domains.all(axis=-1, keepdims=True)
    wanted = jnp.concatenate([every, requests.domains], axis=-1)
    return jnp.take(wanted, catalogue.traits[DOMAIN][:, 0], axis=-1)
