"""Dropout whose mask costs a few integer operations an element, on any mesh.

`flax.linen.Dropout` draws its mask with Threefry, a cipher of 20 rounds: on a CPU that was a tenth
of the training step. A mask needs no cipher, only bits that look independent. Here element n of a
draw is a hash of n and of two words that Threefry drew from the step's key; it depends on nothing
else, so every device makes its own part and all meshes drop the same elements.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Dropout(nn.Module):
    """As `flax.linen.Dropout`: zeroes a fraction `rate` of the elements, scales up the others."""

    rate: float

    @nn.compact
    def __call__(self, inputs: jax.Array, *, deterministic: bool) -> jax.Array:
        """Drops, or gives back `inputs` if `deterministic`; needs the random stream "dropout"."""
        if deterministic or self.rate == 0:
            return inputs
        words = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
        dropped = hashed_bits(words, inputs.shape) < np.uint32(
            min(round(self.rate * 2**32), 2**32 - 1)
        )
        return jnp.where(dropped, jnp.zeros((), inputs.dtype), inputs / (1 - self.rate))


def hashed_bits(words: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Bits that look random, uint32 of `shape`.

    Args:
      words: uint32 [2], drawn anew for every use: keys that differ in a bit or two make bits alike.
      shape: of the result; beyond 2**32 elements the bits come round again.

    Source: the finaliser of MurmurHash3 (A. Appleby, public domain). Differs from it: a keyed
    multiple of the element's number goes in, and the second word of the key between its two
    multiplications.
    """
    numbers = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        numbers = numbers + stride * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    bits = numbers * np.uint32(0x9E3779B1) + words[0]
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    bits = bits ^ words[1]
    bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> np.uint32(16))
