"""Hidden state -> item scores: generate from the catalogue, or point at the own history.

    p(item) = g * softmax(h E^T + b)[item] + (1 - g) * sum_j a_j [item_j = item],  g = sigmoid(w h)

Training needs the pointer's mass on one item a request (`pointer_log_mass`, linear memory);
serving spreads it over the catalogue.

Source: pointer-generator networks (See et al., ACL 2017, eq. 9). Differs from it: the pointer is
an attention of its own with time, distance and hour-of-week encodings.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from stt_kernels import attention_weights, pointer_log_mass

from stt_jax.batch import History
from stt_jax.config import ModelConfig
from stt_jax.model.block import Encodings, Geometry, implementation


_NEVER = -1e9


class PointerHead(nn.Module):
    """Attention over the own history whose weights are probabilities of its items."""

    config: ModelConfig

    def setup(self) -> None:
        self.query_norm = nn.LayerNorm()
        self.key_norm = nn.LayerNorm()
        self.query = nn.Dense(self.config.width)
        self.key = nn.Dense(self.config.width)
        self.encodings = Encodings(self.config, self.config.num_heads)

    def _attention_inputs(
        self, hidden: jax.Array, states: jax.Array, geometry: Geometry
    ) -> tuple[jax.Array, jax.Array, dict]:
        heads = self.config.num_heads

        def split(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:-1], heads, self.config.width // heads)

        query = split(self.query(self.query_norm(hidden)))
        key = split(self.key(self.key_norm(states)))
        return query, key, self.encodings(geometry)

    def log_mass(
        self,
        hidden: jax.Array,
        states: jax.Array,
        items: jax.Array,
        targets: jax.Array,
        geometry: Geometry,
    ) -> jax.Array:
        """Log of the pointer's mass on each request's target, float32 [B, R]."""
        query, key, arguments = self._attention_inputs(hidden, states, geometry)
        return pointer_log_mass(
            query,
            key,
            ids=items,
            target_ids=targets,
            implementation=implementation(self.config),
            **arguments,
        )

    def item_mass(
        self,
        hidden: jax.Array,
        states: jax.Array,
        items: jax.Array,
        geometry: Geometry,
        num_rows: int,
    ) -> jax.Array:
        """The pointer's mass on every item, float32 [B, R, V + 1]."""
        query, key, arguments = self._attention_inputs(hidden, states, geometry)
        weights = attention_weights(query, key, **arguments).mean(axis=1)  # [B, R, S]

        def spread(row_weights: jax.Array, row_items: jax.Array) -> jax.Array:
            empty = jnp.zeros((row_weights.shape[0], num_rows), jnp.float32)
            return empty.at[:, row_items].add(row_weights)

        return jax.vmap(spread)(weights, items)


class GenerateHead(nn.Module):
    """The catalogue's side of the head: what to compare item vectors with, and the gate."""

    num_items: int

    @nn.compact
    def __call__(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Turns hidden states float32 [..., E] into the parts of the catalogue's scores.

        Returns:
          (queries [..., E], item_bias [V + 1], gate_logits [...]): logits are
          `queries @ item_vectors.T + item_bias`; the gate is the log-odds of generating.
        """
        queries = nn.LayerNorm(name="norm")(hidden)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_items + 1,))
        # The unknown item is never generated. Finite, so that no gradient meets inf - inf.
        item_bias = jnp.where(jnp.arange(self.num_items + 1) == 0, _NEVER, bias)
        return queries, item_bias, nn.Dense(1, name="gate")(queries)[..., 0]
