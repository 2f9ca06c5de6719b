"""What is kept of encoded histories, so that one more event costs one token and not a history.

A cache is a table: P people with room for S events each. Row i of a person is written once, when
their i-th event arrives, and depends on the events 0..i only, because history rows are anchored at
their own time and never see a request. What a model keeps, and all that it may use of the past:

- the events themselves (`history`): times, phases, places and segment ids enter the logits, items
  the pointer, and the last item is the "item before" of the next event;
- keys and values of every block, of the decoder, and the pointer's keys;
- the encoded states, the last of which a request starts from.

Whatever else of the past a change to the model lets an event or a request see has to be kept here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from stt_jax.batch import History
from stt_jax.config import ModelConfig
from stt_jax.model.block import Memory


@struct.dataclass
class Cache:
    """Encoded histories of P people with room for S events each; a pytree.

    Attributes:
      history: every array [P, S, ...]; `segment_ids` is 1 where an event is, 0 where there is room.
      states: [P, S, E] in the config's dtype, of the last block.
      blocks: one `Memory` [P, S, H, D] a block.
      decoder: `Memory` [P, S, H, D].
      pointer_keys: [P, S, H, D]; None without a pointer.
    """

    history: History
    states: jax.Array
    blocks: tuple[Memory, ...]
    decoder: Memory
    pointer_keys: jax.Array | None

    @property
    def capacity(self) -> int:
        """S, events that a person has room for."""
        return self.states.shape[1]

    def of(self, rows: jax.Array) -> Cache:
        """The cache of the people in `rows`, int32 [B]."""
        return jax.tree.map(lambda kept: kept[rows], self)

    def cleared(self, rows: jax.Array) -> Cache:
        """Forgets the people in `rows`: what is left of their events can no longer be seen."""
        segment_ids = self.history.segment_ids.at[rows].set(0, mode="drop")
        history = dataclasses.replace(self.history, segment_ids=segment_ids)
        return dataclasses.replace(self, history=history)


def empty_cache(
    config: ModelConfig,
    context_names: tuple[str, ...],
    number_names: tuple[str, ...],
    traits: dict[str, int],
    num_people: int,
    capacity: int,
) -> Cache:
    """A cache without events: P = `num_people`, S = `capacity`, `traits` their M by name."""
    shape = (num_people, capacity)

    def full(value: float, dtype: Any, *rest: int) -> jax.Array:
        return jnp.full((*shape, *rest), value, dtype)

    def memory() -> Memory:
        return Memory(vectors(), vectors())

    def vectors() -> jax.Array:
        return full(0, config.dtype, config.num_heads, config.width // config.num_heads)

    history = History(
        items=full(0, jnp.int32),
        categories=full(0, jnp.int32),
        contexts={name: full(0, jnp.int32) for name in context_names},
        numbers={name: full(0, jnp.float32) for name in number_names},
        traits={name: full(0, jnp.int32, most) for name, most in traits.items()},
        times=full(0, jnp.int32),
        gaps_s=full(-1, jnp.int32),
        phases=full(-1, jnp.int32),
        coords=full(jnp.nan, jnp.float32, 3),
        origins=full(0, jnp.float32, 3),
        segment_ids=full(0, jnp.int32),
    )
    return Cache(
        history=history,
        states=full(0, config.dtype, config.width),
        blocks=tuple(memory() for _ in range(config.num_layers)),
        decoder=memory(),
        pointer_keys=vectors() if config.use_pointer else None,
    )
