"""The request (who, when, where) asks the encoded history."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from stt_jax.batch import History, Requests, table_rows
from stt_jax.config import ModelConfig
from stt_jax.model.block import GatedBlock, Memory
from stt_jax.model.dropout import Dropout
from stt_jax.model.embedding import GapEmbedding, TimeOfWeekEmbedding, place_features
from stt_jax.model.geometry import Geometry, request_places


def _wanted_vectors(table: jax.Array, domains: jax.Array) -> jax.Array:
    """Vectors of the domains that requests name: row 0 where every one will do, else the mean.

    Args:
      table: [D + 1, E].
      domains: bool [B, R, D].
    """
    wanted = domains.astype(table.dtype)
    named = wanted @ table[1:] / jnp.maximum(wanted.sum(axis=-1, keepdims=True), 1.0)
    return jnp.where(domains.all(axis=-1, keepdims=True), table[0], named)


class Decoder(nn.Module):
    """One gated block whose query is the person's last state, the person and the request."""

    config: ModelConfig
    num_users: int
    user_traits: tuple[tuple[str, int], ...]
    num_domains: int = 0

    def setup(self) -> None:
        self.block = GatedBlock(self.config)

    def memory(self, states: jax.Array) -> Memory:
        """What requests attend to of the encoded history [B, S, E]."""
        return self.block.memory(states)

    @nn.compact
    def __call__(
        self,
        states: jax.Array,
        memory: Memory,
        history: History,
        requests: Requests,
        geometry: Geometry,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """States [B, S, E], their `memory`, and requests [B, R] -> [B, R, E]."""
        config = self.config
        last = jnp.maximum(requests.last_tokens, 0)
        has_history = requests.last_tokens >= 0
        last_states = jnp.take_along_axis(states, last[..., None], axis=1)
        nobody = self.param("no_history", nn.initializers.normal(0.02), (config.width,))
        nobody = nobody[None, None].astype(config.dtype)
        query = jnp.where(has_history[..., None], last_states, nobody)
        if config.use_person:
            people = self.param(
                "people", nn.initializers.normal(0.02), (table_rows(self.num_users), config.width)
            )
            users = requests.users
            if config.id_dropout and not deterministic:
                rate, rows = config.id_dropout, (people.shape[0],)
                hidden = jax.random.bernoulli(self.make_rng("dropout"), rate, rows)
                users = jnp.where(hidden[users], 0, users)
            query = query + people[users].astype(config.dtype)
        for name, size in self.user_traits:
            shape = (size + 1, config.width)
            table = self.param(f"trait_{name}", nn.initializers.normal(0.02), shape)
            query = query + table[requests.traits[name]].astype(config.dtype)
        if self.num_domains:
            shape = (self.num_domains + 1, config.width)
            table = self.param("domains", nn.initializers.normal(0.02), shape).astype(config.dtype)
            query = query + _wanted_vectors(table, requests.domains)
        if config.use_time:
            phases = jnp.where(requests.time_known, requests.phases, -1)
            query = query + TimeOfWeekEmbedding(config.width, config.dtype, name="time_of_week")(
                phases
            )
            waited = requests.times - jnp.take_along_axis(history.times, last, axis=1)
            gap_known = requests.time_known & has_history
            waited = jnp.where(gap_known, jnp.maximum(waited, 0), -1)
            query = query + GapEmbedding(config.width, config.dtype, name="gap")(waited)
        if config.use_place:
            features = place_features(request_places(history, requests))
            dense = nn.Dense(config.width, use_bias=False, dtype=config.dtype, name="place")
            query = query + dense(features)
        query = Dropout(config.dropout)(query, deterministic=deterministic)
        if not config.use_decoder:
            return query
        return self.block.attend(query, memory, geometry, deterministic=deterministic)
