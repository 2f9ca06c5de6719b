"""What the flash kernels of both device backends are given, and how they multiply."""

import jax
import jax.numpy as jnp
from jax import lax

from stt_kernels.attention import geometry

NUMBERS = ("times", "phases", "positions", "segment_ids")


def whole_numbers(side: geometry.Side, num_rows: int, length: int) -> list[jax.Array]:
    """Gives `NUMBERS` of one side, each int32 [B, N]; what takes no part is 0, segments are 1."""
    side = geometry.number(side, length)
    segment_ids = side.segment_ids
    if segment_ids is None:
        segment_ids = jnp.ones((num_rows, length), jnp.int32)
    side = side._replace(segment_ids=segment_ids)
    absent = jnp.zeros((1, length), jnp.int32)
    columns = [getattr(side, name) for name in NUMBERS]
    columns = [absent if column is None else column for column in columns]
    return [jnp.broadcast_to(column, (num_rows, length)) for column in columns]


def pad(array: jax.Array, length: int, axis: int) -> jax.Array:
    """Adds zeros at the end of one axis, up to `length`."""
    widths = [(0, length - array.shape[axis] if a == axis else 0) for a in range(array.ndim)]
    return jnp.pad(array, widths)


def dot(a: jax.Array, b: jax.Array, contracted) -> jax.Array:
    """Multiplies in the inputs' dtype with float32 sums; float32 is not cut to fewer digits."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        a, b, (contracted, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )
