"""Keeping XLA's CPU compiler from working a result out again in everything that uses it."""

import jax
import jax.numpy as jnp
from jax import lax


def materialised(function, *args):
    """Runs `function(*args)` so that on CPU its results are stored once, whoever uses them.

    XLA fuses what it thinks cheap into each user, and a table look-up with all the geometry behind
    its index counts as cheap: it was worked out for every head, and again for the maximum, the
    exponential and the scatter. An optimization barrier does not help, for it is taken out before
    fusion; a conditional stays. Only look-ups are worth it: a product behind a conditional can't
    be fused with the softmax after it. Elsewhere than on CPU nothing is wrapped.
    """
    if jax.default_backend() != "cpu":
        return function(*args)
    shapes = jax.eval_shape(function, *args)

    def never(*_):
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    first = jax.tree.leaves(args)[0]
    bits = lax.bitcast_convert_type(first[(0,) * first.ndim], jnp.uint8).ravel()[0]
    always = (bits & jnp.uint8(1)) < jnp.uint8(2)  # true, but the compiler does not find out
    return lax.cond(always, function, never, *args)
