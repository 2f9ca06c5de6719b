"""One gated spatiotemporal block: E(x) = f_enc(x) * g_att(x, x')."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from stt_jax.batch import HOURS_PER_WEEK
from stt_jax.config import ModelConfig
from stt_jax.mesh import over_rows
from stt_jax.model.dropout import Dropout
from stt_jax.model.geometry import Geometry
from stt_kernels import spatiotemporal_attention

# Adam moves every parameter by about the learning rate a step, whatever its gradient. An offset of
# a logit has to move by several units, a weight by a tenth: in units of this, they learn as fast.
TABLE_SCALE = 10.0


@struct.dataclass
class Memory:
    """What a block attends to, [B, S, H, D] each. A row depends on its own event only."""

    keys: jax.Array
    values: jax.Array


class Encodings(nn.Module):
    """The learned tables of one attention: time gap, distance, hour-of-week difference, order.

    They start at zero, so that training begins from plain attention.
    """

    config: ModelConfig
    num_heads: int
    with_order: bool = False

    @nn.compact
    def __call__(self, geometry: Geometry) -> dict[str, Any]:
        """The keyword arguments of `stt_kernels` for this geometry."""

        def table(name: str, size: int) -> jax.Array:
            shape = (self.num_heads, size)
            return TABLE_SCALE * self.param(name, nn.initializers.zeros_init(), shape)

        arguments = {name: getattr(geometry, name) for name in Geometry.__dataclass_fields__}
        if geometry.times is not None:
            arguments["time_table"] = table("time_table", self.config.num_time_buckets)
        if geometry.coords is not None:
            arguments["space_table"] = table("space_table", self.config.num_space_buckets)
        if geometry.phases is not None:
            arguments["cycle_table"] = table("cycle_table", HOURS_PER_WEEK)
        if self.with_order:
            arguments["order_table"] = table("order_table", self.config.num_order_buckets)
        return arguments


def call_kernel(
    kernel: Callable[..., jax.Array],
    *arrays: jax.Array,
    config: ModelConfig,
    encodings: dict[str, Any],
    **sides: jax.Array,
) -> jax.Array:
    """Calls a function of `stt_kernels`, each device with its own rows of the batch.

    Args:
      kernel: which.
      *arrays: its positional arguments, [B, ...].
      config: names the backend.
      encodings: of `Encodings`.
      **sides: further arguments of the kernel, [B, ...].
    """
    tables = {name: value for name, value in encodings.items() if name.endswith("_table")}
    sides |= {name: value for name, value in encodings.items() if name not in tables}
    implementation = None if config.attention == "auto" else config.attention

    def of_rows(rows: Any, tables: dict[str, jax.Array]) -> jax.Array:
        arrays, sides = rows
        return kernel(*arrays, implementation=implementation, **sides, **tables)

    return over_rows(of_rows)((arrays, sides), tables)


def split_heads(vectors: jax.Array, config: ModelConfig) -> jax.Array:
    """[..., E] as [..., H, D]."""
    heads = config.num_heads
    return vectors.reshape(*vectors.shape[:-1], heads, config.width // heads)


class GatedBlock(nn.Module):
    """Attention over events, gated by the encoded query: f_enc(x) * g_att(x, x').

    f_enc(x) = SiLU(W_u norm(x)), g_att = norm(attention(q, k, v)); then a feed-forward layer.

    Source: the gated unit of HSTU (Zhai et al., ICML 2024, eq. 1-3: q, k, v, u through SiLU,
    output f(norm(att) * u)). Differs from it: softmax logits with time, distance and cycle
    encodings, queries that may come from another sequence (the decoder), a feed-forward layer.
    """

    config: ModelConfig

    def setup(self) -> None:
        config = self.config
        dtype = config.dtype
        self.norm, self.key_norm = nn.LayerNorm(dtype=dtype), nn.LayerNorm(dtype=dtype)
        # One product makes all that is made of the same events: they are read once.
        num_made = 2 if config.use_gate else 1
        self.query_gate = nn.Dense(num_made * config.width, dtype=dtype)
        self.key_value = nn.Dense(2 * config.width, dtype=dtype)
        self.encodings = Encodings(config, config.num_heads, with_order=config.use_order)

    def __call__(
        self,
        queries: jax.Array,
        keys: jax.Array | None,
        geometry: Geometry,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """One block.

        Args:
          queries: [B, L, E] in the config's dtype.
          keys: likewise [B, S, E] to attend to; None means the queries themselves.
          geometry: when and where both are.
          deterministic: True switches dropout off.

        Returns:
          As queries.
        """
        attended_to = self.own_memory(queries) if keys is None else self.memory(keys)
        return self.attend(queries, attended_to, geometry, deterministic=deterministic)

    def own_memory(self, queries: jax.Array) -> Memory:
        """What later events attend to of events [B, L, E] that this block also queries with."""
        return self._memory(self.norm(queries))

    def memory(self, keys: jax.Array) -> Memory:
        """What queries of another sequence attend to of [B, S, E]."""
        return self._memory(self.key_norm(keys))

    @nn.compact
    def attend(
        self, queries: jax.Array, memory: Memory, geometry: Geometry, *, deterministic: bool
    ) -> jax.Array:
        """The block with its keys and values given, so that they can be kept: see `__call__`."""
        config = self.config
        dense = functools.partial(nn.Dense, dtype=config.dtype)
        norm = functools.partial(nn.LayerNorm, dtype=config.dtype)
        query, *gates = self._made(self.query_gate, self.norm(queries))
        attended = call_kernel(
            spatiotemporal_attention,
            split_heads(query, config),
            memory.keys,
            memory.values,
            config=config,
            encodings=self.encodings(geometry),
        )
        gated = norm(name="attended_norm")(attended.reshape(queries.shape))
        for gate in gates:
            gated = gated * gate
        update = dense(config.width, name="out")(gated)
        x = queries + Dropout(config.dropout)(update, deterministic=deterministic)

        hidden = nn.silu(dense(2 * config.width, name="wide")(norm(name="mlp_norm")(x)))
        hidden = Dropout(config.dropout)(hidden, deterministic=deterministic)
        update = dense(config.width, name="narrow")(hidden)
        return x + Dropout(config.dropout)(update, deterministic=deterministic)

    def _memory(self, normed: jax.Array) -> Memory:
        keys, values = self._made(self.key_value, normed)
        return Memory(split_heads(keys, self.config), split_heads(values, self.config))

    def _made(self, dense: nn.Dense, normed: jax.Array) -> list[jax.Array]:
        """What a dense layer makes of events, [B, N, E] each."""
        made = nn.silu(dense(normed))
        return jnp.split(made, made.shape[-1] // self.config.width, axis=-1)
