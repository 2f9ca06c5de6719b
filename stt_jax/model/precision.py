"""float32 that is float32 on every device: the same numbers on a laptop, a GPU and a TPU.

Left to itself, JAX multiplies float32 in fewer digits where the hardware has a faster way (TF32 on
GPUs, bfloat16 on TPUs). `--dtype=bfloat16` is how to ask for that here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

_Function = TypeVar("_Function", bound=Callable[..., Any])


def exact_products(function: _Function) -> _Function:
    """Makes the float32 products that a function traces keep all their digits, gradients' too."""

    @functools.wraps(function)
    def traced(*args: Any, **options: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args, **options)

    return traced  # type: ignore[return-value]


@jax.custom_vjp
def products(queries: jax.Array, vectors: jax.Array) -> jax.Array:
    """Inner products of all pairs, float32 [N, V], of [N, E] and [V, E] in one dtype.

    The gradients multiply in that dtype, too, with float32 sums: left to itself, JAX takes the
    float32 gradient of a bfloat16 product and the other side as float32, and in all its digits.
    """
    return _sum_products("ne,ve->nv", queries, vectors)


def _products_forward(queries: jax.Array, vectors: jax.Array) -> tuple[jax.Array, Any]:
    return products(queries, vectors), (queries, vectors)


def _products_backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    queries, vectors = saved
    gradient = gradient.astype(queries.dtype)
    of_queries = _sum_products("nv,ve->ne", gradient, vectors)
    of_vectors = _sum_products("nv,ne->ve", gradient, queries)
    return of_queries.astype(queries.dtype), of_vectors.astype(vectors.dtype)


products.defvjp(_products_forward, _products_backward)


@exact_products
def _sum_products(equation: str, *arrays: jax.Array) -> jax.Array:
    return jnp.einsum(equation, *arrays, preferred_element_type=jnp.float32)
